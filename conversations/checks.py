"""Checking the record against itself: everything that can be derived again is, and compared with what stands there.

In: an open record. Out: what was checked, by kind, and a sentence about each thing that disagrees, the first ones first. Reads
one moment of the record, a row at a time, so that a record of any size is checked in the same memory while others write.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from conversations import audit
from conversations.artefacts import file_digest
from conversations.editions import edition_hash
from conversations.entry import TURNS_PER_CONVERSATION, turn_hash
from conversations.erased_rows import UNFINISHED
from conversations.errors import OperatorError
from conversations.exchange.formats import conversation_hash, is_said
from conversations.messages import ChatMessage, Role, TurnStatus, content_hash
from conversations.schema import differences_from_made
from conversations.store import Record, Row, Snapshot

MAX_PROBLEMS = 50
UNKNOWN_LANGUAGE = "unknown"


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
    by_language: dict[str, int]
    bytes: int


def verify(record: Record) -> Checked:
    """Derive again everything that can be derived. At most MAX_PROBLEMS of each kind are told."""
    problems: list[str] = []
    checked: dict[str, int] = {}
    try:
        _derive(record, problems, checked)
    except OperatorError as damage:
        # The rest cannot be read.
        problems.append(str(damage))
    return Checked(checked, problems)


def _derive(record: Record, problems: list[str], checked: dict[str, int]) -> None:
    with record.snapshot() as now:
        # A damaged file answers the other questions with nonsense.
        problems += islice(_damage(now), MAX_PROBLEMS)
        kinds: dict[str, Callable[[Snapshot], Iterator[str]]] = {
            "tables": _schema,
            "record_facts": _facts,
            "turns": _turns,
            "conversations": _conversations,
            "feedback": _votes,
            "answers": _answers,
            "blind_votes": _blind_votes,
            "shadow_answers": _shadow_answers,
            "editions": _editions,
            "audit": audit.broken_entries,
            "artefacts": partial(_artefacts, record.path.parent),
        }
        for table, find_problems in kinds.items():
            checked["audit_entries" if table == "audit" else table] = now.count(
                "sqlite_master WHERE type = 'table'" if table == "tables" else table
            )
            problems += islice(find_problems(now), MAX_PROBLEMS)
        checked["search_rows"] = now.count("turn_search_docsize")
        problems += islice(_search_rows(now), MAX_PROBLEMS)
        problems += _unfinished(now)
    fault = record.search_index_fault()
    if fault:
        problems.append(f"search index: {fault}; {record.first_wrong_search_row() or 'no single row of it differs'}")


def _damage(now: Snapshot) -> Iterator[str]:
    for row in now.rows("PRAGMA integrity_check"):
        if row["integrity_check"] != "ok":
            yield f"SQLite: {row['integrity_check']}"
    for row in now.rows("PRAGMA foreign_key_check"):
        yield f"{row['table']} row {row['rowid']}: refers to a missing row of {row['parent']}"


def _unfinished(now: Snapshot) -> Iterator[str]:
    for _ in now.rows("SELECT 1 FROM record_facts WHERE name = ?", [UNFINISHED]):
        yield "an erasure was killed before it came to the files; run `conversations erase` for the same customer again"


def _schema(now: Snapshot) -> Iterator[str]:
    made = {
        str(row["name"]): str(row["sql"]) for row in now.rows("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }
    yield from differences_from_made(made)


# Where a text must be JSON, or nothing.
_JSON_COLUMNS = {
    "conversations": ("conversation_id", ("labels_json", "tools_json", "extra_json")),
    "turns": ("turn_id", ("extra_json", "decoding_json")),
    "answers": ("answer_id", ("passages_json",)),
    "teacher_replies": ("request_hash", ("reply_json",)),
    "runs": ("run_id", ("report_json",)),
    "releases": ("release_id", ("metrics_json",)),
    "rollouts": ("rollout_id", ("rules_json",)),
}


def _facts(now: Snapshot) -> Iterator[str]:
    """Check what the record knows of itself, and that every text that must be JSON is."""
    if not any(True for _ in now.rows("SELECT 1 FROM record_facts WHERE name = 'split_salt'")):
        yield "record_facts: the salt of the splits is missing"
    for table, (key, columns) in _JSON_COLUMNS.items():
        for column in columns:
            rows = now.rows(f"SELECT {key} AS name FROM {table} WHERE {column} <> '' AND NOT json_valid({column})")
            yield from (f"{table} {row['name']}: {column} is no JSON" for row in rows)
    for row in now.rows(
        "SELECT audit_seq, target FROM audit WHERE action = 'customer erased' "
        "AND target NOT IN (SELECT name_hash FROM tombstones)"
    ):
        yield f"tombstones: the one of audit entry {row['audit_seq']} is missing; the person could come back"


def _turns(now: Snapshot) -> Iterator[str]:
    """Check what each turn says against its hash, and where it stands against its parent."""
    rows = now.rows(
        "SELECT t.turn_id, t.turn_seq, t.role, t.content, t.extra_json, t.content_hash, t.position, c.conversation_seq, "
        "t.parent_turn_id, p.position AS parent_position, p.turn_seq AS parent_seq, p.conversation_id = t.conversation_id AS own "
        "FROM turns t LEFT JOIN conversations c USING (conversation_id) LEFT JOIN turns p ON p.turn_id = t.parent_turn_id "
        "ORDER BY t.turn_seq"
    )
    for row in rows:
        name = f"turn {row['turn_id']}"
        if row["content_hash"] != turn_hash(Role(str(row["role"])), str(row["content"]), str(row["extra_json"])):
            yield f"{name}: its content does not match its hash"
        if int(row["turn_seq"] or 0) // TURNS_PER_CONVERSATION != row["conversation_seq"]:
            yield f"{name}: its number is not one of its conversation"
        if row["parent_turn_id"] is not None and (
            not row["own"] or int(row["parent_seq"] or 0) >= int(row["turn_seq"] or 0)
        ):
            yield f"{name}: does not follow an earlier turn of its own conversation"
        expected = 0 if row["parent_turn_id"] is None else int(row["parent_position"] or 0) + 1
        if row["position"] != expected:
            yield f"{name}: stands at position {row['position']}; expected {expected}"


def _conversations(now: Snapshot) -> Iterator[str]:
    """Check the counts of each conversation, and what was imported against the hash of what came."""
    rows = now.rows(
        "SELECT c.*, (SELECT COUNT(*) FROM turns t WHERE t.conversation_id = c.conversation_id) AS turns_there, "
        "(SELECT COUNT(*) FROM feedback f JOIN turns t USING (turn_id) WHERE t.conversation_id = c.conversation_id "
        "AND f.vote = 'up') AS up_there, "
        "(SELECT COUNT(*) FROM feedback f JOIN turns t USING (turn_id) WHERE t.conversation_id = c.conversation_id "
        "AND f.vote = 'down') AS down_there, EXISTS (SELECT 1 FROM decisions d JOIN answers a USING (decision_id) "
        "JOIN answers b USING (decision_id) WHERE d.conversation_id = c.conversation_id AND a.author_kind <> 'student' "
        "AND b.author_kind <> 'student' AND (a.author_kind, a.author_name) <> (b.author_kind, b.author_name) "
        "AND a.content_hash <> b.content_hash) AS disagreement_there FROM conversations c ORDER BY c.conversation_seq"
    )
    for row in rows:
        name = f"conversation {row['conversation_id']}"
        for column, there in (
            ("turn_count", "turns_there"),
            ("votes_up", "up_there"),
            ("votes_down", "down_there"),
            ("has_disagreement", "disagreement_there"),
        ):
            if row[column] != row[there]:
                yield f"{name}: {column} is {row[column]}; its rows give {row[there]}"
        if row["source_id"] is not None and not row["content_hash"]:
            yield f"{name}: was imported and has no hash"
        if row["content_hash"] and not _says_what_was_imported(now, row):
            yield f"{name}: what was imported does not match its hash"
    highest = next(now.rows("SELECT MAX(conversation_seq) AS seq FROM conversations"))["seq"]
    counter = next(now.rows("SELECT value FROM counters WHERE name = 'conversation_seq'"), {"value": None})["value"]
    if counter is None or int(highest or 0) > int(counter):
        yield f"counter conversation_seq: is {counter}; {highest} is given already"
    for row in now.rows("SELECT conversation_id, conversation_seq FROM conversations WHERE conversation_seq < 1"):
        yield f"conversation {row['conversation_id']}: has the number {row['conversation_seq']}"


def _says_what_was_imported(now: Snapshot, conversation: Row) -> bool:
    """Tell whether the turns up to some place have the hash of what came; what was said here later stands behind it."""
    rows = list(
        now.rows(
            "SELECT turn_id, parent_turn_id, role, content, extra_json, status FROM turns WHERE conversation_id = ? "
            "ORDER BY turn_seq",
            [conversation["conversation_id"]],
        )
    )
    by_id = {str(row["turn_id"]): row for row in rows}

    def said_up_to(row: Row | None) -> list[ChatMessage]:
        said: list[ChatMessage] = []
        for _ in rows:
            if row is None:
                break
            message = ChatMessage(Role(str(row["role"])), str(row["content"]), str(row["extra_json"]))
            if is_said(TurnStatus(str(row["status"])), message):
                said.append(message)
            row = by_id.get(str(row["parent_turn_id"]))
        return said[::-1]

    try:
        # Mostly the newest turn is the last one that came.
        return any(_is_hash_of(said_up_to(row), conversation) for row in reversed(rows))
    except ValueError:
        # No JSON where it must be, which is told for itself.
        return False


def _is_hash_of(said: list[ChatMessage], conversation: Row) -> bool:
    return conversation_hash(said, str(conversation["tools_json"])) == conversation["content_hash"]


def _votes(now: Snapshot) -> Iterator[str]:
    for row in now.rows(
        "SELECT f.turn_id, f.customer_id FROM feedback f LEFT JOIN turns t USING (turn_id) "
        "LEFT JOIN conversations c USING (conversation_id) WHERE c.customer_id IS NOT f.customer_id"
    ):
        yield f"feedback on turn {row['turn_id']}: is of {row['customer_id']!r}, whose conversation it is not"


def _answers(now: Snapshot) -> Iterator[str]:
    for row in now.rows("SELECT answer_id, content, content_hash FROM answers ORDER BY answered_at_utc, answer_id"):
        if row["content_hash"] != content_hash(str(row["content"])):
            yield f"answer {row['answer_id']}: its content does not match its hash"
    for row in now.rows(
        "SELECT decision_id, author_name, COUNT(*) AS n, MAX(version) AS newest FROM answers "
        "GROUP BY decision_id, author_kind, author_name HAVING COUNT(*) <> MAX(version)"
    ):
        yield f"answers of {row['author_name']} for {row['decision_id']}: {row['n']} versions up to number {row['newest']}"


def _blind_votes(now: Snapshot) -> Iterator[str]:
    for row in now.rows(
        "SELECT v.vote_id FROM blind_votes v LEFT JOIN answers l ON l.answer_id = v.left_answer_id "
        "LEFT JOIN answers r ON r.answer_id = v.right_answer_id "
        "WHERE l.decision_id IS NOT v.decision_id OR r.decision_id IS NOT v.decision_id OR v.left_answer_id = v.right_answer_id"
    ):
        yield f"blind vote {row['vote_id']}: is not about two answers to its decision"


def _shadow_answers(now: Snapshot) -> Iterator[str]:
    for row in now.rows(
        "SELECT s.rollout_id, s.question_turn_id FROM shadow_answers s LEFT JOIN rollouts o USING (rollout_id) "
        "LEFT JOIN turns t ON t.turn_id = s.question_turn_id "
        "WHERE o.kind IS NOT 'shadow' OR o.release_id IS NOT s.release_id OR t.role IS NOT 'user'"
    ):
        yield f"shadow answer to {row['question_turn_id']}: is not of the release that {row['rollout_id']} tries, or to no question"


def _editions(now: Snapshot) -> Iterator[str]:
    for row in list(now.rows("SELECT edition, rows_hash FROM editions ORDER BY edition")):
        rows = list(now.rows("SELECT * FROM edition_decisions WHERE edition = ? ORDER BY decision_id", [row["edition"]]))
        if edition_hash(rows) != row["rows_hash"]:
            yield f"edition {row['edition']}: its rows do not match its hash"


def _artefacts(folder: Path, now: Snapshot) -> Iterator[str]:
    """Check the files that are still there; one that was moved away or deleted is its owner's business."""
    for row in now.rows("SELECT path, kind, digest FROM artefacts ORDER BY path"):
        path = folder / str(row["path"])
        if row["kind"] == "backup" or not path.is_file():
            continue
        if file_digest(path) != row["digest"]:
            yield f"file {path}: was changed after it was written"


def _search_rows(now: Snapshot) -> Iterator[str]:
    for row in now.rows(
        "SELECT turn_id FROM turns WHERE status NOT IN ('pending', 'streaming') "
        "AND turn_seq NOT IN (SELECT id FROM turn_search_docsize) ORDER BY turn_seq"
    ):
        yield f"turn {row['turn_id']}: is not in the search index"
    for row in now.rows("SELECT id FROM turn_search_docsize WHERE id NOT IN (SELECT turn_seq FROM turn_words) ORDER BY id"):
        yield f"search row {row['id']}: no finished turn has this number"


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
        by_language=counts(
            f"SELECT CASE language WHEN '' THEN '{UNKNOWN_LANGUAGE}' ELSE language END AS name, COUNT(*) AS n "
            "FROM conversations GROUP BY language ORDER BY language"
        ),
        bytes=sum(path.stat().st_size for path in files if path.exists()),
    )
