"""The student while it learns: loaded, given adapters, asked for the loss of a batch, saved for vLLM.

In: a checkpoint folder and the settings. Out: losses, and weights in the formats that vLLM loads as they are. Where only the
last layers learn, what the layers before them make of each token is computed once and kept. Never opens a connection, and
never writes the place of a folder into what it saves.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversations.errors import OperatorError
from conversations.serving import rope_factors_of
from distill.settings import TrainTable
from distill.training.batches.layout import Layout, layout_on
from distill.training.batches.packing import Batch
from distill.training.fitting.memory import telling_of_spent_memory
from distill.training.losses.head import answer_loss
from distill.training.losses.lesson import Lesson, lesson_of
from distill.training.processes.sharding import Sharding, divided_as, whole
from distill.training.student import attention
from distill.training.student.activations import must_be_computed_twice
from distill.training.student.forward import Forward, proven_forward
from distill.training.student.lean_norm import with_lean_norms
from distill.training.weights.adapters import adapt, adapted_layers, save_adapters
from distill.training.weights.quiet import without_bars
from distill.training.weights.rope import pin_rope

Precision = Literal["float32", "bfloat16"]
# Kept states beyond this are computed anew in every step; the training is the same, only slower.
MOST_KEPT_BYTES = 2**30


class LearningStudent:
    """A loaded student with its trainable weights. Made by `open_student`.

    forward: the way through the model, layer by layer where None is given.
    The layers before `first_layer` and the embeddings are frozen, the others learn; 0 where all do.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        kind: Literal["lora", "full"],
        precision: Precision,
        first_layer: int = 0,
        forward: Forward | None = None,
        lesson: Lesson = Lesson(),  # noqa: B008  # frozen
    ) -> None:
        self._forward = forward or Forward(model, by_layers=True)
        self._lesson = lesson
        self._model = model
        self._head = model.get_output_embeddings()
        self.kind = kind
        self.precision = precision
        self.first_layer = first_layer
        self.device: torch.device = next(model.parameters()).device
        self.trainable = _trainable(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.family = str(model.config.model_type)

    def loss_sum(self, batch: Batch, frozen: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weighted sum of what the batch's predictions lose by the student's lesson, in nats, a scalar with its graph.

        frozen: what `frozen_states` made of the batch's forest, or None to compute the frozen layers now.
        """
        batch = batch.to(self.device)
        with self._lesson.watching():
            scored = self._scored(batch, frozen)
        return self._lesson.loss_sum(scored, self._head.weight, batch)

    def nll_sum(self, batch: Batch) -> torch.Tensor:
        """Return the weighted sum of the negative log-likelihoods of the answers' words in nats, whatever the lesson is."""
        batch = batch.to(self.device)
        return answer_loss(self._scored(batch, None), self._head.weight, batch.targets)

    def _scored(self, batch: Batch, frozen: torch.Tensor | None) -> torch.Tensor:
        """Return the last states at the scored positions. Shape: (scored, width)."""
        hidden = self._forward.hidden(batch, self._before_learning(batch, frozen), self.first_layer)
        return hidden.reshape(-1, hidden.shape[-1])[batch.scored_at]

    def frozen_states(self, batches: Iterable[Batch], node_count: int) -> torch.Tensor | None:
        """Return what the frozen layers make of every node of a forest, which the batches together hold.

        Shape: (nodes, width), on the student's device. None where all layers learn, or where it would fill more than
        MOST_KEPT_BYTES.
        """
        weight = self._model.get_input_embeddings().weight
        if not self.first_layer or node_count * weight.shape[1] * weight.element_size() > MOST_KEPT_BYTES:
            return None
        kept = torch.empty(node_count, weight.shape[1], dtype=weight.dtype, device=self.device)
        for batch in batches:
            batch = batch.to(self.device)
            states = self._before_learning(batch, None)
            assert states is not None
            of_trees = batch.nodes >= 0
            kept[batch.nodes[of_trees]] = states[of_trees].to(kept.dtype)
        return kept

    def layout(self, token_budget: int | None) -> Layout:
        """Return how trees become micro-batches for this student; an empty budget is the device's own."""
        return layout_on(self.device, token_budget=token_budget, masks=self._forward.masks)

    def divide(self, size: int) -> Sharding:
        """Divide what learns among so many processes, each of which does the same.

        Raises OperatorError where there are no layers to divide.
        """
        if not self._forward.by_layers:
            raise OperatorError(
                f"[train] processes is {size}, and the layers of a {type(self._model).__name__} cannot be run one by one, so that "
                f'its weights cannot be divided among processes; set processes = 1, or kind = "lora"'
            )
        sharding = Sharding(self._model, self._forward.layers[self.first_layer :], size=size)
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
                layer_count=len(self._forward.layers) if self.first_layer else 0,
            )
            return
        with without_bars():
            self._model.to(torch.bfloat16).save_pretrained(folder)

    def _before_learning(self, batch: Batch, frozen: torch.Tensor | None) -> torch.Tensor | None:
        """Return what the first layer that learns reads, shape (rows, length, width); None where all layers learn."""
        if not self.first_layer:
            return None
        if frozen is not None:
            return frozen[batch.nodes]
        with torch.no_grad():
            return self._forward.through(batch, self._forward.embedded(batch), self._forward.layers[: self.first_layer])


def open_student(
    base_dir: Path, settings: TrainTable, *, device: torch.device, max_model_len: int = 2048
) -> LearningStudent:
    """Load the student of a checkpoint folder and make its adapters, or all its weights, trainable.

    Adapters are initialised from torch's present random state. Adapters and fully trained weights are held in float32,
    a frozen base in bfloat16 where the device computes it natively. Positions are turned as a server with contexts of
    `max_model_len` tokens turns them.
    Raises OperatorError when the folder holds no causal language model, one that cannot be trained exactly, one that attends
    only to fewer tokens than rows may have, or one without linear layers to adapt, when `last_layers` exceeds its layers, or when
    the local teacher of the settings does not fit it; OutsideError when there is no memory for it.
    """
    in_half = settings.kind == "lora" and precision_of(device) == "bfloat16"
    with telling_of_spent_memory(
        f"while {base_dir} was loaded",
        expected="the student's weights, and a local teacher's where there is one",
        to_lower="set [student] base to a smaller model, or leave [train.local_teacher] out,",
    ):
        model = _load(base_dir, dtype=torch.bfloat16 if in_half else torch.float32)
        pin_rope(model, rope_factors_of(base_dir, max_model_len))
        return student_of(model.to(device), settings, base_dir=base_dir, max_model_len=max_model_len)


def student_of(
    model: PreTrainedModel, settings: TrainTable, *, base_dir: Path, max_model_len: int = 2048
) -> LearningStudent:
    """Return a loaded model, on its device, as a student that learns as the settings say; errors name `base_dir`."""
    device = model.device
    precision = precision_of(device)
    by_blocks = attention.skips_blocks(device, model.config)
    if device.type == "cuda":
        # Where float32 is left on a GPU, its matrix units may round the factors to TF32.
        torch.set_float32_matmul_precision("high")
    _refuse_short_sight(model, base_dir, settings)
    if device.type == "cpu":
        with_lean_norms(model)
    half = settings.kind == "full" and precision == "bfloat16"
    forward = proven_forward(model, base_dir, by_blocks=by_blocks, half=half)
    # Activations are computed twice in this mode alone.
    model.train()
    _drop_nothing(model)
    first_layer = _first_layer(forward, base_dir, settings)
    if settings.kind == "lora":
        model.requires_grad_(False)
        learning = forward.layers[first_layer:] if first_layer else [model.get_decoder()]
        adapt(learning, rank=settings.rank, alpha=settings.alpha, rank_stabilised=settings.rank_stabilised)
        if not adapted_layers(model):
            raise OperatorError(
                f"{base_dir}: a {type(model).__name__} has no linear layer (torch.nn.Linear) that an adapter could change; "
                f'set [train] kind = "full", or [student] base to another model'
            )
    elif first_layer:
        model.get_input_embeddings().requires_grad_(False)
        forward.layers[:first_layer].requires_grad_(False)
    layout = layout_on(device, token_budget=settings.token_budget_per_batch, masks=forward.masks)
    if must_be_computed_twice(model, settings, max(layout.token_budget, settings.max_tokens)):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lesson = lesson_of(settings, forward, base_dir=base_dir, first_layer=first_layer, max_model_len=max_model_len)
    return LearningStudent(
        model, kind=settings.kind, precision=precision, first_layer=first_layer, forward=forward, lesson=lesson
    )


def _drop_nothing(model: torch.nn.Module) -> None:
    """Set every probability of dropout to 0: rows that share a history would lose other parts of it than each alone.

    Layers of transformers keep theirs as numbers of their own ("attention_dropout"), or in torch's modules. The configuration, which
    is saved with the weights, stays as it was published.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _load(base_dir: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a checkpoint folder. Raises OperatorError when it holds no causal language model."""
    try:
        with without_bars():
            return AutoModelForCausalLM.from_pretrained(
                base_dir, local_files_only=True, dtype=dtype, attn_implementation="sdpa"
            )
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{base_dir}: cannot be loaded as a student: {error}; expected a Hugging Face checkpoint folder of a "
            f"causal language model; set [student] base to one"
        ) from error


def _refuse_short_sight(model: PreTrainedModel, base_dir: Path, settings: TrainTable) -> None:
    """Raise OperatorError when the model attends to fewer tokens than a row may have: a tree's mask knows no such window."""
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window < settings.max_tokens - 1:
        raise OperatorError(
            f"[train] max_tokens is {settings.max_tokens}, and the student in {base_dir} sees only the last {window} tokens of a "
            f"row; expected rows that it sees whole; set max_tokens to at most {window + 1}"
        )


def _first_layer(forward: Forward, base_dir: Path, settings: TrainTable) -> int:
    """Return the first layer that learns. Raises OperatorError when `last_layers` cannot be had."""
    if settings.last_layers is None:
        return 0
    if not forward.by_layers:
        raise OperatorError(
            f"[train] last_layers is {settings.last_layers}, and the layers of the {type(forward.model).__name__} in {base_dir} "
            f"cannot be run one by one; leave the key out to let all of them learn"
        )
    count = len(forward.layers)
    if settings.last_layers > count:
        raise OperatorError(
            f"[train] last_layers is {settings.last_layers}, and the student in {base_dir} has {count} layers; "
            f"give at most {count}, or leave the key out to let all of them learn"
        )
    return count - settings.last_layers


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
