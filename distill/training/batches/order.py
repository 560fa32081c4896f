"""The order of a training: which rows a step learns, and how much of each answer.

In: a forest of rows. Out: steps in an order that is a pure function of seed and epoch, so that a resumed training seeks its
place and replays nothing. Knows no text, no tensor and no model, and loses no row.
"""

import random

from distill.training.batches.forest import Forest, Part


def plan_epoch(forest: Forest, *, seed: int, epoch: int, rows_per_step: int) -> list[list[int]]:
    """Return the rows of every optimizer step of an epoch: all of them, shuffled by conversation.

    A pure function of its arguments, so that a resumed training goes on in the same order. Steps hold about
    `rows_per_step` rows each, as evenly as whole conversations allow; one of more than twice as many is cut into parts.
    """
    order = [part for conversation in forest.conversations for part in _cut(conversation, rows_per_step)]
    random.Random(f"{seed}/{epoch}").shuffle(order)
    row_total = len(forest.rows)
    step_count = max(1, round(row_total / rows_per_step))
    steps: list[list[int]] = [[] for _ in range(step_count)]
    rows_before = 0
    for conversation in order:
        steps[rows_before * step_count // row_total].extend(conversation)
        rows_before += len(conversation)
    return [step for step in steps if step]


def _cut(conversation: tuple[int, ...], rows_per_step: int) -> list[tuple[int, ...]]:
    """Return a conversation whole, or, where steps would be far too large, in parts of neighbours, which share most."""
    if len(conversation) <= 2 * rows_per_step:
        return [conversation]
    return [conversation[first : first + rows_per_step] for first in range(0, len(conversation), rows_per_step)]


def plan_parts(
    forest: Forest, *, seed: int, epoch: int, max_whole_per_answer: int | None, opening_tokens: int
) -> dict[int, Part]:
    """Return, for each row, how much of its answer an epoch teaches.

    An answer that stands in many rows is soon known by heart; what is left to learn is when to give it, and that is decided in
    its first tokens. So at most `max_whole_per_answer` rows an epoch, other ones each time, spell the same answer out; the rest
    teach its opening. An answer that stands in few rows is always whole; None spells out every one.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(forest.rows):
        same.setdefault(row.answer_ids, []).append(number)
    parts: dict[int, Part] = {}
    for answer_ids, numbers in same.items():
        whole = len(numbers) if max_whole_per_answer is None else max_whole_per_answer
        random.Random(f"{seed}/{epoch}/{answer_ids}").shuffle(numbers)
        for place, number in enumerate(numbers):
            parts[number] = Part(number, len(answer_ids) if place < whole else min(opening_tokens, len(answer_ids)))
    return parts
