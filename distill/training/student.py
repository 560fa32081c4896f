"""The student while it learns: loaded, given adapters, asked for the loss of a batch, saved for vLLM.

In: a checkpoint folder and the settings. Out: losses, and weights in the formats that vLLM loads as they are. Where only the
last layers learn, what the layers before them make of each token is computed once and kept. Never opens a connection, and
never writes the place of a folder into what it saves.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversations.errors import OperatorError
from conversations.serving import rope_factors_of
from distill.settings import TrainTable
from distill.training.batches.forest import TokenTree
from distill.training.batches.packing import Batch, pack_batch, visible
from distill.training.losses.head import answer_loss
from distill.training.processes.sharding import Sharding, divided_as, whole
from distill.training.weights.adapters import adapt, save_adapters
from distill.training.weights.quiet import without_bars
from distill.training.weights.rope import pin_rope

Precision = Literal["float32", "bfloat16"]
# Kept states beyond this are computed anew in every step; the training is the same, only slower.
MOST_KEPT_BYTES = 2**30


class LearningStudent:
    """A loaded student with its trainable weights. Made by `open_student`.

    The layers before `first_layer` and the embeddings are frozen, the others learn; 0 where all do.
    """

    def __init__(
        self, model: PreTrainedModel, *, kind: Literal["lora", "full"], precision: Precision, first_layer: int = 0
    ) -> None:
        self._model = model
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self.kind = kind
        self.precision = precision
        self.first_layer = first_layer
        self.device: torch.device = next(model.parameters()).device
        self.trainable = _trainable(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.family = str(model.config.model_type)

    def loss_sum(self, batch: Batch, frozen: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weighted sum of the batch's negative log-likelihoods in nats, a scalar with its graph.

        frozen: what `frozen_states` made of the batch's forest, or None to compute the frozen layers now.
        """
        batch = batch.to(self.device)
        states = self._before_learning(batch) if frozen is None else frozen[batch.nodes]
        hidden = self._decoder.norm(self._through(batch, states, self._decoder.layers[self.first_layer :]))
        scored = hidden.reshape(-1, hidden.shape[-1])[batch.scored_at]
        return answer_loss(scored, self._head.weight, batch.targets)

    def frozen_states(self, batches: Iterable[Sequence[TokenTree]], node_count: int) -> torch.Tensor | None:
        """Return what the frozen layers make of every node of a forest, which the batches together hold.

        Shape: (nodes, width), on the student's device. None where all layers learn, or where it would fill more than
        MOST_KEPT_BYTES.
        """
        weight = self._decoder.embed_tokens.weight
        if not self.first_layer or node_count * weight.shape[1] * weight.element_size() > MOST_KEPT_BYTES:
            return None
        kept = torch.empty(node_count, weight.shape[1], dtype=weight.dtype, device=self.device)
        for trees in batches:
            states = self._before_learning(pack_batch(trees, pad_id=0).to(self.device))
            for tree, of_tree in zip(trees, states, strict=True):
                kept[torch.tensor(tree.nodes, device=self.device)] = of_tree[: len(tree.nodes)].to(kept.dtype)
        return kept

    def divide(self, size: int) -> Sharding:
        """Divide what learns among so many processes, each of which does the same."""
        sharding = Sharding(self._model, self._decoder.layers[self.first_layer :], size=size)
        self.trainable = _trainable(self._model)
        return sharding

    def learned(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trainable weights by name."""
        return {name: whole(parameter.detach()).cpu().clone() for name, parameter in self.trainable.items()}

    def put_back(self, learned: dict[str, torch.Tensor]) -> None:
        """Set the trainable weights to a copy made by `learned`."""
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(divided_as(learned[name], parameter))

    def save(self, folder: Path, *, base_name: str) -> None:
        """Write the weights into a new folder: an adapter in PEFT's format, or a whole model in bfloat16."""
        if self.kind == "lora":
            save_adapters(
                self._model,
                folder,
                base_name=base_name,
                first_layer=self.first_layer,
                layer_count=len(self._decoder.layers),
            )
            return
        with without_bars():
            self._model.to(torch.bfloat16).save_pretrained(folder)

    def _before_learning(self, batch: Batch) -> torch.Tensor:
        """Return what the first layer that learns reads. Shape: (trees, length, width)."""
        if not self.first_layer:
            return self._decoder.embed_tokens(batch.token_ids)
        with torch.no_grad():
            return self._through(
                batch, self._decoder.embed_tokens(batch.token_ids), self._decoder.layers[: self.first_layer]
            )

    def _through(self, batch: Batch, states: torch.Tensor, layers: Iterable[torch.nn.Module]) -> torch.Tensor:
        """Return the states behind some of the decoder's layers, which are run as transformers runs them."""
        rotation = self._decoder.rotary_emb(states, batch.position_ids)
        # Without a mask the attention is causal and takes its fastest way.
        mask = None if batch.subtree_ends is None else visible(batch.subtree_ends)
        in_half = self.precision == "bfloat16" and self.kind == "full"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_half):
            for layer in layers:
                states = layer(states, attention_mask=mask, position_ids=batch.position_ids, position_embeddings=rotation)
        return states


def open_student(
    base_dir: Path, settings: TrainTable, *, device: torch.device, max_model_len: int = 2048
) -> LearningStudent:
    """Load the student of a checkpoint folder and make its adapters, or all its weights, trainable.

    Adapters are initialised from torch's present random state. Adapters and fully trained weights are held in float32,
    a frozen base in bfloat16 where the device computes it natively. Positions are turned as a server with contexts of
    `max_model_len` tokens turns them.
    Raises OperatorError when the folder holds no causal language model, or `last_layers` exceeds its layers.
    """
    precision = precision_of(device)
    frozen_in_half = settings.kind == "lora" and precision == "bfloat16"
    try:
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(
                base_dir,
                local_files_only=True,
                dtype=torch.bfloat16 if frozen_in_half else torch.float32,
                attn_implementation="sdpa",
            )
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{base_dir}: cannot be loaded as a student: {error}; expected a Hugging Face checkpoint folder of a "
            f"causal language model; set [student] base to one"
        ) from error
    pin_rope(model, rope_factors_of(base_dir, max_model_len))
    model.to(device)
    model.train()
    layers = model.get_decoder().layers
    last_layers = settings.last_layers or len(layers)
    if last_layers > len(layers):
        raise OperatorError(
            f"[train] last_layers is {last_layers}, and the student in {base_dir} has {len(layers)} layers; "
            f"give at most {len(layers)}, or leave the key out to let all of them learn"
        )
    first_layer = len(layers) - last_layers
    if settings.kind == "lora":
        model.requires_grad_(False)
        adapt(layers[first_layer:], rank=settings.rank, alpha=settings.alpha)
    elif first_layer:
        model.get_input_embeddings().requires_grad_(False)
        layers[:first_layer].requires_grad_(False)
    return LearningStudent(model, kind=settings.kind, precision=precision, first_layer=first_layer)


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def device_at_hand() -> torch.device:
    """Return the first CUDA device, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def precision_of(device: torch.device) -> Precision:
    """Return in what the device computes best: bfloat16 emulated on a CPU is several times slower than float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def put_in_place(half_done: Path, folder: Path) -> None:
    """Make a finished folder appear under its name in one step; an earlier one of that name goes."""
    for path in [*half_done.rglob("*"), half_done]:
        if path.is_file():
            # safetensors writes for the owner alone, but vLLM may run as another user.
            path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    half_done.rename(folder)
