"""Forgetting a person: out of the record, the answers, the search index and every file that a run wrote.

In: a customer's name. Out: what was removed, and the releases that learned from the person. Leaves a tombstone, a hash,
which later imports and data sets honour.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from conversations import audit
from conversations.messages import utc_now
from conversations.store import Cell, Record, Row, Transaction

_UNFINISHED = "unfinished_erasure"
_TEXT_SUFFIXES = (".jsonl", ".json", ".html", ".half")


@dataclass(frozen=True)
class Erased:
    """What an erasure removed; `releases` learned from the person and still serve what they learned."""

    conversations: int
    turns: int
    answers: int
    files: int
    releases: tuple[str, ...]


def name_hash(kind: str, name: str) -> str:
    """Return the hash under which an erased customer or conversation is remembered."""
    return "sha256:" + hashlib.sha256(f"{kind}:{name}".encode("utf-8", "replace")).hexdigest()


def erase_customer(record: Record, customer_id: str, *, actor: str) -> Erased:
    """Remove a customer: first every row, in one transaction, then the lines of the files, then the freed bytes.

    A customer who is not there is remembered all the same, so that a later import does not bring them in. An erasure that
    was killed between the rows and the files is finished by the next one.
    Raises OutsideError, with the rows gone and some bytes still on the disk, when another process holds the record.
    """
    with record.write() as transaction:
        conversations = _names(transaction, "SELECT conversation_id FROM conversations WHERE customer_id = ?", customer_id)
        decisions = [
            name
            for conversation_id in conversations
            for name in _names(transaction, "SELECT decision_id FROM decisions WHERE conversation_id = ?", conversation_id)
        ]
        answers = sum(_delete_decision(transaction, decision_id) for decision_id in decisions)
        turns = sum(_delete_conversation(transaction, conversation_id) for conversation_id in conversations)
        transaction.execute("DELETE FROM feedback WHERE customer_id = ?", [customer_id])
        transaction.execute("DELETE FROM customers WHERE customer_id = ?", [customer_id])
        _bury(transaction, "customer", customer_id)
        # The audit tells that somebody was erased, never who.
        audit.note(transaction, actor, "customer erased", name_hash("customer", customer_id), {"turns": turns})
        names = {*_unfinished(transaction), *decisions, *conversations}
        transaction.execute("INSERT OR REPLACE INTO record_facts VALUES (?, ?)", [_UNFINISHED, json.dumps(sorted(names))])
        releases = _releases_that_learned(transaction, sorted(names))
        files = _files_with_text(transaction)
    changed = [path for path in files if names and _erase_lines(path, names)]
    with record.write() as transaction:
        for path in changed:
            _renew_artefact(transaction, path)
        transaction.execute("DELETE FROM record_facts WHERE name = ?", [_UNFINISHED])
    record.compact()
    return Erased(len(conversations), turns, answers, len(changed), tuple(releases))


def is_erased(record: Record, kind: str, name: str) -> bool:
    """Tell whether a customer or conversation was erased."""
    return record.one("SELECT 1 AS found FROM tombstones WHERE name_hash = ?", [name_hash(kind, name)]) is not None


def _names(transaction: Transaction, sql: str, name: str) -> list[str]:
    return [str(next(iter(row.values()))) for row in transaction.query(sql, [name])]


def _releases_that_learned(transaction: Transaction, decisions: list[str]) -> list[str]:
    marks = ", ".join("?" for _ in decisions)
    rows: list[Row] = transaction.query(
        f"SELECT DISTINCT release_id FROM releases JOIN run_decisions USING (run_id) "
        f"WHERE used_as <> 'test' AND decision_id IN ({marks}) ORDER BY release_id",
        list(decisions),
    )
    return [str(row["release_id"]) for row in rows]


def _delete_decision(transaction: Transaction, decision_id: str) -> int:
    transaction.execute("DELETE FROM edition_decisions WHERE decision_id = ?", [decision_id])
    removed = transaction.execute("DELETE FROM answers WHERE decision_id = ?", [decision_id])
    transaction.execute("DELETE FROM teacher_replies WHERE decision_id = ?", [decision_id])
    transaction.execute("DELETE FROM decisions WHERE decision_id = ?", [decision_id])
    return removed


def _delete_conversation(transaction: Transaction, conversation_id: str) -> int:
    source = transaction.query("SELECT source_id FROM conversations WHERE conversation_id = ?", [conversation_id])
    if source and source[0]["source_id"]:
        _bury(transaction, "conversation", str(source[0]["source_id"]))
    _bury(transaction, "conversation", conversation_id)
    parameters: list[Cell] = [conversation_id]
    transaction.execute(
        "DELETE FROM feedback WHERE turn_id IN (SELECT turn_id FROM turns WHERE conversation_id = ?)", parameters
    )
    # Children go before their parents.
    removed = 0
    for row in transaction.query("SELECT turn_id FROM turns WHERE conversation_id = ? ORDER BY turn_seq DESC", parameters):
        removed += transaction.execute("DELETE FROM turns WHERE turn_id = ?", [row["turn_id"]])
    transaction.execute("DELETE FROM conversations WHERE conversation_id = ?", parameters)
    return removed


def _bury(transaction: Transaction, kind: str, name: str) -> None:
    transaction.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?)", [name_hash(kind, name), kind, utc_now()])


def _unfinished(transaction: Transaction) -> list[str]:
    """Return the decisions and conversations of an erasure that was killed before it came to the files."""
    found = transaction.query("SELECT value FROM record_facts WHERE name = ?", [_UNFINISHED])
    return [str(name) for name in json.loads(str(found[0]["value"]))] if found else []


def _files_with_text(transaction: Transaction) -> list[Path]:
    """Return the files that may hold customers' words: those that runs noted, and those that a killed stage left."""
    noted = {Path(str(row["path"])) for row in transaction.query("SELECT path FROM artefacts WHERE holds_text = 1")}
    folders = [Path(str(row["path"])) for row in transaction.query("SELECT path FROM runs")]
    found = {
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.suffix in _TEXT_SUFFIXES and path.name != "manifest.json"
    }
    return sorted(path for path in noted | found if path.is_file())


def _erase_lines(path: Path, names: set[str]) -> bool:
    """Rewrite a file without the lines that name one of the decisions or conversations; tell whether it changed.

    A report page shows single cases and cannot be cut by the line: it is removed when it names one of them.
    """
    wanted = [name.encode() for name in names]
    content = path.read_bytes()
    if not any(name in content for name in wanted):
        return False
    if path.suffix != ".jsonl":
        path.unlink()
        return True
    # By the byte of the line end alone: a message may hold other characters that text functions take for one.
    kept = [line for line in content.split(b"\n") if not any(name in line for name in wanted)]
    half = path.with_name(f".{path.name}.half")
    half.write_bytes(b"\n".join(kept))
    os.replace(half, path)
    return True


def _renew_artefact(transaction: Transaction, path: Path) -> None:
    if not path.exists():
        transaction.execute("DELETE FROM artefacts WHERE path = ?", [str(path)])
        return
    content = path.read_bytes()
    transaction.execute(
        "UPDATE artefacts SET digest = ?, bytes = ? WHERE path = ?",
        ["sha256:" + hashlib.sha256(content).hexdigest(), len(content), str(path)],
    )
