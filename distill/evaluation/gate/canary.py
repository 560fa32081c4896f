"""A canary as the gate begins and ends it: a share of new conversations first, everybody once it has passed its hours.

In: the record and the settings. Out: a rollout, or one sentence about what became of it. Its rules are the record's
(`conversations.online.violated`); the chat process acts on them too, and whichever is first counts.
"""

from datetime import UTC, datetime, timedelta

from conversations import online, releases, rollouts
from conversations.errors import OutsideError
from conversations.gate_word import held_back
from conversations.rollouts import Rollout, RolloutKind, Rules
from conversations.store import Record
from distill.evaluation.answering.generation import wait_until_loaded
from distill.settings import DistillSettings

ACTOR = "distill schedule"


def begin_canary(
    record: Record,
    settings: DistillSettings,
    release_id: str,
    *,
    actor: str,
    reason: str,
    share: float | None = None,
    against_gate: bool = False,
) -> Rollout:
    """Begin a canary by the rules of [canary], for [promote] canary_share of new conversations unless another share is given.

    Raises OutsideError while another canary goes on, and OperatorError for a release or a share that cannot be, and for a release that
    the gate holds back, unless an operator goes `against_gate`.
    """
    _check_none_goes_on(record, RolloutKind.CANARY)
    table = settings.canary
    return rollouts.start(
        record,
        RolloutKind.CANARY,
        release_id,
        share=settings.promote.canary_share if share is None else share,
        rules=Rules(
            max_error_rate=table.max_error_rate,
            max_thumbs_down_rate=table.max_thumbs_down_rate,
            min_turns=table.min_turns,
            hours=table.hours,
        ),
        actor=actor,
        reason=reason,
        against_gate=against_gate,
    )


def load_for_trial(
    record: Record,
    settings: DistillSettings,
    kind: RolloutKind,
    release_id: str,
    *,
    share: float,
    actor: str,
    against_gate: bool = False,
) -> None:
    """Have a release loaded before it is tried.

    Raises OperatorError at once for what cannot be tried, and OutsideError while another one of the kind goes on, or where no healthy
    server loads the release in time.
    """
    _check_none_goes_on(record, kind)
    rollouts.check_can_start(record, kind, release_id, share=share, against_gate=against_gate)
    releases.want(record, release_id, wanted_by=actor)
    wait_until_loaded(record, release_id, settings.evaluate.load_timeout_seconds)


def finish_canary(record: Record, settings: DistillSettings) -> str:
    """Take back a canary that breaks a rule, put one into service that has passed, and say so; "" where nothing is to be said."""
    canary = rollouts.running(record, RolloutKind.CANARY)
    if canary is None:
        return ""
    met = online.figures_of(record, canary.release_id, since_utc=canary.started_at_utc)
    broken = online.violated(canary, met)
    if broken:
        acted = rollouts.take_back(record, canary.rollout_id, actor=ACTOR, reason=broken)
        return f"the canary of {canary.release_id} is rolled back: {broken}" if acted else ""
    if not _has_passed(canary, met.errors.n):
        return ""
    why = held_back(record, canary.release_id)
    if why:
        return (
            f"the canary of {canary.release_id} has passed its hours, but {why}; `distill canary --promote --override REASON` puts it "
            "into service against the gate"
        )
    reason = f"a canary for {canary.rules.hours:g} hours or more, with {canary.rules.min_turns} turns or more, and no rule was broken"
    if not releases.servers_with(record, canary.release_id):
        return (
            f"the canary of {canary.release_id} has passed, but no student server has it loaded; start `support-bot student`"
        )
    acted = rollouts.promote(record, canary.rollout_id, actor=ACTOR, reason=f"{reason}: {met.turns} turns")
    return f"{canary.release_id} is in service: {reason}" if acted else ""


def _has_passed(canary: Rollout, turns: int) -> bool:
    """Tell whether a canary has had its hours and its turns."""
    hours = datetime.now(UTC) - datetime.fromisoformat(canary.started_at_utc)
    return hours >= timedelta(hours=canary.rules.hours) and turns >= canary.rules.min_turns


def _check_none_goes_on(record: Record, kind: RolloutKind) -> None:
    going = rollouts.running(record, kind)
    if going is not None:
        raise OutsideError(
            f"a {kind} of {going.release_id!r} goes on since {going.started_at_utc}, and there is one at a time; run the same command "
            f"again when it has ended (`distill {kind}` shows how it stands), or end it with `distill {kind} --stop`"
        )
