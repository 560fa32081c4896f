"""What was damaged on the disk between two attempts at a training is refused with its place and what to do, never learnt from."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_training_faults import no_file_longer_than
from test_training_train import SETTINGS, Killed, ignore, killed_at, request_in
from tiny_student import dataset_line, write_dataset

from conversations.errors import OperatorError, OutsideError
from conversations.prompt import Renderer
from distill.rows import DatasetRow, SoftLabelRow, read_rows
from distill.training.decisions.reading import READING_VERSION
from distill.training.fingerprint import fingerprint_of
from distill.training.fitting.checkpoint import (
    Checkpoint,
    Position,
    load_checkpoint,
    refuse_other_training,
    save_checkpoint,
)
from distill.training.processes.group import Group
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


@pytest.mark.parametrize("held", ['{"fingerprint": {"ba', "{}", '{"fingerprint": {}, "result": {"steps": 3}}', "\udcff", ""])
def test_a_damaged_result_is_refused_with_its_place_and_what_to_do(tmp_path: Path, held: str) -> None:
    request = request_in(tmp_path)
    request.out_dir.mkdir()
    (request.out_dir / "training.json").write_bytes(held.encode("utf-8", "surrogateescape"))
    with pytest.raises(OperatorError, match=r"training\.json: damaged.*remove it to begin again"):
        train(request, ignore)


@pytest.mark.parametrize("lacks", ["folder", "file", "half", "merged"])
def test_a_finished_training_whose_weights_are_gone_or_cut_is_trained_again(
    tmp_path: Path, lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_in(tmp_path, SETTINGS.model_copy(update={"merged": lacks == "merged", "epochs": 0.5}))
    first = train(request, ignore)
    weights = request.out_dir / "adapter" / "adapter_model.safetensors"
    held = weights.read_bytes()
    match lacks:
        case "folder":
            shutil.rmtree(weights.parent)
        case "file":
            weights.unlink()
        case "half":
            weights.write_bytes(held[: len(held) // 2])
        case "merged":
            shutil.rmtree(request.out_dir / "merged")
    again = train(request, ignore)
    assert "is gone or cut: it is trained again" in caplog.text
    assert weights.read_bytes() == held and again.steps == first.steps
    assert (request.out_dir / "merged").is_dir() == (lacks == "merged")


def test_a_training_does_not_go_on_with_other_prompt_rules_and_names_them(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    fingerprint = fingerprint_of(request, Group(torch.device("cpu")))
    assert fingerprint["chat template"] == Renderer.load(request.base_dir).digest
    assert fingerprint["prompt rules"] == READING_VERSION
    other = {**fingerprint, "chat template": "another", "prompt rules": "0"}
    with pytest.raises(OperatorError, match=r"chat template was another and is \w+; prompt rules was 0 and is"):
        refuse_other_training(tmp_path, other, fingerprint)


def test_rows_that_are_gone_are_told_with_their_place(tmp_path: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl"):
        request = request_in(tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(OperatorError, match=rf"{name}: no such file; expected the rows.*run its stage again"):
            train(request, ignore)
    with pytest.raises(OperatorError, match=r"absent\.jsonl: no such file"):
        list(read_rows(tmp_path / "absent.jsonl", DatasetRow))


def test_rows_that_are_not_utf8_are_told_with_file_and_line(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    held = request.train_path.read_bytes().splitlines(keepends=True)
    held[2] = held[2].replace(b"Be kind", b"Be k\xffnd")
    request.train_path.write_bytes(b"".join(held))
    with pytest.raises(OperatorError, match=r"train\.jsonl:3: not a DatasetRow: .*run its stage again"):
        train(request, ignore)


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-0.5", "1e7"])
def test_a_weight_that_no_loss_can_bear_is_refused_with_file_and_line(tmp_path: Path, weight: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(dataset_line(0, 0, ["Be kind.", "Where?", "There."]).replace("1.0", weight) + "\n", encoding="utf-8")
    with pytest.raises(OperatorError, match=r"train\.jsonl:1: not a DatasetRow: weight: "):
        list(read_rows(path, DatasetRow))


@pytest.mark.parametrize("log_probability", ["NaN", "5.0", "1000", "Infinity", "0.002"])
def test_a_belief_above_certainty_is_refused_with_file_and_line(tmp_path: Path, log_probability: str) -> None:
    path = tmp_path / "soft_labels.jsonl"
    path.write_text(soft_label_line(log_probability), encoding="utf-8")
    with pytest.raises(OperatorError, match=r"soft_labels\.jsonl:1: not a SoftLabelRow: tokens\.0\.choices\.0\.1: "):
        list(read_rows(path, SoftLabelRow))


@pytest.mark.parametrize("log_probability", ["0", "0.0005", "-3.5", "-9999.0", "-Infinity"])
def test_a_belief_up_to_certainty_is_read(tmp_path: Path, log_probability: str) -> None:
    path = tmp_path / "soft_labels.jsonl"
    path.write_text(soft_label_line(log_probability), encoding="utf-8")
    assert next(read_rows(path, SoftLabelRow)).tokens[0].choices[0][1] == float(log_probability)


def soft_label_line(log_probability: str) -> str:
    names = '"decision_id":"d","conversation_id":"c","answer_id":"a","teacher":"t"'
    return f'{{{names},"tokens":[{{"said":"YQ==","choices":[["YQ==",{log_probability}]]}}]}}\n'


def test_replayed_rows_that_find_no_room_are_told_and_leave_no_half_file(tmp_path: Path) -> None:
    replay = write_dataset(tmp_path / "replay.jsonl", 8, first=50)
    request = request_in(tmp_path, SETTINGS.model_copy(update={"replay_share": 0.5}), replay_path=replay)
    with pytest.raises(OutsideError, match=r"File too large.*make room and run the same again"), no_file_longer_than(200):
        train(request, ignore)
    assert not list(request.out_dir.iterdir())


def test_the_first_checkpoint_that_finds_no_room_speaks_of_none_before_it(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="File too large") as told, no_file_longer_than(200):
        saved_in(tmp_path)
    assert "before it" not in str(told.value)
    saved_in(tmp_path)
    with pytest.raises(OutsideError, match="the checkpoint before it is whole"), no_file_longer_than(200):
        saved_in(tmp_path)
