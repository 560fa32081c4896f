"""The tab Runs: ask for a distillation run, watch the one that goes on, and read what schedulers decided and why.

In: an operator's click. Out: one request in the record, however often it is clicked; `distill schedule` takes it. Starts
nothing itself.
"""

import gradio as gr

from conversations import runs, schedules
from conversations.runs import Run, RunState
from conversations.schedules import ScheduleDecision
from conversations.store import Record
from support_bot.console import markup
from support_bot.console.desk import QUIETLY, Desk, Drawing

SECONDS_BETWEEN_LOOKS = 2
SHOWN = 20
_TONES: dict[RunState, markup.Tone] = {
    RunState.RUNNING: "busy",
    RunState.COMPLETE: "good",
    RunState.FAILED: "bad",
    RunState.INTERRUPTED: "bad",
}
_DECISION_TONES: dict[ScheduleDecision, markup.Tone] = {
    ScheduleDecision.STARTED: "busy",
    ScheduleDecision.RESUMED: "busy",
    ScheduleDecision.WAITS: "plain",
    ScheduleDecision.STANDS_BY: "plain",
    ScheduleDecision.ENDED: "good",
    ScheduleDecision.CANARY: "busy",
}


def tab(desk: Desk) -> tuple[Drawing, gr.Timer]:
    """Lay the tab out and return how it is drawn anew, and the timer that does so while it is looked at."""
    record = desk.record
    with gr.Row(elem_classes="tools"):
        ask = gr.Button("Ask for a run", variant="primary", elem_id="ask-run", scale=0, min_width=160)
        said = gr.HTML(markup.note("A run learns from the conversations so far."), apply_default_css=False, elem_id="asked")
    overview = gr.HTML(apply_default_css=False, elem_id="runs")
    timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    def ask_for_run(request: gr.Request) -> tuple[str, str]:
        operator = desk.operator(request)
        waiting = runs.waiting_request(record)
        asked = runs.request_run(record, requested_by=operator)
        sentence = (
            f"A run is waiting already, asked for by {asked.requested_by}; there is no need for a second one."
            if waiting is not None
            else "A run is asked for; `distill schedule` takes it up."
        )
        return markup.note(sentence), show_runs(record)

    def draw() -> tuple[object, ...]:
        return (show_runs(record),)

    def look() -> str:
        return show_runs(record)

    ask.click(ask_for_run, None, [said, overview], **QUIETLY)
    timer.tick(look, None, overview, **QUIETLY)
    return (draw, [overview]), timer


def show_runs(record: Record) -> str:
    """Return the runs, the requests and what schedulers decided as HTML."""
    requests = markup.table(
        ("asked (UTC)", "by", "state", "run", "outcome"),
        [
            (
                markup.moment(each.requested_at_utc),
                each.requested_by,
                markup.pill(each.state, "busy" if each.state in ("waiting", "taken") else "plain"),
                markup.code(each.run_id),
                each.outcome,
            )
            for each in runs.requests(record, SHOWN)
        ],
        empty="Nobody has asked for a run.",
    )
    every = markup.table(
        ("run", "state", "stage", "progress of the stage", "learning", "outcome", "begun (UTC)", "ended (UTC)"),
        [_row(record, each) for each in runs.runs(record, SHOWN)],
        empty="No run yet.",
    )
    decided = markup.table(
        ("when (UTC)", "scheduler", "decision", "because", "run"),
        [
            (
                markup.moment(each.decided_at_utc),
                each.scheduler,
                markup.pill(each.decision.replace("_", " "), _DECISION_TONES[each.decision]),
                each.reason,
                markup.code(each.run_id),
            )
            for each in schedules.decisions_taken(record, SHOWN)
        ],
        empty="No scheduler has decided anything; `distill schedule` is one.",
    )
    return (
        f"{markup.heading('Runs')}{every}{markup.heading('Requests')}{requests}"
        f"{markup.heading('What schedulers decided')}{decided}"
    )


def _row(record: Record, run: Run) -> tuple[markup.Cell, ...]:
    return (
        markup.code(run.run_id),
        markup.pill(run.state, _TONES[run.state]),
        run.stage,
        markup.bar(run.progress) if run.state is RunState.RUNNING else None,
        _learning(record, run),
        run.outcome,
        markup.moment(run.started_at_utc),
        markup.moment(run.finished_at_utc),
    )


def _learning(record: Record, run: Run) -> str:
    """Return the newest losses of a training that goes on, in nats per token; "" where none does."""
    if run.state is not RunState.RUNNING or run.stage != "train":
        return ""
    step = runs.latest_event(record, run.run_id, stage="train", event="step")
    held_out = runs.latest_event(record, run.run_id, stage="train", event="validation")
    told = [f"step {step.detail['step']}: loss {step.detail['loss']:.3f}"] if step else []
    if held_out:
        told.append(f"held out {held_out.detail['validation_nll']:.3f} after step {held_out.detail['step']}")
    return ", ".join(told)
