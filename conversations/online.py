"""Online figures: how each release does with customers, from what stands in the record.

In: turns, votes and conversations' states since a time. Out: counts and rates by release, with intervals, and whether a canary breaks
one of its rules. Reads only, and by indexes: what was said before the time is not looked at.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from conversations.rollouts import BLAMELESS_CODES, NO_SERVER_CODES, Rollout
from conversations.store import Record

# Of how many newest answers the times are told; a hundred thousand would change no digit that matters.
TIMED_ANSWERS = 10_000
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A share of n with its 95 % interval (Wilson 1927); all None where n is 0."""

    count: int
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class OnlineFigures:
    """What customers met of one release.

    `errors` are failed answers among those that failed, were complete or were stopped by the customer. What our own process
    interrupted, and what failed through no fault of the release (BLAMELESS_CODES), says nothing of it and is left out; the first
    is counted in `interrupted`, and where no server could be reached in `no_server`. `thumbs_down` counts votes, `handoffs`
    conversations that came to a person behind this release's answer. Times are those of the newest complete answers, at most
    TIMED_ANSWERS, in milliseconds.
    """

    release_id: str
    turns: int
    conversations: int
    interrupted: int
    no_server: int
    errors: Rate
    thumbs_down: Rate
    handoffs: Rate
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None


def rate(count: int, n: int) -> Rate:
    """Return a share with its Wilson score interval (Wilson 1927, JASA 22), which holds also for few and for none."""
    if n == 0:
        return Rate(count, n, None, None, None)
    share, z2 = count / n, _Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Rate(count, n, share, max(0.0, middle - half), min(1.0, middle + half))


def figures(record: Record, *, since_utc: str = "") -> dict[str, OnlineFigures]:
    """Return what each release that answered did since a time (UTC text; empty: ever)."""
    rows = record.query(
        "SELECT release_id FROM releases r WHERE EXISTS "
        "(SELECT 1 FROM turns t WHERE t.release_id = r.release_id AND t.created_at_utc >= ?) ORDER BY created_at_utc, release_id",
        [since_utc],
    )
    return {str(row["release_id"]): figures_of(record, str(row["release_id"]), since_utc=since_utc) for row in rows}


def figures_of(record: Record, release_id: str, *, since_utc: str = "") -> OnlineFigures:
    """Return what one release did since a time (UTC text; empty: ever)."""
    by_status = {
        str(row["status"]): int(row["n"] or 0)
        for row in record.query(
            "SELECT status, COUNT(*) AS n FROM turns WHERE release_id = ? AND created_at_utc >= ? GROUP BY status",
            [release_id, since_utc],
        )
    }
    answered = _count(
        record,
        "SELECT COUNT(DISTINCT conversation_id) AS n FROM turns WHERE release_id = :release_id AND created_at_utc >= :since",
        release_id,
        since_utc,
    )
    no_server = _count(record, _failed_by(NO_SERVER_CODES), release_id, since_utc)
    failed = by_status.get("failed", 0) - _count(record, _failed_by(BLAMELESS_CODES), release_id, since_utc)
    first_tokens, latencies = _times(record, release_id, since_utc)
    return OnlineFigures(
        release_id=release_id,
        turns=sum(by_status.values()),
        conversations=answered,
        interrupted=by_status.get("interrupted", 0),
        no_server=no_server,
        errors=rate(failed, failed + by_status.get("complete", 0) + by_status.get("stopped", 0)),
        thumbs_down=_thumbs_down(record, release_id, since_utc),
        handoffs=rate(_count(record, _HANDED_OVER, release_id, since_utc), answered),
        first_token_p50_ms=percentile(first_tokens, 50),
        first_token_p95_ms=percentile(first_tokens, 95),
        latency_p50_ms=percentile(latencies, 50),
        latency_p95_ms=percentile(latencies, 95),
    )


def violated(rollout: Rollout, figures: OnlineFigures) -> str:
    """Return which of its rules a canary breaks, with the numbers, or an empty string.

    A rule is broken where even the lower end of the interval lies above its maximum, so that a few bad answers take nothing back.
    """
    rules = rollout.rules
    for name, found, highest, of_what in (
        ("error rate", figures.errors, rules.max_error_rate, "answers"),
        ("thumbs-down rate", figures.thumbs_down, rules.max_thumbs_down_rate, "votes"),
    ):
        if found.n >= rules.min_turns and found.value is not None and found.low is not None and found.low > highest:
            told = f"{found.value:.1%} ({found.count} of {found.n} {of_what}; 95 % interval from {found.low:.1%})"
            return f"the {name} is {told}, above the rule's {highest:.1%}"
    return ""


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile by linear interpolation between the values beside it, or None without any."""
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# A conversation belongs to the release whose answer stood last before it came to a person: before the first word of an operator, or,
# where none has come yet, the newest answer.
_HANDED_OVER = """
SELECT COUNT(*) AS n FROM (
    SELECT conversation_id, MIN(turn_seq) AS seq FROM turns INDEXED BY turns_by_operators
    WHERE author = 'operator' AND created_at_utc >= :since GROUP BY conversation_id
    UNION ALL
    SELECT conversation_id, 9223372036854775807 FROM conversations c
    WHERE state IN ('waiting', 'human') AND updated_at_utc >= :since AND NOT EXISTS (
        SELECT 1 FROM turns t WHERE t.conversation_id = c.conversation_id AND t.author = 'operator' AND t.created_at_utc >= :since
    )
) came
WHERE :release_id = (
    SELECT t.release_id FROM turns t WHERE t.conversation_id = came.conversation_id AND t.turn_seq < came.seq
    AND t.author = 'student' AND t.created_at_utc >= :since ORDER BY t.turn_seq DESC LIMIT 1
)"""


def _failed_by(codes: tuple[str, ...]) -> str:
    # The index finds the failed ones; only those few rows are read.
    return (
        "SELECT COUNT(*) AS n FROM turns WHERE release_id = :release_id AND created_at_utc >= :since AND status = 'failed' "
        f"AND failure_code IN {codes}"
    )


def _count(record: Record, sql: str, release_id: str, since_utc: str) -> int:
    row = record.one(sql, {"release_id": release_id, "since": since_utc})
    return int((row or {}).get("n") or 0)


def _thumbs_down(record: Record, release_id: str, since_utc: str) -> Rate:
    """Count the votes on a release's answers. Nobody votes on an answer before it is there, so newer votes are all there are."""
    row = record.one(
        "SELECT COUNT(*) AS n, COALESCE(SUM(f.vote = 'down'), 0) AS down FROM feedback f CROSS JOIN turns t USING (turn_id) "
        "WHERE f.given_at_utc >= :since AND t.release_id = :release_id AND t.created_at_utc >= :since",
        {"release_id": release_id, "since": since_utc},
    )
    return rate(int((row or {}).get("down") or 0), int((row or {}).get("n") or 0))


def _times(record: Record, release_id: str, since_utc: str) -> tuple[list[float], list[float]]:
    """Return the first-token and total times of the newest complete answers."""
    rows = record.query(
        "SELECT first_token_ms, latency_ms FROM turns WHERE release_id = ? AND created_at_utc >= ? AND status = 'complete' "
        f"ORDER BY created_at_utc DESC LIMIT {TIMED_ANSWERS}",
        [release_id, since_utc],
    )
    first = [float(row["first_token_ms"]) for row in rows if row["first_token_ms"] is not None]
    return first, [float(row["latency_ms"]) for row in rows if row["latency_ms"] is not None]
