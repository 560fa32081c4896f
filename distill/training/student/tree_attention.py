"""Attention within trees that stand one behind the other, on a CPU: some queries at a time, each with the keys up to its own.

In: queries, keys and values, and where each token's subtree ends. Out: what each token attends to among itself and its ancestors.
Nothing is computed between trees. The weights are computed again for the gradient instead of kept, so that
memory grows with a row's length and not with its square (Rabe & Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135).
All products are in the student's own format. The mean of the keys is taken off, which changes no weight and leaves smaller scores, of
which bfloat16 rounds less away (Zhang et al. 2024, arXiv 2410.02367): gradients come nearer to float32's than with torch's kernel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from distill.training.batches.packing import Batch

# Queries of a chunk; a tree is filled up to a multiple of the half. More would leave the cache, fewer leave the cores idle, and every
# new size costs time and memory, since the library (oneDNN) makes and keeps a program for each.
_QUERIES = 64
_MULTIPLE = _QUERIES // 2


@dataclass(frozen=True)
class Tree:
    """A tree's place in a micro-batch. hidden: (size, size) bool, which query does not see which key; None for a chain."""

    row: int
    start: int
    stop: int
    hidden: torch.Tensor | None

    @property
    def tokens(self) -> int:
        """Return how many tokens the tree has."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Return the tokens with what fills them up."""
        return _filled_up(self.tokens)

    def of(self, by_head: torch.Tensor) -> torch.Tensor:
        """Return the tree's own part of (rows, heads, length, width). Shape: (heads, tokens, width)."""
        return by_head[self.row, :, self.start : self.stop]

    def filled(self, part: torch.Tensor) -> torch.Tensor:
        """Return a copy of a part with zeros behind it. Shape: (heads, size, width)."""
        return torch.nn.functional.pad(part, (0, 0, 0, self.size - self.tokens)).contiguous()

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield the first query of each chunk, and the one behind its last, as the tree counts."""
        for start in range(0, self.size, _QUERIES):
            yield start, min(start + _QUERIES, self.size)


def trees_of(batch: Batch) -> list[Tree]:
    """Return the trees of a micro-batch in order, without the padding."""
    trees: list[Tree] = []
    for row, count in enumerate((batch.nodes >= 0).sum(dim=1).tolist()):
        ends = torch.full((count,), count) if batch.subtree_ends is None else batch.subtree_ends[row, :count]
        start = 0
        while start < count:
            stop = int(ends[start])
            trees.append(Tree(row, start, stop, _hidden(ends[start:stop] - start)))
            start = stop
    return trees


def _filled_up(tokens: int) -> int:
    return -(-tokens // _MULTIPLE) * _MULTIPLE


def _hidden(ends: torch.Tensor) -> torch.Tensor | None:
    if bool((ends == len(ends)).all()):
        return None
    size = _filled_up(len(ends))
    # What fills up sees itself: a softmax over nothing is no number.
    ends = torch.nn.functional.pad(ends, (0, size - len(ends)), value=size)
    key = torch.arange(size)
    query = key.unsqueeze(1)
    return (key > query) | (query >= ends)


def tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, trees: Sequence[Tree], scale: float
) -> torch.Tensor:
    """Return the attention's output. Shape: (rows, length, heads, width).

    query: (rows, heads, length, width); key and value: the same with heads that divide those of the queries; all of one format.
    Tokens of no tree attend to nothing.
    """
    output: torch.Tensor = _TreeAttention.apply(query, key, value, trees, scale)
    return output


class _TreeAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is read untyped
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, trees: Sequence[Tree], scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.trees, ctx.scale = trees, scale
        output = torch.zeros_like(query)
        # Autocast would compute a float32 student's products in bfloat16.
        with torch.autocast("cpu", enabled=False):
            for tree in trees:
                queries, keys, values = _filled(tree, query, key, value, scale)
                seen = torch.empty_like(queries)
                for start, stop in tree.chunks():
                    weights = _weights(queries, keys, tree, start, stop)
                    seen[:, start:stop] = torch.bmm(weights, values[:, :stop]).view(len(queries), stop - start, -1)
                tree.of(output).copy_(seen[:, : tree.tokens])
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, output_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        output_grad = output_grad.transpose(1, 2)
        query_grad, key_grad, value_grad = (torch.zeros_like(each) for each in (query, key, value))
        for tree in ctx.trees:
            queries, keys, values = _filled(tree, query, key, value, ctx.scale)
            seen_grad, queries_grad = tree.filled(tree.of(output_grad)), torch.empty_like(queries)
            keys_grad, values_grad = (torch.zeros(keys.shape, dtype=_exact(keys)) for _ in range(2))
            for start, stop in tree.chunks():
                weights = _weights(queries, keys, tree, start, stop)
                grad = _sharing(seen_grad[:, start:stop], len(keys))
                values_grad[:, :stop] += torch.bmm(weights.transpose(1, 2), grad)
                weights_grad = torch.bmm(grad, values[:, :stop].transpose(1, 2))
                # The softmax's gradient: w (g - sum w g).
                scores_grad = weights_grad.sub_((weights * weights_grad).sum(-1, keepdim=True)).mul_(weights)
                queries_grad[:, start:stop] = torch.bmm(scores_grad, keys[:, :stop]).view(len(queries), stop - start, -1)
                # The gradients of a query's scores add up to nothing, so that the mean of the keys has none.
                keys_grad[:, :stop] += torch.bmm(scores_grad.transpose(1, 2), _sharing(queries[:, start:stop], len(keys)))
            tree.of(query_grad).copy_(queries_grad[:, : tree.tokens])
            tree.of(key_grad).copy_(keys_grad[:, : tree.tokens].mul_(ctx.scale))
            tree.of(value_grad).copy_(values_grad[:, : tree.tokens])
        return query_grad, key_grad, value_grad, None, None


def _exact(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _filled(
    tree: Tree, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a tree's queries, its keys less their mean and times the scale of the scores, and its values, each filled up."""
    exact = tree.of(key).to(_exact(key))
    keys = ((exact - exact.mean(1, keepdim=True)) * scale).to(key.dtype)
    return tree.filled(tree.of(query)), tree.filled(keys), tree.filled(tree.of(value))


def _sharing(by_head: torch.Tensor, heads: int) -> torch.Tensor:
    """Return what queries have, those of heads that share their keys together. Shape: (heads, sharing * queries, width)."""
    return by_head.reshape(heads, -1, by_head.shape[-1])


def _weights(queries: torch.Tensor, keys: torch.Tensor, tree: Tree, start: int, stop: int) -> torch.Tensor:
    """Return how much a chunk's queries give to each key up to the last of them. Shape: (heads of keys, sharing * queries, stop)."""
    scores = torch.bmm(_sharing(queries[:, start:stop], len(keys)), keys[:, :stop].transpose(1, 2))
    if tree.hidden is None:
        hidden = torch.ones(stop - start, stop, dtype=torch.bool).triu(start + 1)
    else:
        hidden = tree.hidden[start:stop, :stop]
    scores.view(-1, stop - start, stop).masked_fill_(hidden, -math.inf)
    return torch.softmax(scores, -1)
