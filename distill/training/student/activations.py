"""Whether what the layers compute must be computed twice: kept until the gradients are formed, it might not fit into memory.

In: a model, the settings and how many tokens are computed together. Out: yes or no, by arithmetic that is written down here.
"""

from contextlib import suppress
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from distill.settings import TrainTable

# The rest is for gradients, the output head's chunks and what the allocator cannot use.
_USABLE_SHARE = 0.8
_CONTAINER = Path("/sys/fs/cgroup")


def bytes_per_token(config: PreTrainedConfig, *, element_size: int, on_gpu: bool) -> int:
    """Return what a token's activations fill, in bytes, when every layer keeps what its gradient needs.

    For a decoder as Llama's, with width d, query width q, key width k and inner width f: two norms keep their input, on a GPU in
    float32, and hand on 1 d each; attention keeps queries, keys, values and its output, on a GPU twice: 2 q + 2 k or 3 q + 2 k; the
    gated inner layer keeps gate, its activation, what it multiplies and the product: 4 f.
    """
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    outputs, norm_size = (2, 4) if on_gpu else (1, element_size)
    elements = 2 * config.hidden_size + (1 + outputs) * heads * head + 2 * keys + 4 * inner
    return int(config.num_hidden_layers * (2 * norm_size * config.hidden_size + element_size * elements))


def must_be_computed_twice(model: PreTrainedModel, settings: TrainTable, tokens: int) -> bool:
    """Return what the settings say, or, where they are silent, whether a micro-batch's activations exceed the free memory.

    tokens: how many the largest micro-batch holds.
    """
    if settings.gradient_checkpointing is not None:
        return settings.gradient_checkpointing
    on_gpu = model.device.type == "cuda"
    needed = tokens * bytes_per_token(model.config, element_size=model.dtype.itemsize, on_gpu=on_gpu)
    if settings.kind == "full":
        # Gradients and AdamW's two moments are still to come, each as large as the weights.
        needed += 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else _free_memory()
    return needed > _USABLE_SHARE * free


def _free_memory() -> int:
    """Return how many bytes this process may still take: of the machine, or of its container (cgroup v2) where that has less."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit, used = (int((_CONTAINER / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        free = min(free, limit - used)
    return max(0, free)
