"""How fast a student learns: a rate that is proven for its kind and size, and its way up and down over the steps.

In: the settings and what the student is. Out: numbers. Knows no tensor.
"""

import math

from distill.settings import TrainTable


def learning_rate_at(step: int, *, steps: int, peak: float, settings: TrainTable) -> float:
    """Return the learning rate of a step (from 1): a linear rise, then the schedule's way down to almost 0."""
    warmup = math.ceil(settings.warmup_share * steps)
    if step <= warmup:
        return peak * step / warmup
    left = (steps - step + 1) / max(1, steps - warmup)
    return peak * (left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


def proven_learning_rate(parameters: int, settings: TrainTable) -> float:
    """Return the settings' learning rate, or one that is proven for the student's size.

    LoRA: 1e-3 below two thousand million parameters, 3e-4 above (Tinker cookbook); a tenth for full training.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    return (1e-3 if parameters < 2e9 else 3e-4) * (1.0 if settings.kind == "lora" else 0.1)
