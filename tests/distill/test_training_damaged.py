"""What was damaged on the disk between two attempts at a training is refused with its place and what to do, never learnt from."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_training_train import Killed, ignore, killed_at, request_in

from conversations.errors import OperatorError
from distill.training.fitting.checkpoint import Checkpoint, Position, load_checkpoint, save_checkpoint
from distill.training.train import train


def saved_in(folder: Path) -> Path:
    """Write a checkpoint whose weights are one run of bytes that cannot be missed."""
    weights = {"layer": torch.full((64, 64), 3.0)}
    path = folder / ".checkpoint.pt"
    save_checkpoint(
        path, Checkpoint({"base": "a"}, 1, Position(step=4), weights, None, {"state": {}}, {"cpu": torch.zeros(1)})
    )
    return path


def with_one_bit_of_a_weight_flipped(held: bytes) -> bytes:
    place = held.index(torch.full((8,), 3.0).numpy().tobytes()) + 400
    return held[:place] + bytes([held[place] ^ 1]) + held[place + 1 :]


def with_half_of_a_matrix_zeroed(held: bytes) -> bytes:
    place = held.index(torch.full((8,), 3.0).numpy().tobytes())
    return held[:place] + b"\0" * 8192 + held[place + 8192 :]


def cut_to_half(held: bytes) -> bytes:
    return held[: len(held) // 2]


def emptied(_held: bytes) -> bytes:
    return b""


def without_its_digest(held: bytes) -> bytes:
    return held[:-65]


DAMAGES = [with_one_bit_of_a_weight_flipped, with_half_of_a_matrix_zeroed, cut_to_half, emptied, without_its_digest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_its_place_and_what_to_do(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = saved_in(tmp_path)
    whole = load_checkpoint(path)
    assert whole is not None and torch.equal(whole.learned["layer"], torch.full((64, 64), 3.0))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OperatorError, match=rf"^{re.escape(str(path))}: damaged.*remove it to begin again") as told:
        load_checkpoint(path)
    assert "weights_only" not in str(told.value)


def test_a_training_does_not_go_on_from_a_checkpoint_in_which_one_bit_changed(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    with pytest.raises(Killed):
        train(request, killed_at(4))
    path = request.out_dir / ".checkpoint.pt"
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)
    with pytest.raises(OperatorError, match=r"\.checkpoint\.pt: damaged"):
        train(request, ignore)
