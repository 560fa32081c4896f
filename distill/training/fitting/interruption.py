"""A request to stop: one that waits for the end of a step, and one that ends what waits for others.

In: SIGTERM, as service managers send it. Out: a flag, or KeyboardInterrupt. Only the main thread of a process can hear signals;
elsewhere nobody asks.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether somebody has asked this process to stop."""

    asked: bool = False


@contextmanager
def hearing_sigterm() -> Iterator[StopRequest]:
    """Note SIGTERM instead of ending at once; it ends as Ctrl-C does, with KeyboardInterrupt, when the block is left."""
    request = StopRequest()

    def note(_number: int, _frame: FrameType | None) -> None:
        request.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
    if request.asked:
        raise KeyboardInterrupt("stopped by SIGTERM")


@contextmanager
def ending_at_sigterm() -> Iterator[None]:
    """End at SIGTERM as at Ctrl-C, with KeyboardInterrupt at once; a second one is ignored, so that what was begun ends well."""

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
