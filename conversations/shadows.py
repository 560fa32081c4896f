"""Shadow answers: what a release on trial would have said to a customer, kept for comparison and never shown to them.

In: an answer that a shadow gave to a question of the record. Out: counts of how it fared beside the reply that the customer got. The
words are kept as the model said them, with placeholders where the prompt had them: nobody puts the customer's own data back.
"""

from dataclasses import dataclass
from statistics import fmean

from conversations.messages import utc_now
from conversations.online import Rate, percentile, rate
from conversations.store import Record

COUNTED_ANSWERS = 10_000


@dataclass(frozen=True)
class ShadowAnswer:
    """What a shadow said, or why it failed.

    `is_same` and `length_ratio` (its characters over the reply's) compare it with the customer's reply, both as the models said
    them; None where it failed.
    """

    rollout_id: str
    question_turn_id: str
    release_id: str
    content: str
    failure_code: str | None
    first_token_ms: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    is_same: bool | None
    length_ratio: float | None


@dataclass(frozen=True)
class ShadowFigures:
    """How a shadow fared in its newest answers, at most COUNTED_ANSWERS. Times in milliseconds."""

    answers: int
    failures: Rate
    same: Rate
    mean_length_ratio: float | None
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None


def keep(record: Record, answer: ShadowAnswer) -> bool:
    """Enter a shadow's answer; False where the question was erased meanwhile, or has an answer of this shadow."""
    with record.write() as transaction:
        if not transaction.query("SELECT 1 FROM turns WHERE turn_id = ?", [answer.question_turn_id]):
            return False
        if transaction.query(
            "SELECT 1 FROM shadow_answers WHERE rollout_id = ? AND question_turn_id = ?",
            [answer.rollout_id, answer.question_turn_id],
        ):
            return False
        transaction.insert("shadow_answers", {**vars(answer), "answered_at_utc": utc_now()})
    return True


def answers(record: Record, rollout_id: str, limit: int = COUNTED_ANSWERS) -> list[ShadowAnswer]:
    """Return a shadow's answers, the newest first."""
    rows = record.query(
        "SELECT * FROM shadow_answers WHERE rollout_id = ? ORDER BY answered_at_utc DESC, question_turn_id LIMIT ?",
        [rollout_id, limit],
    )
    return [
        ShadowAnswer(
            rollout_id=str(row["rollout_id"]),
            question_turn_id=str(row["question_turn_id"]),
            release_id=str(row["release_id"]),
            content=str(row["content"]),
            failure_code=None if row["failure_code"] is None else str(row["failure_code"]),
            first_token_ms=None if row["first_token_ms"] is None else float(row["first_token_ms"]),
            latency_ms=None if row["latency_ms"] is None else float(row["latency_ms"]),
            prompt_tokens=None if row["prompt_tokens"] is None else int(row["prompt_tokens"]),
            completion_tokens=None if row["completion_tokens"] is None else int(row["completion_tokens"]),
            is_same=None if row["is_same"] is None else bool(row["is_same"]),
            length_ratio=None if row["length_ratio"] is None else float(row["length_ratio"]),
        )
        for row in rows
    ]


def figures(record: Record, rollout_id: str) -> ShadowFigures:
    """Return how a shadow fared."""
    given = answers(record, rollout_id)
    said = [each for each in given if each.failure_code is None]
    ratios = [each.length_ratio for each in said if each.length_ratio is not None]
    first = [each.first_token_ms for each in said if each.first_token_ms is not None]
    latencies = [each.latency_ms for each in said if each.latency_ms is not None]
    return ShadowFigures(
        answers=len(given),
        failures=rate(len(given) - len(said), len(given)),
        same=rate(sum(each.is_same is True for each in said), len(said)),
        mean_length_ratio=fmean(ratios) if ratios else None,
        first_token_p50_ms=percentile(first, 50),
        first_token_p95_ms=percentile(first, 95),
        latency_p50_ms=percentile(latencies, 50),
        latency_p95_ms=percentile(latencies, 95),
    )
