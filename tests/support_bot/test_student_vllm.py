"""Promises of `support-bot student` with the real vLLM and the embedded student (minutes)."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from conversations import releases
from conversations.messages import utc_now
from conversations.releases import Release, ReleaseKind, ReleaseState, ServerState
from conversations.store import Record
from distill.training.weights.embedded import unpack_embedded_student

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 400
# How far a log-probability may lie from another sum of the same numbers, in bfloat16; an adapter moves it by several.
ROUNDING = 0.5
COMMAND = [sys.executable, "-c", "from support_bot.cli import main; main()", "student"]


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
class Running:
    """A running `support-bot student` with two adapters, which fill both adapter slots of its vLLM."""

    command: subprocess.Popen[bytes]
    record: Record
    base_url: str
    base_id: str

    def answer(self, model: str, seed: int, max_tokens: int = 8) -> Answer:
        numbers = np.random.default_rng(seed).integers(100, 40_000, size=40).tolist()
        body = {
            "model": model, "prompt": numbers, "max_tokens": max_tokens, "temperature": 0,
            "return_token_ids": True, "logprobs": 20, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        reply = httpx.post(f"{self.base_url}/v1/completions", json=body, timeout=120)
        reply.raise_for_status()
        choice = reply.json()["choices"][0]
        likely = [
            {int(token.removeprefix("token_id:")): value for token, value in step.items()}
            for step in choice["logprobs"]["top_logprobs"]
        ]
        return Answer(tuple(choice["token_ids"]), tuple(likely))

    def loaded(self) -> set[str]:
        return {load.release_id for load in releases.loads(self.record) if load.loaded}

    def process_id(self) -> int:
        server = releases.servers(self.record)[0]
        assert server.process_id is not None
        return server.process_id

    def state(self) -> ServerState | None:
        known = releases.servers(self.record)
        return known[0].state if known else None


def until(fact: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.2)


def write_adapter(folder: Path, base: Path, seed: int) -> Path:
    """A random adapter of rank 16 on all linear layers, strong enough to change every answer."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, narrow),
        "self_attn.v_proj": (hidden, narrow),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    noise = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{place}.lora_A.weight"] = (0.05 * noise.standard_normal((16, inputs))).astype(np.float32)
            tensors[f"{place}.lora_B.weight"] = (0.05 * noise.standard_normal((outputs, 16))).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted(name.split(".")[1] for name in shapes)
    adapter = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "task_type": "CAUSAL_LM"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("student")
    base = unpack_embedded_student(REPOSITORY / "var" / "students" / "smollm2-135m-instruct")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / "settings.toml"
    settings.write_text(
        f'[record]\npath = "record.db"\n[student]\nbase = "{base}"\nprofile = "cpu"\nport = {port}\n'
        'start_timeout_seconds = 400\n[prompt]\nsystem = "You help."\n',
        encoding="utf-8",
    )
    with Record(folder / "record.db") as record:
        for seed, name in enumerate(("release-1", "release-2")):
            path = str(write_adapter(folder / name, base, seed))
            state = ReleaseState.CANDIDATE
            release = Release(name, None, base.name, ReleaseKind.LORA, path, "sha256:1", {}, utc_now(), state)
            releases.register(record, release, actor="test", reason="test")
            releases.want(record, name, wanted_by="test")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        arguments = ["--settings", str(settings), "--parent-pid", str(os.getpid())]
        with subprocess.Popen([*COMMAND, *arguments], env=environment) as command:
            try:
                until(lambda: len(releases.loads(record)) == 3, "ready with three releases", START_SECONDS)
                base_id = next(load.release_id for load in releases.loads(record) if load.release_id.startswith("base-"))
                yield Running(command, record, f"http://127.0.0.1:{port}", base_id)
            finally:
                command.terminate()
                command.wait(timeout=60)


def test_an_adapter_changes_the_answers_and_never_those_that_the_base_gives_beside_it(running: Running) -> None:
    seeds = range(6)
    alone = [running.answer(running.base_id, seed) for seed in seeds]
    with ThreadPoolExecutor(12) as pool:
        # New questions for the adapters, so that nothing is answered out of a cache.
        beside = [pool.submit(running.answer, running.base_id, seed) for seed in seeds]
        adapted = [pool.submit(running.answer, f"release-{1 + seed % 2}", 100 + seed) for seed in seeds]
        assert all(future.result().is_from_the_same_weights_as(one) for future, one in zip(beside, alone, strict=True))
        plain = [running.answer(running.base_id, 100 + seed) for seed in seeds]
        assert not any(future.result().is_from_the_same_weights_as(one) for future, one in zip(adapted, plain, strict=True))


def test_the_engine_sleeps_while_the_worker_computes(running: Running) -> None:
    family = psutil.Process(running.process_id()).children(recursive=True)
    engine, worker = (
        next(one for one in family if part in one.name() + " ".join(one.cmdline())) for part in ("EngineCore", "Worker")
    )

    def seconds(process: psutil.Process) -> float:
        return process.cpu_times().user + process.cpu_times().system

    before = seconds(engine), seconds(worker)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: running.answer(running.base_id, 200 + seed, max_tokens=64), range(6)))
    assert seconds(engine) - before[0] < 0.4 * (seconds(worker) - before[1])


def test_a_release_that_is_wanted_no_longer_leaves_the_server(running: Running) -> None:
    releases.refuse(running.record, "release-2", actor="test", reason="not good enough")

    def is_unloaded() -> bool:
        names = [model["id"] for model in httpx.get(f"{running.base_url}/v1/models").json()["data"]]
        return sorted(names) == sorted([running.base_id, "release-1"])

    until(is_unloaded, "unloaded", 20)
    assert running.loaded() == {running.base_id, "release-1"}


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_after_a_kill_the_server_comes_back_with_the_release_loaded(running: Running, victim: str) -> None:
    before = running.answer("release-1", 7)
    process = psutil.Process(running.process_id())
    family = [process, *process.children(recursive=True)]
    target = (
        process
        if victim == "server"
        else next(one for one in family if "EngineCore" in one.name() + " ".join(one.cmdline()))
    )
    target.send_signal(signal.SIGKILL)
    until(lambda: running.state() is ServerState.DOWN, "down", 60)
    until(lambda: "release-1" in running.loaded(), "loaded again", START_SECONDS)
    assert running.answer("release-1", 7).is_from_the_same_weights_as(before)
    assert not [one for one in family if one.is_running()]


def test_ending_the_command_ends_every_process_of_vllm(running: Running) -> None:
    process = psutil.Process(running.process_id())
    family = [process, *process.children(recursive=True)]
    assert len(family) >= 2
    running.command.terminate()
    assert running.command.wait(timeout=60) == 0
    # A zombie has ended; the machine's first process has only not yet taken note of it.
    assert not [one for one in family if one.is_running() and _status(one) != psutil.STATUS_ZOMBIE]
    assert running.state() is ServerState.DOWN


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE
