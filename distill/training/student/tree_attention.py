"""Attention within trees that stand one behind the other, on a CPU: some queries at a time, each with the keys up to its own.

In: queries, keys and values, and where each token's subtree ends. Out: what each token attends to among itself and its ancestors.
Nothing is padded and nothing is computed between trees. The weights are computed again for the gradient instead of kept, so that
memory grows with a row's length and not with its square (Rabe & Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135).
All products are in the student's own format. The mean of the keys is taken off, which changes no weight and leaves smaller scores, of
which bfloat16 rounds less away (Zhang et al. 2024, arXiv 2410.02367): gradients come nearer to float32's than with torch's kernel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

# Scores computed at once: more leave the cache, fewer leave the cores idle. A chunk has at least so many queries.
_SCORES_AT_ONCE, _FEWEST_QUERIES = 2**18, 32


@dataclass(frozen=True)
class Tree:
    """A tree's place in a micro-batch. hidden: (tokens, tokens) bool, which key no query sees; None for a chain."""

    row: int
    start: int
    stop: int
    hidden: torch.Tensor | None

    def of(self, by_head: torch.Tensor) -> torch.Tensor:
        """Return the tree's own part of (rows, heads, length, width). Shape: (heads, tokens, width)."""
        return by_head[self.row, :, self.start : self.stop]

    def chunks(self, heads: int) -> Iterator[tuple[int, int]]:
        """Yield the first query of each chunk, and the one behind its last, as the tree counts."""
        length = self.stop - self.start
        count = math.ceil(length / max(_FEWEST_QUERIES, _SCORES_AT_ONCE // (heads * length)))
        size = math.ceil(length / count)
        for start in range(0, length, size):
            yield start, min(start + size, length)


def trees_of(subtree_ends: torch.Tensor | None, *, rows: int, length: int) -> list[Tree]:
    """Return the trees of a micro-batch in order. subtree_ends: (rows, length), or None where each row is a chain."""
    if subtree_ends is None:
        return [Tree(row, 0, length, None) for row in range(rows)]
    trees: list[Tree] = []
    for row, ends in enumerate(subtree_ends.tolist()):
        start = 0
        while start < length:
            stop = ends[start]
            trees.append(Tree(row, start, stop, _hidden(subtree_ends[row, start:stop] - start)))
            start = stop
    return trees


def _hidden(ends: torch.Tensor) -> torch.Tensor | None:
    if bool((ends == len(ends)).all()):
        return None
    key = torch.arange(len(ends))
    query = key.unsqueeze(1)
    return (key > query) | (query >= ends)


def tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, trees: Sequence[Tree], scale: float
) -> torch.Tensor:
    """Return the attention's output. Shape: (rows, length, heads, width).

    query: (rows, heads, length, width); key and value: the same with heads that divide those of the queries; all of one format.
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
        output = torch.empty_like(query)
        # Autocast would compute a float32 student's products in bfloat16.
        with torch.autocast("cpu", enabled=False):
            for tree in trees:
                keys, values = _centred(tree.of(key), scale), tree.of(value).contiguous()
                queries, seen = tree.of(query), tree.of(output)
                for start, stop in tree.chunks(len(queries)):
                    weights = _weights(queries, keys, tree, start, stop)
                    seen[:, start:stop] = torch.bmm(weights, values[:, :stop]).view(len(queries), stop - start, -1)
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, output_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        output_grad = output_grad.transpose(1, 2)
        query_grad, key_grad, value_grad = (torch.empty_like(each) for each in (query, key, value))
        for tree in ctx.trees:
            keys, values = _centred(tree.of(key), ctx.scale), tree.of(value).contiguous()
            queries, seen_grad, queries_grad = tree.of(query), tree.of(output_grad), tree.of(query_grad)
            keys_grad, values_grad = (torch.zeros(keys.shape, dtype=_exact(keys)) for _ in range(2))
            for start, stop in tree.chunks(len(queries)):
                weights = _weights(queries, keys, tree, start, stop)
                grad = _sharing(seen_grad[:, start:stop], len(keys))
                values_grad[:, :stop] += torch.bmm(weights.transpose(1, 2), grad)
                weights_grad = torch.bmm(grad, values[:, :stop].transpose(1, 2))
                # The softmax's gradient: w (g - sum w g).
                scores_grad = weights_grad.sub_((weights * weights_grad).sum(-1, keepdim=True)).mul_(weights)
                queries_grad[:, start:stop] = torch.bmm(scores_grad, keys[:, :stop]).view(len(queries), stop - start, -1)
                # The gradients of a query's scores add up to nothing, so that the mean of the keys has none.
                keys_grad[:, :stop] += torch.bmm(scores_grad.transpose(1, 2), _sharing(queries[:, start:stop], len(keys)))
            tree.of(key_grad).copy_(keys_grad.mul_(ctx.scale))
            tree.of(value_grad).copy_(values_grad)
        return query_grad, key_grad, value_grad, None, None


def _exact(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _centred(keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Return keys less their mean, times the scale of the scores. keys: (heads, tokens, width)."""
    exact = keys.to(_exact(keys))
    return ((exact - exact.mean(1, keepdim=True)) * scale).to(keys.dtype)


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
