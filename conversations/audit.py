"""The audit: who did what, in a chain of hashes that shows a missing or changed entry.

In: an open transaction, an actor, an action and its target. Out: one row that no later statement can change.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from conversations.messages import Json, canonical_json, content_hash, utc_now
from conversations.store import Record, Row, Snapshot, Transaction

_START = "sha256:" + "0" * 64


@dataclass(frozen=True)
class AuditEntry:
    """One thing that somebody did."""

    audit_seq: int
    actor: str
    action: str
    target: str
    detail_json: str
    happened_at_utc: str


def note(transaction: Transaction, actor: str, action: str, target: str, detail: Mapping[str, Json]) -> None:
    """Append an entry to the audit, inside the transaction of what it tells."""
    last = transaction.query("SELECT entry_hash FROM audit ORDER BY audit_seq DESC LIMIT 1")
    entry: dict[str, str | int | float | None] = {
        "actor": actor,
        "action": action,
        "target": target,
        "detail_json": canonical_json(dict(detail)),
        "previous_hash": str(last[0]["entry_hash"]) if last else _START,
        "happened_at_utc": utc_now(),
    }
    transaction.insert("audit", {**entry, "entry_hash": _entry_hash(entry)})


def note_alone(record: Record, actor: str, action: str, target: str, detail: Mapping[str, Json]) -> None:
    """Append an entry about something that is no change of the record itself, such as a log-in."""
    with record.write() as transaction:
        note(transaction, actor, action, target, detail)


def broken_entries(now: Snapshot) -> Iterator[str]:
    """Yield a sentence about each entry that does not fit its chain."""
    previous, last_seq = _START, None
    for row in now.rows("SELECT * FROM audit ORDER BY audit_seq"):
        if row["previous_hash"] != previous:
            yield f"audit entry {row['audit_seq']}: the entry before it is missing or changed"
        if row["entry_hash"] != _entry_hash(row):
            yield f"audit entry {row['audit_seq']}: its content does not match its hash"
        previous, last_seq = str(row["entry_hash"]), row["audit_seq"]
    # Entries cut off at the end break no chain, but SQLite remembers the last number that it gave.
    for row in now.rows("SELECT seq FROM sqlite_sequence WHERE name = 'audit'"):
        if row["seq"] != last_seq:
            yield f"audit entry {row['seq']}: the last one that was written is missing"


def first_broken_entry(record: Record) -> str | None:
    """Return a sentence about the first entry that does not fit its chain, or None."""
    with record.snapshot() as now:
        return next(broken_entries(now), None)


def newest(record: Record, limit: int) -> list[AuditEntry]:
    """Return the newest entries, the latest first."""
    return [_entry(row) for row in record.query("SELECT * FROM audit ORDER BY audit_seq DESC LIMIT ?", [limit])]


def entries_of(record: Record, target: str, action: str) -> list[AuditEntry]:
    """Return what was done so to one thing, the earliest first."""
    found = record.query("SELECT * FROM audit WHERE target = ? AND action = ? ORDER BY audit_seq", [target, action])
    return [_entry(row) for row in found]


def _entry(row: Row) -> AuditEntry:
    return AuditEntry(
        int(row["audit_seq"] or 0),
        str(row["actor"]),
        str(row["action"]),
        str(row["target"]),
        str(row["detail_json"]),
        str(row["happened_at_utc"]),
    )


def _entry_hash(entry: Row) -> str:
    names = ("actor", "action", "target", "detail_json", "previous_hash", "happened_at_utc")
    return content_hash([entry[name] for name in names])
