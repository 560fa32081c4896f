"""The way from token ids to the hidden states that predict: found and checked when a student is opened.

In: a loaded model and micro-batches. Out: hidden states. A decoder laid out as Llama's is run layer by layer, so that frozen layers
can be run once; any other is run by its own forward. Either must give the model's own logits through the output head alone, also
when rows share their history: a model of which that is not true is refused, never trained on another function than it serves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from conversations.errors import OperatorError
from distill.training.batches.layout import BLOCK_TOKENS, MaskForm
from distill.training.batches.packing import Batch
from distill.training.fitting.memory import is_out_of_memory
from distill.training.losses.targets import Targets
from distill.training.student import attention
from distill.training.student.attention import Mask, mask_of

# What a decoder needs so that its layers can be run one by one, as transformers names it.
_LAYERED = ("embed_tokens", "layers", "norm", "rotary_emb")
# The probe: how many tokens two rows share, and how many each has of its own.
_TRUNK, _BRANCH = 5, 3
# How far logits may be from the model's own, as a share of their spread: by rounding alone.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Forward:
    """A model's way to its hidden states. `masks`: how it is told who sees whom; `half`: whether products are bfloat16."""

    model: PreTrainedModel
    by_layers: bool
    masks: MaskForm = "dense"
    half: bool = False

    @property
    def layers(self) -> torch.nn.ModuleList:
        """Return the decoder's layers; only where it is run layer by layer."""
        return self.model.get_decoder().layers

    def embedded(self, batch: Batch) -> torch.Tensor:
        """Return what the first layer reads. Shape: (rows, length, width)."""
        return cast(torch.Tensor, self.model.get_input_embeddings()(batch.token_ids))

    def through(self, batch: Batch, states: torch.Tensor, layers: Iterable[torch.nn.Module]) -> torch.Tensor:
        """Return the states behind some of the decoder's layers, which are run as transformers runs them."""
        rotation = self.model.get_decoder().rotary_emb(states, batch.position_ids)
        mask = self._mask(batch)
        with self._precision(states.device):
            for layer in layers:
                states = layer(states, attention_mask=mask, position_ids=batch.position_ids, position_embeddings=rotation)
        return states

    def hidden(self, batch: Batch, states: torch.Tensor | None = None, first_layer: int = 0) -> torch.Tensor:
        """Return the hidden states that the output head reads. Shape: (rows, length, width).

        states: what layer `first_layer` reads, or None to begin with the token ids.
        """
        decoder = self.model.get_decoder()
        if self.by_layers:
            states = self.embedded(batch) if states is None else states
            return cast(torch.Tensor, decoder.norm(self.through(batch, states, self.layers[first_layer:])))
        with self._precision(batch.token_ids.device):
            out = decoder(
                input_ids=batch.token_ids,
                attention_mask=self._mask(batch),
                position_ids=batch.position_ids,
                use_cache=False,
            )
        return cast(torch.Tensor, out.last_hidden_state)

    def _mask(self, batch: Batch) -> Mask:
        return mask_of(batch, self.masks)

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.half)


def proven_forward(model: PreTrainedModel, base_dir: Path, *, by_blocks: bool, half: bool) -> Forward:
    """Return the way through a model whose logits, on a short probe, are the model's own; its attention is ours from now on.

    The model is left in evaluation mode. Raises OperatorError when there is no such way.
    """
    attention.register()
    model.set_attn_implementation(attention.NAME)
    decoder = model.get_decoder()
    plain = Forward(model, by_layers=False, masks="blocks" if by_blocks else "dense", half=half)
    ways = [plain]
    if all(hasattr(decoder, name) for name in _LAYERED):
        # Only our own attention, in layers that are handed what we hand them, knows trees.
        masks: MaskForm = "trees" if model.device.type == "cpu" and not by_blocks else plain.masks
        ways.insert(0, replace(plain, by_layers=True, masks=masks))
    tolerance = _TOLERANCE[torch.bfloat16 if half else model.dtype]
    model.eval()
    why = ""
    for way in ways:
        try:
            difference = _difference(way)
        except (TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            why = f"its decoder takes no masks and positions of ours: {error}"
            continue
        if difference <= tolerance:
            return way
        why = (
            f"its logits are not those of its output head on its decoder's states, as with capped or scaled logits: for rows that "
            f"share a history they differ by {difference:.2g} of their spread, expected at most {tolerance:g}"
        )
    raise OperatorError(
        f"{base_dir}: a {type(model).__name__} cannot be trained here: {why}; set [student] base to another model"
    )


def _difference(way: Forward) -> float:
    """Return how far a way's logits are from the model's own, as a share of their spread, on two rows that share a beginning."""
    # Softly capped logits differ only where a model is sure, which a short probe need not show.
    if getattr(way.model.config, "final_logit_softcapping", None):
        return float("inf")
    head = way.model.get_output_embeddings().weight
    token_ids = [(7919 * number + 13) % head.shape[0] for number in range(_TRUNK + 2 * _BRANCH)]
    trunk, first, second = token_ids[:_TRUNK], token_ids[_TRUNK:-_BRANCH], token_ids[-_BRANCH:]
    with torch.no_grad(), torch.autocast(head.device.type, torch.bfloat16, enabled=way.half):
        ours = way.hidden(_probe(token_ids).to(head.device))[0, : len(token_ids)] @ head.t()
        one, other = (
            way.model(torch.tensor([trunk + branch], device=head.device), use_cache=False).logits[0]
            for branch in (first, second)
        )
    its_own = torch.cat([one, other[_TRUNK:]]).float()
    its_own -= its_own.mean(dim=-1, keepdim=True)
    ours = ours.float() - ours.float().mean(dim=-1, keepdim=True)
    return float((ours - its_own).norm() / its_own.norm())


def _probe(token_ids: list[int]) -> Batch:
    """Return a trunk with two branches as a micro-batch, padded to a block."""
    count = len(token_ids)
    padded = torch.zeros(1, BLOCK_TOKENS, dtype=torch.int64)
    padded[0, :count] = torch.tensor(token_ids)
    positions = torch.zeros_like(padded)
    positions[0, :count] = torch.tensor([*range(_TRUNK + _BRANCH), *range(_TRUNK, _TRUNK + _BRANCH)])
    ends = torch.arange(1, BLOCK_TOKENS + 1).unsqueeze(0)
    ends[0, :count] = torch.tensor([count] * _TRUNK + [count - _BRANCH] * _BRANCH + [count] * _BRANCH)
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch(padded, positions, positions, ends, nothing, Targets(nothing, nothing.float()), tokens=count)
