"""How trees become micro-batches on a device: how large trees may grow, and which are computed together.

In: parts of a forest. Out: micro-batches. Where attention skips what a token may not see, trees are packed one behind the other into
long rows: tree by tree on a CPU, by blocks on a GPU. Where it needs a dense mask, whose cost is the square of a row, trees of like
length stand in rows of their own, padded as little as can be. Knows no text and no model, and loses no row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from distill.training.batches.forest import Forest, Part, TokenTree
from distill.training.batches.packing import Batch, pack_batch, pack_row

# Padding is seen by nobody and never scored, so that any token will do.
_PAD_ID = 0
# FlexAttention decides by blocks of so many tokens what can be skipped.
BLOCK_TOKENS = 128
# A CPU's library (oneDNN) makes and keeps a program for every length of a row that it multiplies, which costs time and memory.
_CPU_MULTIPLE = 64

# How an attention is told who sees whom: by blocks on a GPU, tree by tree on a CPU, by a dense mask that any decoder takes.
MaskForm = Literal["blocks", "trees", "dense"]


@dataclass(frozen=True)
class Layout:
    """A device's way to lay trees out.

    A micro-batch holds up to `token_budget` tokens with the padding, more only where a single tree does. `overhead_tokens`
    is what starting one costs, in tokens computed meanwhile. A tree grows up to `max_tree_tokens` with rows of one conversation,
    whose history is long, and up to `max_joined_tokens` with rows of several, which share little but the system prompt.
    Where `one_row`, trees stand one behind the other, padded to a multiple of `row_multiple`.
    """

    token_budget: int
    overhead_tokens: int
    max_tree_tokens: int
    max_joined_tokens: int
    one_row: bool
    row_multiple: int = 1

    def trees(self, forest: Forest, parts: Iterable[Part]) -> list[TokenTree]:
        """Return parts of a forest as the trees that are computed."""
        return list(forest.trees(parts, max_tree_tokens=self.max_tree_tokens, max_joined_tokens=self.max_joined_tokens))

    def batches(self, trees: Sequence[TokenTree]) -> Iterator[Batch]:
        """Yield the trees as micro-batches, in an order that follows from the trees alone."""
        if self.one_row:
            for packed in fill_rows(trees, capacity=self.token_budget):
                yield pack_row(packed, pad_id=_PAD_ID, multiple_of=self.row_multiple)
            return
        for alike in cut_batches(trees, token_budget=self.token_budget, overhead_tokens=self.overhead_tokens):
            yield pack_batch(alike, pad_id=_PAD_ID)


def layout_on(device: torch.device, *, token_budget: int | None, masks: MaskForm) -> Layout:
    """Return how a device lays trees out for an attention that is told who sees whom in a form.

    An empty budget is 1024 tokens on a CPU and 8192 on a GPU, whose matrix products need several thousand for their peak.
    """
    on_gpu = device.type == "cuda"
    budget = token_budget or (8192 if on_gpu else 1024)
    overhead = 512 if on_gpu else 16
    if masks == "blocks":
        # Joined trees stay shorter than a row, so that several fill it.
        return Layout(
            budget, overhead, max_tree_tokens=budget, max_joined_tokens=budget // 4, one_row=True, row_multiple=BLOCK_TOKENS
        )
    # Masks and scores grow with the square of a tree, and beyond these lengths cost more than the sharing saves. A tree is computed at
    # once, so that a smaller budget, as after memory ran out, must make smaller trees.
    one_row = masks == "trees"
    return Layout(
        budget,
        overhead,
        max_tree_tokens=min(1024, budget),
        max_joined_tokens=min(384, budget),
        one_row=one_row,
        row_multiple=_CPU_MULTIPLE if one_row else 1,
    )


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


def fill_rows(trees: Sequence[TokenTree], *, capacity: int) -> list[list[TokenTree]]:
    """Return the trees in rows of at most `capacity` tokens, unless a single tree is longer.

    Best-fit decreasing: from the longest tree on, each goes where the least room is left that it fits into (Johnson 1973: never
    more than 11/9 of the fewest rows, plus a constant).
    """
    rows: list[list[TokenTree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda tree: len(tree.nodes), reverse=True):
        size = len(tree.nodes)
        fitting = [(left, index) for index, left in enumerate(room) if left >= size]
        if fitting:
            left, index = min(fitting)
            rows[index].append(tree)
            room[index] = left - size
        else:
            rows.append([tree])
            room.append(capacity - size)
    return rows
