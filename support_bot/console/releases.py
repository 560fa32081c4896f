"""The tab Releases: what is on trial, every version of the student, what happened to it, which server has it, and the way back.

In: an operator's reason. Out: a rollback in the record, at once and in one transaction; the servers follow the record.
"""

from datetime import UTC, datetime, timedelta

import gradio as gr

from conversations import releases, rollouts
from conversations.errors import Failure
from conversations.messages import utc_text
from conversations.releases import Release, ReleaseState, ServerState, StudentServer
from conversations.store import Record
from support_bot.console import markup
from support_bot.console import rollouts as trials
from support_bot.console.desk import QUIETLY, Desk, Drawing

PREVIOUS = "the one before"
SECONDS_BETWEEN_LOOKS = 3
SHOWN_EVENTS = 30
HOURS_SILENT_SERVERS_SHOWN = 24
_TONES: dict[ReleaseState, markup.Tone] = {
    ReleaseState.IN_SERVICE: "good",
    ReleaseState.CANDIDATE: "busy",
    ReleaseState.RETIRED: "plain",
    ReleaseState.REFUSED: "bad",
    ReleaseState.ROLLED_BACK: "bad",
}
_SERVER_TONES: dict[ServerState, markup.Tone] = {
    ServerState.READY: "good",
    ServerState.STARTING: "busy",
    ServerState.DOWN: "bad",
}


def tab(desk: Desk) -> tuple[Drawing, gr.Timer]:
    """Lay the tab out and return how it is drawn anew, and the timer that does so while it is looked at."""
    record = desk.record
    # Made first and shown last: the panel above draws it anew when a canary ends.
    overview = gr.HTML(apply_default_css=False, elem_id="releases", render=False)
    on_trial = trials.panel(desk, [overview], lambda: (show_releases(record),))
    with gr.Accordion("Roll back", open=False, elem_id="rollback"):
        gr.HTML(
            markup.note(
                "New conversations change at once, open ones at their next turn. No server restarts. While a canary goes on, it is "
                "what is rolled back, unless you choose a release."
            ),
            apply_default_css=False,
        )
        with gr.Row(elem_classes="tools"):
            target = gr.Dropdown([PREVIOUS], value=PREVIOUS, label="Back to", scale=1, filterable=False)
            reason = gr.Textbox(label="Reason", placeholder="why, for the audit", scale=3, max_length=500, elem_id="reason")
            back = gr.Button("Roll back", variant="stop", scale=0, min_width=130, elem_id="roll-back")
        said = gr.HTML("", apply_default_css=False, elem_id="rolled-back")
    overview.render()
    timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    def roll_back(to: str, why: str, request: gr.Request) -> tuple[object, ...]:
        operator = desk.operator(request)
        if not why.strip():
            return markup.note("Please give a reason; it goes into the audit."), *(gr.skip() for _ in [reason, *outputs])
        try:
            done = rollouts.roll_back(record, to=None if to == PREVIOUS else to, actor=operator, reason=why.strip()[:500])
        except Failure as failure:
            return markup.note(str(failure)), *(gr.skip() for _ in [reason, *outputs])
        return markup.note(f"{done.release_id} is rolled back; {done.in_service} is in service."), "", *draw()

    def look() -> tuple[object, ...]:
        return *on_trial.draw(), show_releases(record)

    def draw() -> tuple[object, ...]:
        known = [each.release_id for each in releases.releases(record) if each.state is not ReleaseState.IN_SERVICE]
        return *look(), gr.Dropdown(choices=[PREVIOUS, *known], value=PREVIOUS)

    outputs = [*on_trial.outputs(), overview, target]
    back.click(roll_back, [target, reason], [said, reason, *outputs], **QUIETLY)
    timer.tick(look, None, outputs[:-1], **QUIETLY)
    return (draw, outputs), timer


def show_releases(record: Record) -> str:
    """Return releases, servers and events as HTML."""
    loaded: dict[str, list[str]] = {}
    for load in releases.loads(record):
        loaded.setdefault(load.server_id, []).append(load.release_id if load.loaded else f"{load.release_id}: {load.detail}")
    every = markup.table(
        ("release", "state", "kind", "base", "started from", "run", "made (UTC)"),
        [_release_row(each) for each in releases.releases(record)],
        empty="No release yet; `support-bot student` enters the base student when it starts.",
    )
    servers = markup.table(
        ("server", "state", "has loaded", "memory", "last word (UTC)"),
        [
            _server_row(each, loaded.get(each.server_id, []))
            for each in releases.servers(record)
            if each.heartbeat_at_utc >= utc_text(datetime.now(UTC) - timedelta(hours=HOURS_SILENT_SERVERS_SHOWN))
        ],
        empty="No student server is known; `support-bot student` starts one.",
    )
    happened = markup.table(
        ("when (UTC)", "release", "what", "by", "reason"),
        [
            (
                markup.moment(each.happened_at_utc),
                markup.code(each.release_id),
                each.event.replace("_", " "),
                each.actor,
                each.reason,
            )
            for each in releases.events(record, SHOWN_EVENTS)
        ],
        empty="Nothing happened yet.",
    )
    return (
        f"{markup.heading('Releases')}{every}{markup.heading('Servers')}{servers}{trials.show_tried(record)}"
        f"{markup.heading('What happened')}{happened}"
    )


def _release_row(each: Release) -> tuple[markup.Cell, ...]:
    return (
        markup.code(each.release_id),
        markup.pill(each.state.replace("_", " "), _TONES[each.state]),
        each.kind,
        each.base,
        markup.code(each.start or None),
        markup.code(each.run_id),
        markup.moment(each.created_at_utc),
    )


def _server_row(each: StudentServer, loaded: list[str]) -> tuple[markup.Cell, ...]:
    state = markup.pill(each.state, _SERVER_TONES[each.state]) if each.is_fresh else markup.pill("silent", "bad")
    serves = f" serves {markup.code(each.release_id).html} whole" if each.release_id else ""
    return (
        markup.Markup(f"{markup.shown(each.base_url)}{serves}"),
        markup.Markup(f"{state.html} {markup.shown(each.detail) if each.detail else ''}"),
        markup.Markup("<br>".join(markup.code(name).html for name in loaded) or markup.shown(None)),
        _memory(each),
        markup.moment(each.heartbeat_at_utc),
    )


def _memory(each: StudentServer) -> str:
    """Return what a server's processes take; "" where its supervisor cannot see them, or has fallen silent."""
    if not each.is_fresh:
        return ""
    kinds = ((each.memory_bytes, "GB"), (each.gpu_memory_bytes, "GB on the GPU"))
    return ", ".join(f"{taken / 1e9:.1f} {unit}" for taken, unit in kinds if taken is not None)
