"""The supervisor of one student server: it runs, and has the releases in memory that the record wants there.

In: how to start a server or where one is, and what it is to serve. Out: the server announced in the record as starting, ready or
down, with what it has loaded and what it takes. It ends every process that it started and no other; it never decides which
release serves.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from conversations import releases
from conversations.errors import OperatorError, OutsideError
from conversations.releases import Load, Release, ServerState
from conversations.store import Record
from support_bot.memory import Memory, memory_of
from support_bot.serving.loads import WHOLE_KINDS, ServerLoads
from support_bot.serving.pace import Pace, ServedStudent
from support_bot.serving.real_prompts import RealPrompts
from support_bot.vllm import VllmProcess
from support_bot.vllm_api import VllmApi

log = logging.getLogger(__name__)


class _Lost(Exception):
    """The server cannot be used any more; the message says why."""


class StudentSupervisor:
    """Looks after one server: its own where `new_process` is given, else one that somebody else runs."""

    def __init__(
        self,
        record: Record,
        student: ServedStudent,
        prompts: RealPrompts,
        *,
        new_process: Callable[[], VllmProcess] | None,
        why_not_whole: Callable[[Release], str] = lambda release: "",
        say: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self._record = record
        self._student = student
        self._new_process = new_process
        self._say = say
        self._pace = pace
        self._api = VllmApi(
            student.base_url,
            health_timeout_seconds=pace.health_timeout_seconds,
            load_timeout_seconds=pace.load_timeout_seconds,
        )
        self._loads = ServerLoads(record, self._api, student, prompts, why_not_whole=why_not_whole, say=say, pace=pace)
        self._process: VllmProcess | None = None
        self._state = ServerState.STARTING
        self._detail = ""
        self._memory = Memory()
        self._announcing = asyncio.Lock()
        self._was_well = False
        self._was_ready = False
        self.base_url = student.base_url
        self.server_id = student.server_id
        self.starts = 0
        self.has_given_up = False
        self.whole_id = student.release_id if student.is_whole else None

    async def run(self) -> None:
        """Keep the server up and loaded until cancelled; then end it, if it is ours, and say so in the record.

        Raises OperatorError or OutsideError when our own server of the base student has never come up and will not.
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
            # Before the end, so that no turn is sent to a server that is going.
            await self._tell(ServerState.DOWN, "stopped")
            await self._end_process(at_once=False)
            await self._api.close()

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
                problem = self._why_hopeless(failed_starts, str(lost))
                await self._go_down(str(lost), backoff_seconds)
                if problem:
                    await self._give_up(problem)
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = self._pace.longer_backoff(backoff_seconds)

    async def _bring_up(self) -> None:
        """Start the server where it is ours, wait until it is well, try to load all that is wanted, and only then call it ready."""
        await self._start()
        await self._wait_until_well()
        names = await self._names()
        await self._find_what_it_serves(names)
        await self._loads.match(names, self.whole_id)
        if self.whole_id is not None and (problem := self._loads.problem(self.whole_id)):
            raise _Lost(problem)
        # A load can end the server, whose process is then gone a moment later.
        if problem := await self._api.problem():
            raise _Lost(problem)
        await self._tell(ServerState.READY, "")
        loaded = await self._loads.open()
        self._was_ready = True
        self._say(f"student: {self.base_url} is ready with {', '.join(loaded)}")

    async def _find_what_it_serves(self, names: frozenset[str]) -> None:
        """Raise _Lost unless the server answers to the name that it should; one of somebody else's may serve a whole release."""
        if self._new_process is None:
            self.whole_id = None
        if self._student.release_id in names:
            return
        if self._new_process is None:
            for release in await asyncio.to_thread(releases.releases, self._record):
                if release.kind in WHOLE_KINDS and release.release_id in names:
                    self.whole_id = release.release_id
                    return
        weights = "the weights of that release" if self._student.is_whole else "the base of [student] base"
        raise _Lost(
            f"{self.base_url} serves {', '.join(sorted(names))}; expected {self._student.release_id!r}; "
            f"start it with --served-model-name {self._student.release_id} and {weights}"
        )

    async def _start(self) -> None:
        self.starts += 1
        self._loads.begin()
        if self._new_process is None:
            await self._tell(ServerState.STARTING, "waiting for a server that is run elsewhere")
            self._say(f"student: attaching to {self.base_url}")
            return
        self._process = self._new_process()
        try:
            await self._process.start()
        except OutsideError as error:
            if self._student.is_whole:
                raise _Lost(str(error)) from None
            raise
        await self._tell(ServerState.STARTING, "vLLM is starting")
        what = f" with {self.whole_id}" if self.whole_id else ""
        self._say(f"student: vLLM is starting on {self.base_url}{what} (usually 30 to 90 s on 2 cores)")

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
            # A server that does not answer is looked at sooner: customers are sent to it meanwhile.
            await asyncio.sleep(self._pace.look_seconds / (4 if failures else 1))
            self._check_process()
            problem = await self._api.problem()
            failures = failures + 1 if problem else 0
            if failures >= self._pace.health_failures:
                raise _Lost(f"no health {failures} times: {problem}")
            if problem:
                continue
            try:
                names = await self._api.model_names()
                served_id = self.whole_id or self._student.release_id
                if served_id not in names:
                    raise _Lost(f"{self.base_url} serves {', '.join(sorted(names))}, and {served_id} no longer")
                await self._loads.match(names, self.whole_id)
            except OutsideError as error:
                log.warning("student %s: %s", self.base_url, error)

    def _check_process(self) -> None:
        if self._process is None or self._process.exit_status is None:
            return
        status = self._process.exit_status
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        words = "" if self._was_well and status < 0 else self._process.last_words()
        raise _Lost(f"vLLM {how}" + (f": {words}" if words else ""))

    def _why_hopeless(self, failed_starts: int, reason: str) -> str:
        """Return why a server of ours that has never come up is not tried on, raise where that is the base student's."""
        if self._process is None or (self._was_ready if self._student.is_whole else self._was_well):
            return ""
        refused = f"{reason}; vLLM refused its command line; mend [student], above all extra_arguments"
        given_up = f"{reason}; gave up after {failed_starts} starts; see {self._process.log_path}"
        is_refused, is_over = self._process.exit_status == 2, failed_starts >= self._pace.first_starts
        if self._student.is_whole:
            return refused if is_refused else given_up if is_over else ""
        # The command cannot do its work; trying on for ever would hide what must be mended.
        if is_refused:
            raise OperatorError(refused)
        if is_over:
            raise OutsideError(given_up)
        return ""

    async def _give_up(self, problem: str) -> None:
        """Note that a whole release could not be loaded, and wait until nobody needs it."""
        self.has_given_up = True
        await self._tell(ServerState.DOWN, problem)
        load = Load(self._student.server_id, self._student.release_id, loaded=False, detail=problem)
        await asyncio.to_thread(releases.note_load, self._record, load)
        self._say(f"student: {self._student.release_id} has no server: {problem}")
        await asyncio.Event().wait()

    async def _go_down(self, reason: str, backoff_seconds: float) -> None:
        again = "starting it again" if self._new_process else "looking again"
        self._say(f"student: {self.base_url} is down: {reason}; {again} in {backoff_seconds:g} s")
        await self._tell(ServerState.DOWN, reason)
        await self._end_process(at_once=True)

    async def _end_process(self, *, at_once: bool) -> None:
        if self._process is not None:
            await self._process.end(at_once=at_once)
            self._process = None
            self._memory = Memory()

    async def _names(self) -> frozenset[str]:
        try:
            return await self._api.model_names()
        except OutsideError as error:
            raise _Lost(str(error)) from None

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
                    server_id=self._student.server_id,
                    base_url=self.base_url,
                    base=self._student.base,
                    state=self._state,
                    process_id=process_id,
                    detail=self._detail,
                    release_id=self.whole_id,
                    memory_bytes=self._memory.resident_bytes,
                    gpu_memory_bytes=self._memory.gpu_bytes,
                )
            except OutsideError as error:
                # The next heartbeat says the same.
                log.warning("student %s: not announced: %s", self.base_url, error)

    async def _beat(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(self._pace.heartbeat_seconds)
            process_id = self._process.process_id if self._process else None
            if process_id is not None and (beats % self._pace.memory_every_beats == 0 or not self._memory.resident_bytes):
                self._memory = await asyncio.to_thread(memory_of, process_id)
            beats += 1
            await self._announce()
