"""A training that was killed, wherever it was, goes on to the same bits; one that was asked to stop ends its step first."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_training_train import SETTINGS, Killed, ignore, killed_at, metrics_of, request_in
from tiny_student import tiny_student, write_dataset

from conversations.errors import OperatorError
from distill.rows import DatasetRow, SoftLabelRow, TokenBelief, read_rows, rows_text
from distill.training.fitting.checkpoint import load_checkpoint
from distill.training.request import StartingPoint
from distill.training.train import train

TWENTY_STEPS = {"epochs": 5.0, "checkpoint_every_steps": 10, "patience": 100}


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def believed(train_path: Path, path: Path) -> Path:
    """Write what a teacher believed of every answer: its own characters most, and the next letter a little."""
    rows = []
    for row in read_rows(train_path, DatasetRow):
        said = [character.encode() for character in row.messages[-1].content]
        tokens = [TokenBelief(said=each, choices=((each, -0.2), (bytes([each[0] + 1]), -2.5))) for each in said]
        end = TokenBelief(said=b"", choices=((b"", -0.1),))
        rows.append(
            SoftLabelRow(
                decision_id=row.decision_id,
                conversation_id=row.conversation_id,
                answer_id=row.answer_id,
                teacher=row.teacher,
                tokens=(*tokens, end),
            )
        )
    path.write_text(rows_text(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("with_more", [False, True], ids=["words alone", "soft labels and replay"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_twenty_steps_are_ten_and_ten_more_bit_for_bit(tmp_path, kind, with_more):
    settings = SETTINGS.model_copy(update={**TWENTY_STEPS, "kind": kind, "learning_rate": 1e-2 if kind == "lora" else 1e-3})
    more = {}
    if with_more:
        # Four rows of an earlier run, so that an epoch is five steps.
        settings = settings.model_copy(update={"replay_share": 0.2, "epochs": 4.0})
        rows = request_in(tmp_path / "rows")
        more = {
            "replay_path": write_dataset(tmp_path / "replay.jsonl", 4, first=50),
            "soft_labels_path": believed(rows.train_path, tmp_path / "soft_labels.jsonl"),
        }
    straight = request_in(tmp_path / "straight", settings, cache_dir=tmp_path / "cache", **more)
    expected = train(straight, ignore)
    assert expected.steps == 20
    assert (expected.replayed_rows_kept, expected.tokens_with_soft_labels > 0) == ((4, True) if with_more else (0, False))
    broken = request_in(tmp_path / "broken", settings, cache_dir=tmp_path / "cache", **more)
    with pytest.raises(Killed):
        train(broken, killed_at(11))
    saved = load_checkpoint(broken.out_dir / ".checkpoint.pt")
    assert saved is not None and saved.position.step == 10
    train(broken, ignore)
    assert same_files(straight.out_dir / expected.weights, broken.out_dir / expected.weights)
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_training_killed_within_a_validation_goes_on_to_the_same_bits(tmp_path, place):
    straight = request_in(tmp_path / "straight")
    train(straight, ignore)
    broken = request_in(tmp_path / "broken")
    measured: list[str] = []

    def killed_when_measured(event: str, _figures: object) -> None:
        # The figure stands in the file already; weights that were the best ones, and the checkpoint, do not.
        measured.extend([event] if event == "validation" else [])
        if len(measured) == place + 1:
            raise Killed

    with pytest.raises(Killed):
        train(broken, ignore, killed_when_measured)
    train(broken, ignore)
    assert same_files(straight.out_dir / "adapter", broken.out_dir / "adapter")
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_training_goes_on_to_the_same_weights_and_the_same_metrics(tmp_path, kind):
    settings = SETTINGS.model_copy(update={"kind": kind, "learning_rate": 1e-2 if kind == "lora" else 1e-3})
    straight = request_in(tmp_path / "straight", settings)
    expected = train(straight, ignore)
    assert expected.steps == 6

    # Killed after the first step, before any further checkpoint, and again after the fifth, two steps past one.
    broken = request_in(tmp_path / "broken", settings)
    for step in (1, 5):
        with pytest.raises(Killed):
            train(broken, killed_at(step))
        assert not (broken.out_dir / expected.weights).exists()
    result = train(broken, ignore)

    weights = sorted((straight.out_dir / expected.weights).glob("*.safetensors"))
    assert weights
    for path in weights:
        assert path.read_bytes() == (broken.out_dir / expected.weights / path.name).read_bytes()
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")
    assert dataclasses.replace(result, seconds=0) == dataclasses.replace(expected, seconds=0)
    assert not list(broken.out_dir.glob(".*"))


@pytest.mark.slow
def test_training_killed_with_signal_9_goes_on_to_the_same_weights(tmp_path):
    straight = request_in(tmp_path / "straight")
    train(straight, ignore)
    broken = request_in(tmp_path / "broken")
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from test_training_train import request_in; from distill.training.train import train; steps = []\n"
        "def watch(progress):\n"
        "    steps.append(progress)\n"
        "    if len(steps) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(request_in(Path(sys.argv[2])), watch)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "broken")],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    train(broken, ignore)
    name = "adapter/adapter_model.safetensors"
    assert (broken.out_dir / name).read_bytes() == (straight.out_dir / name).read_bytes()
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


@pytest.mark.slow
def test_sigterm_ends_the_step_writes_a_checkpoint_and_exits_as_an_interruption(tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 60.0, "checkpoint_every_steps": 10_000, "patience": 10_000})
    straight = request_in(tmp_path / "straight", settings)
    expected = train(straight, ignore)
    broken = request_in(tmp_path / "broken", settings)
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_training_resume as tests;"
        "from conversations.errors import run_command\n"
        "def watch(progress): print(progress.tokens_done, flush=True); time.sleep(0.02)\n"
        "settings = tests.SETTINGS.model_copy(update=tests.json.loads(sys.argv[3]))\n"
        "run_command(lambda: tests.train(tests.request_in(Path(sys.argv[2]), settings), watch))"
    )
    changed = json.dumps({name: getattr(settings, name) for name in ("epochs", "checkpoint_every_steps", "patience")})
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "broken"), changed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        steps_told = 5 + len(process.stdout.read().splitlines())
        assert process.wait(60) == 130, process.stderr.read()
    saved = load_checkpoint(broken.out_dir / ".checkpoint.pt")
    assert saved is not None and saved.position.step == steps_told
    assert 5 <= steps_told < expected.steps
    train(broken, ignore)
    assert same_files(straight.out_dir / "adapter", broken.out_dir / "adapter")
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


def test_resume_refuses_another_base_other_rows_or_other_settings_and_names_them(tmp_path):
    begun = request_in(tmp_path)
    with pytest.raises(Killed):
        train(begun, killed_at(4))
    with pytest.raises(OperatorError, match=r"\[train\] rank was 4 and is 2"):
        train(dataclasses.replace(begun, settings=SETTINGS.model_copy(update={"rank": 2})), ignore)
    with pytest.raises(OperatorError, match=r"max_prompt_tokens was 200 and is 190"):
        train(dataclasses.replace(begun, max_prompt_tokens=190), ignore)
    with pytest.raises(OperatorError, match=r"base was sha256:\w+ and is sha256:"):
        train(dataclasses.replace(begun, base_dir=tiny_student(tmp_path / "other", seed=1)), ignore)
    with pytest.raises(OperatorError, match=r"train rows was sha256:\w+ and is sha256:"):
        train(dataclasses.replace(begun, train_path=write_dataset(tmp_path / "more.jsonl", 9)), ignore)
    soft, replay, release = (tmp_path / name for name in ("soft.jsonl", "replay.jsonl", "release"))
    believed(begun.train_path, soft)
    replay.write_text("")
    with pytest.raises(OperatorError, match=r"soft labels was none and is sha256:\w+"):
        train(dataclasses.replace(begun, soft_labels_path=soft), ignore)
    with pytest.raises(OperatorError, match=r"replayed rows was none and is sha256:\w+"):
        train(dataclasses.replace(begun, replay_path=replay), ignore)
    with pytest.raises(OperatorError, match=r"release that learns on was none and is student-3 sha256:3"):
        train(dataclasses.replace(begun, start=StartingPoint("student-3", release, "sha256:3")), ignore)
    with pytest.raises(OperatorError, match=r"\[train\] last_layers was None and is 1"):
        train(dataclasses.replace(begun, settings=SETTINGS.model_copy(update={"last_layers": 1})), ignore)
    tokenizer = tmp_path / "student" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(OperatorError, match=r"tokenizer was sha256:\w+ and is sha256:"):
        train(begun, ignore)


def test_how_often_a_checkpoint_is_written_may_change_because_no_bit_does(tmp_path):
    begun = request_in(tmp_path / "begun")
    with pytest.raises(Killed):
        train(begun, killed_at(4))
    changed = dataclasses.replace(begun, settings=SETTINGS.model_copy(update={"checkpoint_every_steps": 1}))
    assert train(changed, ignore).steps == 6
