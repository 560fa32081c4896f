"""The tab Reports: what a run measured, as a table, and the run's own page beside it.

In: a run with a report. Out: base student, new student, student in service and teacher side by side; a figure that is not
there is shown as a dash, never as nought. Reads only.
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
_TONES: dict[str, markup.Tone] = {"promote": "good", "refuse": "bad", "inconclusive": "busy"}
_MEBIBYTE = 1024 * 1024
_MAX_PAGE_BYTES = 4 * _MEBIBYTE


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
    rows += [
        ("first token", *(_time(models[name].get("first_token_ms")) for name in names)),
        ("whole answer", *(_time(models[name].get("latency_ms")) for name in names)),
        ("memory", *(_size(models[name].get("memory_bytes")) for name in names)),
        ("weights", *(_size(models[name].get("weights_bytes")) for name in names)),
        ("cost of 1,000 turns", *(_money(models[name].get("cost_usd_per_1000_turns")) for name in names)),
    ]
    gate = _mapping(report.get("gate"))
    outcome = str(gate.get("outcome") or "not asked")
    reasons = gate.get("reasons")
    said = "".join(f"<li>{html.escape(str(reason))}</li>" for reason in (reasons if isinstance(reasons, list) else []))
    facts = markup.table(
        ("gate", "kept of the teacher", "test edition", "release", "run"),
        [
            (
                markup.pill(outcome, _TONES.get(outcome, "plain")),
                _estimate(report.get("retained"), "accuracy"),
                _cell(report.get("test_edition")),
                markup.code(str(report.get("release_id") or "")),
                markup.code(run_id),
            )
        ],
        empty="",
    )
    notes = "".join(
        markup.note(f"{_TITLES[name]}: its latency, memory and cost are not comparable with a model's.")
        for name in names
        if models[name].get("comparable") is False
    )
    compared = markup.table(("", *(_TITLES[name] for name in names)), rows, empty="Nothing was measured.")
    return f"{markup.heading('Outcome')}{facts}<ul class='reasons'>{said}</ul>{markup.heading('Figures')}{compared}{notes}"


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


def _cell(value: Json) -> markup.Cell:
    return value if isinstance(value, str | int | float) else None


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _estimate(value: Json, metric: str) -> markup.Cell:
    """Return a value with its interval and count; accuracies and rates as percentages."""
    estimate = _mapping(value)
    figures = [estimate.get(key) for key in ("value", "low", "high")]
    middle, low, high = (float(each) if isinstance(each, int | float) else None for each in figures)
    if middle is None:
        return None
    is_share = any(word in metric for word in ("accuracy", "rate")) and abs(middle) <= 2
    factor, digits, unit = (100, 1, " %") if is_share else (1, 2, "")
    spread = f"{low * factor:.{digits}f} to {high * factor:.{digits}f}" if low is not None and high is not None else ""
    count = f"n = {estimate.get('n')}" if estimate.get("n") is not None else ""
    small = html.escape(", ".join(part for part in (spread, count) if part))
    return markup.Markup(f"<b>{middle * factor:.{digits}f}{unit}</b><br><small>{small}</small>")


def _time(value: Json) -> markup.Cell:
    if isinstance(value, int | float):
        return f"{value:.0f} ms"
    parts = _mapping(value)
    known = [f"{name} {each:.0f} ms" for name, each in parts.items() if isinstance(each, int | float)]
    return ", ".join(known) or None


def _size(value: Json) -> markup.Cell:
    return f"{value / _MEBIBYTE:,.0f} MiB" if isinstance(value, int | float) else None


def _money(value: Json) -> markup.Cell:
    return f"${value:,.4f}" if isinstance(value, int | float) else None
