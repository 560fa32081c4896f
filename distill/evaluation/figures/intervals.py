"""Means with intervals, and the share of the teacher's quality that is kept.

In: scores by decision, with the conversation that each belongs to. Out: values with 95 % intervals. Decisions of one
conversation are not independent, so whole conversations are drawn (cluster bootstrap; Efron & Tibshirani 1993, chapter 8).
The plain percentiles of few conversations are too near together; they are taken as far out as the t distribution asks for
(the expanded percentile interval; Hesterberg 2015, The American Statistician 69, section 5.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from conversations.messages import Json
from conversations.online import rate

SEED = 20_240_601
_UPPER = 0.975


@dataclass(frozen=True)
class Score:
    """One decision's score and the conversation that it belongs to."""

    decision_id: str
    conversation_id: str
    value: float


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over n decisions of so many conversations; low and high are None where they cannot be told."""

    value: float
    low: float | None
    high: float | None
    n: int
    conversations: int | None = None

    def as_json(self) -> dict[str, Json]:
        """Return the estimate as reports hold it."""
        return {
            "value": _rounded(self.value),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "n": self.n,
            "conversations": self.conversations,
        }


def mean(scores: Sequence[Score], samples: int) -> Estimate | None:
    """Return the mean of scores between 0 and 1 (or of counts) with its interval, or None without any score.

    Where every score is 0, or every one is 1, drawing finds nothing else and would call that certain. There the interval is
    Wilson's for a share that was seen in none, or in all, of so many conversations.
    """
    if not scores:
        return None
    found = _mean(scores, samples)
    clusters = found.conversations or 0
    if clusters > 1 and found.value in (0.0, 1.0) and all(score.value == found.value for score in scores):
        share = rate(round(found.value * clusters), clusters)
        return Estimate(found.value, share.low, share.high, found.n, clusters)
    return found


def ratio_of_means(numerator: Sequence[Score], denominator: Sequence[Score], samples: int) -> Estimate | None:
    """Return mean(numerator) / mean(denominator) over the decisions that both have, paired by conversation.

    None where no decision has both, or the denominator is nothing. Where a denominator of nothing lies within its own 95 %
    interval the ratio has no bounds (Fieller 1954), and none are given. Every draw takes both sides of the same conversations.
    Where both are alike in every decision, drawing finds no difference and would call that certain: they may still differ in as many
    conversations as Wilson's interval of none in so many allows.
    """
    pairs = _paired(numerator, denominator)
    if pairs is None:
        return None
    top, bottom, n = pairs
    if bottom.sum() == 0:
        return None
    drawn = _draws(len(top), samples)
    drawn_bottom = bottom[drawn].sum(axis=1)
    some = drawn_bottom > 0
    value = float(top.sum() / bottom.sum())
    if 1 - some.mean() >= _tail(len(top)):
        return Estimate(value, None, None, n, len(top))
    if len(top) > 1 and all(one.value == other.value for one, other in _shared(numerator, denominator)):
        differing = rate(0, len(top)).high or 0.0
        return Estimate(value, 1 - differing, 1 + differing, n, len(top))
    return _with_interval(value, top[drawn].sum(axis=1)[some] / drawn_bottom[some], n, len(top))


def difference_of_means(one: Sequence[Score], other: Sequence[Score], samples: int) -> Estimate | None:
    """Return mean(one) - mean(other) over the decisions that both have, paired by conversation."""
    both = _shared(one, other)
    if not both:
        return None
    return _mean([Score(a.decision_id, a.conversation_id, a.value - b.value) for a, b in both], samples)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return a percentile of values by linear interpolation, or None without any."""
    return float(np.percentile(np.asarray(values), share * 100)) if values else None


def _mean(scores: Sequence[Score], samples: int) -> Estimate:
    sums, counts = _by_conversation(scores, sorted({score.conversation_id for score in scores}))
    value = float(sums.sum() / counts.sum())
    drawn = _draws(len(sums), samples)
    return _with_interval(value, sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), len(scores), len(sums))


def _shared(one: Sequence[Score], other: Sequence[Score]) -> list[tuple[Score, Score]]:
    others: Mapping[str, Score] = {score.decision_id: score for score in other}
    return [(score, others[score.decision_id]) for score in one if score.decision_id in others]


def _paired(
    one: Sequence[Score], other: Sequence[Score]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int] | None:
    both = _shared(one, other)
    if not both:
        return None
    names = sorted({a.conversation_id for a, _ in both})
    sums_one, _ = _by_conversation([a for a, _ in both], names)
    sums_other, _ = _by_conversation([Score(b.decision_id, a.conversation_id, b.value) for a, b in both], names)
    return sums_one, sums_other, len(both)


def _by_conversation(
    scores: Sequence[Score], names: Sequence[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sums and counts of the scores of each conversation: (conversations,) each."""
    place = {name: position for position, name in enumerate(names)}
    sums = np.zeros(len(names))
    counts = np.zeros(len(names))
    for score in scores:
        sums[place[score.conversation_id]] += score.value
        counts[place[score.conversation_id]] += 1
    return sums, counts


def _draws(clusters: int, samples: int) -> npt.NDArray[np.int64]:
    """Return drawn positions: (samples, clusters)."""
    return np.random.default_rng(SEED).integers(0, clusters, size=(samples, clusters))


def _tail(clusters: int) -> float:
    """Return the share of the draws beyond each end of the interval; 2.5 % for many conversations, less for few."""
    return float(ndtr(-sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, _UPPER))) if clusters > 1 else 0.0


def _with_interval(value: float, drawn: npt.NDArray[np.float64], n: int, clusters: int) -> Estimate:
    if clusters < 2 or drawn.size == 0:
        return Estimate(value, None, None, n, clusters)
    tail = _tail(clusters)
    low, high = np.percentile(drawn, [100 * tail, 100 * (1 - tail)])
    return Estimate(value, float(low), float(high), n, clusters)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
