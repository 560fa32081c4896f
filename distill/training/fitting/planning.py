"""Every step of a training, and what each validation reads, decided before the first step.

In: a forest of rows, the settings and how trees are laid out. Out: steps in order. A pure function of these, so that a resumed
training seeks its place.
"""

import math
import random
from dataclasses import dataclass

from distill.settings import TrainTable
from distill.training.batches.forest import Forest, Part, TokenTree
from distill.training.batches.layout import Layout
from distill.training.batches.order import plan_epoch, plan_parts

# A validation may read this share of the tokens that are trained between two validations.
_VALIDATION_SHARE = 0.25


@dataclass(frozen=True)
class Step:
    """One optimizer step that is still to be made: its epoch (from 0), what of which rows it learns, and tokens to compute."""

    epoch: int
    parts: tuple[Part, ...]
    tokens: int


def plan_steps(forest: Forest, settings: TrainTable, layout: Layout) -> list[Step]:
    """Return every step of the training in order; a broken last epoch is its first steps."""
    steps: list[Step] = []
    for epoch in range(math.ceil(settings.epochs)):
        plan = plan_epoch(forest, seed=settings.seed, epoch=epoch, rows_per_step=settings.rows_per_step)
        parts = plan_parts(
            forest,
            seed=settings.seed,
            epoch=epoch,
            max_whole_per_answer=settings.max_whole_per_answer,
            opening_tokens=settings.opening_tokens,
        )
        share = min(1.0, settings.epochs - epoch)
        for rows in plan[: math.ceil(share * len(plan))]:
            of_step = tuple(parts[row] for row in rows)
            steps.append(Step(epoch, of_step, sum(len(tree.nodes) for tree in layout.trees(forest, of_step))))
    return steps


def validation_sample(forest: Forest, settings: TrainTable, layout: Layout) -> list[TokenTree]:
    """Return the held-out rows that each validation reads: as many, drawn by the seed, as its share of time allows."""
    drawn = list(forest.conversations)
    random.Random(f"{settings.seed}/validation").shuffle(drawn)
    room = _VALIDATION_SHARE * settings.validate_every_tokens
    sample: list[Part] = []
    for conversation in drawn:
        parts = [forest.whole(row) for row in conversation]
        room -= sum(len(tree.nodes) for tree in layout.trees(forest, parts))
        if sample and room < 0:
            break
        sample += parts
    return layout.trees(forest, sample)
