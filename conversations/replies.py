"""Replies that teachers gave, as they came, each under the hash of everything that decided it.

In: raw replies, saved before anybody parses them. Out: the same, so that nothing is bought twice. A reply is looked for by its
hash alone: who asked, when and in which run decides nothing.
"""

from dataclasses import dataclass

from conversations.messages import utc_now
from conversations.store import Record, Transaction


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


def save_reply(record: Record, reply: TeacherReply) -> None:
    """Keep a teacher's raw reply before anybody parses it."""
    with record.write() as transaction:
        put_reply(transaction, reply)


def put_reply(transaction: Transaction, reply: TeacherReply) -> None:
    """Keep a reply inside an open transaction; the newest of the same request stays.

    Nothing is kept about a decision that an erasure has taken meanwhile.
    """
    transaction.execute(
        "INSERT INTO teacher_replies SELECT ?, decision_id, ?, ?, ?, ?, ?, ?, ? FROM decisions WHERE decision_id = ? "
        "ON CONFLICT (request_hash) DO UPDATE SET "
        "teacher = excluded.teacher, reply_json = excluded.reply_json, prompt_tokens = excluded.prompt_tokens, "
        "completion_tokens = excluded.completion_tokens, cost_usd = excluded.cost_usd, latency_ms = excluded.latency_ms, "
        "replied_at_utc = excluded.replied_at_utc",
        [
            reply.request_hash,
            reply.teacher,
            reply.reply_json,
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.cost_usd,
            reply.latency_ms,
            utc_now(),
            reply.decision_id,
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


def usual_completion(record: Record, teacher: str) -> tuple[int, float]:
    """Return how many replies of a teacher the record has, and their mean length in tokens (0.0 where there are none)."""
    row = record.one(
        "SELECT COUNT(*) AS replies, AVG(completion_tokens) AS tokens FROM teacher_replies "
        "WHERE teacher = ? AND completion_tokens > 0",
        [teacher],
    )
    found = row or {}
    return int(found.get("replies") or 0), float(found.get("tokens") or 0.0)
