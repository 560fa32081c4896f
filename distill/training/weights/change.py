"""What an adapter adds to the weights of its base, as sums of products: read out of PEFT's files, and checked against the base.

In: an adapter's folder, and the files of a base's weights. Out: one change for each weight, or an error that says what is damaged.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.training.weights.adapters import CONFIG_FILE, NAME_IN_FILE, WEIGHTS_FILE

_A, _B = ".lora_A.weight", ".lora_B.weight"
_UNSERVED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


@dataclass(frozen=True)
class Change:
    """What an adapter adds to one weight: scale · B · A. A: (rank, in), B: (out, rank), float32."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the changed weight in float32. weight: (out, in)."""
        return torch.addmm(weight.float(), self.lora_b, self.lora_a, alpha=self.scale)


def read_changes(adapter_dir: Path) -> dict[str, Change]:
    """Return what the adapter adds, by the name of the weight.

    Raises OperatorError where there is no adapter, where its files are damaged or do not fit each other, or where it does more than
    add products.
    """
    path, weights_path = adapter_dir / CONFIG_FILE, adapter_dir / WEIGHTS_FILE
    if not path.is_file() or not weights_path.is_file():
        raise OperatorError(
            f"{adapter_dir}: no {CONFIG_FILE} and {WEIGHTS_FILE} there; expected the adapter of a run that trained with "
            '[train] kind = "lora"; run `distill train` first (a full checkpoint needs no merging)'
        )
    config = _read_config(path)
    strange = [name for name in _UNSERVED if config.get(name)]
    if strange or config.get("bias", "none") != "none":
        raise OperatorError(
            f"{path}: it sets {', '.join(strange) or 'bias'}; expected a plain LoRA adapter, as `distill train` writes it; train anew"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise _damaged(path, f"it has r = {rank!r} and lora_alpha = {alpha!r}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    try:
        tensors = load_file(weights_path)
    except (OSError, SafetensorError) as error:
        raise _damaged(weights_path, f"it cannot be read ({error})") from None
    changes: dict[str, Change] = {}
    for name in sorted(tensors):
        pair = name.removesuffix(_A).removesuffix(_B)
        lora_a, lora_b = tensors.get(pair + _A), tensors.get(pair + _B)
        if pair == name or lora_a is None or lora_b is None:
            raise _damaged(weights_path, f"{name} is no part of a pair of A and B")
        if lora_a.dim() != 2 or lora_b.dim() != 2 or not lora_a.shape[0] == lora_b.shape[1] == rank:
            raise _damaged(
                weights_path,
                f"{pair} has A {tuple(lora_a.shape)} and B {tuple(lora_b.shape)}, and {CONFIG_FILE} says r = {rank}",
            )
        changes[f"{pair.removeprefix(NAME_IN_FILE)}.weight"] = Change(lora_a.float(), lora_b.float(), scale)
    if not changes:
        raise _damaged(weights_path, "it holds no pair of A and B")
    return changes


def check_fit(files: Sequence[Path], changes: Mapping[str, Change], base_dir: Path) -> None:
    """Raise OperatorError unless a base's files can be read and have every weight that is changed, in its shape."""
    left = set(changes)
    for path in files:
        with opened_weights(path) as held:
            for name in left.intersection(held.keys()):
                shape = tuple(held.get_slice(name).get_shape())
                expected = (changes[name].lora_b.shape[0], changes[name].lora_a.shape[1])
                if shape != expected:
                    raise OperatorError(
                        f"{path}: {name} is {shape}, and the adapter changes one of {expected}; expected the base that the adapter "
                        "was trained on; set [student] base to it"
                    )
            left.difference_update(held.keys())
    if left:
        raise OperatorError(
            f"{base_dir}: it has no weight {min(left)!r}, which the adapter changes ({len(left)} such weights); expected the base "
            "that the adapter was trained on; set [student] base to it"
        )


def opened_weights(path: Path) -> safe_open:
    """Return an open file of a base's weights; raises OperatorError where it is cut off or no such file."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise OperatorError(
            f"{path}: cannot be read as safetensors ({error}); expected whole weights; download the checkpoint again"
        ) from None


def _read_config(path: Path) -> dict[str, Json]:
    try:
        held: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON ({error})") from None
    if not isinstance(held, dict):
        raise _damaged(path, "it holds no object")
    return held


def _damaged(path: Path, why: str) -> OperatorError:
    return OperatorError(f"{path}: {why}; expected an adapter as `distill train` writes it; train anew")
