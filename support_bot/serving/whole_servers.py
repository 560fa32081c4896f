"""Servers of whole releases: a merged or fully tuned release gets a vLLM of its own beside the base student's.

In: which whole releases the record needs. Out: a supervised server for each, as many as there is room for, the neediest first; it
ends when nothing needs its release any more. Decides nothing about releases, and knows no HTTP.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from conversations import releases
from conversations.errors import OutsideError
from conversations.releases import Release, needs
from conversations.store import Record
from support_bot.serving.leaving import Leaving
from support_bot.serving.loads import WHOLE_KINDS
from support_bot.serving.pace import Pace
from support_bot.serving.supervisor import StudentSupervisor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """Where servers of whole releases can be: how many at once, on which ports, and what an operator does for more."""

    servers: int
    ports: Sequence[int]
    remedy: str


@dataclass(frozen=True)
class _Server:
    supervisor: StudentSupervisor
    port: int
    wanted_at_utc: str
    task: asyncio.Task[None]


class WholeServers:
    """The servers of whole releases. `misfit` says why one cannot be served here, `is_free` whether a port can be listened at."""

    def __init__(
        self,
        record: Record,
        new_supervisor: Callable[[Release, int], StudentSupervisor],
        *,
        room: Room,
        misfit: Callable[[Release], str],
        is_free: Callable[[int], bool],
        keep_hours: float,
        pace: Pace,
    ) -> None:
        self._record = record
        self._new_supervisor = new_supervisor
        self._room = room
        self._misfit = misfit
        self._is_free = is_free
        self._keep_hours = keep_hours
        self._pace = pace
        self._leaving = Leaving(record, pace)
        self._servers: dict[str, _Server] = {}
        self._problems: dict[str, str] = {}
        self._misfits: dict[tuple[str, str], str] = {}

    def why_not(self, release: Release) -> str:
        """Return why a needed whole release has no server, or an empty string where it has one or will have."""
        return self._problems.get(release.release_id, "")

    async def run(self) -> None:
        """Give each needed whole release its server, until cancelled; then end all of them."""
        try:
            while True:
                try:
                    await self._look()
                except OutsideError as error:
                    log.warning("servers of whole releases: %s", error)
                await asyncio.sleep(self._pace.look_seconds)
        finally:
            await _ended(server.task for server in self._servers.values())

    async def _look(self) -> None:
        for server in self._servers.values():
            if server.task.done():
                # It never ends by itself but by a bug.
                server.task.result()
        needed = await asyncio.to_thread(needs.needed, self._record, keep_hours=self._keep_hours)
        whole = [each for each in needed if each.release.kind in WHOLE_KINDS]
        problems: dict[str, str] = {}
        chosen: list[needs.Needed] = []
        for each in whole:
            name = each.release.release_id
            known = self._servers.get(name)
            if known is not None and known.supervisor.has_given_up:
                if known.wanted_at_utc != each.wanted_at_utc:
                    await self._end(name)
                continue
            if problem := await self._why_unfit(each):
                problems[name] = problem
            elif len(chosen) == self._room.servers:
                problems[name] = (
                    f"there is room for {self._room.servers} servers of whole releases, and other releases need it more; "
                    f"{self._room.remedy}"
                )
            else:
                chosen.append(each)
        self._problems = problems
        await self._let_go({each.release.release_id for each in chosen}, {each.release.release_id for each in whole})
        for each in chosen:
            if each.release.release_id not in self._servers and self._working() < self._room.servers:
                self._begin(each)

    async def _why_unfit(self, each: needs.Needed) -> str:
        # A release never changes, and looking at its files takes a while; a new wish has it looked at again.
        key = (each.release.release_id, each.wanted_at_utc)
        if key not in self._misfits:
            self._misfits[key] = await asyncio.to_thread(self._misfit, each.release)
        return self._misfits[key]

    async def _let_go(self, chosen: set[str], needed: set[str]) -> None:
        for name, server in list(self._servers.items()):
            if server.supervisor.has_given_up:
                if name not in needed:
                    await self._end(name)
            elif name in chosen:
                self._leaving.stays(name)
            elif await self._leaving.may_go(name):
                await self._end(name)

    def _working(self) -> int:
        return sum(not server.supervisor.has_given_up for server in self._servers.values())

    def _begin(self, each: needs.Needed) -> None:
        name = each.release.release_id
        taken = {server.port for server in self._servers.values() if not server.supervisor.has_given_up}
        port = next((port for port in self._room.ports if port not in taken and self._is_free(port)), None)
        if port is None:
            self._problems[name] = (
                f"every port from {self._room.ports[0]} to {self._room.ports[-1]} is in use; set [student] whole_port to the first "
                "of some that are free"
            )
            return
        supervisor = self._new_supervisor(each.release, port)
        task = asyncio.create_task(supervisor.run(), name=f"server of {name}")
        self._servers[name] = _Server(supervisor, port, each.wanted_at_utc, task)

    async def _end(self, name: str) -> None:
        """End the server of a release, and forget it in the record."""
        server = self._servers[name]
        await _ended([server.task])
        del self._servers[name]
        await asyncio.to_thread(releases.forget_server, self._record, server.supervisor.server_id)


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel each task once and wait until all have ended: a second cancel would leave a server behind in the middle of its end."""
    waiting = list(tasks)
    for task in waiting:
        if not task.cancelling():
            task.cancel()
    if waiting:
        # Unlike gather(), this does not hand a cancel of its own on to them.
        await asyncio.wait(waiting)
