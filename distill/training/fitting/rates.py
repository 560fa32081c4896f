"""How fast a student learns: a rate that is proven for its kind and size, and its way up and down over the steps.

In: the settings and what the student is. Out: numbers, and which weights decay.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from distill.settings import TrainTable


class _Proven(NamedTuple):
    """A peak learning rate for adapters on students of an architecture ("" for any) below a size."""

    family: str
    below_parameters: float
    learning_rate: float


# The first that fits. From the Tinker cookbook's table for Llama 3 (8B: 3e-4; 1B and 3B: 1e-3) and LoRA Without Regret.
_PROVEN = (
    _Proven("phi3", math.inf, 3e-4),  # Phi-4-mini, Phi-3.5-mini, Phi-3-mini
    _Proven("llama", 2e9, 1e-3),  # SmolLM2, Llama-3.2-1B
    _Proven("llama", math.inf, 3e-4),  # Llama-3.1-8B
    _Proven("", 2e9, 1e-3),
    _Proven("", math.inf, 3e-4),
)
# Full training moves every weight, and bears a tenth of the rate (LoRA Without Regret).
_SHARE_FOR_FULL = 0.1


def learning_rate_at(step: int, *, steps: int, peak: float, settings: TrainTable) -> float:
    """Return the learning rate of a step (from 1): a linear rise, then the schedule's way down to almost 0."""
    warmup = math.ceil(settings.warmup_share * steps)
    if step <= warmup:
        return peak * step / warmup
    left = (steps - step + 1) / max(1, steps - warmup)
    return peak * (left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


def proven_learning_rate(family: str, parameters: int, settings: TrainTable) -> float:
    """Return the settings' learning rate, or the one that is proven for adapters of the student; for full training a tenth."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    proven = next(each for each in _PROVEN if each.family in (family, "") and parameters < each.below_parameters)
    return proven.learning_rate * (1.0 if settings.kind == "lora" else _SHARE_FOR_FULL)


def weight_groups(trainable: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Return the trainable weights as AdamW takes them: matrices decay, norms and biases, which have one dimension, do not."""
    matrices = [weight for weight in trainable.values() if weight.dim() > 1]
    others = [weight for weight in trainable.values() if weight.dim() <= 1]
    groups: list[dict[str, object]] = [{"params": matrices, "weight_decay": weight_decay}]
    return [*groups, {"params": others, "weight_decay": 0.0}] if others else groups
