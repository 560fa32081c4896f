"""Trees of tokens as micro-batches: cut by a budget of tokens, padded as little as can be, with what each token may see.

In: trees. Out: right-padded tensors with positions, the end of each token's subtree, which says who sees it, and the places
where an answer's token is predicted. Knows no text and no model, and loses no row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill.training.batches.forest import TokenTree
from distill.training.losses.targets import Targets, targets_of


@dataclass(frozen=True)
class Batch:
    """A micro-batch of trees, padded on the right.

    token_ids, position_ids: (trees, length) int64. nodes: (trees, length) int64, the token's number in its forest.
    subtree_ends: (trees, length) int64: a token at index k is seen by those at k <= q < subtree_ends[k], itself and its
    descendants; None where the ordinary causal mask is right. scored_at: (scored,) indices into the flattened (trees * length)
    hidden states, which predict the targets. tokens: without the padding.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    nodes: torch.Tensor
    subtree_ends: torch.Tensor | None
    scored_at: torch.Tensor
    targets: Targets
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        return Batch(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            nodes=self.nodes.to(device),
            subtree_ends=None if self.subtree_ends is None else self.subtree_ends.to(device),
            scored_at=self.scored_at.to(device),
            targets=self.targets.to(device),
            tokens=self.tokens,
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


def pack_batch(trees: Sequence[TokenTree], *, pad_id: int) -> Batch:
    """Return the trees as tensors, padded on the right to the longest of them."""
    length = max(len(tree.token_ids) for tree in trees)
    token_ids = torch.full((len(trees), length), pad_id)
    position_ids = torch.zeros((len(trees), length), dtype=torch.int64)
    nodes = torch.zeros((len(trees), length), dtype=torch.int64)
    # Padding sees itself: a softmax over nothing is no number.
    ends = torch.arange(1, length + 1).repeat(len(trees), 1)
    scored_at: list[int] = []
    for index, tree in enumerate(trees):
        size = len(tree.token_ids)
        token_ids[index, :size] = torch.tensor(tree.token_ids)
        position_ids[index, :size] = torch.tensor(tree.positions)
        nodes[index, :size] = torch.tensor(tree.nodes)
        ends[index, :size] = torch.tensor(tree.subtree_ends)
        scored_at += [index * length + at for at in tree.scored_at]
    # Behind a chain the padding stands to the right of everything, where the causal mask hides it anyway.
    chains = all(tree.is_chain for tree in trees)
    return Batch(
        token_ids=token_ids,
        position_ids=position_ids,
        nodes=nodes,
        subtree_ends=None if chains else ends,
        scored_at=torch.tensor(scored_at, dtype=torch.int64),
        targets=targets_of(
            [token for tree in trees for token in tree.scored_ids],
            [weight for tree in trees for weight in tree.scored_weights],
            [belief for tree in trees for belief in tree.scored_beliefs],
        ),
        tokens=sum(len(tree.token_ids) for tree in trees),
    )


def visible(subtree_ends: torch.Tensor) -> torch.Tensor:
    """Return what each token may see: itself and its ancestors. Shape: (trees, 1, queries, keys) bool."""
    length = subtree_ends.shape[1]
    at = torch.arange(length, device=subtree_ends.device)
    query, key = at.view(1, length, 1), at.view(1, 1, length)
    return ((key <= query) & (query < subtree_ends.unsqueeze(1))).unsqueeze(1)
