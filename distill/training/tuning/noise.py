"""How much of a difference between two settings is chance, told by trainings that differ in their seed alone.

In: one number a seed. Out: their mean with the 95 % interval of Student's t. Knows nothing of what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from conversations.messages import Json


@dataclass(frozen=True)
class OverSeeds:
    """A mean over `seeds` trainings; the interval is None where one seed alone cannot tell it."""

    value: float | None
    low: float | None
    high: float | None
    seeds: int

    def __str__(self) -> str:
        """Return the mean and its interval as a sentence holds them."""
        if self.value is None:
            return "nobody knows what (no seed was trained)"
        if self.low is None:
            return f"{self.value:+.4f} (one seed, which cannot tell chance)"
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.seeds} seeds)"

    def as_json(self) -> dict[str, Json]:
        """Return the mean as results hold it."""
        return {"value": self.value, "low": self.low, "high": self.high, "seeds": self.seeds}


def mean_over_seeds(values: Sequence[float]) -> OverSeeds:
    """Return the mean of one value a seed, with its 95 % interval."""
    if len(values) < 2:
        return OverSeeds(values[0] if values else None, None, None, len(values))
    from scipy.stats import t

    mean = fmean(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return OverSeeds(mean, mean - reach, mean + reach, len(values))
