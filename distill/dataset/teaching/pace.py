"""How fast a teacher is asked: how many at once, requests and tokens a minute, waits, and a circuit breaker.

In: what is about to be sent, and how it went. Out: the moment at which it may go. One pace is shared by everybody who asks a
teacher in this process. It knows no request and no record.
"""

import asyncio
import email.utils
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from conversations.errors import OutsideError
from distill.settings import TeacherTable

FIRST_WAIT_SECONDS = 0.5
FIRST_PAUSE_SECONDS = 2.0
MAX_WAIT_SECONDS = 60.0
MAX_ASKED_WAIT_SECONDS = 300.0
MAX_TRIES = 5
MAX_PROBES = 4

log = logging.getLogger(__name__)


class Pace:
    """Lets requests to one teacher through; open it inside the event loop that asks."""

    def __init__(self, name: str, table: TeacherTable, *, concurrency: int | None = None) -> None:
        self._places = asyncio.Semaphore(concurrency or table.concurrency)
        self._seconds_per_request = 60.0 / table.requests_per_minute if table.requests_per_minute else 0.0
        self._seconds_per_token = 60.0 / table.tokens_per_minute if table.tokens_per_minute else 0.0
        self._next_request = 0.0
        self._next_tokens = 0.0
        self._held_until = 0.0
        self.breaker = Breaker(name, table)

    @asynccontextmanager
    async def place(self, tokens: int) -> AsyncIterator[None]:
        """Hold one of the places, from the moment when the next request of so many tokens may leave.

        Raises OutsideError when the teacher has been given up.
        """
        async with self._places:
            await self.breaker.let_through()
            now = time.monotonic()
            at = max(now, self._next_request, self._next_tokens, self._held_until)
            self._next_request = at + self._seconds_per_request
            self._next_tokens = at + tokens * self._seconds_per_token
            while at > time.monotonic():
                await asyncio.sleep(at - time.monotonic())
                # The teacher may have asked for more patience meanwhile.
                at = max(at, self._held_until)
            yield

    def took(self, expected_tokens: int, tokens: int) -> None:
        """Correct the tokens of this minute by what a request has taken in the end."""
        self._next_tokens -= (expected_tokens - tokens) * self._seconds_per_token

    def hold(self, seconds: float) -> None:
        """Let nothing more through for as long as the teacher asked."""
        self._held_until = max(self._held_until, time.monotonic() + min(seconds, MAX_ASKED_WAIT_SECONDS))


class Breaker:
    """Opens after failures in a row, over all who ask; then one probe at a time, ever more patiently, until it is given up."""

    def __init__(self, name: str, table: TeacherTable) -> None:
        self._name, self._base_url = name, table.base_url
        self._limit = max(5, table.concurrency)
        self._in_a_row = 0
        self._probes = 0
        self._probe_at = 0.0

    @property
    def is_open(self) -> bool:
        """Tell whether only probes are sent at present."""
        return self._in_a_row >= self._limit

    async def let_through(self) -> None:
        """Return when a request may leave; while the breaker is open, that is one probe after each pause.

        Raises OutsideError when the probes have failed too often.
        """
        while self.is_open:
            self._check()
            wait = self._probe_at - time.monotonic()
            if wait <= 0:
                self._probes += 1
                self._pause()
                return
            await asyncio.sleep(wait)

    def answered(self) -> None:
        """Note that the teacher answers: the breaker closes."""
        if self.is_open:
            log.warning("%s: answers again", self._name)
        self._in_a_row = self._probes = 0

    def failed(self) -> None:
        """Note a failure of the teacher.

        Raises OutsideError when it was the last probe's.
        """
        self._in_a_row += 1
        if self._in_a_row == self._limit:
            log.warning("%s: %d failures in a row; waiting before it is asked again", self._name, self._in_a_row)
            self._pause()
        self._check()

    def _pause(self) -> None:
        self._probe_at = time.monotonic() + min(MAX_WAIT_SECONDS, FIRST_PAUSE_SECONDS * 2.0**self._probes)

    def _check(self) -> None:
        # Those that were under way when it opened fail too, and are no probes.
        if self._probes >= MAX_PROBES and self._in_a_row >= self._limit + MAX_PROBES:
            raise OutsideError(
                f"the teacher {self._name!r} at {self._base_url} has stopped answering ({self._in_a_row} failures in a row, "
                f"{self._probes} probes); run again later: what was answered is kept"
            )


async def wait_before_next(tries: int) -> None:
    """Wait before another try: twice as long each time, with some chance in it."""
    seconds = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)
    log.info("trying again in %.1f s (try %d of %d)", seconds, tries + 1, MAX_TRIES)
    await asyncio.sleep(seconds)


def asked_seconds(retry_after: str) -> float:
    """Return how long a Retry-After header asks to wait, given as seconds or as an HTTP date; 0 where it does not say."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
