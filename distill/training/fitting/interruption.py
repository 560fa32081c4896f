"""A request to stop: one that waits for the end of a step, one that ends what waits for others, and the end of whoever started this.

In: SIGTERM, as service managers send it; the end of standard input. Out: a flag, KeyboardInterrupt, or the end of this process.
Only the main thread of a process can hear signals; elsewhere nobody asks.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import psutil

from conversations.processes import is_alive, process_token

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class StopRequest:
    """Whether somebody has asked this process to stop."""

    asked: bool = False


@contextmanager
def hearing_a_stop() -> Iterator[StopRequest]:
    """Note SIGTERM or Ctrl-C instead of ending at once, and raise KeyboardInterrupt when the block is left.

    A second Ctrl-C does not wait.
    """
    request = StopRequest()

    def note(_number: int, _frame: FrameType | None) -> None:
        request.asked = True
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.asked:
        raise KeyboardInterrupt("stopped by the operator")


@contextmanager
def ending_at_sigterm() -> Iterator[StopRequest]:
    """End at SIGTERM as at Ctrl-C, with KeyboardInterrupt at once; a second one is ignored, so that what was begun ends well.

    The request is noted too, for where a library swallows every exception.
    """
    request = StopRequest()

    def end(_number: int, _frame: FrameType | None) -> None:
        request.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def end_after(process_id: int) -> None:
    """Send this process SIGTERM as soon as another one has ended: a kill leaves that one no time to do it itself."""

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            token = process_token(process_id)
            while is_alive(token):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_with_the_watcher() -> None:
    """End this process as soon as its standard input ends, which its watcher holds open: nobody is left to hear a result."""

    def watch() -> None:
        # Read past Python's buffer, whose lock a thread that waits for ever would hold when this process ends.
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
