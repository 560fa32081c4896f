"""How fast each model answers, and what it takes: times, tokens a second, requests an hour, memory, dollars.

In: a model's rows, and what the stage wrote of its server. Out: figures, None where nothing was measured.

Speed is of the answers that were asked for one at a time, because a customer waits for one. The distribution shows the others beside
them. A teacher's times are those of the stage `teach`, which asks many at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from conversations.messages import Json
from distill.evaluation.figures.intervals import percentile
from distill.rows import EvaluationRow

_EDGES_PER_DECADE = 20


@dataclass(frozen=True)
class Spread:
    """Half of the requests took at most `p50`, 95 % at most `p95`; None where none was answered."""

    p50: float | None
    p95: float | None


def speed(rows: Sequence[EvaluationRow]) -> dict[str, Json]:
    """Return the times of a model's answers that were asked for one at a time, their number, and how many of all were not given."""
    timed = _answered(rows, timed=True)
    return {
        "first_token_ms": asdict(spread([row.first_token_ms for row in timed])),
        "latency_ms": asdict(spread([row.latency_ms for row in timed])),
        "tokens_per_second": _tokens_per_second(timed),
        "timed_answers": len(timed),
        "failed_answers": sum(bool(row.failure) for row in rows),
        "asked_answers": len(rows),
    }


def taking(taken: Mapping[str, Json]) -> dict[str, Json]:
    """Return what serving a model takes, from what the stage wrote of its server."""
    return {
        "memory_bytes": taken.get("memory_bytes"),
        "gpu_memory_bytes": taken.get("gpu_memory_bytes"),
        "weights_bytes": taken.get("weights_bytes"),
        "requests_per_hour": _requests_per_hour(taken),
        "concurrency": taken.get("concurrency"),
        "cost_usd_per_1000_turns": _cost(taken),
    }


def latency_histogram(rows: Sequence[EvaluationRow], models: Sequence[str]) -> Json:
    """Return how many answers took how long, by model, asked for one at a time and together; None where no time is known.

    `edges_ms` are powers of ten in 20 steps; the bin i holds the answers from edge i up to below edge i + 1.
    """
    times = [row.latency_ms for row in rows if not row.failure and row.latency_ms is not None and row.latency_ms > 0]
    if not times:
        return None
    lowest = int(np.floor(np.log10(min(times)) * _EDGES_PER_DECADE))
    highest = int(np.floor(np.log10(max(times)) * _EDGES_PER_DECADE)) + 1
    # One more at the end: the edges are rounded, and the last bin must not take what lies on its upper edge.
    edges = [round(10 ** (place / _EDGES_PER_DECADE), 3) for place in range(lowest - 1, highest + 2)]
    counts: dict[str, Json] = {}
    for model in models:
        of_model = [row for row in rows if row.model == model]
        counts[model] = {
            "one_at_a_time": _counted(_answered(of_model, timed=True), edges),
            "together": _counted(_answered(of_model, timed=False), edges),
        }
    return {"edges_ms": list(edges), "models": counts}


def _answered(rows: Sequence[EvaluationRow], *, timed: bool) -> list[EvaluationRow]:
    return [row for row in rows if row.timed is timed and not row.failure]


def _counted(rows: Sequence[EvaluationRow], edges: Sequence[float]) -> list[Json]:
    times = [row.latency_ms for row in rows if row.latency_ms]
    return [int(count) for count in np.histogram(times, bins=np.asarray(edges))[0]]


def spread(values: Sequence[float | None]) -> Spread:
    """Return the percentiles of the times that are known, to a thousandth of a millisecond."""
    known = [value for value in values if value is not None]
    return Spread(_rounded(percentile(known, 0.5)), _rounded(percentile(known, 0.95)))


def _tokens_per_second(timed: Sequence[EvaluationRow]) -> float | None:
    """Return the tokens of answers over the seconds that they took, from the request to the last token."""
    known = [(row.completion_tokens, row.latency_ms) for row in timed if row.completion_tokens and row.latency_ms]
    if not known:
        return None
    return round(sum(tokens for tokens, _ in known) / sum(taken_ms for _, taken_ms in known) * 1000, 3)


def _requests_per_hour(taken: Mapping[str, Json]) -> float | None:
    """Return how many requests an hour of answering together would take, at the concurrency of the evaluation."""
    turns, seconds = taken.get("turns_together"), taken.get("seconds_together")
    if not isinstance(turns, int) or not isinstance(seconds, int | float) or not turns or seconds <= 0:
        return None
    return round(turns / seconds * 3600, 3)


def _cost(taken: Mapping[str, Json]) -> float | None:
    """Return dollars for 1,000 turns on a server that is busy at the measured concurrency."""
    hourly, requests = taken.get("server_usd_per_hour"), _requests_per_hour(taken)
    if requests is None or not isinstance(hourly, int | float):
        return None
    return round(hourly / requests * 1000, 6)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
