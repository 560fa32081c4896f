"""The student while it learns: loaded, given adapters, asked for the loss of a batch, saved for vLLM.

In: a checkpoint folder and the settings. Out: losses, and weights in the formats that vLLM loads as they are. Never opens
a connection, and never writes the place of a folder into what it saves.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from conversations.errors import OperatorError
from distill.settings import TrainTable
from distill.training.batches import Batch
from distill.training.losses import answer_loss

Precision = Literal["float32", "bfloat16"]
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LearningStudent:
    """A loaded student with its trainable weights. Made by `open_student`."""

    def __init__(self, model: PreTrainedModel, *, kind: Literal["lora", "full"], precision: Precision) -> None:
        self._model = model
        causal = model.get_base_model() if kind == "lora" else model
        self._decoder = causal.get_decoder()
        self._head = causal.get_output_embeddings()
        self.kind = kind
        self.precision = precision
        self.device: torch.device = next(model.parameters()).device
        self.parameters = sum(parameter.numel() for parameter in causal.parameters())
        self.trainable: dict[str, torch.nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        """Return the weighted sum of the batch's negative log-likelihoods in nats, a scalar with its graph."""
        batch = batch.to(self.device)
        # Without a mask the attention is causal and takes its fastest way; positions must then not be given, because
        # transformers would look in them for packed sequences.
        layout = {} if batch.mask is None else {"attention_mask": batch.mask, "position_ids": batch.position_ids}
        half = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half and self.kind == "full"):
            hidden = self._decoder(batch.token_ids, use_cache=False, **layout).last_hidden_state
        scored = hidden.reshape(-1, hidden.shape[-1])[batch.scored_at]
        return answer_loss(scored, self._head.weight, batch.targets, batch.weights)

    def learned(self) -> dict[str, torch.Tensor]:
        """Return a copy of the trainable weights by name."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.trainable.items()}

    def put_back(self, learned: dict[str, torch.Tensor]) -> None:
        """Set the trainable weights to a copy made by `learned`."""
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(learned[name])

    def save(self, folder: Path, *, base_dir: Path, base_name: str) -> None:
        """Write the weights into a new folder: an adapter in PEFT's format, or a whole checkpoint in bfloat16."""
        with _without_bars():
            if self.kind == "lora":
                # The embeddings are the base's; asking whether they changed would ask the model hub.
                self._model.save_pretrained(folder, save_embedding_layers=False)
                _settle_adapter_config(folder / "adapter_config.json", base_name)
            else:
                self._model.to(torch.bfloat16).save_pretrained(folder)
                _copy_tokenizer(base_dir, folder)


def open_student(base_dir: Path, settings: TrainTable, *, device: torch.device) -> LearningStudent:
    """Load the student of a checkpoint folder and make its adapters, or all its weights, trainable.

    Adapters are initialised from torch's present random state. Adapters and fully trained weights are held in float32,
    a frozen base in bfloat16 where the device computes it natively.
    Raises OperatorError when the folder holds no causal language model.
    """
    precision = precision_of(device)
    frozen_in_half = settings.kind == "lora" and precision == "bfloat16"
    try:
        with _without_bars():
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
    model.to(device)
    if settings.kind == "lora":
        model = get_peft_model(
            model,
            LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    model.train()
    return LearningStudent(model, kind=settings.kind, precision=precision)


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


def _settle_adapter_config(path: Path, base_name: str) -> None:
    """Name the base without its place, and put the targets, which PEFT keeps as a set, in order."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    config["inference_mode"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_tokenizer(base_dir: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, folder / name)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own."""
    were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            transformers_logging.enable_progress_bar()
