"""Decisions and the answers given for them: what is taught, verified, split and scored.

In: rows from `distill` and corrections from operators. Out: the same, by decision. An answer is never changed; a correction
is its next version. A split, once given, stays.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations.errors import OperatorError
from conversations.messages import Split, content_hash, new_name, utc_now
from conversations.store import Record, Row


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
    passages: tuple[str, ...]
    run_id: str | None
    verdict: Verdict | None
    verdict_reason: str | None
    answered_at_utc: str


@dataclass(frozen=True)
class TeacherReply:
    """A teacher's raw reply and what it took."""

    request_hash: str
    decision_id: str
    teacher: str
    reply_json: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_ms: float


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


def decision(record: Record, decision_id: str) -> Decision:
    """Return a decision.

    Raises OperatorError when there is none of that name.
    """
    row = record.one("SELECT * FROM decisions WHERE decision_id = ?", [decision_id])
    if row is None:
        raise OperatorError(f"no decision {decision_id!r} in {record.path}; the console's tab Compare lists them")
    return _decision_of(row)


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


def operators_answers(record: Record) -> dict[str, str]:
    """Return the newest answer that an operator wrote, by decision."""
    rows = record.query(
        "SELECT decision_id, content FROM answers WHERE author_kind = 'operator' ORDER BY answered_at_utc, answer_id"
    )
    return {str(row["decision_id"]): str(row["content"]) for row in rows}


def add_answer(
    record: Record,
    decision_id: str,
    *,
    author: AnswerAuthor,
    author_name: str,
    content: str,
    passages: Sequence[str] = (),
    run_id: str | None = None,
    request_hash: str | None = None,
) -> Answer:
    """Enter an answer; the same text of the same author again is not a new version."""
    with record.write() as transaction:
        earlier = transaction.query(
            "SELECT * FROM answers WHERE decision_id = ? AND author_kind = ? AND author_name = ? "
            "ORDER BY version DESC LIMIT 1",
            [decision_id, author, author_name],
        )
        if earlier and earlier[0]["content"] == content:
            return answer_of(earlier[0])
        version = int(earlier[0]["version"] or 0) + 1 if earlier else 1
        answer_id = answer_name(decision_id, author, author_name, version)
        transaction.insert(
            "answers",
            {
                "answer_id": answer_id,
                "decision_id": decision_id,
                "version": version,
                "author_kind": author,
                "author_name": author_name,
                "content": content,
                "content_hash": content_hash(content),
                "passages_json": json.dumps(list(passages)),
                "run_id": run_id,
                "request_hash": request_hash,
                "answered_at_utc": utc_now(),
            },
        )
        return answer_of(transaction.query("SELECT * FROM answers WHERE answer_id = ?", [answer_id])[0])


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
        "SELECT * FROM answers WHERE decision_id = ? ORDER BY answered_at_utc DESC, answer_id DESC", [decision_id]
    )
    return [answer_of(row) for row in rows]


def save_reply(record: Record, reply: TeacherReply) -> None:
    """Keep a teacher's raw reply before anybody parses it."""
    with record.write() as transaction:
        transaction.execute(
            "INSERT OR REPLACE INTO teacher_replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                reply.request_hash,
                reply.decision_id,
                reply.teacher,
                reply.reply_json,
                reply.prompt_tokens,
                reply.completion_tokens,
                reply.cost_usd,
                reply.latency_ms,
                utc_now(),
            ],
        )


def find_reply(record: Record, request_hash: str) -> TeacherReply | None:
    """Return the reply to a request that was paid for before."""
    row = record.one("SELECT * FROM teacher_replies WHERE request_hash = ?", [request_hash])
    if row is None:
        return None
    return TeacherReply(
        request_hash=str(row["request_hash"]),
        decision_id=str(row["decision_id"]),
        teacher=str(row["teacher"]),
        reply_json=str(row["reply_json"]),
        prompt_tokens=int(row["prompt_tokens"] or 0),
        completion_tokens=int(row["completion_tokens"] or 0),
        cost_usd=float(row["cost_usd"] or 0),
        latency_ms=float(row["latency_ms"] or 0),
    )


def reserve_spending(
    record: Record, run_id: str, teacher: str, cost_usd: float, *, max_cost_usd: float, max_calls: int
) -> str | None:
    """Reserve the money for one request; return the reservation's name, or None when a cap would be passed.

    Reserved money counts until it is settled, so the caps hold whatever the concurrency.
    """
    with record.write() as transaction:
        spent = transaction.query(
            "SELECT COUNT(*) AS calls, COALESCE(SUM(COALESCE(settled_usd, reserved_usd)), 0) AS usd "
            "FROM spending WHERE run_id = ?",
            [run_id],
        )[0]
        if int(spent["calls"] or 0) >= max_calls or float(spent["usd"] or 0) + cost_usd > max_cost_usd:
            return None
        spending_id = new_name("spending")
        transaction.insert(
            "spending",
            {
                "spending_id": spending_id,
                "run_id": run_id,
                "teacher": teacher,
                "reserved_usd": cost_usd,
                "reserved_at_utc": utc_now(),
            },
        )
        return spending_id


def settle_spending(record: Record, spending_id: str, cost_usd: float) -> None:
    """Write what a reserved request cost in the end."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE spending SET settled_usd = ?, settled_at_utc = ? WHERE spending_id = ?",
            [cost_usd, utc_now(), spending_id],
        )


def cancel_spending(record: Record, spending_id: str) -> None:
    """Take back the reservation of a request that never left."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM spending WHERE spending_id = ? AND settled_usd IS NULL", [spending_id])


def spent_usd(record: Record, run_id: str) -> float:
    """Return what a run has spent and reserved so far, in US dollars."""
    row = record.one(
        "SELECT COALESCE(SUM(COALESCE(settled_usd, reserved_usd)), 0) AS usd FROM spending WHERE run_id = ?", [run_id]
    )
    return float((row or {}).get("usd") or 0)


def calls_made(record: Record, run_id: str) -> int:
    """Return how many requests to a teacher a run has reserved so far, failed ones included."""
    row = record.one("SELECT COUNT(*) AS calls FROM spending WHERE run_id = ?", [run_id])
    return int((row or {}).get("calls") or 0)


def usual_completion(record: Record, teacher: str) -> tuple[int, float]:
    """Return how many replies of a teacher the record has, and their mean length in tokens (0.0 where there are none)."""
    row = record.one(
        "SELECT COUNT(*) AS replies, AVG(completion_tokens) AS tokens FROM teacher_replies WHERE teacher = ?", [teacher]
    )
    found = row or {}
    return int(found.get("replies") or 0), float(found.get("tokens") or 0.0)


def approved_answers(record: Record) -> set[str]:
    """Return the answers that operators approved; of several words on one answer the newest counts."""
    rows = record.query(
        "SELECT answer_id FROM answer_reviews r WHERE verdict = 'approved' AND rowid = "
        "(SELECT MAX(rowid) FROM answer_reviews WHERE answer_id = r.answer_id)"
    )
    return {str(row["answer_id"]) for row in rows}


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
        passages=tuple(json.loads(str(row["passages_json"]))),
        run_id=None if row["run_id"] is None else str(row["run_id"]),
        verdict=Verdict(str(row["verdict"])) if row["verdict"] else None,
        verdict_reason=None if row["verdict_reason"] is None else str(row["verdict_reason"]),
        answered_at_utc=str(row["answered_at_utc"]),
    )
