"""Online figures: how each release does with customers, from what stands in the record.

In: turns, votes and conversations' states since a time. Out: counts and rates by release, with intervals. Reads only.
"""

from dataclasses import dataclass
from math import sqrt

from conversations.store import Record

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
    """What customers met of one release. `handoffs` counts conversations; times are of complete answers, in milliseconds."""

    release_id: str
    turns: int
    conversations: int
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
    """Return what each release did since a time (UTC text; empty: ever)."""
    raise NotImplementedError
