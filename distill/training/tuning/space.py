"""What a study may try: the present training settings, and others near them.

In: the [tune] table, the present settings and what the run has. Out: for each parameter of a trial the [train] keys that it
stands for. Knows no trial's result. The present settings are always inside, so that the first trial can be they.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from distill.settings import TrainTable, TuneTable

Parameter = float | int


@dataclass(frozen=True)
class Space:
    """The parameters of a trial with what they may be, by name, and their present values.

    `left_out` says what [tune] names and this run cannot try, in a sentence, or is empty.
    """

    train: TrainTable
    distributions: Mapping[str, BaseDistribution]
    present: Mapping[str, Parameter]
    left_out: str = ""

    @property
    def combinations(self) -> float:
        """Return how many trials can differ; infinite where a parameter is a number between two others."""
        counts = [
            len(each.choices) if isinstance(each, CategoricalDistribution) else math.inf
            for each in self.distributions.values()
        ]
        return math.prod(counts)

    def others(self) -> dict[str, Parameter]:
        """Return parameters that all differ from the present ones."""
        found: dict[str, Parameter] = {}
        for name, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                values = [value for value in distribution.choices if isinstance(value, int | float)]
            else:
                assert isinstance(distribution, FloatDistribution)
                values = [distribution.low, distribution.high]
            found[name] = next(value for value in values if value != self.present[name])
        return found

    def changes(self, parameters: Mapping[str, Parameter], learning_rate: float) -> dict[str, Parameter]:
        """Return the [train] keys that a trial changes, with their values.

        `learning_rate` is the present one, which the factor multiplies; three of its digits are kept.
        """
        changed: dict[str, Parameter] = {}
        for name, value in parameters.items():
            if value == self.present[name]:
                continue
            if name == "learning_rate_factor":
                changed["learning_rate"] = float(f"{learning_rate * value:.3g}")
                continue
            changed[name] = value
            if name == "rank":
                # What the adapters add is scaled by alpha / rank, which the learning rate was found for.
                changed["alpha"] = max(1, round(self.train.alpha * value / self.train.rank))
        return changed


def space_of(
    tune: TuneTable,
    train: TrainTable,
    *,
    has_beliefs: bool,
    has_replay: bool,
    max_lora_rank: int,
    learns_on: str | None = None,
) -> Space:
    """Return what may be tried: soft labels and replay only where there are any, ranks only of adapters that vLLM takes.

    `learns_on` names the release that the student starts from, whose rank stays.
    """
    distributions: dict[str, BaseDistribution] = {}
    present: dict[str, Parameter] = {}

    def between(name: str, limits: tuple[float, float] | tuple[()], value: float, *, log: bool = False) -> None:
        if not limits or limits[0] == limits[1]:
            return
        distributions[name] = FloatDistribution(min(limits[0], value), max(limits[1], value), log=log)
        present[name] = value

    def one_of(name: str, choices: tuple[Parameter, ...], value: Parameter) -> None:
        if set(choices) - {value}:
            distributions[name] = CategoricalDistribution(sorted({*choices, value}))
            present[name] = value

    between("learning_rate_factor", tune.learning_rate_factors, 1.0, log=True)
    if train.kind == "lora" and learns_on is None:
        one_of("rank", tuple(rank for rank in tune.ranks if rank <= max_lora_rank), train.rank)
    one_of("epochs", tune.epochs, train.epochs)
    if has_beliefs:
        between("soft_weight", tune.soft_weights, train.soft_weight)
    if has_replay:
        between("replay_share", tune.replay_shares, train.replay_share)
    left_out = f"other ranks were not tried: the release {learns_on!r} learns on and keeps its rank {train.rank}"
    return Space(train, distributions, present, left_out if learns_on and set(tune.ranks) - {train.rank} else "")
