"""Which scheduler acts, and what it decided: one at a time across processes and machines that share the record.

In: a scheduler that wants to act, and its decisions. Out: a lease that ends by itself, what a scheduler left unfinished, and a log
for operators. A look that finds what the one before found is written once, however often and by whomever it is made.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from conversations.messages import utc_now, utc_text
from conversations.runs import Run, RunRequest, RunState, begun_by, request, runs
from conversations.store import Record, Row

# The lease of whoever may look, and who `begun` a run that a scheduler goes on with by itself.
LEASE = "schedule"
BY_SCHEDULE = "distill schedule"


class ScheduleDecision(StrEnum):
    """What a scheduler did when it looked."""

    STARTED = "started"
    RESUMED = "resumed"
    WAITS = "waits"
    STANDS_BY = "stands_by"
    ENDED = "ended"
    CANARY = "canary"


_MOVES = (ScheduleDecision.STARTED, ScheduleDecision.RESUMED, ScheduleDecision.ENDED)


@dataclass(frozen=True)
class ScheduleEntry:
    """One decision of a scheduler, with its reason."""

    scheduler: str
    decision: ScheduleDecision
    reason: str
    run_id: str | None
    decided_at_utc: str


def take_lease(record: Record, name: str, *, holder: str, seconds: float) -> str | None:
    """Take or prolong a lease; return None when it is the holder's, else who has it.

    A lease that was not prolonged in time is anybody's.
    """
    now = datetime.now(UTC)
    with record.write() as transaction:
        held = transaction.query("SELECT holder, expires_at_utc FROM leases WHERE name = ?", [name])
        if held and held[0]["holder"] != holder and str(held[0]["expires_at_utc"]) > utc_text(now):
            return str(held[0]["holder"])
        transaction.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, "
            "taken_at_utc = CASE WHEN holder = excluded.holder THEN taken_at_utc ELSE excluded.taken_at_utc END, "
            "expires_at_utc = excluded.expires_at_utc",
            [name, holder, utc_text(now), utc_text(now + timedelta(seconds=seconds))],
        )
    return None


def give_back_lease(record: Record, name: str, *, holder: str) -> None:
    """Let others have a lease at once."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM leases WHERE name = ? AND holder = ?", [name, holder])


def take_over_request(record: Record, taken_by: str) -> RunRequest | None:
    """Take a request whose scheduler has the lease no more, or return None where there is none.

    Only the holder of the lease asks: what others have taken, they have left.
    """
    with record.write() as transaction:
        left = transaction.query(
            "SELECT request_id FROM run_requests WHERE state = 'taken' AND taken_by IS NOT ? AND EXISTS (SELECT 1 FROM leases "
            "WHERE name = ? AND holder = ? AND expires_at_utc > ?) ORDER BY requested_at_utc LIMIT 1",
            [taken_by, LEASE, taken_by, utc_now()],
        )
        if not left:
            return None
        request_id = str(left[0]["request_id"])
        transaction.execute("UPDATE run_requests SET taken_by = ? WHERE request_id = ?", [taken_by, request_id])
    return request(record, request_id)


def left_run(record: Record) -> Run | None:
    """Return the newest run where a scheduler began it and it was interrupted or failed, or None.

    What an operator began or took up is the operator's to go on with.
    """
    newest = next(iter(runs(record, limit=1)), None)
    if newest is None or newest.state not in (RunState.INTERRUPTED, RunState.FAILED):
        return None
    return newest if begun_by(record, newest.run_id) == BY_SCHEDULE else None


def resumed_in_vain(record: Record, run_id: str) -> tuple[int, str]:
    """Return how often a run was resumed since it last finished a stage, and when last; 0 and "" where it was not."""
    row = record.one(
        "SELECT COUNT(*) AS n, COALESCE(MAX(decided_at_utc), '') AS last FROM schedule_log WHERE run_id = ? AND decision = ? "
        "AND decided_at_utc > COALESCE((SELECT MAX(happened_at_utc) FROM run_events WHERE run_id = ? AND event = 'finished'), '')",
        [run_id, ScheduleDecision.RESUMED, run_id],
    )
    return (int(row["n"] or 0), str(row["last"])) if row else (0, "")


def latest_end(record: Record) -> ScheduleEntry | None:
    """Return how the newest cycle of a scheduler ended, or None where none has."""
    rows = record.query(
        "SELECT * FROM schedule_log WHERE decision = ? ORDER BY schedule_seq DESC LIMIT 1", [ScheduleDecision.ENDED]
    )
    return _entry_of(rows[0]) if rows else None


def note_decision(
    record: Record, *, scheduler: str, decision: ScheduleDecision, reason: str, run_id: str | None = None
) -> None:
    """Write what a scheduler decided. What begins or ends is always written; a look only where it found something else than the
    last one of its kind since then, whichever scheduler looked.
    """
    with record.write() as transaction:
        if decision not in _MOVES and transaction.query(
            "SELECT 1 FROM schedule_log WHERE reason = ? AND run_id IS ? AND schedule_seq = (SELECT MAX(schedule_seq) FROM "
            "schedule_log WHERE decision = ?) AND schedule_seq > COALESCE((SELECT MAX(schedule_seq) FROM schedule_log "
            "WHERE decision IN (?, ?, ?)), 0)",
            [reason, run_id, decision, *_MOVES],
        ):
            return
        transaction.insert(
            "schedule_log",
            {
                "scheduler": scheduler,
                "decision": decision,
                "reason": reason,
                "run_id": run_id,
                "decided_at_utc": utc_now(),
            },
        )


def was_noted(record: Record, *, run_id: str, reason: str) -> bool:
    """Tell whether something was ever written of a run."""
    return record.one("SELECT 1 FROM schedule_log WHERE run_id = ? AND reason = ? LIMIT 1", [run_id, reason]) is not None


def decisions_taken(record: Record, limit: int = 50) -> list[ScheduleEntry]:
    """Return what schedulers decided, the latest first."""
    return [_entry_of(row) for row in record.query("SELECT * FROM schedule_log ORDER BY schedule_seq DESC LIMIT ?", [limit])]


def _entry_of(row: Row) -> ScheduleEntry:
    return ScheduleEntry(
        scheduler=str(row["scheduler"]),
        decision=ScheduleDecision(str(row["decision"])),
        reason=str(row["reason"]),
        run_id=None if row["run_id"] is None else str(row["run_id"]),
        decided_at_utc=str(row["decided_at_utc"]),
    )
