"""Trees of tokens as tensors: one tree a row, or many in one row, with what each token may see.

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

    token_ids, position_ids: (rows, length) int64. nodes: (rows, length) int64, the token's number in its forest, -1 for padding.
    subtree_ends: (rows, length) int64: a token at index k is seen by those at k <= q < subtree_ends[k], itself and its
    descendants; None where the ordinary causal mask is right. scored_at: (scored,) indices into the flattened (rows * length)
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


def pack_batch(trees: Sequence[TokenTree], *, pad_id: int) -> Batch:
    """Return the trees as tensors, one a row, padded on the right to the longest of them."""
    # Behind a chain the padding stands to the right of everything, where the causal mask hides it anyway.
    chains = all(tree.is_chain for tree in trees)
    return _laid_out([[tree] for tree in trees], max(len(tree.nodes) for tree in trees), pad_id=pad_id, causal=chains)


def pack_row(trees: Sequence[TokenTree], *, pad_id: int, multiple_of: int) -> Batch:
    """Return the trees as one row, one behind the other, whose length is a multiple of a number.

    Positions begin anew with each tree, and no token sees another tree's.
    """
    length = sum(len(tree.nodes) for tree in trees)
    return _laid_out([trees], -(-length // multiple_of) * multiple_of, pad_id=pad_id, causal=False)


def visible(subtree_ends: torch.Tensor) -> torch.Tensor:
    """Return what each token may see: itself and its ancestors. Shape: (rows, 1, queries, keys) bool."""
    length = subtree_ends.shape[1]
    at = torch.arange(length, device=subtree_ends.device)
    query, key = at.view(1, length, 1), at.view(1, 1, length)
    return ((key <= query) & (query < subtree_ends.unsqueeze(1))).unsqueeze(1)


def _laid_out(rows: Sequence[Sequence[TokenTree]], length: int, *, pad_id: int, causal: bool) -> Batch:
    token_ids = torch.full((len(rows), length), pad_id)
    position_ids = torch.zeros((len(rows), length), dtype=torch.int64)
    nodes = torch.full((len(rows), length), -1)
    # Padding sees itself: a softmax over nothing is no number.
    ends = torch.arange(1, length + 1).repeat(len(rows), 1)
    scored_at: list[int] = []
    for index, trees in enumerate(rows):
        start = 0
        for tree in trees:
            place = slice(start, start + len(tree.nodes))
            token_ids[index, place] = torch.tensor(tree.token_ids)
            position_ids[index, place] = torch.tensor(tree.positions)
            nodes[index, place] = torch.tensor(tree.nodes)
            ends[index, place] = start + torch.tensor(tree.subtree_ends)
            scored_at += [index * length + start + at for at in tree.scored_at]
            start = place.stop
    trees_in_order = [tree for trees in rows for tree in trees]
    return Batch(
        token_ids=token_ids,
        position_ids=position_ids,
        nodes=nodes,
        subtree_ends=None if causal else ends,
        scored_at=torch.tensor(scored_at, dtype=torch.int64),
        targets=_targets(trees_in_order),
        tokens=sum(len(tree.nodes) for tree in trees_in_order),
    )


def _targets(trees: Sequence[TokenTree]) -> Targets:
    return targets_of(
        [token for tree in trees for token in tree.scored_ids],
        [weight for tree in trees for weight in tree.scored_weights],
        [belief for tree in trees for belief in tree.scored_beliefs],
    )
