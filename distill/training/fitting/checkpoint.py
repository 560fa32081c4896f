"""Everything that a killed training needs to go on as if nothing had happened, in one file.

In: weights, optimizer, random state and position after a step. Out: the same, after a restart. The file is replaced in one
step, so that there is always a whole one, and ends with the digest of all that stands before, so that a single changed bit is
seen. Never continues a training of another base, other rows or other settings.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from conversations.errors import OperatorError, OutsideError
from distill.training.fitting.disk import disk_failure

Fingerprint = Mapping[str, str]

# The file's last bytes: a line end and the SHA-256 of the rest in hexadecimal. torch.load passes over what follows its archive.
_DIGEST_BYTES = 65
_PIECE_BYTES = 1 << 20


@dataclass
class Position:
    """How far a training is, after whole steps. Losses in nats per scored token; steps count from 1.

    `token_budget` is that of a micro-batch, which running out of memory halves.
    """

    step: int = 0
    tokens_done: int = 0
    tokens_since_validation: int = 0
    first_validation_nll: float | None = None
    best_validation_nll: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    metrics_bytes: int = 0
    seconds: float = 0.0
    token_budget: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step. `best` holds the weights of the best validation so far, if there was one."""

    fingerprint: Fingerprint
    threads: int
    position: Position
    learned: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor] | None
    optimizer: dict[str, object]
    random_states: dict[str, torch.Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint file in one step; it is on the disk when this returns.

    Raises OutsideError where it does not fit on the disk; the checkpoint before it stays whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    held = {
        **vars(checkpoint),
        "fingerprint": dict(checkpoint.fingerprint),
        "position": dict(vars(checkpoint.position)),
    }
    try:
        with half.open("w+b") as file:
            torch.save(held, file)
            file.write(_digest_line(file, file.tell()))
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except (OSError, RuntimeError) as error:
        failure = disk_failure(error)
        half.unlink(missing_ok=True)
        if failure is None:
            raise
        before = "the checkpoint before it is whole: " if path.is_file() else ""
        raise OutsideError(
            f"{path}: the checkpoint after step {checkpoint.position.step} cannot be written: {failure.strerror}; it takes "
            f"{_bytes_of(held)} bytes and {shutil.disk_usage(path.parent).free} are free; {before}make room and run the same again"
        ) from None


def _digest_line(file: BinaryIO, size: int) -> bytes:
    """Return what stands behind the first so many bytes of a checkpoint file; leaves the file there."""
    digest = hashlib.sha256()
    file.seek(0)
    while file.tell() < size:
        piece = file.read(min(_PIECE_BYTES, size - file.tell()))
        if not piece:
            break
        digest.update(piece)
    return b"\n" + digest.hexdigest().encode()


def _bytes_of(held: object) -> int:
    if isinstance(held, torch.Tensor):
        return int(held.numel() * held.element_size())
    if isinstance(held, Mapping):
        return sum(map(_bytes_of, held.values()))
    return 0


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint, or None where there is none.

    Raises OperatorError when the file is not bit for bit what a training of this version wrote.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = path.stat().st_size - _DIGEST_BYTES
        if size <= 0 or _digest_line(file, size) != file.read():
            raise _damaged(path)
    held = torch.load(path, map_location="cpu", weights_only=True)
    try:
        return Checkpoint(**{**held, "position": Position(**held["position"])})
    except (KeyError, TypeError):
        raise _damaged(path) from None


def _damaged(path: Path) -> OperatorError:
    return OperatorError(
        f"{path}: damaged, or written by another version; expected a training's state as it was saved; remove it to begin again "
        "from the first step"
    )


def refuse_other_training(path: Path, was: Fingerprint, now: Fingerprint) -> None:
    """Raise OperatorError, naming every difference, when a saved training is not the one that is asked for."""
    differences = [
        f"{name} was {was.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]
    if differences:
        raise OperatorError(
            f"{path}: this training cannot go on, because it was begun differently: {'; '.join(differences)}; "
            f"expected the same base, rows and settings; restore them, or start a new run with `distill cycle`"
        )


def random_states() -> dict[str, torch.Tensor]:
    """Return the states of torch's random generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, torch.Tensor]) -> None:
    """Set torch's random generators to saved states."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
