"""Rollouts: a release on trial beside the one in service, and which of the two answers a conversation.

In: what the gate or an operator starts and ends. Out: one answer to "which student answers this conversation". A canary answers a
share of new conversations and stays with each; a shadow answers beside the student, and no customer sees it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from conversations import audit, releases
from conversations.errors import OperatorError
from conversations.gate_word import gate_word, held_back, note_override
from conversations.messages import new_name, utc_now, utc_text
from conversations.releases.needs import is_kept
from conversations.store import Record, Row, Transaction

# How a reply failed (`support_bot.completion.FailureCode`) for which our servers were to blame, and no release.
NO_SERVER_CODES = ("no_server", "unreachable")
# How a reply failed through no fault of the release: for those, the customer's message, or our own code.
BLAMELESS_CODES = (*NO_SERVER_CODES, "prompt_too_long", "our_bug")


class RolloutKind(StrEnum):
    """How a release is tried."""

    CANARY = "canary"
    SHADOW = "shadow"


class RolloutState(StrEnum):
    """How a rollout stands, or how it ended."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Rules:
    """When a canary is taken back by itself, and when it has passed.

    It is taken back where the lower end of the 95 % interval of its error or thumbs-down rate lies above the maximum, after
    `min_turns` of its turns (or `min_turns` votes). It has passed after `hours` with at least `min_turns` turns.
    """

    max_error_rate: float = 0.05
    max_thumbs_down_rate: float = 0.5
    min_turns: int = 20
    hours: float = 24.0


@dataclass(frozen=True)
class Rollout:
    """A release on trial. `share` is that of new conversations (canary) or of turns (shadow)."""

    rollout_id: str
    kind: RolloutKind
    release_id: str
    share: float
    rules: Rules
    state: RolloutState
    started_by: str
    started_at_utc: str
    ended_by: str | None
    ended_because: str | None
    ended_at_utc: str | None


@dataclass(frozen=True)
class RolledBack:
    """Which release customers meet no more, and which one is in service now."""

    release_id: str
    in_service: str


def start(
    record: Record,
    kind: RolloutKind,
    release_id: str,
    *,
    share: float,
    rules: Rules | None = None,
    actor: str,
    reason: str,
    against_gate: bool = False,
) -> Rollout:
    """Begin to try a release, and ask the servers to load it. A canary `against_gate` leaves an override in the audit.

    Raises OperatorError as `check_can_start`, and while another rollout of the kind is going on.
    """
    check_can_start(record, kind, release_id, share=share, against_gate=against_gate)
    is_override = kind is RolloutKind.CANARY and bool(held_back(record, release_id))
    gate = gate_word(record, release_id)
    rollout_id = new_name("rollout")
    with record.write() as transaction:
        going = transaction.query("SELECT release_id FROM rollouts WHERE kind = ? AND state = 'running'", [kind])
        if going:
            raise OperatorError(
                f"a {kind} of {going[0]['release_id']!r} is going on; stop it first with `distill {kind} --stop`"
            )
        transaction.insert(
            "rollouts",
            {
                "rollout_id": rollout_id,
                "kind": kind,
                "release_id": release_id,
                "share": share,
                "rules_json": json.dumps(asdict(rules or Rules()), sort_keys=True),
                "state": RolloutState.RUNNING,
                "started_by": actor,
                "started_at_utc": utc_now(),
            },
        )
        releases.want_in(transaction, release_id, actor)
        audit.note(transaction, actor, f"{kind} started", release_id, {"share": share, "reason": reason})
        if is_override:
            note_override(transaction, release_id, gate, actor=actor, reason=reason)
    return rollout(record, rollout_id)


def check_can_start(record: Record, kind: RolloutKind, release_id: str, *, share: float, against_gate: bool = False) -> None:
    """Make sure that a release can be tried.

    Raises OperatorError for an unknown or refused release, the one that is in service, a share that is none, a canary of one that was
    rolled back (no conversation stays with it), and a canary that the gate holds back, unless an operator goes `against_gate`.
    """
    if not 0 < share <= 1:
        raise OperatorError(f"a share of {share!r}; expected more than 0 and at most 1, such as 0.1; mend it")
    known = releases.release(record, release_id)
    barred = {releases.ReleaseState.IN_SERVICE, releases.ReleaseState.REFUSED}
    if kind is RolloutKind.CANARY:
        barred.add(releases.ReleaseState.ROLLED_BACK)
    if known.state in barred:
        raise OperatorError(
            f"the release {release_id!r} is {known.state.value.replace('_', ' ')}; expected a candidate or an earlier release; "
            "`distill releases` lists them"
        )
    why = held_back(record, release_id) if kind is RolloutKind.CANARY and not against_gate else ""
    if why:
        raise OperatorError(
            f"{why}; expected a release that it let through or that was in service before; `distill promote --run ID` asks the gate, "
            f"`distill canary {release_id} --override REASON` tries it against the gate"
        )


def end(record: Record, rollout_id: str, state: RolloutState, *, actor: str, reason: str) -> bool:
    """End a rollout once; False where somebody ended it before. What happens to the release is the caller's word."""
    with record.write() as transaction:
        return _end_in(transaction, rollout_id, state, actor, reason) is not None


def take_back(record: Record, rollout_id: str, *, actor: str, reason: str) -> bool:
    """End a canary as rolled back, so that its open conversations move at their next turn; False where it had ended before.

    Both happen in one transaction, however many processes ask. The release in service stays.
    """
    with record.write() as transaction:
        release_id = _end_in(transaction, rollout_id, RolloutState.ROLLED_BACK, actor, reason)
        if release_id is not None:
            releases.take_back_in(transaction, release_id, actor=actor, reason=reason)
        return release_id is not None


def promote(record: Record, rollout_id: str, *, actor: str, reason: str, against_gate: bool = False) -> bool:
    """End a canary as promoted and put its release into service, in one transaction; False where it had ended before.

    Raises OperatorError where no server has the release loaded, and where the gate holds it back, unless an operator goes
    `against_gate`, which leaves an override in the audit.
    """
    tried = rollout(record, rollout_id)
    why = held_back(record, tried.release_id)
    if why and not against_gate:
        raise OperatorError(
            f"{why}, so its canary puts it into service only against the gate: `distill canary --promote --override REASON`"
        )
    gate = gate_word(record, tried.release_id)
    if not releases.servers_with(record, tried.release_id):
        raise OperatorError(
            f"no student server has {tried.release_id!r} loaded, so nobody could answer with it; expected a server that is ready "
            "and has it; look at the servers below `distill releases`, and start `support-bot student`"
        )
    with record.write() as transaction:
        release_id = _end_in(transaction, rollout_id, RolloutState.PROMOTED, actor, reason)
        if release_id is not None:
            told = f"the gate was overridden: {reason}" if why else reason
            releases.promote_in(transaction, release_id, actor=actor, reason=told)
            if why:
                note_override(transaction, release_id, gate, actor=actor, reason=reason)
        return release_id is not None


def roll_back(record: Record, *, to: str | None = None, actor: str, reason: str) -> RolledBack:
    """Undo the newest change that customers meet, as `distill rollback` and the console's button do.

    That is the canary that goes on, else the release in service, which gives way to the one before. `to` names a release that was
    in service, and restores that one; a canary goes on then. Open conversations move at their next turn.
    Raises OperatorError where there is nothing to go back to.
    """
    canary = running(record, RolloutKind.CANARY) if to is None else None
    if canary is not None and take_back(record, canary.rollout_id, actor=actor, reason=reason):
        return RolledBack(canary.release_id, releases.in_service(record) or "")
    before = releases.in_service(record) or ""
    return RolledBack(before, releases.roll_back(record, to=to, actor=actor, reason=reason))


def running(record: Record, kind: RolloutKind) -> Rollout | None:
    """Return the rollout of a kind that is going on, or None."""
    row = record.one("SELECT * FROM rollouts WHERE kind = ? AND state = 'running'", [kind])
    return _rollout_of(row) if row else None


def rollout(record: Record, rollout_id: str) -> Rollout:
    """Return one rollout.

    Raises OperatorError when there is none of that name.
    """
    row = record.one("SELECT * FROM rollouts WHERE rollout_id = ?", [rollout_id])
    if row is None:
        raise OperatorError(f"no rollout {rollout_id!r} in {record.path}")
    return _rollout_of(row)


def rollouts(record: Record, limit: int = 20) -> list[Rollout]:
    """Return rollouts, the newest first."""
    rows = record.query("SELECT * FROM rollouts ORDER BY started_at_utc DESC, rollout_id DESC LIMIT ?", [limit])
    return [_rollout_of(row) for row in rows]


def release_for(record: Record, conversation_id: str, held_release_id: str | None, *, rested: bool = False) -> str | None:
    """Return the release that answers a conversation next, or None before the first student.

    It is the one that the conversation holds, unless that was rolled back or refused, no server keeps it any more, an answer has
    failed already for want of a server with it and the release in service has one, or the conversation has `rested` so long that it
    counts as a new one. A new conversation gets the canary's release where it falls into its share and a server has that release,
    else the one in service.
    """
    stays = held_release_id is not None and not rested and releases.may_go_on(record, held_release_id)
    if held_release_id is not None and stays and is_kept(record, held_release_id):
        return releases.in_service(record) if _is_stranded(record, conversation_id, held_release_id) else held_release_id
    is_new = held_release_id is None or rested
    canary = running(record, RolloutKind.CANARY) if is_new else None
    if canary is not None and falls_into(canary, conversation_id) and releases.servers_with(record, canary.release_id):
        return canary.release_id
    return releases.in_service(record)


def _is_stranded(record: Record, conversation_id: str, held_release_id: str) -> bool:
    """Tell whether a conversation's newest answer found no server with its release, there is none now, and the one in service has."""
    if releases.servers_with(record, held_release_id):
        return False
    row = record.one(
        "SELECT failure_code FROM turns WHERE conversation_id = ? AND author = 'student' ORDER BY turn_seq DESC LIMIT 1",
        [conversation_id],
    )
    current = releases.in_service(record)
    if row is None or row["failure_code"] not in NO_SERVER_CODES or current is None:
        return False
    return bool(releases.servers_with(record, current))


def has_rested(record: Record, conversation_id: str, question_turn_id: str, *, hours: float) -> bool:
    """Tell whether nothing was said in a conversation for so long before a question; never before its first turn."""
    row = record.one(
        "SELECT MAX(created_at_utc) AS latest FROM turns WHERE conversation_id = ? AND turn_id <> ?",
        [conversation_id, question_turn_id],
    )
    latest = row["latest"] if row else None
    return latest is not None and str(latest) < utc_text(datetime.now(UTC) - timedelta(hours=hours))


def falls_into(rollout: Rollout, name: str) -> bool:
    """Tell whether a conversation (canary) or a turn (shadow) falls into a rollout's share: by a hash, the same at every asking."""
    drawn = int.from_bytes(hashlib.sha256(f"{rollout.rollout_id}:{name}".encode()).digest()[:8], "big")
    return drawn < rollout.share * 2**64


def _end_in(transaction: Transaction, rollout_id: str, state: RolloutState, actor: str, reason: str) -> str | None:
    """End a rollout that goes on and return its release; None where it had ended before."""
    going = transaction.query("SELECT * FROM rollouts WHERE rollout_id = ? AND state = 'running'", [rollout_id])
    if not going:
        return None
    transaction.execute(
        "UPDATE rollouts SET state = ?, ended_by = ?, ended_because = ?, ended_at_utc = ? WHERE rollout_id = ?",
        [state, actor, reason, utc_now(), rollout_id],
    )
    release_id = str(going[0]["release_id"])
    audit.note(transaction, actor, f"{going[0]['kind']} {state.value.replace('_', ' ')}", release_id, {"reason": reason})
    return release_id


def _rollout_of(row: Row) -> Rollout:
    return Rollout(
        rollout_id=str(row["rollout_id"]),
        kind=RolloutKind(str(row["kind"])),
        release_id=str(row["release_id"]),
        share=float(row["share"] or 0),
        rules=Rules(**json.loads(str(row["rules_json"]))),
        state=RolloutState(str(row["state"])),
        started_by=str(row["started_by"]),
        started_at_utc=str(row["started_at_utc"]),
        ended_by=None if row["ended_by"] is None else str(row["ended_by"]),
        ended_because=None if row["ended_because"] is None else str(row["ended_because"]),
        ended_at_utc=None if row["ended_at_utc"] is None else str(row["ended_at_utc"]),
    )
