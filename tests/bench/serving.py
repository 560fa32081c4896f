"""A real vLLM for a test or a benchmark, and what it answers to token ids; one at a time, and ended whatever happens.

In: a checkpoint folder. Out: the address of a server, started with the product's own command line, and token ids.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import httpx

from conversations.settings import StudentTable
from support_bot.vllm import check_serving, server_command, server_environment, server_url

BASE = "base"
START_SECONDS = 600


def free_port() -> int:
    """Return a loopback port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    base_dir: Path,
    log_path: Path,
    *,
    max_model_len: int = 2048,
    dtype: Literal["auto", "float32"] = "auto",
    has_adapters: bool = True,
) -> Iterator[str]:
    """Serve a checkpoint on a free loopback port under the name BASE, and end the server's whole process group afterwards.

    Without adapters it computes none, as the server of a merged student would.
    """
    student = StudentTable(base=base_dir, profile="cpu", port=free_port(), max_model_len=max_model_len, dtype=dtype)
    check_serving(student)
    command = server_command(student, BASE)
    if not has_adapters:
        command.remove("--enable-lora")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=server_environment(student),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_well(process, server_url(student), log_path)
            yield server_url(student)
        finally:
            # The engine's processes can outlive the server that started them, so the group is killed after it, too.
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)


def load_adapter(base_url: str, name: str, adapter_dir: Path) -> None:
    """Have the server load an adapter."""
    body = {"lora_name": name, "lora_path": str(adapter_dir)}
    answer = httpx.post(f"{base_url}/v1/load_lora_adapter", json=body, timeout=120, trust_env=False)
    assert answer.is_success, answer.text


def answers(
    base_url: str,
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    streams: int = 1,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Return the greedy answers to prompts of token ids, their stop tokens with them, `streams` of them asked at once.

    Without stop tokens every answer has `max_tokens` tokens.
    """
    ending: dict[str, object] = {"stop_token_ids": list(stop_ids)} if stop_ids else {"ignore_eos": True}
    with httpx.Client(base_url=base_url, timeout=600, trust_env=False) as client, ThreadPoolExecutor(streams) as pool:

        def answer(prompt: Sequence[int]) -> list[int]:
            body = {
                "model": model,
                "prompt": list(prompt),
                "max_tokens": max_tokens,
                "temperature": 0,
                "return_token_ids": True,
            }
            reply = client.post("/v1/completions", json={**body, **ending})
            reply.raise_for_status()
            return list(reply.json()["choices"][0]["token_ids"])

        return list(pool.map(answer, prompts))


def _wait_until_well(process: subprocess.Popen[bytes], base_url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        last_words = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
        assert process.poll() is None, f"vLLM ended: {last_words}"
        try:
            if httpx.get(f"{base_url}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise TimeoutError(f"vLLM was not ready after {START_SECONDS} s: {last_words}")
