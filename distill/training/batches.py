"""The order of a training and its micro-batches: which rows a step learns, how much of each answer, and as which tensors.

In: a forest of rows. Out: steps in an order that follows from the seed alone, and right-padded micro-batches with positions,
an attention mask that lets a token see its ancestors only, and the places where an answer's token is predicted. Knows no
text and no model, and loses no row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill.training.forest import Forest, Part, TokenTree


@dataclass(frozen=True)
class Batch:
    """A micro-batch of trees, padded on the right.

    token_ids, position_ids: (trees, length) int64. nodes: (trees, length) int64, the token's number in its forest. mask:
    (trees, 1, length, length) bool, true where the query (third axis) may see the key, or None where the ordinary causal mask
    is right. scored_at: (scored,) indices into the flattened (trees * length) hidden states; targets: (scored,) int64;
    weights: (scored,) float32. tokens: without the padding.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    nodes: torch.Tensor
    mask: torch.Tensor | None
    scored_at: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        return Batch(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            nodes=self.nodes.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            scored_at=self.scored_at.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            tokens=self.tokens,
        )


def plan_epoch(forest: Forest, *, seed: int, epoch: int, rows_per_step: int) -> list[list[int]]:
    """Return the rows of every optimizer step of an epoch: all of them, shuffled by conversation.

    A pure function of its arguments, so that a resumed training goes on in the same order. Steps hold about
    `rows_per_step` rows each, as evenly as whole conversations allow.
    """
    order = list(forest.conversations)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    row_total = len(forest.rows)
    step_count = max(1, round(row_total / rows_per_step))
    steps: list[list[int]] = [[] for _ in range(step_count)]
    rows_before = 0
    for conversation in order:
        steps[rows_before * step_count // row_total].extend(conversation)
        rows_before += len(conversation)
    return [step for step in steps if step]


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


def cut_batches(trees: Sequence[TokenTree], *, token_budget: int, overhead_tokens: int) -> list[list[TokenTree]]:
    """Return the trees in micro-batches of similar length with the least cost in padded tokens.

    The cost of a micro-batch is its padded tokens and `overhead_tokens`, the price of starting one. No micro-batch
    exceeds `token_budget` padded tokens unless it is a single tree. Dynamic programming over the trees sorted by length.
    """
    by_length = sorted(trees, key=lambda tree: len(tree.token_ids))
    cheapest, cut_before = [0], [0]
    for stop in range(1, len(by_length) + 1):
        length = len(by_length[stop - 1].token_ids)
        options = [
            (cheapest[start] + (stop - start) * length + overhead_tokens, start)
            for start in range(stop)
            if stop - start == 1 or (stop - start) * length <= token_budget
        ]
        cost, start = min(options)
        cheapest.append(cost)
        cut_before.append(start)
    batches: list[list[TokenTree]] = []
    stop = len(by_length)
    while stop:
        batches.append(by_length[cut_before[stop] : stop])
        stop = cut_before[stop]
    return batches[::-1]


def pack_batch(trees: Sequence[TokenTree], *, pad_id: int) -> Batch:
    """Return the trees as tensors, padded on the right to the longest of them."""
    length = max(len(tree.token_ids) for tree in trees)
    token_ids = torch.full((len(trees), length), pad_id)
    position_ids = torch.zeros((len(trees), length), dtype=torch.int64)
    nodes = torch.zeros((len(trees), length), dtype=torch.int64)
    scored_at: list[int] = []
    for index, tree in enumerate(trees):
        size = len(tree.token_ids)
        token_ids[index, :size] = torch.tensor(tree.token_ids)
        position_ids[index, :size] = torch.tensor(tree.positions)
        nodes[index, :size] = torch.tensor(tree.nodes)
        scored_at += [index * length + at for at in tree.scored_at]
    # Behind a chain the padding stands to the right of everything, where the causal mask hides it anyway.
    chains = all(tree.is_chain for tree in trees)
    return Batch(
        token_ids=token_ids,
        position_ids=position_ids,
        nodes=nodes,
        mask=None if chains else torch.stack([_ancestors(tree, length) for tree in trees]).unsqueeze(1),
        scored_at=torch.tensor(scored_at, dtype=torch.int64),
        targets=torch.tensor([token for tree in trees for token in tree.scored_ids], dtype=torch.int64),
        weights=torch.tensor([weight for tree in trees for weight in tree.scored_weights]),
        tokens=sum(len(tree.token_ids) for tree in trees),
    )


def _ancestors(tree: TokenTree, length: int) -> torch.Tensor:
    """Return (length, length) bool: a query sees itself and its ancestors; padding sees itself, or softmax is empty."""
    mask = torch.eye(length, dtype=torch.bool)
    for index, parent in enumerate(tree.parents):
        if parent >= 0:
            mask[index] |= mask[parent]
    return mask
