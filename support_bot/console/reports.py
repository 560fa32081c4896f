"""The tab Reports: what a run measured, as a table, and the run's own page beside it.

In: a run with a report. Out: base student, new student, student in service and teacher side by side, by topic too, what was borne
under load, how far the judge can be believed, and the published targets; a figure that is not there is shown as a dash, never as
nought. Reads only.
"""

import html
from collections.abc import Mapping
from pathlib import Path

import gradio as gr

from conversations import runs
from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.store import Record
from support_bot.console import markup
from support_bot.console.desk import QUIETLY, Desk, Drawing

_TITLES = {
    "base": "base student",
    "candidate": "new student",
    "released": "student in service",
    "teacher": "teacher",
}
_TONES: dict[str, markup.Tone] = {
    "promote": "good", "refuse": "bad", "inconclusive": "busy", "met": "good", "missed": "bad", "missing": "busy",
}  # fmt: skip
_TARGET_COLUMNS = ("", "aim", "teacher", "new student", "new student / teacher", "", "on a GPU", "")
_LOAD_COLUMNS = (
    "student", "requests at once", "requests an hour", "tokens a second", "first token", "whole answer", "failed",
)  # fmt: skip
_MAX_PAGE_BYTES = 4 * 1024 * 1024


def tab(desk: Desk) -> Drawing:
    """Lay the tab out and return how it is drawn anew."""
    record = desk.record
    with gr.Row(elem_classes="tools"):
        run = gr.Dropdown([], label="Run", elem_id="report-run", filterable=False)
    figures = gr.HTML(apply_default_css=False, elem_id="report")
    with gr.Accordion("The run's own page", open=False):
        page = gr.HTML(apply_default_css=False, elem_id="report-page")

    def show(run_id: str | None) -> tuple[str, str]:
        return (show_report(record, run_id), _page_of(record, run_id)) if run_id else (_nothing(), "")

    def draw() -> tuple[object, ...]:
        reported = [each.run_id for each in runs.runs(record) if each.report is not None]
        newest = reported[0] if reported else None
        return (gr.Dropdown(choices=reported, value=newest), *show(newest))

    run.input(show, run, [figures, page], **QUIETLY)
    return draw, [run, figures, page]


def show_report(record: Record, run_id: str) -> str:
    """Return a run's report as HTML."""
    try:
        run = runs.run(record, run_id)
    except OperatorError as error:
        return markup.note(str(error))
    if run.report is None:
        return markup.note(f"The run {run_id} has no report yet.")
    report = run.report
    models = {name: _mapping(model) for name, model in _mapping(report.get("models")).items()}
    names = [name for name in _TITLES if name in models]
    metrics = list(dict.fromkeys(metric for name in names for metric in _mapping(models[name].get("quality"))))
    rows: list[tuple[markup.Cell, ...]] = [
        (_words(metric), *(_estimate(_mapping(models[name].get("quality")).get(metric), metric) for name in names))
        for metric in metrics
    ]
    if any(models[name].get("failed_answers") for name in names):
        rows.insert(0, ("gave no answer", *(_failed(models[name]) for name in names)))
    rows += [
        ("first token", *(_time(models[name].get("first_token_ms")) for name in names)),
        ("whole answer", *(_time(models[name].get("latency_ms")) for name in names)),
        ("tokens a second", *(_count(models[name].get("tokens_per_second")) for name in names)),
        ("requests an hour", *(_count(models[name].get("requests_per_hour")) for name in names)),
        ("memory", *(_size(models[name].get("memory_bytes")) for name in names)),
        ("GPU memory", *(_size(models[name].get("gpu_memory_bytes")) for name in names)),
        ("weights", *(_size(models[name].get("weights_bytes")) for name in names)),
        ("cost of 1,000 turns", *(_money(models[name].get("cost_usd_per_1000_turns")) for name in names)),
    ]
    notes = "".join(
        markup.note(f"{_TITLES[name]}: its latency, memory and cost are not comparable with a model's.")
        for name in names
        if models[name].get("comparable") is False
    )
    compared = markup.table(("", *(_TITLES[name] for name in names)), rows, empty="Nothing was measured.")
    parts = (
        f"{markup.heading('Outcome')}{_outcome(report, run_id)}",
        _part("Against the published targets", _TARGET_COLUMNS, _targets(report)),
        f"{markup.heading('Figures')}{compared}{notes}",
        _part("By topic", ("topic", *(_TITLES[name] for name in names)), _by_topic(report, names)),
        _part("Under load", _LOAD_COLUMNS, _load(report)),
        _part("Does the judge agree with blind votes?", ("agreement", "kappa", "votes"), _judge(report)),
    )
    return "".join(parts)


def _part(title: str, columns: tuple[str, ...], rows: list[tuple[markup.Cell, ...]]) -> str:
    """Return a heading with its table, nothing where nothing was measured."""
    return f"{markup.heading(title)}{markup.table(columns, rows, empty='')}" if rows else ""


def _outcome(report: Mapping[str, Json], run_id: str) -> str:
    """Return what the gate said and why, and what it spoke of."""
    gate = _mapping(report.get("gate"))
    outcome = str(gate.get("outcome") or "not asked")
    reasons = gate.get("reasons")
    said = "".join(f"<li>{html.escape(str(reason))}</li>" for reason in (reasons if isinstance(reasons, list) else []))
    facts = markup.table(
        ("gate", "kept of the teacher", "test edition", "release", "run"),
        [
            (
                markup.pill(outcome, _TONES.get(outcome, "plain")),
                _kept(report),
                _cell(report.get("test_edition")),
                markup.code(str(report.get("release_id") or "")),
                markup.code(run_id),
            )
        ],
        empty="",
    )
    return f"{facts}<ul class='reasons'>{said}</ul>"


def _targets(report: Mapping[str, Json]) -> list[tuple[markup.Cell, ...]]:
    """Return what the product aims at beside what was measured, as the report judges it."""
    found: list[tuple[markup.Cell, ...]] = []
    for row in _rows(report.get("targets")):
        unit, aim, outcome = str(row.get("unit")), _mapping(row.get("aim")), str(row.get("outcome"))
        bound = "at most" if aim.get("at_most") else "at least"
        found.append(
            (
                str(row.get("title")),
                f"{bound} {_ratio(aim.get('ratio'))} of the teacher's",
                _in_unit(row.get("teacher"), unit),
                _in_unit(row.get("student"), unit),
                _ratio(row.get("ratio")),
                markup.pill(outcome, _TONES.get(outcome, "plain")),
                _ratio(_mapping(row.get("on_gpu")).get("ratio")) or "not measured",
                str(row.get("reason") or ""),
            )
        )
    return found


def _by_topic(report: Mapping[str, Json], names: list[str]) -> list[tuple[markup.Cell, ...]]:
    """Return the quality by topic, as the settings measure it."""
    return [
        (topic, *(_estimate(_mapping(found).get(name), str(report.get("quality_metric"))) for name in names))
        for topic, found in _mapping(report.get("by_topic")).items()
    ]


def _load(report: Mapping[str, Json]) -> list[tuple[markup.Cell, ...]]:
    """Return what each student bore, a row for each number of requests at once."""
    return [
        (
            _TITLES.get(str(row.get("model")), str(row.get("model"))),
            _cell(row.get("concurrency")),
            _count(row.get("requests_per_hour")),
            _count(row.get("tokens_per_second")),
            _time(row.get("first_token_ms")),
            _time(row.get("latency_ms")),
            f"{row.get('failed')} of {row.get('requests')}",
        )
        for row in _rows(report.get("load"))
    ]


def _judge(report: Mapping[str, Json]) -> list[tuple[markup.Cell, ...]]:
    """Return how often the judge and operators, who did not know whose answer was whose, said the same."""
    agreement = _mapping(_mapping(report.get("judge")).get("agreement"))
    return [(_ratio(agreement.get("value")), _cell(agreement.get("kappa")), _cell(agreement.get("n")))] if agreement else []


def _page_of(record: Record, run_id: str) -> str:
    """Return the run's own report in a frame that can run nothing and reach nothing."""
    path = Path(runs.run(record, run_id).path) / "report.html"
    if not path.is_file() or path.stat().st_size > _MAX_PAGE_BYTES:
        return markup.note(f"There is no page at {path}.")
    text = html.escape(path.read_text("utf-8", "replace"))
    return f'<iframe class="report-frame" sandbox="" title="Report of the run" srcdoc="{text}"></iframe>'


def _nothing() -> str:
    return markup.note("No run has a report yet. The tab Runs asks for one.")


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _rows(value: Json) -> list[Mapping[str, Json]]:
    return [_mapping(each) for each in value] if isinstance(value, list) else []


def _cell(value: Json) -> markup.Cell:
    return value if isinstance(value, str | int | float) else None


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _estimate(value: Json, metric: str) -> markup.Cell:
    """Return a value with its interval and count; as a percentage, but for what counts words."""
    estimate = _mapping(value)
    figures = [estimate.get(key) for key in ("value", "low", "high")]
    middle, low, high = (float(each) if isinstance(each, int | float) else None for each in figures)
    if middle is None:
        return None
    is_share = not metric.endswith("_words")
    factor, digits, unit = (100, 1, " %") if is_share else (1, 2, "")
    spread = f"{low * factor:.{digits}f} to {high * factor:.{digits}f}" if low is not None and high is not None else ""
    count = f"n = {estimate.get('n')}" if estimate.get("n") is not None else ""
    small = html.escape(", ".join(part for part in (spread, count) if part))
    return markup.Markup(f"<b>{middle * factor:.{digits}f}{unit}</b><br><small>{small}</small>")


def _kept(report: Mapping[str, Json]) -> markup.Cell:
    """Return the share of the teacher's quality that is kept, and how many answers that were not given count as 0 in it."""
    cell, failed = _estimate(report.get("retained"), "accuracy"), _mapping(report.get("retained")).get("failed")
    if not failed or not isinstance(cell, markup.Markup):
        return cell
    return markup.Markup(f"{cell.html}<br><small>{html.escape(str(failed))} gave no answer and count as 0</small>")


def _failed(model: Mapping[str, Json]) -> markup.Cell:
    failed, asked = model.get("failed_answers"), model.get("asked_answers")
    return _cell(failed) if asked is None else f"{failed} of {asked}"


def _time(value: Json) -> markup.Cell:
    if isinstance(value, int | float):
        return f"{value:.0f} ms"
    parts = _mapping(value)
    known = [f"{name} {each:.0f} ms" for name, each in parts.items() if isinstance(each, int | float)]
    return ", ".join(known) or None


def _count(value: Json) -> markup.Cell:
    if not isinstance(value, int | float):
        return None
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(value: Json) -> markup.Cell:
    """Return a share in per cent; what is more than twice as much in times."""
    if not isinstance(value, int | float):
        return None
    return f"{value:.3g} times" if value > 2 else f"{value:.1%}"


def _in_unit(value: Json, unit: str) -> markup.Cell:
    """Return a figure of the table of targets as its unit is written."""
    match unit:
        case "share":
            return _ratio(value)
        case "ms":
            return _time(value)
        case "bytes":
            return _size(value)
        case "usd":
            return _money(value)
        case _:
            return _count(value)


def _size(value: Json) -> markup.Cell:
    """Return bytes as MB or GB, of 10^6 and 10^9 bytes, as the report's page does."""
    if not isinstance(value, int | float):
        return None
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def _money(value: Json) -> markup.Cell:
    return f"${value:,.4f}" if isinstance(value, int | float) else None
