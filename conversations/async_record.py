"""The record for an event loop: no call blocks the loop, and what was asked to be written is written.

In: the functions of this package that take a record first. Out: awaitables. Writes stand in one queue and are done one after the
other, in the order they were asked for; reads go beside them. A transaction begins and ends inside one call, so nothing can be
awaited while it is open.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from conversations.store import Record

_READERS = 8
P = ParamSpec("P")
T = TypeVar("T")


class AsyncRecord:
    """An open record, seen from an event loop. Close it before the record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._writer = ThreadPoolExecutor(1, "record-writer")
        self._readers = ThreadPoolExecutor(_READERS, "record-reader")

    async def read(self, ask: Callable[Concatenate[Record, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function that only reads finds."""
        call = partial(ask, self.record, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._readers, call)

    async def write(self, change: Callable[Concatenate[Record, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function that writes returns. Whoever stops waiting for it does not undo it."""
        call = partial(change, self.record, *args, **kwargs)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, call))

    def close(self) -> None:
        """Wait for what stands in the queue, then end the threads."""
        self._writer.shutdown()
        self._readers.shutdown()
