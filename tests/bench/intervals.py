"""How often the intervals of reports hold the truth, beside the plain percentiles of the same draws: `make bench SUBJECT=intervals`.

In: numbers of conversations. Out: the share of simulated editions whose 95 % interval holds the true mean, and the true share kept.
A conversation has two questions, alike within it; the teacher is right in 70 % of cases, and the student where its teacher is, in 9
of 10.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distill.evaluation.figures.intervals import Estimate, Score, mean, ratio_of_means
from tests.bench import machine

CONVERSATIONS = (8, 15, 40, 68)
EDITIONS = 600
_DRAWS, _RIGHT, _KEPT = 400, 0.7, 0.9


def figures(sizes: Sequence[int] = CONVERSATIONS, editions: int = EDITIONS, seed: int = 2) -> dict[str, dict[str, float]]:
    """Return the shares, by the number of conversations."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    for size in sizes:
        held = dict.fromkeys(("mean, plain percentiles", "mean", "share kept, plain percentiles", "share kept"), 0)
        for _ in range(editions):
            shares = rng.beta(10 * _RIGHT, 10 * (1 - _RIGHT), size=(size, 1))
            teacher = (rng.random((size, 2)) < shares).astype(float)
            student = teacher * (rng.random((size, 2)) < _KEPT)
            drawn = rng.integers(0, size, size=(_DRAWS, size))
            held["mean, plain percentiles"] += _within(teacher.sum(axis=1)[drawn].sum(axis=1) / (2 * size), _RIGHT)
            held["mean"] += _holds(mean(_scores(teacher), _DRAWS), _RIGHT)
            bottom = teacher.sum(axis=1)[drawn].sum(axis=1)
            ratios = student.sum(axis=1)[drawn].sum(axis=1)[bottom > 0] / bottom[bottom > 0]
            held["share kept, plain percentiles"] += _within(ratios, _KEPT)
            held["share kept"] += _holds(ratio_of_means(_scores(student), _scores(teacher), _DRAWS), _KEPT)
        found[f"{size} conversations"] = {name: round(100 * count / editions, 1) for name, count in held.items()}
    return found


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    machine.told(f"Intervals that hold the truth, in per cent; 95 are promised, of {EDITIONS} editions", found)


def _scores(values: npt.NDArray[np.float64]) -> list[Score]:
    return [Score(f"{c}-{d}", f"c{c:03d}", float(value)) for c, of in enumerate(values) for d, value in enumerate(of)]


def _within(drawn: npt.NDArray[np.float64], truth: float) -> bool:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return bool(low <= truth <= high)


def _holds(found: Estimate | None, truth: float) -> bool:
    """Tell whether an interval holds the truth; one without ends promises nothing and counts as holding it."""
    return found is None or found.low is None or found.high is None or found.low <= truth <= found.high


def main() -> None:
    """Simulate, print a table, and write the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--editions", type=int, default=EDITIONS)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    found = figures(editions=chosen.editions)
    show(found)
    machine.written(found, chosen.json)


if __name__ == "__main__":
    main()
