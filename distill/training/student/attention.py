"""Attention of tokens that stand in trees: who sees whom, in the form that the device computes fastest.

In: where each token's subtree ends. Out: a mask, and the attention that transformers' layers call with it. On a GPU it is
FlexAttention (Dong et al. 2024, arXiv 2412.05496), which skips blocks in which nothing is seen, so that trees packed one
behind the other in a long row cost no more than each alone; on a CPU each tree is computed by itself; for a
decoder that cannot be run layer by layer it is torch's dense attention. Knows no rows and no losses.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias, cast

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from distill.training.batches.layout import BLOCK_TOKENS, MaskForm
from distill.training.batches.packing import Batch, visible
from distill.training.student.tree_attention import Tree, tree_attention, trees_of

NAME = "shared_history"
# GPUs' matrix units multiply no narrower heads; wider ones must be a power of two for the gradient's kernel.
_SMALLEST_HEAD = 16
Mask: TypeAlias = BlockMask | Sequence[Tree] | torch.Tensor | None


def skips_blocks(device: torch.device, config: PreTrainedConfig) -> bool:
    """Return whether FlexAttention can be compiled for a student: on a GPU with Triton, for the widths of heads that it multiplies."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width >= _SMALLEST_HEAD and width.bit_count() == 1


def mask_of(batch: Batch, form: MaskForm) -> Mask:
    """Return the mask of a batch, made once for all layers; None where the attention is plainly causal, but not for trees.

    Shape of a tensor: (rows, 1, queries, keys), bool.
    """
    if form == "trees":
        return trees_of(batch)
    if batch.subtree_ends is None:
        return None
    return block_mask(batch.subtree_ends) if form == "blocks" else visible(batch.subtree_ends)


def block_mask(subtree_ends: torch.Tensor) -> BlockMask:
    """Return which blocks of tokens see which: a token sees itself and its ancestors. The length is in whole blocks."""

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < subtree_ends[row, key])

    rows, length = subtree_ends.shape
    return create_block_mask(sees, rows, None, length, length, device=subtree_ends.device, BLOCK_SIZE=BLOCK_TOKENS)


def register() -> None:
    """Make `attend` known to transformers under NAME, once or again."""
    AttentionInterface.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask,
    *,
    scaling: float | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output as transformers' layers ask for it: (rows, length, heads, width) and no weights.

    query: (rows, heads, length, width); key and value: the same with as many heads as the model keeps for them.
    """
    if attention_mask is None or isinstance(attention_mask, torch.Tensor):
        return cast(
            tuple[torch.Tensor, None],
            sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others),
        )
    # Under autocast the rotation leaves queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if not isinstance(attention_mask, BlockMask):
        scale = value.shape[-1] ** -0.5 if scaling is None else scaling
        return tree_attention(query, key, value, attention_mask, scale), None
    # Without a compiler for the device torch computes all blocks, which is right and slow.
    kernel = _compiled() if query.device.type == "cuda" else flex_attention
    out = kernel(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """Return the kernel, compiled when it is first called, and a second time for rows of any length."""
    return cast(Callable[..., torch.Tensor], torch.compile(flex_attention))
