"""How an attention layer relates tokens, of a student and of a teacher, whatever their widths and heads are.

MiniLMv2 (Wang et al. 2020, arXiv 2012.15828): queries, keys and values of one layer, each cut anew into as many relation heads;
a relation is the softmax of X X^T / sqrt(d) within a head, and the student learns the teacher's by KL(teacher || student). In:
what the projections of a layer gave. Out: one scalar. Rotary positions are left out, since they are not the layer's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from conversations.errors import OperatorError
from distill.training.batches.packing import Batch

# Queries, keys and values, each (rows, length, query heads * width of a head).
Projections = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Heads:
    """How an attention layer cuts its projections. Several query heads may share a head of keys and values."""

    query: int
    shared: int
    width: int

    def whole(self, projected: torch.Tensor) -> torch.Tensor:
        """Return keys or values with a head for each query head."""
        cut = projected.unflatten(-1, (self.shared, self.width))
        return cut.repeat_interleave(self.query // self.shared, dim=-2).flatten(-2)


class AttentionWatch:
    """Keeps what the projections of one attention layer give while a model runs."""

    def __init__(self, layer: torch.nn.Module, config: PreTrainedConfig, *, whose: str) -> None:
        """Raise OperatorError where the layer has neither q_proj, k_proj and v_proj nor qkv_proj."""
        attention = getattr(layer, "self_attn", None)
        names = ("qkv_proj",) if hasattr(attention, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
        if not all(hasattr(attention, name) for name in names):
            raise OperatorError(
                f"[train.local_teacher] relations_weight: the attention of {whose}, a {config.model_type!r}, has no q_proj, k_proj "
                "and v_proj as Llama's and no qkv_proj as Phi-3's; set relations_weight to 0, or take a model of such a family"
            )
        self._projections = [getattr(attention, name) for name in names]
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._heads = _Heads(config.num_attention_heads, config.num_key_value_heads, width)
        self._seen: list[torch.Tensor] = []

    @property
    def width(self) -> int:
        """Return the width of queries, and of keys and values with a head for each query head."""
        return self._heads.query * self._heads.width

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the layer projects in the forward pass within."""
        self._seen = []

        def keep(module: torch.nn.Module, taken: object, given: torch.Tensor) -> None:
            self._seen.append(given)

        hooks = [projection.register_forward_hook(keep) for projection in self._projections]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> Projections:
        """Return what was seen, once."""
        seen, self._seen = self._seen, []
        if len(seen) == 1:
            shared = self._heads.shared * self._heads.width
            query, key, value = seen[0].split((self.width, shared, shared), dim=-1)
        else:
            query, key, value = seen
        return query, self._heads.whole(key), self._heads.whole(value)


def relation_loss(student: Projections, teacher: Projections, batch: Batch, *, heads: int) -> torch.Tensor:
    """Return the divergences of the relations at the tokens that predict an answer, summed with the weights of the predictions.

    A scalar: of queries, keys and values together, the mean over the relation heads. A token relates to those that it may see. Tokens
    that predict nothing are left out, so that a history that several rows share counts as often as in rows that stand alone.
    """
    length = batch.token_ids.shape[1]
    rows, at = batch.scored_at // length, batch.scored_at % length
    places = torch.arange(length, device=at.device)
    total = torch.zeros((), dtype=_exact(student[0].dtype), device=at.device)
    for row in rows.unique().tolist():
        of_row = rows == row
        queries = at[of_row]
        seen = places <= queries.unsqueeze(1)
        if batch.subtree_ends is not None:
            seen &= queries.unsqueeze(1) < batch.subtree_ends[row]
        for ours, theirs in zip(student, teacher, strict=True):
            divergence = _divergence(ours[row], theirs[row], queries, seen, heads)
            total = total + (divergence * batch.targets.weights[of_row]).sum()
    return total


def _divergence(
    student: torch.Tensor, teacher: torch.Tensor, queries: torch.Tensor, seen: torch.Tensor, heads: int
) -> torch.Tensor:
    """Return KL(teacher || student) of the relations of some tokens of a row, the mean over the heads. Shape: (queries,)."""
    ours, theirs = (_log_relations(states, queries, seen, heads) for states in (student, teacher))
    return (theirs.exp() * (theirs - ours)).masked_fill(~seen, 0.0).sum(dim=-1).mean(dim=0)


def _log_relations(states: torch.Tensor, queries: torch.Tensor, seen: torch.Tensor, heads: int) -> torch.Tensor:
    """Return how some tokens relate to those they see. states: (length, width). Shape: (heads, queries, length), 0 where unseen."""
    cut = states.to(_exact(states.dtype)).unflatten(-1, (heads, -1)).transpose(0, 1)
    scores = cut[:, queries] @ cut.transpose(1, 2) / cut.shape[-1] ** 0.5
    return torch.log_softmax(scores.masked_fill(~seen, -torch.inf), dim=-1).masked_fill(~seen, 0.0)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
