"""Tombstones: hashes of what was erased, so that it does not come back.

Nobody can read in them who it was; whoever has the file can test whether a name that they guess is among them.
"""

import hashlib
from collections.abc import Sequence

from conversations.messages import utc_now
from conversations.store import Record, Row, Transaction


def name_hash(kind: str, name: str) -> str:
    """Return the hash under which an erased customer or conversation is remembered."""
    return "sha256:" + hashlib.sha256(f"{kind}:{name}".encode("utf-8", "replace")).hexdigest()


def bury(transaction: Transaction, kind: str, name: str) -> None:
    """Remember that a customer or a conversation was erased."""
    transaction.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?)", [name_hash(kind, name), kind, utc_now()])


def bury_again(transaction: Transaction, graves: Sequence[Row]) -> None:
    """Take over the tombstones of another copy of the record."""
    for grave in graves:
        transaction.execute(
            "INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?)", [grave["name_hash"], grave["kind"], grave["erased_at_utc"]]
        )


def is_buried(record: Record | Transaction, kind: str, name: str) -> bool:
    """Tell whether a customer or a conversation was erased."""
    return bool(record.query("SELECT 1 FROM tombstones WHERE name_hash = ?", [name_hash(kind, name)]))


def erased_among(record: Record, conversation_ids: set[str]) -> set[str]:
    """Return the conversations that the record no longer has, or whose customer was erased."""
    with record.snapshot() as now:
        there = {
            str(row["conversation_id"]): row for row in now.rows("SELECT conversation_id, customer_id FROM conversations")
        }
        graves = {str(row["name_hash"]) for row in now.rows("SELECT name_hash FROM tombstones")}
    return {
        each
        for each in conversation_ids
        if each not in there or name_hash("customer", str(there[each]["customer_id"])) in graves
    }
