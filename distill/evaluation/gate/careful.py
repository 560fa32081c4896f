"""The intervals that the gate acts on: 95 % ones by conversation that hold also for few conversations and for rare differences.

In: scores by decision, with the conversation that each belongs to. Out: values with intervals. A percentile bootstrap, which a report
shows, promotes too much where nearly every answer is alike: it draws no loss where it has seen none. So made-up conversations of the
usual length are added at both ends of the scale (Bonett & Price 2012 add one at each to paired proportions, Agresti & Coull 1998 two
to single ones), and the interval is Student's, over conversations. `make bench SUBJECT=gate` measures both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.evaluation.figures.intervals import Estimate, Score

_UPPER_QUANTILE = 0.975
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Sums:
    """Sums of scores and counts of decisions by conversation: (conversations,) each."""

    scores: Array
    counts: Array


def difference_interval(pairs: Sequence[tuple[Score, Score]]) -> Estimate | None:
    """Return how the first of each pair differs from the second; scores lie between 0 and 1. None without any pair.

    Two students differ seldom, and then often one way: two conversations are made up at each end.
    """
    return _careful_mean(_differences(pairs), lowest=-1, made_up=2)


def rate_interval(scores: Sequence[Score]) -> Estimate | None:
    """Return a mean of scores between 0 and 1. None without any."""
    return _careful_mean(scores, lowest=0, made_up=1)


def plain_difference_interval(pairs: Sequence[tuple[Score, Score]]) -> Estimate | None:
    """Return the same as `difference_interval` without the made-up conversations, which would hide what a few rows show surely."""
    return _careful_mean(_differences(pairs), lowest=-1, made_up=0)


def share_interval(pairs: Sequence[tuple[Score, Score]]) -> Estimate | None:
    """Return mean(first) / mean(second) of pairs, with Fieller's interval (1954) over conversations.

    A share f lies in it where the interval of mean(first - f second) holds nought. No interval where the second is too near to
    nought for one; None without any pair, or where the second is nought.
    """
    top = _by_conversation([one for one, _ in pairs])
    bottom = _by_conversation([Score(one.decision_id, one.conversation_id, other.value) for one, other in pairs])
    if top is None or bottom is None or bottom.scores.sum() <= 0:
        return None
    value = float(top.scores.sum() / bottom.scores.sum())
    size = float(top.counts.mean())
    ones = _Sums(np.append(top.scores, [size, -size]), np.append(top.counts, [size, size]))
    others = _Sums(np.append(bottom.scores, [0.0, 0.0]), ones.counts)
    a, b = ones.scores.sum() / ones.counts.sum(), others.scores.sum() / others.counts.sum()
    q2 = _student(len(ones.counts)) ** 2
    square = b * b - q2 * _covariance(others, others)
    if len(top.counts) < 2 or square <= 0:
        return Estimate(value, None, None, len(pairs))
    middle = a * b - q2 * _covariance(ones, others)
    root = np.sqrt(max(0.0, middle * middle - square * (a * a - q2 * _covariance(ones, ones))))
    return Estimate(value, max(0.0, float((middle - root) / square)), float((middle + root) / square), len(pairs))


def _differences(pairs: Sequence[tuple[Score, Score]]) -> list[Score]:
    return [Score(one.decision_id, one.conversation_id, one.value - other.value) for one, other in pairs]


def _careful_mean(scores: Sequence[Score], *, lowest: float, made_up: int) -> Estimate | None:
    """Return a mean of scores between `lowest` and 1, with so many conversations made up at each end."""
    sums = _by_conversation(scores)
    if sums is None:
        return None
    value, size = float(sums.scores.sum() / sums.counts.sum()), float(sums.counts.mean())
    if len(sums.counts) < 2:
        return Estimate(value, None, None, len(scores))
    ends = np.repeat([lowest * size, size], made_up)
    careful = _Sums(np.append(sums.scores, ends), np.append(sums.counts, np.full(len(ends), size)))
    middle = float(careful.scores.sum() / careful.counts.sum())
    half = _student(len(careful.counts)) * float(np.sqrt(_covariance(careful, careful)))
    # The made-up conversations and Student's t may reach beyond what can be.
    return Estimate(value, max(lowest, middle - half), min(1.0, middle + half), len(scores))


def _covariance(one: _Sums, other: _Sums) -> float:
    """Return the covariance of two means over the same conversations (linearised ratio estimate; Cochran 1977, chapter 6)."""
    conversations, n = len(one.counts), one.counts.sum()
    residue_one = one.scores - one.scores.sum() / n * one.counts
    residue_other = other.scores - other.scores.sum() / n * other.counts
    return float(conversations / (conversations - 1) * (residue_one * residue_other).sum() / n**2)


def _student(conversations: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(conversations - 1, _UPPER_QUANTILE))


def _by_conversation(scores: Sequence[Score]) -> _Sums | None:
    if not scores:
        return None
    place: dict[str, int] = {}
    positions = np.array([place.setdefault(score.conversation_id, len(place)) for score in scores])
    sums, counts = np.zeros(len(place)), np.zeros(len(place))
    np.add.at(sums, positions, np.array([score.value for score in scores]))
    np.add.at(counts, positions, 1.0)
    return _Sums(sums, counts)
