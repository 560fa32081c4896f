"""Several processes train what one trains, to rounding, one apart the same bits; when one dies the others end, and it is named."""

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_training_resume import same_files
from test_training_train import SETTINGS, ignore, metrics_of, request_in

from conversations.cores import BACKGROUND_SPINS
from conversations.errors import OperatorError, OutsideError
from distill.settings import TrainTable
from distill.training.batches.forest import TokenTree
from distill.training.fitting.checkpoint import load_checkpoint
from distill.training.fitting.loop import TrainProgress
from distill.training.processes.group import Group
from distill.training.processes.launch import TrainingFault
from distill.training.train import train

# Several trees in every step, so that both processes have something to compute.
SETTINGS_OF_SEVERAL = SETTINGS.model_copy(update={"rows_per_step": 12, "epochs": 4.0, "nice": 0})
# Two interpreters that load torch on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def workers() -> list[psutil.Process]:
    """Return the training processes that this one has begun, the first rank first."""
    found = [each for each in psutil.Process().children() if "distill.training.processes.worker" in each.cmdline()]
    return sorted(found, key=lambda each: int(each.cmdline()[-2]))


def stop_half_way(progress: TrainProgress) -> None:
    """Ask the training to stop, as a service manager does."""
    if progress.tokens_done < progress.tokens_total / 2:
        os.kill(os.getpid(), signal.SIGTERM)


def settings_of(kind: str, **changes: object) -> TrainTable:
    return SETTINGS_OF_SEVERAL.model_copy(
        update={"kind": kind, "learning_rate": 1e-3, "checkpoint_every_steps": 1000, "processes": 2, **changes}
    )


@pytest.mark.parametrize(("kind", "within"), [("lora", 1e-5), ("full", 1e-4)])
def test_two_processes_come_to_the_weights_and_losses_of_one(tmp_path: Path, kind: str, within: float) -> None:
    one = request_in(tmp_path / "one", settings_of(kind, processes=1))
    expected = train(one, ignore)
    two = request_in(tmp_path / "two", settings_of(kind))
    with pytest.raises(KeyboardInterrupt):
        train(two, stop_half_way)
    saved = load_checkpoint(two.out_dir / ".checkpoint.pt")
    assert saved is not None and 1 <= saved.position.step < expected.steps
    assert workers() == []
    heard: list[TrainProgress] = []
    told: list[str] = []
    result = train(two, heard.append, lambda event, _: told.append(event))
    assert (expected.processes, result.processes) == (1, 2)
    assert len(heard) == told.count("step") == result.steps - saved.position.step
    for own, other in zip(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"), strict=True):
        for name in ("loss", "validation_nll", "gradient_norm"):
            assert own.get(name) == pytest.approx(other.get(name), abs=within)
    for path in (one.out_dir / expected.weights).glob("*.safetensors"):
        own, other = load_file(path), load_file(two.out_dir / expected.weights / path.name)
        assert own.keys() == other.keys()
        # Whole checkpoints are in bfloat16, where the next number is up to 2**-7 away.
        for name, weights in own.items():
            torch.testing.assert_close(weights, other[name], atol=within, rtol=within if kind == "lora" else 2**-7)


def test_two_processes_that_were_stopped_go_on_to_the_same_bits_and_to_no_other_number(tmp_path: Path) -> None:
    straight = request_in(tmp_path / "straight", settings_of("full"))
    expected = train(straight, ignore)
    broken = request_in(tmp_path / "broken", settings_of("full"))
    with pytest.raises(KeyboardInterrupt):
        train(broken, stop_half_way)
    with pytest.raises(OperatorError, match="number of processes was 2 and is 1"):
        train(dataclasses.replace(broken, settings=settings_of("full", processes=1)), ignore)
    train(broken, ignore)
    assert same_files(straight.out_dir / expected.weights, broken.out_dir / expected.weights)
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "straight")


def test_process_that_is_killed_ends_the_others_and_is_named(tmp_path: Path) -> None:
    settings = SETTINGS_OF_SEVERAL.model_copy(update={"processes": 2, "epochs": 400.0, "patience": 10**6})
    request = request_in(tmp_path, settings)

    def kill(_: TrainProgress) -> None:
        second = workers()[1:]
        if second:
            second[0].kill()

    began = time.monotonic()
    with pytest.raises(OutsideError, match=r"process 1 of 2 was killed by signal 9 .*; its last words"):
        train(request, kill)
    assert time.monotonic() - began < 120
    assert workers() == []


def test_failure_of_a_process_is_the_failure_of_the_training(tmp_path: Path) -> None:
    request = request_in(tmp_path, SETTINGS_OF_SEVERAL.model_copy(update={"processes": 2, "max_tokens": 64}))
    with pytest.raises(OperatorError, match=r"16 rows, left out \{'over_length': 16\}"):
        train(request, ignore)
    assert workers() == []


def test_processes_end_when_the_one_that_began_them_is_gone(tmp_path: Path) -> None:
    settings = SETTINGS_OF_SEVERAL.model_copy(update={"processes": 2, "epochs": 4000.0, "patience": 10**6})
    request = request_in(tmp_path, settings)
    pid = os.fork()
    if pid == 0:
        try:
            train(request, ignore)
        finally:
            os._exit(0)
    metrics = tmp_path / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (metrics.exists() and metrics.read_text(encoding="utf-8").count("step") > 3):
        time.sleep(0.1)
    begun = psutil.Process(pid).children()
    assert len(begun) == 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _, alive = psutil.wait_procs(begun, timeout=30)
    for each in alive:
        each.kill()
    assert alive == []


def test_training_apart_gives_way_to_everything_else_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    here = request_in(tmp_path / "here", SETTINGS_OF_SEVERAL)
    expected = train(here, ignore)
    apart = request_in(tmp_path / "apart", SETTINGS_OF_SEVERAL.model_copy(update={"nice": 3}))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[tuple[int, str | None]] = []

    def look(progress: TrainProgress) -> None:
        [worker] = workers()
        seen.append((worker.nice(), worker.environ().get("GOMP_SPINCOUNT")))
        stop_half_way(progress)

    with pytest.raises(KeyboardInterrupt):
        train(apart, look, apart=True)
    assert workers() == []
    # What was begun apart goes on here, or apart again.
    result = train(apart, ignore, apart=True)
    assert (result.steps, result.processes) == (expected.steps, 1)
    assert same_files(here.out_dir / expected.weights, apart.out_dir / result.weights)
    assert {nice for nice, _ in seen} == {min(19, own + 3)} and os.getpriority(os.PRIO_PROCESS, 0) == own
    if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
        assert {spins for _, spins in seen} == {str(BACKGROUND_SPINS)}


def test_training_apart_that_is_killed_says_what_may_have_killed_it_and_goes_on(tmp_path: Path) -> None:
    request = request_in(tmp_path, SETTINGS_OF_SEVERAL.model_copy(update={"checkpoint_every_steps": 1}))

    heard: list[TrainProgress] = []

    def kill(progress: TrainProgress) -> None:
        heard.append(progress)
        for worker in workers() if len(heard) > 2 else []:
            worker.kill()

    with pytest.raises(
        OutsideError, match=r"its process was killed by signal 9 \(the system does so when memory runs out\)"
    ):
        train(request, kill, apart=True)
    saved = load_checkpoint(request.out_dir / ".checkpoint.pt")
    assert saved is not None and saved.position.step >= 1
    heard.clear()
    result = train(request, heard.append, apart=True)
    assert len(heard) == result.steps - saved.position.step


def test_ctrl_c_ends_the_step_and_what_was_said_meanwhile_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What lies where the command was given is not ours to run.
    (tmp_path / "queue.py").write_text("raise SystemExit('somebody else's code')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    request = request_in(tmp_path / "training", SETTINGS_OF_SEVERAL)
    steps: list[object] = []
    asked: list[TrainProgress] = []

    def ask(progress: TrainProgress) -> None:
        asked.append(progress)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(request, ask, lambda event, figures: steps.append(figures["step"]) if event == "step" else None, apart=True)
    saved = load_checkpoint(request.out_dir / ".checkpoint.pt")
    in_file = [line["step"] for line in metrics_of(tmp_path / "training") if line["event"] == "step"]
    assert saved is not None and steps == in_file == list(range(1, saved.position.step + 1))
    assert [path for path in request.out_dir.iterdir() if path.name.startswith(".processes")] == []


def test_fault_of_ours_in_the_process_keeps_its_traceback_and_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import distill.training.training_set as ours\n"
        "def read_training_set(*_):\n    raise KeyError('a fault of ours')\n"
        "ours.read_training_set = read_training_set\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TrainingFault, match=r"(?s)Traceback.*sitecustomize.*KeyError: 'a fault of ours'"):
        train(request_in(tmp_path / "training", SETTINGS_OF_SEVERAL), ignore, apart=True)


def test_training_that_is_stopped_while_its_process_loads_is_stopped_and_has_not_failed(tmp_path: Path) -> None:
    def stop_soon() -> None:
        until = time.monotonic() + 60
        while not workers() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop_soon)
    stopping.start()
    with pytest.raises(KeyboardInterrupt):
        train(request_in(tmp_path, SETTINGS_OF_SEVERAL), ignore, apart=True)
    stopping.join()
    assert workers() == []


def test_shares_hold_every_tree_once_and_are_even() -> None:
    trees = [tree_of(length) for length in (5, 90, 40, 41, 7, 60, 33)]
    for size in (1, 2, 3):
        shares = [Group(torch.device("cpu"), rank, size).shares(trees) for rank in range(size)]
        assert all(share == shares[0] for share in shares)
        assert sorted(len(tree.nodes) for share in shares[0] for tree in share) == [5, 7, 33, 40, 41, 60, 90]
        loads = [sum(len(tree.nodes) for tree in share) for share in shares[0]]
        assert max(loads) - min(loads) <= 20


def tree_of(length: int) -> TokenTree:
    several = tuple(range(length))
    return TokenTree(1, several, several, tuple(range(-1, length - 1)), several, (), (), (), ())
