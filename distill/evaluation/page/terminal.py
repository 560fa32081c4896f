"""The report as a terminal shows it.

In: a report, also one of an earlier version. Out: tables and sentences. Computes nothing.
"""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from conversations.messages import Json
from conversations.releases import STARTED_FROM_BASE
from distill.evaluation.page.words import (
    LOAD_TITLES,
    kept_of,
    load_lines,
    notes_of,
    part,
    reasons_of,
    sections,
    target_lines,
    target_reasons,
    titles_of,
)


def printed(report: Mapping[str, Json]) -> RenderableType:
    """Return the report as a terminal shows it."""
    table = Table(title=f"Run {report['run_id']}, test edition {report['test_edition']}", title_justify="left")
    table.add_column("")
    for title in titles_of(report):
        table.add_column(title, justify="right")
    for section in sections(report):
        table.add_section()
        table.add_row(Text(section.title, style="bold"))
        for line in section.lines:
            table.add_row(line.title, *map(str, line.cells))
    lines: list[RenderableType] = [table]
    lines += _targets(report)
    if report.get("load"):
        lines.append(load_table(report["load"]))
    lines.append(Text(f"Kept of the teacher's {report['quality_metric']}: {kept_of(report)}"))
    # A report of an earlier version says nothing of it: every training started from the base then.
    started = report.get("started_from") or STARTED_FROM_BASE
    lines.append(Text(f"Gate: {part(report.get('gate')).get('outcome', 'not asked')}", style="bold"))
    lines += [Text(f"  - {reason}") for reason in reasons_of(report)]
    lines.append(Text(f"Release: {report['release_id']}, started from {started}   Folder: {report['run_path']}"))
    lines += [Text(f"* {note}", style="dim") for note in notes_of(report)]
    return Group(*lines)


def _targets(report: Mapping[str, Json]) -> list[RenderableType]:
    aims = target_lines(report)
    if not aims:
        return []
    table = Table(title="Against the published targets", title_justify="left")
    for title in ("", "aim", "teacher", "new student", "change", "", "on a GPU"):
        table.add_column(title, justify="left" if not title else "right")
    for each in aims:
        table.add_row(each.title, each.aim, each.teacher, each.student, each.change, each.outcome, each.on_gpu)
    return [table, *(Text(f"  {reason}", style="dim") for reason in target_reasons(report))]


def load_table(load: Json) -> Table:
    """Return what each student bore under load, as a report holds it."""
    table = Table(title="Under load", title_justify="left")
    for title in LOAD_TITLES:
        table.add_column(title, justify="left" if title == LOAD_TITLES[0] else "right")
    for row in load_lines(load):
        table.add_row(*row)
    return table
