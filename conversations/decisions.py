"""Decisions and the answers given for them: what is taught, verified, split and scored.

In: rows from `distill` and corrections from operators. Out: the same, by decision. An answer is never changed; a correction
is its next version. A split, once given, stays.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations.errors import OperatorError
from conversations.messages import Split, content_hash, utc_now
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


# Of an answer `a`: the newest word on it is that it is wrong.
_REJECTED = "COALESCE((SELECT verdict = 'rejected' FROM answer_reviews WHERE answer_id = a.answer_id ORDER BY rowid DESC LIMIT 1), 0)"


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


def put_decisions(record: Record, decisions: Iterable[Decision]) -> set[str]:
    """Enter decisions and return their names; one that is there already keeps its split, its cluster and its first reason.

    One of a conversation that an erasure has taken meanwhile is left out.
    """
    now = utc_now()
    entered: set[str] = set()
    with record.write() as transaction:
        for each in decisions:
            if not transaction.query("SELECT 1 FROM conversations WHERE conversation_id = ?", [each.conversation_id]):
                continue
            entered.add(each.decision_id)
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
    return entered


def decisions(record: Record, conversation_id: str | None = None) -> list[Decision]:
    """Return every decision, or those of one conversation, in the order they were asked."""
    where = "WHERE d.conversation_id = ?" if conversation_id else ""
    rows = record.query(
        f"SELECT d.* FROM decisions d JOIN turns t ON t.turn_id = d.question_turn_id {where} ORDER BY t.turn_seq",
        [conversation_id] if conversation_id else [],
    )
    return [_decision_of(row) for row in rows]


def decision(record: Record, decision_id: str) -> Decision:
    """Return a decision.

    Raises OperatorError when there is none of that name.
    """
    row = record.one("SELECT * FROM decisions WHERE decision_id = ?", [decision_id])
    if row is None:
        raise _no_such(record, decision_id)
    return _decision_of(row)


def there_among(record: Record | Transaction, decision_ids: Iterable[str]) -> set[str]:
    """Return those of the decisions that the record still has: an erasure takes a person's out."""
    rows = record.query(
        "SELECT decision_id FROM decisions WHERE decision_id IN (SELECT value FROM json_each(?))",
        [json.dumps(list(decision_ids))],
    )
    return {str(row["decision_id"]) for row in rows}


def _no_such(record: Record, decision_id: str) -> OperatorError:
    return OperatorError(f"no decision {decision_id!r} in {record.path}; the console's tab Compare lists them")


def disputed(record: Record) -> set[str]:
    """Return the decisions whose answers differ, by two people or teachers, or of which an operator rejected one."""
    rows = record.query(
        "SELECT a.decision_id FROM answers a JOIN decisions d USING (decision_id) JOIN conversations c USING (conversation_id) "
        "JOIN answers b ON b.decision_id = a.decision_id WHERE c.has_disagreement = 1 AND a.author_kind <> 'student' "
        "AND b.author_kind <> 'student' AND (a.author_kind, a.author_name) <> (b.author_kind, b.author_name) "
        "AND a.content_hash <> b.content_hash UNION "
        "SELECT a.decision_id FROM answers a JOIN answer_reviews r USING (answer_id) WHERE r.verdict = 'rejected' "
        "AND NOT EXISTS (SELECT 1 FROM answer_reviews n WHERE n.answer_id = r.answer_id "
        "AND (n.reviewed_at_utc, n.review_id) > (r.reviewed_at_utc, r.review_id))"
    )
    return {str(row["decision_id"]) for row in rows}


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
    """Enter an answer; an author's same text on the same passages is not a new version, unless an operator goes back to it.

    Raises OperatorError when there is no decision of that name.
    """
    said = NewAnswer(decision_id, author, author_name, content, extra_json, tuple(passages), request_hash)
    entered = add_answers(record, [said], run_id=run_id)
    if not entered:
        raise _no_such(record, decision_id)
    return entered[0]


def add_answers(record: Record, said: Sequence[NewAnswer], *, run_id: str | None) -> list[Answer]:
    """Enter answers in one step, each as `add_answer` does, and return them.

    One for a decision that an erasure has taken meanwhile is left out.
    """
    with record.write() as transaction:
        return add_answers_in(transaction, said, run_id=run_id)


def add_answers_in(transaction: Transaction, said: Sequence[NewAnswer], *, run_id: str | None) -> list[Answer]:
    """Enter answers as `add_answers` does, inside an open transaction."""
    there = there_among(transaction, (each.decision_id for each in said))
    return [_entered(transaction, each, run_id) for each in said if each.decision_id in there]


def _entered(transaction: Transaction, said: NewAnswer, run_id: str | None) -> Answer:
    earlier = transaction.query(
        "SELECT * FROM answers WHERE decision_id = ? AND author_kind = ? AND author_name = ? ORDER BY version DESC LIMIT 1",
        [said.decision_id, said.author, said.author_name],
    )
    if earlier and _is_same(transaction, earlier[0], said):
        return answer_of(earlier[0])
    version = int(earlier[0]["version"] or 0) + 1 if earlier else 1
    row: dict[str, str | int | None] = {
        "answer_id": answer_name(said.decision_id, said.author, said.author_name, version),
        "decision_id": said.decision_id,
        "version": version,
        "author_kind": said.author,
        "author_name": said.author_name,
        "content": said.content,
        "extra_json": said.extra_json,
        "content_hash": content_hash(said.content),
        "passages_json": json.dumps(list(said.passages)),
        "run_id": run_id,
        "request_hash": _if_kept(transaction, said.request_hash),
        "answered_at_utc": utc_now(),
    }
    transaction.insert("answers", row)
    return answer_of({**row, "verdict": None, "verdict_reason": None})


def _is_same(transaction: Transaction, earlier: Row, said: NewAnswer) -> bool:
    """Tell whether what is said stands there already: other passages make another answer, unless an operator rejected the words."""
    if (earlier["content"], earlier["extra_json"]) != (said.content, said.extra_json):
        return False
    if said.author is AnswerAuthor.OPERATOR:
        return _is_last_word(transaction, earlier)
    return earlier["passages_json"] == json.dumps(list(said.passages)) or _is_rejected(transaction, earlier)


def _is_rejected(transaction: Transaction, answer: Row) -> bool:
    found = transaction.query(f"SELECT {_REJECTED} AS it_is FROM answers a WHERE answer_id = ?", [answer["answer_id"]])
    return bool(found[0]["it_is"])


def _if_kept(transaction: Transaction, request_hash: str | None) -> str | None:
    """Return a request's hash where its reply is kept: an erased decision takes along a reply that no other has yet."""
    kept = transaction.query("SELECT 1 FROM teacher_replies WHERE request_hash = ?", [request_hash])
    return request_hash if kept else None


def _is_last_word(transaction: Transaction, answer: Row) -> bool:
    """Tell whether an operator's answer is what the next run learns: nobody wrote another since, nor rejected it."""
    newest = transaction.query(
        f"SELECT answer_id FROM answers a WHERE decision_id = ? AND author_kind = 'operator' AND NOT {_REJECTED} "
        "ORDER BY answered_at_utc DESC, rowid DESC LIMIT 1",
        [answer["decision_id"]],
    )
    return bool(newest) and newest[0]["answer_id"] == answer["answer_id"]


def answer_name(decision_id: str, author: AnswerAuthor, author_name: str, version: int) -> str:
    """Return the name of an answer: derived, so that a run that was killed writes the same files as one that was not."""
    return f"answer_{content_hash([decision_id, author, author_name, version]).removeprefix('sha256:')[:24]}"


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
    """Return the newest answer that an author of this kind gave and no operator rejected, by decision."""
    rows = record.query(
        f"SELECT * FROM answers a WHERE author_kind = ? AND NOT {_REJECTED} ORDER BY answered_at_utc, rowid", [author]
    )
    return {str(row["decision_id"]): answer_of(row) for row in rows}


def newest_approved(record: Record) -> dict[str, list[Answer]]:
    """Return the answers of teachers and people that operators approved, by decision, the newest word first."""
    rows = record.query(
        "SELECT a.* FROM answers a JOIN answer_reviews r USING (answer_id) WHERE r.verdict = 'approved' "
        "AND a.author_kind <> 'student' AND r.rowid = (SELECT MAX(rowid) FROM answer_reviews WHERE answer_id = a.answer_id) "
        "ORDER BY r.rowid DESC"
    )
    found: dict[str, list[Answer]] = {}
    for row in rows:
        found.setdefault(str(row["decision_id"]), []).append(answer_of(row))
    return found


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
