"""When a release that is needed no longer may leave a server: not while somebody waits for its answer.

In: which releases are asked about, and the record's turns under way. Out: yes or no. Ends nothing itself.
"""

import asyncio
import logging
import time

from conversations.releases import needs
from conversations.store import Record
from support_bot.serving.pace import Pace

log = logging.getLogger(__name__)


class Leaving:
    """Since when each release of one server is needed no longer."""

    def __init__(self, record: Record, pace: Pace) -> None:
        self._record = record
        self._pace = pace
        self._since: dict[str, float] = {}

    def stays(self, release_id: str) -> None:
        """Take note that a release is needed, again or still."""
        self._since.pop(release_id, None)

    async def may_go(self, release_id: str) -> bool:
        """Tell whether a release that is not needed may go: a turn that chose it just before has begun, and all have ended."""
        seconds = time.monotonic() - self._since.setdefault(release_id, time.monotonic())
        if seconds < self._pace.linger_seconds:
            return False
        under_way = await asyncio.to_thread(needs.answers_under_way, self._record, release_id)
        if under_way and seconds < self._pace.most_linger_seconds:
            return False
        if under_way:
            log.warning("%s goes with %d answers that have not ended in %.0f s", release_id, under_way, seconds)
        del self._since[release_id]
        return True
