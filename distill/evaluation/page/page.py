"""The report as one page that needs nothing else: no script, no picture and no style from elsewhere.

In: a run and its report. Out: HTML. Every number on it is the report's, but for the single cases, which only the rows hold.
"""

from collections.abc import Mapping

import jinja2
from markupsafe import Markup

from conversations.messages import Json
from distill.evaluation.page.plots import pictures
from distill.evaluation.page.words import (
    LOAD_TITLES,
    items,
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
from distill.evaluation.page.worst import worst_cases
from distill.run import Run


def page_of(run: Run, report: Mapping[str, Json]) -> str:
    """Return the page."""
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("distill.evaluation.page", "."), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.jinja")
    gate = part(report.get("gate"))
    return template.render(
        report=report,
        gate=gate,
        reasons=reasons_of(report),
        checks=items(gate.get("checks")),
        retained=kept_of(report),
        titles=titles_of(report),
        sections=sections(report),
        notes=notes_of(report),
        targets=target_lines(report),
        target_reasons=target_reasons(report),
        load_titles=LOAD_TITLES,
        load=load_lines(report.get("load")),
        judge=_judged(part(report.get("judge"))),
        pictures=[(picture, Markup(picture.svg)) for picture in pictures(report)],
        stages=part(report["stages"]),
        worst=worst_cases(run, list(part(report["models"]))),
        signatures=_signatures(report),
    )


def _judged(judge: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Return what is known of the judge itself, as names and values."""
    found: list[tuple[str, str]] = []
    for name, value in judge.items():
        inner = {f"{name}, {key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        found += [(title.replace("_", " "), _told(each)) for title, each in inner.items()]
    return found


def _told(value: Json) -> str:
    match value:
        case None:
            return "not measured"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}"
        case list():
            return "; ".join(_told(each) for each in value) or "none"
        case dict():
            return ", ".join(f"{key.replace('_', ' ')} {_told(each)}" for key, each in value.items()) or "none"
        case _:
            return str(value)


def _signatures(report: Mapping[str, Json]) -> list[str]:
    """Return how BLEU was counted."""
    found = (part(part(model).get("corpus_bleu")).get("signature") for model in part(report["models"]).values())
    return list(dict.fromkeys(str(each) for each in found if each))
