"""Decisions and the answers given for them: what is taught, verified, split and scored.

In: rows from `distill` and corrections from operators. Out: the same, by decision. An answer is never changed; a correction
is its next version. A split, once given, stays.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations.messages import Json, Split, content_hash, utc_now
from conversations.store import Record, Row, Transaction


class AnswerAuthor(StrEnum):
    """Who gave an answer for a decision."""

    TEACHER = "teacher"
    OPERATOR = "operator"
    STUDENT = "student"
    LOGGED = "logged"


class Verdict(StrEnum):
    """What verify said of an answer; unscored means that the instrument could not say."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNSCORED = "unscored"


@dataclass(frozen=True)
class Decision:
    """One customer question with its logged history, and what it is used for."""

    decision_id: str
    conversation_id: str
    question_turn_id: str
    reply_turn_id: str | None
    cluster_id: str
    split: Split
    topic: str
    history_hash: str
    chosen_by_run_id: str
    chosen_because: str


@dataclass(frozen=True)
class Answer:
    """One immutable version of an answer. `author_name` is the teacher's, the operator's or the release's name."""

    answer_id: str
    decision_id: str
    version: int
    author: AnswerAuthor
    author_name: str
    content: str
    extra_json: str
    passages: tuple[str, ...]
    run_id: str | None
    verdict: Verdict | None
    verdict_reason: str | None
    answered_at_utc: str


@dataclass(frozen=True)
class NewAnswer:
    """An answer about to be entered; its version, its name and its time come with that."""

    decision_id: str
    author: AnswerAuthor
    author_name: str
    content: str
    extra_json: str = ""
    passages: tuple[str, ...] = ()
    request_hash: str | None = None


def put_decisions(record: Record, decisions: Iterable[Decision]) -> None:
    """Enter decisions; one that is there already keeps its split, its cluster and its first reason."""
    now = utc_now()
    with record.write() as transaction:
        for each in decisions:
            transaction.execute(
                "INSERT OR IGNORE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    each.decision_id,
                    each.conversation_id,
                    each.question_turn_id,
                    each.reply_turn_id,
                    each.cluster_id,
                    each.split,
                    each.topic,
                    each.history_hash,
                    each.chosen_by_run_id,
                    each.chosen_because,
                    now,
                ],
            )


def decisions(record: Record, conversation_id: str | None = None) -> list[Decision]:
    """Return every decision, or those of one conversation, in the order they were asked."""
    where = "WHERE d.conversation_id = ?" if conversation_id else ""
    rows = record.query(
        f"SELECT d.* FROM decisions d JOIN turns t ON t.turn_id = d.question_turn_id {where} ORDER BY t.turn_seq",
        [conversation_id] if conversation_id else [],
    )
    return [_decision_of(row) for row in rows]


def add_answer(
    record: Record,
    decision_id: str,
    *,
    author: AnswerAuthor,
    author_name: str,
    content: str,
    extra_json: str = "",
    passages: Sequence[str] = (),
    run_id: str | None = None,
    request_hash: str | None = None,
) -> Answer:
    """Enter an answer; the same text of the same author again is not a new version."""
    said = NewAnswer(decision_id, author, author_name, content, extra_json, tuple(passages), request_hash)
    return add_answers(record, [said], run_id=run_id)[0]


def add_answers(record: Record, said: Sequence[NewAnswer], *, run_id: str | None) -> list[Answer]:
    """Enter answers in one step, each as `add_answer` does."""
    with record.write() as transaction:
        return [_entered(transaction, each, run_id) for each in said]


def _entered(transaction: Transaction, said: NewAnswer, run_id: str | None) -> Answer:
    earlier = transaction.query(
        "SELECT * FROM answers WHERE decision_id = ? AND author_kind = ? AND author_name = ? ORDER BY version DESC LIMIT 1",
        [said.decision_id, said.author, said.author_name],
    )
    if earlier and (earlier[0]["content"], earlier[0]["extra_json"]) == (said.content, said.extra_json):
        return answer_of(earlier[0])
    version = int(earlier[0]["version"] or 0) + 1 if earlier else 1
    # Named by what it is, so that a stage that was killed and begun again writes the same names.
    named: list[Json] = [said.decision_id, said.author, said.author_name, version, said.content, said.extra_json]
    row: dict[str, str | int | None] = {
        "answer_id": f"answer_{content_hash(named).removeprefix('sha256:')[:24]}",
        "decision_id": said.decision_id,
        "version": version,
        "author_kind": said.author,
        "author_name": said.author_name,
        "content": said.content,
        "extra_json": said.extra_json,
        "content_hash": content_hash(said.content),
        "passages_json": json.dumps(list(said.passages)),
        "run_id": run_id,
        "request_hash": said.request_hash,
        "answered_at_utc": utc_now(),
    }
    transaction.insert("answers", row)
    return answer_of({**row, "verdict": None, "verdict_reason": None})


def give_verdict(record: Record, verdicts: Mapping[str, tuple[Verdict, str]]) -> None:
    """Write the verdict and its reason on answers, by answer_id."""
    with record.write() as transaction:
        for answer_id, (verdict, reason) in verdicts.items():
            transaction.execute(
                "UPDATE answers SET verdict = ?, verdict_reason = ? WHERE answer_id = ?", [verdict, reason, answer_id]
            )


def answers(record: Record, decision_id: str) -> list[Answer]:
    """Return every answer of a decision, the newest first."""
    rows = record.query(
        "SELECT * FROM answers WHERE decision_id = ? ORDER BY answered_at_utc DESC, version DESC, answer_id DESC",
        [decision_id],
    )
    return [answer_of(row) for row in rows]


def newest_answers(record: Record, author: AnswerAuthor) -> dict[str, Answer]:
    """Return the newest answer that an author of this kind gave, by decision."""
    rows = record.query("SELECT * FROM answers WHERE author_kind = ? ORDER BY answered_at_utc, version, answer_id", [author])
    return {str(row["decision_id"]): answer_of(row) for row in rows}


def newest_edition(record: Record) -> tuple[int, dict[str, Mapping[str, Json]]]:
    """Return the newest test edition's number (0 when there is none) and its frozen rows by decision."""
    row = record.one("SELECT MAX(edition) AS edition FROM editions")
    edition = int((row or {}).get("edition") or 0)
    rows = record.query("SELECT * FROM edition_decisions WHERE edition = ? ORDER BY decision_id", [edition])
    return edition, {str(each["decision_id"]): json.loads(str(each["row_json"])) for each in rows}


def freeze_edition(record: Record, run_id: str, rows: Mapping[str, Mapping[str, Json]], digest: str) -> int:
    """Freeze a new edition of the test set and return its number; it never changes afterwards."""
    with record.write() as transaction:
        newest = transaction.query("SELECT COALESCE(MAX(edition), 0) AS edition FROM editions")[0]
        edition = int(newest["edition"] or 0) + 1
        transaction.insert(
            "editions", {"edition": edition, "digest": digest, "made_by_run_id": run_id, "made_at_utc": utc_now()}
        )
        for decision_id, row in rows.items():
            transaction.insert(
                "edition_decisions",
                {
                    "edition": edition,
                    "decision_id": decision_id,
                    "row_json": json.dumps(dict(row), sort_keys=True, ensure_ascii=False),
                },
            )
        note_edition_rows(transaction, edition)
    return edition


def note_edition_rows(transaction: Transaction, edition: int, *, erased: int = 0) -> None:
    """Note the hash of an edition's rows as they are now, and how many an erasure took out."""
    rows = transaction.query("SELECT * FROM edition_decisions WHERE edition = ? ORDER BY decision_id", [edition])
    transaction.execute(
        "UPDATE editions SET rows_hash = ?, erased_rows = erased_rows + ? WHERE edition = ?",
        [edition_hash(rows), erased, edition],
    )


def edition_hash(rows: Sequence[Row]) -> str:
    """Return the hash of an edition's rows, in the order of their decisions."""
    return content_hash([[row["decision_id"], row["row_json"]] for row in rows])


def _decision_of(row: Row) -> Decision:
    return Decision(
        decision_id=str(row["decision_id"]),
        conversation_id=str(row["conversation_id"]),
        question_turn_id=str(row["question_turn_id"]),
        reply_turn_id=None if row["reply_turn_id"] is None else str(row["reply_turn_id"]),
        cluster_id=str(row["cluster_id"]),
        split=Split(str(row["split"])),
        topic=str(row["topic"]),
        history_hash=str(row["history_hash"]),
        chosen_by_run_id=str(row["chosen_by_run_id"]),
        chosen_because=str(row["chosen_because"]),
    )


def answer_of(row: Row) -> Answer:
    """Return the answer that a row of the table holds."""
    return Answer(
        answer_id=str(row["answer_id"]),
        decision_id=str(row["decision_id"]),
        version=int(row["version"] or 0),
        author=AnswerAuthor(str(row["author_kind"])),
        author_name=str(row["author_name"]),
        content=str(row["content"]),
        extra_json=str(row["extra_json"]),
        passages=tuple(json.loads(str(row["passages_json"]))),
        run_id=None if row["run_id"] is None else str(row["run_id"]),
        verdict=Verdict(str(row["verdict"])) if row["verdict"] else None,
        verdict_reason=None if row["verdict_reason"] is None else str(row["verdict_reason"]),
        answered_at_utc=str(row["answered_at_utc"]),
    )
