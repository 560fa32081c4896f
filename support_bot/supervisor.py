"""The supervisor of one student server: it runs, and has the releases in memory that the record wants there.

In: the record's wanted releases, and how to start a server or where one is. Out: the server announced in the record as
starting, ready or down, with what it has loaded. It ends every process that it started and no other; it never decides which
release serves.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conversations import releases
from conversations.errors import OperatorError, OutsideError
from conversations.releases import Load, Release, ReleaseKind, ServerState
from conversations.serving import Served, read_serving, why_unfit
from conversations.store import Record
from support_bot.vllm import VllmProcess
from support_bot.vllm_api import VllmApi

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often the supervisor looks, and how long it waits."""

    look_seconds: float = 1.0
    heartbeat_seconds: float = 2.0
    health_timeout_seconds: float = 10.0
    health_failures: int = 3
    load_timeout_seconds: float = 120.0
    load_attempts: int = 3
    first_backoff_seconds: float = 1.0
    last_backoff_seconds: float = 30.0
    steady_after_seconds: float = 60.0
    first_starts: int = 3
    start_timeout_seconds: float = 600.0


@dataclass(frozen=True)
class ServedBase:
    """The base student of a server: its name, the release that stands for it, the server's address, and what must fit it."""

    base: str
    release_id: str
    base_url: str
    served: Served


class _Lost(Exception):
    """The server cannot be used any more; the message says why."""


class StudentSupervisor:
    """Looks after one server: its own where `new_process` is given, else one that somebody else runs."""

    def __init__(
        self,
        record: Record,
        served: ServedBase,
        *,
        new_process: Callable[[], VllmProcess] | None,
        say: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self._record = record
        self._served = served
        self._new_process = new_process
        self._say = say
        self._pace = pace
        self._api = VllmApi(
            served.base_url,
            health_timeout_seconds=pace.health_timeout_seconds,
            load_timeout_seconds=pace.load_timeout_seconds,
        )
        self._process: VllmProcess | None = None
        self._state = ServerState.STARTING
        self._detail = ""
        self._announcing = asyncio.Lock()
        self._loads: dict[str, Load] = {}
        self._attempts: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._kept_loads: set[str] = set()
        self._was_well = False
        self.base_url = served.base_url
        self.starts = 0

    async def run(self) -> None:
        """Keep the server up and loaded until cancelled; then end it, if it is ours, and say so in the record.

        Raises OperatorError or OutsideError when our own server has never come up and will not.
        """
        heartbeat = asyncio.create_task(self._beat())
        work = asyncio.create_task(self._keep_up())
        try:
            await asyncio.wait({heartbeat, work}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, heartbeat):
                if task.done():
                    task.result()
        finally:
            for task in (heartbeat, work):
                task.cancel()
            await asyncio.gather(heartbeat, work, return_exceptions=True)
            await self._end_process(at_once=False)
            await self._api.close()
            await self._tell(ServerState.DOWN, "stopped")

    async def _keep_up(self) -> None:
        backoff_seconds = self._pace.first_backoff_seconds
        failed_starts = 0
        while True:
            up_since: float | None = None
            try:
                await self._bring_up()
                up_since = time.monotonic()
                failed_starts = 0
                await self._stay_up()
            except _Lost as lost:
                if up_since is not None and time.monotonic() - up_since >= self._pace.steady_after_seconds:
                    backoff_seconds = self._pace.first_backoff_seconds
                failed_starts += up_since is None
                self._give_up_when_hopeless(failed_starts, str(lost))
                await self._go_down(str(lost), backoff_seconds)
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, self._pace.last_backoff_seconds)

    async def _bring_up(self) -> None:
        """Start the server where it is ours, wait until it is well, load what is wanted, and only then call it ready."""
        await self._start()
        await self._wait_until_well()
        names = await self._names()
        if self._served.release_id not in names:
            raise _Lost(
                f"{self._served.base_url} serves {', '.join(sorted(names))}; expected {self._served.release_id!r}; "
                f"start it with --served-model-name {self._served.release_id} and the base of [student] base"
            )
        await self._match_loads(names)
        # A load can end the server, whose process is then gone a moment later.
        if problem := await self._api.problem():
            raise _Lost(problem)
        await self._tell(ServerState.READY, "")
        for load in list(self._loads.values()):
            await self._note(load)
        loaded = [name for name, load in self._loads.items() if load.loaded]
        self._say(f"student: {self._served.base_url} is ready with {', '.join(loaded)}")

    async def _start(self) -> None:
        self.starts += 1
        self._loads.clear()
        if self._new_process is None:
            await self._tell(ServerState.STARTING, "waiting for a server that is run elsewhere")
            self._say(f"student: attaching to {self._served.base_url}")
            return
        self._process = self._new_process()
        await self._process.start()
        await self._tell(ServerState.STARTING, "vLLM is starting")
        self._say(f"student: vLLM is starting on {self._served.base_url} (usually 30 to 90 s on 2 cores)")

    async def _wait_until_well(self) -> None:
        deadline = time.monotonic() + self._pace.start_timeout_seconds
        while problem := await self._api.problem():
            self._check_process()
            if self._new_process is None:
                await self._tell(ServerState.DOWN, problem)
            if time.monotonic() > deadline:
                raise _Lost(f"not ready after {self._pace.start_timeout_seconds:.0f} s: {problem}")
            await asyncio.sleep(self._pace.look_seconds)
        # Another server's answer on the same port must not be taken for that of one which has ended.
        self._check_process()
        self._was_well = True

    async def _stay_up(self) -> None:
        """Look after a ready server. Returns never; raises _Lost when it is gone or hangs."""
        failures = 0
        while True:
            await asyncio.sleep(self._pace.look_seconds)
            self._check_process()
            problem = await self._api.problem()
            failures = failures + 1 if problem else 0
            if failures >= self._pace.health_failures:
                raise _Lost(f"no health {failures} times: {problem}")
            if problem:
                continue
            try:
                await self._match_loads(await self._names())
            except OutsideError as error:
                log.warning("student %s: %s", self._served.base_url, error)

    def _check_process(self) -> None:
        if self._process is None or self._process.exit_status is None:
            return
        status = self._process.exit_status
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        words = "" if self._was_well and status < 0 else self._process.last_words()
        raise _Lost(f"vLLM {how}" + (f": {words}" if words else ""))

    def _give_up_when_hopeless(self, failed_starts: int, reason: str) -> None:
        """Raise when a server of ours has never come up: trying on for ever would hide what must be mended."""
        if self._was_well or self._process is None:
            return
        if self._process.exit_status == 2:
            raise OperatorError(f"{reason}; vLLM refused its command line; mend [student], above all extra_arguments")
        if failed_starts >= self._pace.first_starts:
            raise OutsideError(f"{reason}; gave up after {failed_starts} starts; see {self._process.log_path}")

    async def _go_down(self, reason: str, backoff_seconds: float) -> None:
        again = "starting it again" if self._new_process else "looking again"
        self._say(f"student: {self._served.base_url} is down: {reason}; {again} in {backoff_seconds:g} s")
        await self._tell(ServerState.DOWN, reason)
        await self._end_process(at_once=True)

    async def _end_process(self, *, at_once: bool) -> None:
        if self._process is not None:
            await self._process.end(at_once=at_once)
            self._process = None

    async def _names(self) -> frozenset[str]:
        try:
            return await self._api.model_names()
        except OutsideError as error:
            if self._state is ServerState.READY:
                raise
            raise _Lost(str(error)) from None

    async def _match_loads(self, names: frozenset[str]) -> None:
        """Load what the record wants and the server (which answers to `names`) lacks; unload what is wanted no longer."""
        wanted = await asyncio.to_thread(releases.wanted, self._record)
        for release in wanted:
            known = self._loads.get(release.release_id)
            if release.release_id in names:
                if known is None or not known.loaded:
                    await self._remember(release.release_id, "")
            elif known is None or known.loaded or release.release_id in self._attempts:
                await self._load(release)
        wanted_ids = {release.release_id for release in wanted}
        for gone in set(self._loads) - wanted_ids:
            self._attempts.pop(gone, None)
            del self._loads[gone]
            await asyncio.to_thread(releases.forget_load, self._record, self._served.base_url, gone)
        self._kept_loads -= wanted_ids
        surplus = names - wanted_ids - self._kept_loads - {self._served.release_id}
        if surplus:
            known_ids = {release.release_id for release in await asyncio.to_thread(releases.releases, self._record)}
            for release_id in sorted(surplus):
                await self._unload(release_id, is_ours=release_id in known_ids)

    async def _load(self, release: Release) -> None:
        name = release.release_id
        if self._attempts.get(name, 0) >= self._pace.load_attempts:
            await self._remember(name, f"given up after {self._pace.load_attempts} attempts: {self._problems.get(name, '')}")
            return
        misfit = self._misfit(release)
        if misfit:
            await self._remember(name, misfit)
            self._say(f"student: {self._served.base_url} cannot serve {name}: {misfit}")
            return
        # Counted before the attempt, so that weights which end the server are not tried for ever.
        self._attempts[name] = self._attempts.get(name, 0) + 1
        began = time.monotonic()
        try:
            await self._api.load(name, release.weights_path)
        except OutsideError as error:
            self._problems[name] = str(error)
            await self._remember(name, str(error))
            self._say(f"student: {self._served.base_url} could not load {name}: {error}")
            return
        del self._attempts[name]
        await self._remember(name, "")
        if self._state is ServerState.READY:
            self._say(f"student: {self._served.base_url} has loaded {name} in {time.monotonic() - began:.1f} s")

    def _misfit(self, release: Release) -> str:
        """Return why a release cannot be loaded beside this base, or an empty string."""
        if release.kind is not ReleaseKind.LORA:
            return f"its kind is {release.kind!r}; only LoRA releases are loaded at runtime; it needs a server of its own"
        if release.base not in (self._served.base, self._served.release_id):
            return f"it was made for the base {release.base!r}; this server's is {self._served.base!r}"
        try:
            serving = read_serving(Path(release.weights_path))
        except OperatorError as error:
            return str(error)
        # Weights of earlier versions do not say how they are to be served.
        return why_unfit(serving, self._served.served) if serving else ""

    async def _unload(self, release_id: str, *, is_ours: bool) -> None:
        if not is_ours:
            log.warning("student %s: has %r loaded, which the record does not know", self._served.base_url, release_id)
            self._kept_loads.add(release_id)
            return
        try:
            await self._api.unload(release_id)
        except OutsideError as error:
            log.warning("student %s: could not unload %s: %s", self._served.base_url, release_id, error)
            self._kept_loads.add(release_id)
            return
        self._say(f"student: {self._served.base_url} has unloaded {release_id}")

    async def _remember(self, release_id: str, problem: str) -> None:
        load = Load(self._served.base_url, release_id, loaded=not problem, detail=problem)
        if self._loads.get(release_id) == load:
            return
        self._loads[release_id] = load
        # The record forgets the loads of a server that is not ready, so they are noted once it is.
        if self._state is ServerState.READY:
            await self._note(load)

    async def _note(self, load: Load) -> None:
        try:
            await asyncio.to_thread(releases.note_load, self._record, load)
        except OutsideError as error:
            log.warning("student %s: %s is not noted: %s", self._served.base_url, load.release_id, error)
            # Noted again at the next look.
            del self._loads[load.release_id]

    async def _tell(self, state: ServerState, detail: str) -> None:
        self._state, self._detail = state, detail
        await self._announce()

    async def _announce(self) -> None:
        # Under the lock, so that a heartbeat which began earlier cannot write an older state after a newer one.
        async with self._announcing:
            process_id = self._process.process_id if self._process else None
            try:
                await asyncio.to_thread(
                    releases.announce_server,
                    self._record,
                    server_id=self._served.base_url,
                    base_url=self._served.base_url,
                    base=self._served.base,
                    state=self._state,
                    process_id=process_id,
                    detail=self._detail,
                )
            except OutsideError as error:
                # The next heartbeat says the same.
                log.warning("student %s: not announced: %s", self._served.base_url, error)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._pace.heartbeat_seconds)
            await self._announce()
