"""Checking the record against itself: every hash, reference, index row and audit entry re-derived.

In: an open record. Out: what was checked, by kind, and a sentence about each thing that disagrees, the first ones first.
"""

from dataclasses import dataclass

from conversations import audit
from conversations.messages import Role, content_hash
from conversations.store import Record
from conversations.turns import turn_hash

MAX_PROBLEMS = 50


@dataclass(frozen=True)
class Checked:
    """The result of a check."""

    checked: dict[str, int]
    problems: list[str]


@dataclass(frozen=True)
class Statistics:
    """How much the record holds."""

    conversations: int
    turns: int
    by_status: dict[str, int]
    by_release: dict[str, int]
    bytes: int


def verify(record: Record) -> Checked:
    """Re-derive everything that can be re-derived."""
    problems: list[str] = []
    checked: dict[str, int] = {}
    turns = record.query("SELECT turn_id, role, content, extra_json, content_hash FROM turns ORDER BY turn_seq")
    checked["turns"] = len(turns)
    for row in turns:
        if row["content_hash"] != turn_hash(Role(str(row["role"])), str(row["content"]), str(row["extra_json"])):
            problems.append(f"turn {row['turn_id']}: its content does not match its hash")
    answers = record.query("SELECT answer_id, content, content_hash FROM answers")
    checked["answers"] = len(answers)
    problems += [
        f"answer {row['answer_id']}: its content does not match its hash"
        for row in answers
        if row["content_hash"] != content_hash(str(row["content"]))
    ]
    references = record.query("PRAGMA foreign_key_check")
    checked["tables"] = len(record.query("SELECT name FROM sqlite_master WHERE type = 'table'"))
    problems += [f"{row['table']} row {row['rowid']}: refers to a missing row of {row['parent']}" for row in references]
    problems += [f"SQLite: {row['integrity_check']}" for row in record.query("PRAGMA integrity_check") if _unsound(row)]
    checked["search_rows"] = _check_search(record, problems)
    checked["audit_entries"] = int((record.one("SELECT COUNT(*) AS n FROM audit") or {}).get("n") or 0)
    broken = audit.first_broken_entry(record)
    if broken:
        problems.append(broken)
    return Checked(checked, problems[:MAX_PROBLEMS])


def statistics(record: Record) -> Statistics:
    """Count what the record holds."""

    def counts(sql: str) -> dict[str, int]:
        return {str(row["name"]): int(row["n"] or 0) for row in record.query(sql)}

    totals = record.one(
        "SELECT (SELECT COUNT(*) FROM conversations) AS conversations, (SELECT COUNT(*) FROM turns) AS turns"
    )
    files = [record.path.with_name(record.path.name + suffix) for suffix in ("", "-wal")]
    return Statistics(
        conversations=int((totals or {}).get("conversations") or 0),
        turns=int((totals or {}).get("turns") or 0),
        by_status=counts("SELECT status AS name, COUNT(*) AS n FROM turns GROUP BY status ORDER BY status"),
        by_release=counts(
            "SELECT release_id AS name, COUNT(*) AS n FROM turns WHERE release_id IS NOT NULL GROUP BY 1 ORDER BY 1"
        ),
        bytes=sum(path.stat().st_size for path in files if path.exists()),
    )


def _check_search(record: Record, problems: list[str]) -> int:
    """Compare the index with the turns it was made from; return how many rows it has."""
    indexed = int((record.one("SELECT COUNT(*) AS n FROM turn_search_docsize") or {}).get("n") or 0)
    turns = int((record.one("SELECT COUNT(*) AS n FROM turns") or {}).get("n") or 0)
    if indexed != turns:
        problems.append(f"search index: {indexed} rows for {turns} turns")
    fault = record.search_index_fault()
    if fault:
        problems.append(f"search index: {fault}")
    return indexed


def _unsound(row: object) -> bool:
    return isinstance(row, dict) and row.get("integrity_check") != "ok"
