"""The commands of `distill` that measure: evaluate with its load test, and the report; and how a stage is done by a command.

In: options and the record. Out: rows and figures in the run's folder, shown. Decides nothing about releases.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conversations.settings import read_settings
from conversations.store import Record, open_existing
from distill.cycle import newest_complete_run, perform_stage
from distill.run import Stage, open_run
from distill.settings import DistillSettings
from distill.terminal import (
    AsJson,
    RunName,
    SettingsFile,
    note,
    print_json,
    print_manifest,
    print_report,
    progress,
    say,
    say_table,
)

if TYPE_CHECKING:
    from distill.evaluation.answering.load import LoadTest


def add_evaluate(app: typer.Typer) -> None:
    """Add the command of the stage that measures."""
    app.command()(evaluate)


def add_report(app: typer.Typer) -> None:
    """Add the command that shows what was measured."""
    app.command()(report)


def perform_and_say(stage: Stage, run: str, settings: Path | None, as_json: bool) -> None:
    """Do one stage of a run, and print what it left behind."""
    read = read_settings(DistillSettings, settings)
    with Record(read.record.path) as record, progress() as announce, open_run(record, read, run, announce) as opened:
        manifest = perform_stage(opened, stage)
    print_manifest(manifest, as_json)
    if stage is Stage.ASSEMBLE and not as_json:
        say(f"the data card: {opened.folder / stage / 'data_card.html'}")


def evaluate(
    run: RunName,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    load: Annotated[
        bool,
        typer.Option("--load", help="Measure what the loaded students of a finished run bear: minutes, outside the cycle."),
    ] = False,
) -> None:
    """Measure candidate, released student, base and teacher."""
    if not load:
        perform_and_say(Stage.EVALUATE, run, settings, as_json)
        return
    read = read_settings(DistillSettings, settings)
    from conversations import runs
    from distill.evaluation.answering.load import measure_load
    from distill.evaluation.report import REPORT_FILE, finished_run, renew_report

    with open_existing(read.record.path) as record, progress() as announce:
        finished = finished_run(record, read, runs.run(record, run))
        found = measure_load(finished, read.evaluate.load_levels, read.evaluate.load_seconds, announce)
        if (finished.folder / REPORT_FILE).is_file():
            renew_report(finished)
    if as_json:
        print_json({"run_id": run, "not_loaded": list(found.not_loaded), "rows": [asdict(row) for row in found.rows]})
        return
    _say_load(found)


def report(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="The run (else the newest complete one).")] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compute every figure again from the stored rows, and compare; nothing is written."),
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Compute the report anew from the stored rows, and write it.")
    ] = False,
) -> None:
    """Show a run's report; the page beside it is report.html in the run's folder."""
    read = read_settings(DistillSettings, settings)
    from conversations import runs
    from distill.evaluation.report import check_report, finished_run, read_report, renew_report

    with open_existing(read.record.path) as record:
        known = runs.run(record, run) if run else newest_complete_run(record)
        if renew:
            renew_report(finished_run(record, read, known))
        compared = check_report(finished_run(record, read, known)) if check else None
    print_report(read_report(Path(known.path)), as_json)
    if compared is not None:
        note(f"{compared} figures and names computed again from the stored rows: they are the report's")


def _say_load(found: "LoadTest") -> None:
    from distill.evaluation.page.terminal import load_table

    say_table(load_table([asdict(row) for row in found.rows]))
    if found.not_loaded:
        say(f"not measured, because no server has it: {', '.join(found.not_loaded)}")
