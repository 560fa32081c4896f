"""A sign of life while something long goes on: what others see when they ask whether a process of another machine still works.

In: what to write, and how often. Out: nothing. It goes on by itself, however long the work announces nothing.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conversations.errors import Failure

log = logging.getLogger(__name__)


@contextmanager
def beating(beat: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `beat` every few seconds until the block is left; one that fails is logged, and the next one is tried."""
    over = threading.Event()

    def keep_beating() -> None:
        while not over.wait(seconds):
            try:
                beat()
            except Failure as failure:
                log.warning("a sign of life could not be written: %s", failure)

    thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
