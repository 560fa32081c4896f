"""The panel of releases on trial: the canary with its rules and figures, the shadow, and the way to end a canary.

In: an operator's reason. Out: a canary that is taken back or promoted, in the record and in one transaction. What customers met is
counted by release, with intervals, the release on trial beside the one in service.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import gradio as gr

from conversations import online, releases, rollouts, shadows
from conversations.errors import Failure
from conversations.messages import utc_text
from conversations.online import OnlineFigures, Rate
from conversations.rollouts import Rollout, RolloutKind, RolloutState
from conversations.store import Record
from support_bot.console import markup
from support_bot.console.desk import QUIETLY, Desk

DAYS_WITHOUT_CANARY = 7
SHOWN_ROLLOUTS = 10
MAX_REASON_CHARACTERS = 500
_HOW_COUNTED = (
    "Shares with their 95 % intervals (Wilson); times are the median and the 95th percentile. Answers for which no server could be "
    "reached are no errors of a release."
)
_TONES: dict[RolloutState, markup.Tone] = {
    RolloutState.RUNNING: "busy",
    RolloutState.PROMOTED: "good",
    RolloutState.ROLLED_BACK: "bad",
    RolloutState.STOPPED: "plain",
}


@dataclass(frozen=True)
class RolloutPanel:
    """What the panel draws, and how."""

    overview: gr.HTML
    controls: gr.Column
    draw: Callable[[], tuple[object, ...]]

    def outputs(self) -> list[gr.components.Component | gr.Column]:
        """Return what `draw` draws."""
        return [self.overview, self.controls]


def panel(desk: Desk, others: list[gr.components.Component], draw_others: Callable[[], tuple[object, ...]]) -> RolloutPanel:
    """Lay the panel out. `others` show the releases too, and are drawn anew when a canary ends."""
    record = desk.record
    overview = gr.HTML(apply_default_css=False, elem_id="rollouts")
    with gr.Column(visible=False, elem_id="canary") as controls, gr.Row(elem_classes="tools"):
        reason = gr.Textbox(
            label="Reason",
            placeholder="why, for the audit",
            scale=3,
            min_width=220,
            max_length=MAX_REASON_CHARACTERS,
            elem_id="canary-reason",
        )
        promote = gr.Button("Promote now", variant="primary", scale=0, min_width=170, elem_id="promote-canary")
        stop = gr.Button("Stop canary", variant="stop", scale=0, min_width=160, elem_id="stop-canary")
    said = gr.HTML("", apply_default_css=False, elem_id="canary-said")

    def draw() -> tuple[object, ...]:
        return show_rollouts(record), gr.Column(visible=rollouts.running(record, RolloutKind.CANARY) is not None)

    def end(act: Callable[..., bool], told: str) -> Callable[[str, gr.Request], tuple[object, ...]]:
        def handle(why: str, request: gr.Request) -> tuple[object, ...]:
            operator = desk.operator(request)
            kept = [gr.skip() for _ in (reason, overview, controls, *others)]
            if not why.strip():
                return markup.note("Please give a reason; it goes into the audit."), *kept
            canary = rollouts.running(record, RolloutKind.CANARY)
            try:
                acted = canary is not None and act(
                    record, canary.rollout_id, actor=operator, reason=why.strip()[:MAX_REASON_CHARACTERS]
                )
            except Failure as failure:
                return markup.note(str(failure)), *kept
            sentence = told.format(canary.release_id) if canary and acted else "The canary has ended already."
            return markup.note(sentence), "", *draw(), *draw_others()

        return handle

    for button, act, told in (
        (
            stop,
            rollouts.take_back,
            "The canary is stopped; its conversations move to the release in service at their next turn.",
        ),
        (promote, rollouts.promote, "{} is in service; new conversations get it."),
    ):
        button.click(end(act, told), reason, [said, reason, overview, controls, *others], **QUIETLY)
    return RolloutPanel(overview, controls, draw)


def show_rollouts(record: Record) -> str:
    """Return what is on trial, and what customers met of each release, as HTML."""
    canary = rollouts.running(record, RolloutKind.CANARY)
    shadow = rollouts.running(record, RolloutKind.SHADOW)
    since = canary.started_at_utc if canary else utc_text(datetime.now(UTC) - timedelta(days=DAYS_WITHOUT_CANARY))
    met = online.figures(record, since_utc=since)
    shown = [] if canary is None else [canary.release_id]
    shown += [each for each in [releases.in_service(record)] if each and each not in shown]
    shown += [each for each in met if each not in shown]
    rows = [_met_row(record, each, met.get(each), canary) for each in shown]
    title = "With customers since the canary began" if canary else f"With customers in the last {DAYS_WITHOUT_CANARY} days"
    table = markup.table(
        (
            "release",
            "turns",
            "conversations",
            "no server",
            "errors",
            "thumbs down",
            "to a person",
            "first word",
            "whole answer",
        ),
        rows,
        empty="No release has answered yet.",
    )
    return (
        f"{markup.heading('On trial')}{_canary_line(canary)}{_shadow_line(record, shadow)}{markup.heading(title)}{table}"
        f"{markup.note(_HOW_COUNTED)}"
    )


def _canary_line(canary: Rollout | None) -> str:
    if canary is None:
        return markup.note("No canary goes on; `distill canary RELEASE` starts one.")
    rules = canary.rules
    return (
        f"<p>{markup.pill('canary', 'busy').html} {markup.code(canary.release_id).html} answers {canary.share:.0%} of new "
        f"conversations since {markup.moment(canary.started_at_utc).html}.</p>"
        + markup.note(
            f"It is taken back by itself when its error rate is surely above {rules.max_error_rate:.0%} or its thumbs-down rate "
            f"surely above {rules.max_thumbs_down_rate:.0%}, each after {rules.min_turns} answers or votes. It has passed after "
            f"{rules.hours:g} hours with {rules.min_turns} answers."
        )
    )


def _shadow_line(record: Record, shadow: Rollout | None) -> str:
    if shadow is None:
        return ""
    found = shadows.figures(record, shadow.rollout_id)
    ratio = "–" if found.mean_length_ratio is None else f"{found.mean_length_ratio:.2f}"
    told = (
        f"{found.answers} answers; failed: {_share_words(found.failures)}; the same words as the reply: {_share_words(found.same)}; "
        f"length beside the reply's: {ratio}; whole answer: {_times(found.latency_p50_ms, found.latency_p95_ms)}"
    )
    return (
        f"<p>{markup.pill('shadow', 'busy').html} {markup.code(shadow.release_id).html} answers {shadow.share:.0%} of turns again, "
        f"out of the customers' sight, since {markup.moment(shadow.started_at_utc).html}.</p>{markup.note(told)}"
    )


def _met_row(record: Record, release_id: str, met: OnlineFigures | None, canary: Rollout | None) -> tuple[markup.Cell, ...]:
    state = (
        "canary"
        if canary and canary.release_id == release_id
        else releases.release(record, release_id).state.replace("_", " ")
    )
    name = markup.Markup(
        f"{markup.code(release_id).html}<br>{markup.pill(state, 'busy' if state == 'canary' else 'plain').html}"
    )
    if met is None:
        return (name, 0, 0, 0, None, None, None, None, None)
    return (
        name,
        met.turns,
        met.conversations,
        met.no_server,
        _share_cell(met.errors),
        _share_cell(met.thumbs_down),
        _share_cell(met.handoffs),
        _times(met.first_token_p50_ms, met.first_token_p95_ms),
        _times(met.latency_p50_ms, met.latency_p95_ms),
    )


def _share(rate: Rate) -> tuple[str, str]:
    """Return a share, and its interval with its counts; a dash where nothing was counted."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "–", ""
    return f"{100 * rate.value:.1f} %", f"{100 * rate.low:.1f}–{100 * rate.high:.1f} %, {rate.count} of {rate.n}"


def _share_cell(rate: Rate) -> markup.Markup:
    value, rest = _share(rate)
    return markup.two_lines(value, rest)


def _share_words(rate: Rate) -> str:
    value, rest = _share(rate)
    return f"{value} ({rest})" if rest else value


def _times(p50_ms: float | None, p95_ms: float | None) -> str:
    return "–" if p50_ms is None or p95_ms is None else f"{p50_ms:,.0f} / {p95_ms:,.0f} ms"


def show_tried(record: Record) -> str:
    """Return what was tried lately, how it ended and why, as HTML."""
    tried = rollouts.rollouts(record, SHOWN_ROLLOUTS)
    if not tried:
        return ""
    return markup.heading("Tried") + markup.table(
        ("began (UTC)", "what", "release", "share", "state", "begun by", "ended (UTC)", "ended by", "because"),
        [
            (
                markup.moment(each.started_at_utc),
                each.kind,
                markup.code(each.release_id),
                f"{each.share:.0%}",
                markup.pill(each.state.replace("_", " "), _TONES[each.state]),
                each.started_by,
                markup.moment(each.ended_at_utc),
                each.ended_by,
                each.ended_because,
            )
            for each in tried
        ],
        empty="",
    )
