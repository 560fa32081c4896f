"""Which scheduler acts, and what it decided: one at a time across processes and machines that share the record.

In: a scheduler that wants to act, and its decisions. Out: a lease that ends by itself, and a log for operators. The same decision
for the same reason is written once, however often it is made.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from conversations.messages import utc_now, utc_text
from conversations.store import Record


class ScheduleDecision(StrEnum):
    """What a scheduler did when it looked."""

    STARTED = "started"
    RESUMED = "resumed"
    WAITS = "waits"
    STANDS_BY = "stands_by"
    ENDED = "ended"
    CANARY = "canary"


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


def note_decision(
    record: Record, *, scheduler: str, decision: ScheduleDecision, reason: str, run_id: str | None = None
) -> None:
    """Write what a scheduler decided, unless its last entry says the same."""
    with record.write() as transaction:
        last = transaction.query(
            "SELECT decision, reason, run_id FROM schedule_log WHERE scheduler = ? ORDER BY schedule_seq DESC LIMIT 1",
            [scheduler],
        )
        if last and (last[0]["decision"], last[0]["reason"], last[0]["run_id"]) == (decision, reason, run_id):
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


def decisions_taken(record: Record, limit: int = 50) -> list[ScheduleEntry]:
    """Return what schedulers decided, the latest first."""
    rows = record.query("SELECT * FROM schedule_log ORDER BY schedule_seq DESC LIMIT ?", [limit])
    return [
        ScheduleEntry(
            scheduler=str(row["scheduler"]),
            decision=ScheduleDecision(str(row["decision"])),
            reason=str(row["reason"]),
            run_id=None if row["run_id"] is None else str(row["run_id"]),
            decided_at_utc=str(row["decided_at_utc"]),
        )
        for row in rows
    ]
