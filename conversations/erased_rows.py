"""Rows that an erasure removes, and the names under which files may still hold them.

In: an open transaction and the names of conversations. Out: the rows are gone, with tombstones in their place, and a note of what
the files still hold, which lasts until an erasure has been through them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from conversations.editions import note_edition_rows
from conversations.store import Record, Transaction
from conversations.tombstones import bury

UNFINISHED = "unfinished_erasure"


@dataclass
class Removed:
    """What went out of the rows, and the names under which files may hold it.

    `names` are of our own making, so that a file with one of them surely speaks of it; `sources` are ids and customers as they
    came, which may be as short as "1".
    """

    conversations: int = 0
    turns: int = 0
    answers: int = 0
    names: set[str] = field(default_factory=set)
    sources: set[tuple[str, str]] = field(default_factory=set)

    def add(self, piece: "Removed") -> None:
        """Take in what another transaction removed."""
        self.conversations += piece.conversations
        self.turns += piece.turns
        self.answers += piece.answers
        self.names |= piece.names
        self.sources |= piece.sources


def remove(transaction: Transaction, conversation_ids: Sequence[str]) -> Removed:
    """Remove conversations and all that hangs on them from the rows, children before their parents."""
    removed = Removed(names=set(conversation_ids))
    editions: dict[int, int] = {}
    for conversation_id in conversation_ids:
        for decision_id in names_of(
            transaction, "SELECT decision_id FROM decisions WHERE conversation_id = ?", conversation_id
        ):
            removed.names.add(decision_id)
            for row in transaction.query("SELECT edition FROM edition_decisions WHERE decision_id = ?", [decision_id]):
                editions[int(row["edition"] or 0)] = editions.get(int(row["edition"] or 0), 0) + 1
            transaction.execute("DELETE FROM edition_decisions WHERE decision_id = ?", [decision_id])
            transaction.execute(
                "DELETE FROM answer_reviews WHERE answer_id IN (SELECT answer_id FROM answers WHERE decision_id = ?)",
                [decision_id],
            )
            transaction.execute("DELETE FROM blind_votes WHERE decision_id = ?", [decision_id])
            removed.answers += transaction.execute("DELETE FROM answers WHERE decision_id = ?", [decision_id])
            transaction.execute("DELETE FROM decision_vectors WHERE decision_id = ?", [decision_id])
            transaction.execute("DELETE FROM teacher_batch_requests WHERE decision_id = ?", [decision_id])
            # A reply that was paid for once serves every decision with the same history: it goes on with another one.
            transaction.execute(
                "UPDATE teacher_replies SET decision_id = (SELECT decision_id FROM answers a "
                "WHERE a.request_hash = teacher_replies.request_hash LIMIT 1) WHERE decision_id = ? AND EXISTS "
                "(SELECT 1 FROM answers a WHERE a.request_hash = teacher_replies.request_hash)",
                [decision_id],
            )
            transaction.execute("DELETE FROM teacher_replies WHERE decision_id = ?", [decision_id])
            transaction.execute("DELETE FROM decisions WHERE decision_id = ?", [decision_id])
        removed.turns += _remove_conversation(transaction, conversation_id, removed.sources)
        removed.conversations += 1
    for edition, rows in sorted(editions.items()):
        note_edition_rows(transaction, edition, erased=rows)
    return removed


def _remove_conversation(transaction: Transaction, conversation_id: str, sources: set[tuple[str, str]]) -> int:
    for row in transaction.query(
        "SELECT source_id, customer_id FROM conversations WHERE conversation_id = ?", [conversation_id]
    ):
        if row["source_id"]:
            bury(transaction, "conversation", str(row["source_id"]))
            sources.add((str(row["source_id"]), str(row["customer_id"])))
    bury(transaction, "conversation", conversation_id)
    transaction.execute(
        "DELETE FROM feedback WHERE turn_id IN (SELECT turn_id FROM turns WHERE conversation_id = ?)", [conversation_id]
    )
    transaction.execute(
        "DELETE FROM shadow_answers WHERE question_turn_id IN (SELECT turn_id FROM turns WHERE conversation_id = ?)",
        [conversation_id],
    )
    transaction.execute("DELETE FROM conversation_tags WHERE conversation_id = ?", [conversation_id])
    turn_ids = names_of(
        transaction, "SELECT turn_id FROM turns WHERE conversation_id = ? ORDER BY turn_seq DESC", conversation_id
    )
    removed = sum(transaction.execute("DELETE FROM turns WHERE turn_id = ?", [turn_id]) for turn_id in turn_ids)
    transaction.execute("DELETE FROM conversations WHERE conversation_id = ?", [conversation_id])
    return removed


def leave_to_do(transaction: Transaction, removed: Removed) -> None:
    """Note what the files still hold, beside what an erasure that was killed has left."""
    names, sources = unfinished(transaction)
    _note_unfinished(transaction, names | removed.names, sources | removed.sources)


def _note_unfinished(transaction: Transaction, names: set[str], sources: set[tuple[str, str]]) -> None:
    left = {"names": sorted(names), "sources": sorted(sources)}
    transaction.execute("INSERT OR REPLACE INTO record_facts VALUES (?, ?)", [UNFINISHED, json.dumps(left)])


def unfinished(transaction: Transaction | Record) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the names, and the source ids with their customers, that erasures at work or killed have left in files."""
    found = transaction.query("SELECT value FROM record_facts WHERE name = ?", [UNFINISHED])
    left = json.loads(str(found[0]["value"])) if found else {"names": [], "sources": []}
    # A list, as the first version wrote it, holds names alone.
    if isinstance(left, list):
        return set(left), set()
    return set(left["names"]), {(source_id, customer_id) for source_id, customer_id in left["sources"]}


def names_of(transaction: Transaction, sql: str, name: str) -> list[str]:
    """Return the cells of a query about one thing."""
    return [str(cell) for row in transaction.query(sql, [name]) for cell in row.values() if cell is not None]


def strike_out(transaction: Transaction, names: set[str], sources: set[tuple[str, str]]) -> None:
    """Take what the files hold no more from the note, which another erasure may have added to meanwhile."""
    left_names, left_sources = unfinished(transaction)
    _note_unfinished(transaction, left_names - names, left_sources - sources)


def end_note(transaction: Transaction) -> None:
    """Drop the note where no erasure has anything left to do."""
    if not any(unfinished(transaction)):
        transaction.execute("DELETE FROM record_facts WHERE name = ?", [UNFINISHED])
