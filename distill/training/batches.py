"""Decisions become batches: the rows of one conversation are laid out as one tree in which a shared history stands once.

In: rows of token ids. Out: right-padded micro-batches with positions, an attention mask that lets a token see its
ancestors only, and the places where an answer's token is predicted. The result of a tree is that of its rows one by
one, because a row's tokens see the same tokens at the same positions. Knows no text and no model, and loses no row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from distill.training.decisions import TrainingRow


@dataclass(frozen=True)
class TokenTree:
    """Rows of one conversation with shared prefixes stored once; every parent stands before its children.

    parents: index of the token before, -1 for the first. positions: depth in the tree. Scored entries say that the
    hidden state at `scored_at` predicts `scored_ids` with `scored_weights` (equal predictions of several rows are
    added up).
    """

    row_count: int
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    positions: tuple[int, ...]
    scored_at: tuple[int, ...]
    scored_ids: tuple[int, ...]
    scored_weights: tuple[float, ...]

    @property
    def scored_weight(self) -> float:
        """Return the weight of all its scored tokens together."""
        return sum(self.scored_weights)

    @property
    def is_chain(self) -> bool:
        """Return whether the tree has one branch only, so that the ordinary causal mask fits."""
        return all(parent == index - 1 for index, parent in enumerate(self.parents))


@dataclass(frozen=True)
class Batch:
    """A micro-batch of trees, padded on the right.

    token_ids, position_ids: (trees, length) int64. mask: (trees, 1, length, length) bool, true where the query (third
    axis) may see the key, or None where the ordinary causal mask is right. scored_at: (scored,) indices into the
    flattened (trees * length) hidden states; targets: (scored,) int64; weights: (scored,) float32. tokens: without the
    padding.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
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
            mask=None if self.mask is None else self.mask.to(device),
            scored_at=self.scored_at.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            tokens=self.tokens,
        )


@dataclass
class _Trunk:
    """A tree while rows are added to it."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    scored: dict[tuple[int, int], float] = field(default_factory=dict)
    row_count: int = 0

    def new_tokens(self, row: TrainingRow) -> int:
        """Return by how many tokens the row would make the tree longer."""
        at, known = -1, 0
        for token_id in (*row.prompt_ids, *row.answer_ids[:-1]):
            child = self.children.get((at, token_id))
            if child is None:
                break
            at, known = child, known + 1
        return row.input_tokens - known

    def add(self, row: TrainingRow) -> None:
        at = -1
        for depth, token_id in enumerate((*row.prompt_ids, *row.answer_ids)):
            if depth >= len(row.prompt_ids):
                key = (at, token_id)
                self.scored[key] = self.scored.get(key, 0.0) + row.weight
            if depth < row.input_tokens:
                at = self._child(at, token_id, depth)
        self.row_count += 1

    def _child(self, parent: int, token_id: int, depth: int) -> int:
        known = self.children.get((parent, token_id))
        if known is not None:
            return known
        self.children[parent, token_id] = index = len(self.token_ids)
        self.token_ids.append(token_id)
        self.parents.append(parent)
        self.positions.append(depth)
        return index

    def tree(self) -> TokenTree:
        places = list(self.scored)
        return TokenTree(
            self.row_count,
            tuple(self.token_ids),
            tuple(self.parents),
            tuple(self.positions),
            tuple(at for at, _ in places),
            tuple(token_id for _, token_id in places),
            tuple(self.scored.values()),
        )


def grow_trees(rows: Sequence[TrainingRow], *, max_tree_tokens: int, share: bool = True) -> list[TokenTree]:
    """Return the trees of the rows, conversation by conversation in the order of their identifiers.

    A tree that would pass `max_tree_tokens` is followed by another one of the same conversation; a single longer row still
    gets its tree. With `share` false every row is a tree of its own.
    """
    trees: list[TokenTree] = []
    by_conversation: dict[str, list[TrainingRow]] = {}
    for row in rows:
        by_conversation.setdefault(row.conversation_id, []).append(row)
    for conversation_id in sorted(by_conversation):
        trunk = _Trunk()
        for row in sorted(by_conversation[conversation_id], key=lambda row: (len(row.prompt_ids), row.decision_id)):
            full = len(trunk.token_ids) + trunk.new_tokens(row) > max_tree_tokens
            if trunk.row_count and (full or not share):
                trees.append(trunk.tree())
                trunk = _Trunk()
            trunk.add(row)
        trees.append(trunk.tree())
    return trees


def plan_epoch(trees: Sequence[TokenTree], *, seed: int, epoch: int, rows_per_step: int) -> list[list[int]]:
    """Return the indices of the trees of every optimizer step of an epoch: all of them, shuffled.

    A pure function of its arguments, so that a resumed training goes on in the same order. Steps hold about
    `rows_per_step` rows each, as evenly as whole trees allow.
    """
    order = list(range(len(trees)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    row_total = sum(tree.row_count for tree in trees)
    step_count = max(1, round(row_total / rows_per_step))
    steps: list[list[int]] = [[] for _ in range(step_count)]
    rows_before = 0
    for index in order:
        steps[rows_before * step_count // row_total].append(index)
        rows_before += trees[index].row_count
    return [step for step in steps if step]


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
    scored_at: list[int] = []
    for index, tree in enumerate(trees):
        size = len(tree.token_ids)
        token_ids[index, :size] = torch.tensor(tree.token_ids)
        position_ids[index, :size] = torch.tensor(tree.positions)
        scored_at += [index * length + at for at in tree.scored_at]
    # Behind a chain the padding stands to the right of everything, where the causal mask hides it anyway.
    chains = all(tree.is_chain for tree in trees)
    return Batch(
        token_ids=token_ids,
        position_ids=position_ids,
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
