"""Promises of `support-bot student` with the real vLLM and the embedded student (minutes)."""

import math
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from conversations import releases
from conversations.releases import ServerState
from distill.training.weights.embedded import unpack_embedded_student
from tests.bench import releases as bench
from tests.bench.students import RunningStudent, running_student, until

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
# How far a log-probability may lie from another sum of the same numbers, in bfloat16; an adapter moves it by several.
ROUNDING = 0.5


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and for each the log-probabilities of the likeliest ones in its place."""

    token_ids: tuple[int, ...]
    likely: tuple[dict[int, float], ...]

    def is_from_the_same_weights_as(self, other: "Answer") -> bool:
        """Whether only rounding tells them apart: a step computed beside others is summed in another order."""
        for mine, theirs, my_likely, their_likely in zip(
            self.token_ids, other.token_ids, self.likely, other.likely, strict=True
        ):
            if abs(my_likely[mine] - their_likely.get(mine, -math.inf)) > ROUNDING:
                return False
            if mine != theirs:
                # Two tokens were as good as equal; what follows is another text, and proves nothing.
                return my_likely[mine] - my_likely.get(theirs, -math.inf) <= ROUNDING
        return True


@dataclass(frozen=True)
class Asked:
    """A running `support-bot student` with two adapters, which fill both adapter slots of its vLLM, and what it answers."""

    student: RunningStudent

    def answer(self, model: str, seed: int, max_tokens: int = 8) -> Answer:
        numbers = np.random.default_rng(seed).integers(100, 40_000, size=40).tolist()
        body = {
            "model": model, "prompt": numbers, "max_tokens": max_tokens, "temperature": 0,
            "return_token_ids": True, "logprobs": 20, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        reply = httpx.post(f"{self.student.base_url}/v1/completions", json=body, timeout=120)
        reply.raise_for_status()
        choice = reply.json()["choices"][0]
        likely = [
            {int(token.removeprefix("token_id:")): value for token, value in step.items()}
            for step in choice["logprobs"]["top_logprobs"]
        ]
        return Answer(tuple(choice["token_ids"]), tuple(likely))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudent]:
    base = unpack_embedded_student(REPOSITORY / "var" / "students" / "smollm2-135m-instruct")
    with running_student(tmp_path_factory.mktemp("student"), base, ("release-1", "release-2")) as student:
        yield student


@pytest.fixture
def running(student: RunningStudent) -> Asked:
    return Asked(student)


def test_an_adapter_changes_the_answers_and_never_those_that_the_base_gives_beside_it(running: Asked) -> None:
    seeds = range(6)
    alone = [running.answer(running.student.base_id, seed) for seed in seeds]
    with ThreadPoolExecutor(12) as pool:
        # New questions for the adapters, so that nothing is answered out of a cache.
        beside = [pool.submit(running.answer, running.student.base_id, seed) for seed in seeds]
        adapted = [pool.submit(running.answer, f"release-{1 + seed % 2}", 100 + seed) for seed in seeds]
        assert all(future.result().is_from_the_same_weights_as(one) for future, one in zip(beside, alone, strict=True))
        plain = [running.answer(running.student.base_id, 100 + seed) for seed in seeds]
        assert not any(future.result().is_from_the_same_weights_as(one) for future, one in zip(adapted, plain, strict=True))


def test_the_engine_sleeps_while_the_worker_computes(running: Asked) -> None:
    family = psutil.Process(running.student.process_id()).children(recursive=True)
    engine, worker = (
        next(one for one in family if part in one.name() + " ".join(one.cmdline())) for part in ("EngineCore", "Worker")
    )

    def seconds(process: psutil.Process) -> float:
        return process.cpu_times().user + process.cpu_times().system

    before = seconds(engine), seconds(worker)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: running.answer(running.student.base_id, 200 + seed, max_tokens=64), range(6)))
    assert seconds(engine) - before[0] < 0.4 * (seconds(worker) - before[1])


def test_replies_are_whole_and_by_one_release_each_while_the_pointer_moves(running: Asked) -> None:
    seen = bench.pointer_under_load(running.student, "release-1", "release-2", conversations=24, moves=3)
    assert seen["requests"] == 48 and seen["failed"] == 0
    assert int(str(seen["replies by release-1"])) > 0 and int(str(seen["replies by release-2"])) > 0
    assert seen["replies that name no release"] == 0 and seen["say what their release says"] == 48
    assert seen["moved without a rollback"] == 0


def test_a_rollback_takes_effect_within_five_seconds(running: Asked) -> None:
    seen = bench.rollback_seconds(running.student, "release-1", "release-2")
    assert seen["answered by it"] is True
    assert float(str(seen["seconds to the first word by the restored release"])) <= 5


def test_a_promotion_killed_when_its_release_is_loaded_changes_nothing(running: Asked) -> None:
    seen = bench.killed_before_the_pointer_moves(running.student, "release-1", "release-2")
    assert seen == {"in service as before": True, "replies by it": 4, "replies": 4, "failed": 0}


def test_a_whole_release_is_served_beside_the_first_put_into_service_taken_back_and_gone(
    running: Asked, tmp_path: Path
) -> None:
    seen = bench.blue_green(running.student, "release-1", "release-whole", tmp_path)
    assert seen["replies by the whole release"] == 4 and seen["say something else"] == 0 and seen["failed"] == 0
    assert seen["an open conversation kept its release"] is True and seen["after the rollback by the first"] == 2
    assert seen["servers left"] == 1


def test_a_release_that_is_wanted_no_longer_leaves_the_server(running: Asked) -> None:
    releases.refuse(running.student.record, "release-2", actor="test", reason="not good enough")

    def is_unloaded() -> bool:
        names = [model["id"] for model in httpx.get(f"{running.student.base_url}/v1/models").json()["data"]]
        return sorted(names) == sorted([running.student.base_id, "release-1"])

    until(is_unloaded, "unloaded", 20)
    assert running.student.loaded() == {running.student.base_id, "release-1"}


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_after_a_kill_the_server_comes_back_with_the_release_loaded(running: Asked, victim: str) -> None:
    releases.promote(running.student.record, "release-1", actor="test", reason="in service")
    before = running.answer("release-1", 7)
    process = psutil.Process(running.student.process_id())
    family = [process, *process.children(recursive=True)]
    target = (
        process
        if victim == "server"
        else next(one for one in family if "EngineCore" in one.name() + " ".join(one.cmdline()))
    )
    target.send_signal(signal.SIGKILL)
    seen = bench.asked_until_it_is_back(running.student, "release-1")
    assert seen["asked a server without the release"] == 0 and float(str(seen["seconds until it was noticed"])) < 60
    assert running.answer("release-1", 7).is_from_the_same_weights_as(before)
    assert not [one for one in family if one.is_running()]


def test_ending_the_command_ends_every_process_of_vllm(running: Asked) -> None:
    process = psutil.Process(running.student.process_id())
    family = [process, *process.children(recursive=True)]
    assert len(family) >= 2
    running.student.command.terminate()
    assert running.student.command.wait(timeout=60) == 0
    # A zombie has ended; the machine's first process has only not yet taken note of it.
    assert not [one for one in family if one.is_running() and _status(one) != psutil.STATUS_ZOMBIE]
    assert running.student.state() is ServerState.DOWN


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE
