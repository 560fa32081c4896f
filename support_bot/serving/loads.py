"""What one server has in memory, held against what the record wants there: load, check, note, unload.

In: the names that a server answers to, and the needs of the record. Out: loads in the record that customers can rely on: each
answered real prompts first. Never starts or ends a server.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conversations import releases
from conversations.errors import OperatorError, OutsideError
from conversations.releases import Load, Release, ReleaseKind, needs
from conversations.releases.needs import Need, Needed
from conversations.serving import read_serving, why_unfit
from conversations.store import Record
from support_bot.serving.leaving import Leaving
from support_bot.serving.pace import Pace, ServedStudent
from support_bot.serving.real_prompts import RealPrompts
from support_bot.vllm_api import VllmApi

WHOLE_KINDS = (ReleaseKind.MERGED, ReleaseKind.FULL)
# Customers meet these now: what keeps one away may pass, so it is tried as long as the server lives.
VITAL = (Need.IN_SERVICE, Need.BASE, Need.ON_TRIAL)

log = logging.getLogger(__name__)


@dataclass
class _Trial:
    """How often a release was tried since it was wished for, how often that ended the server, and what went wrong last."""

    wanted_at_utc: str
    attempts: int = 0
    endings: int = 0
    problem: str = ""
    failed_at: float | None = None
    next_at: float = 0.0
    backoff_seconds: float = 0.0


class ServerLoads:
    """The releases of one server. `why_not_whole` says why a whole release has no server of its own, or nothing."""

    def __init__(
        self,
        record: Record,
        api: VllmApi,
        student: ServedStudent,
        prompts: RealPrompts,
        *,
        why_not_whole: Callable[[Release], str],
        say: Callable[[str], None],
        pace: Pace,
    ) -> None:
        self._record = record
        self._api = api
        self._student = student
        self._prompts = prompts
        self._why_not_whole = why_not_whole
        self._say = say
        self._pace = pace
        self._leaving = Leaving(record, pace)
        self._loads: dict[str, Load] = {}
        self._trials: dict[str, _Trial] = {}
        self._kept: set[str] = set()
        self._is_open = False

    def begin(self) -> None:
        """The server starts anew and has nothing in memory; what ended it before is still known."""
        self._loads.clear()
        self._is_open = False
        for trial in self._trials.values():
            trial.endings += trial.failed_at is not None
            trial.failed_at, trial.next_at = None, 0.0

    async def open(self) -> list[str]:
        """Write what the server has, now that it is ready, and from now on at once; return the names."""
        self._is_open = True
        for load in list(self._loads.values()):
            await self._note(load)
        return [name for name, load in self._loads.items() if load.loaded]

    def problem(self, release_id: str) -> str:
        """Return why a release is not loaded, or an empty string."""
        load = self._loads.get(release_id)
        return load.detail if load else ""

    async def match(self, names: frozenset[str], whole_id: str | None) -> None:
        """Load what is needed and the server (which answers to `names`) lacks; let go what is needed no longer.

        whole_id: the whole release that the server serves; it loads no other.
        """
        self._acquit()
        needed = await asyncio.to_thread(needs.needed, self._record, keep_hours=self._student.keep_hours)
        for each in needed:
            name = each.release.release_id
            self._leaving.stays(name)
            trial = self._trials.setdefault(name, _Trial(each.wanted_at_utc))
            if trial.wanted_at_utc != each.wanted_at_utc:
                self._trials[name] = _Trial(each.wanted_at_utc)
                if not self._is_loaded(name):
                    self._loads.pop(name, None)
            await self._provide(each, names, whole_id)
        needed_ids = {each.release.release_id for each in needed}
        self._trials = {name: trial for name, trial in self._trials.items() if name in needed_ids}
        self._kept -= needed_ids
        await self._let_go(names - needed_ids - {self._student.release_id, whole_id}, needed_ids)

    def _acquit(self) -> None:
        """The server is well: what failed some time ago has not ended it."""
        for trial in self._trials.values():
            if trial.failed_at is not None and time.monotonic() - trial.failed_at > self._pace.blame_seconds:
                trial.failed_at = None

    async def _provide(self, each: Needed, names: frozenset[str], whole_id: str | None) -> None:
        release, name = each.release, each.release.release_id
        if release.kind in WHOLE_KINDS and name != whole_id:
            await self._tell_of_whole(release, whole_id)
        elif whole_id is not None and name != whole_id:
            return
        elif name in names:
            if not self._is_loaded(name):
                await self._try(each, is_there=True)
        elif self._is_loaded(name) or name not in self._loads or self._trials[name].attempts:
            await self._try(each, is_there=False)

    async def _tell_of_whole(self, release: Release, whole_id: str | None) -> None:
        """Say on the base's server why a whole release has none of its own."""
        problem = self._why_not_whole(release) if whole_id is None else ""
        if problem:
            await self._remember(release.release_id, problem)
        elif release.release_id in self._loads:
            await self._forget(release.release_id)

    async def _try(self, each: Needed, *, is_there: bool) -> None:
        """Load a release where it is not there, and check it with real prompts; a failure stands in the record."""
        release, name, is_vital = each.release, each.release.release_id, each.need in VITAL
        trial = self._trials[name]
        if release.kind is ReleaseKind.BASE and is_there:
            await self._remember(name, "")
            return
        if given_up := self._why_given_up(trial, is_vital=is_vital):
            await self._remember(name, given_up)
            return
        if is_vital and time.monotonic() < trial.next_at:
            return
        misfit = "" if is_there else self._misfit(release)
        if misfit:
            await self._remember(name, misfit)
            self._say(f"student: {self._student.base_url} cannot serve {name}: {misfit}")
            return
        # Counted before the attempt, so that weights which end the server are not tried for ever.
        trial.attempts += 1
        began, told = time.monotonic(), trial.problem
        trial.problem = await self._load_and_check(release, is_there=is_there)
        await self._remember(name, trial.problem)
        if trial.problem:
            # What a server has of itself, a whole release, it is not loaded with: its starts are counted, not its loads.
            trial.failed_at = None if is_there else time.monotonic()
            trial.backoff_seconds = self._pace.longer_backoff(trial.backoff_seconds)
            trial.next_at = time.monotonic() + trial.backoff_seconds
            if trial.problem != told:
                tries = (
                    "tried again while the server lives" if is_vital else f"tried {self._pace.load_attempts} times at most"
                )
                self._say(f"student: {self._student.base_url} could not load {name}: {trial.problem} ({tries})")
            return
        self._trials[name] = _Trial(trial.wanted_at_utc)
        if self._is_open:
            self._say(f"student: {self._student.base_url} has loaded {name} in {time.monotonic() - began:.1f} s")

    def _why_given_up(self, trial: _Trial, *, is_vital: bool) -> str:
        most = self._pace.load_attempts
        if trial.endings >= most:
            return f"given up after {trial.endings} attempts that ended the server: {trial.problem}"
        if trial.attempts >= most and not is_vital:
            return f"given up after {trial.attempts} attempts: {trial.problem}"
        return ""

    async def _load_and_check(self, release: Release, *, is_there: bool) -> str:
        """Return what went wrong, or an empty string; a release that cannot be used is not left in the server's memory."""
        name = release.release_id
        prompts = await asyncio.to_thread(self._prompts.newest)
        try:
            if not is_there:
                await self._api.load(name, release.weights_path)
            problem = await self._prompts.why_unusable(self._api, name, prompts)
            if problem and release.kind is ReleaseKind.LORA:
                await self._api.unload(name)
        except OutsideError as error:
            return str(error)
        return problem

    def _misfit(self, release: Release) -> str:
        """Return why a release cannot be loaded beside this base, or an empty string."""
        student = self._student
        if release.base not in (student.base, student.release_id):
            return f"it was made for the base {release.base!r}; this server's is {student.base!r}"
        if release.kind is ReleaseKind.BASE:
            return f"it is another base student than this server's, {student.release_id!r}; only adapters of that are loaded"
        try:
            serving = read_serving(Path(release.weights_path))
        except OperatorError as error:
            return str(error)
        # Weights of earlier versions do not say how they are to be served.
        return why_unfit(serving, student.served) if serving else ""

    async def _let_go(self, surplus: frozenset[str], needed_ids: set[str]) -> None:
        """Forget what is needed no longer, and unload it once nobody can be waiting for its answer."""
        for name in set(self._loads) - needed_ids - surplus:
            await self._forget(name)
        if not surplus - self._kept:
            return
        known = {release.release_id for release in await asyncio.to_thread(releases.releases, self._record)}
        for name in sorted(surplus - self._kept):
            if name not in known:
                log.warning("student %s: has %r loaded, which the record does not know", self._student.base_url, name)
                self._kept.add(name)
            elif await self._leaving.may_go(name):
                await self._forget(name)
                await self._unload(name)

    async def _unload(self, release_id: str) -> None:
        try:
            await self._api.unload(release_id)
        except OutsideError as error:
            log.warning("student %s: could not unload %s: %s", self._student.base_url, release_id, error)
            self._kept.add(release_id)
            return
        self._say(f"student: {self._student.base_url} has unloaded {release_id}")

    def _is_loaded(self, release_id: str) -> bool:
        load = self._loads.get(release_id)
        return load is not None and load.loaded

    async def _forget(self, release_id: str) -> None:
        self._loads.pop(release_id, None)
        await asyncio.to_thread(releases.forget_load, self._record, self._student.server_id, release_id)

    async def _remember(self, release_id: str, problem: str) -> None:
        load = Load(self._student.server_id, release_id, loaded=not problem, detail=problem)
        if self._loads.get(release_id) == load:
            return
        self._loads[release_id] = load
        # The record forgets the loads of a server that is not ready, so they are noted once it is.
        if self._is_open:
            await self._note(load)

    async def _note(self, load: Load) -> None:
        try:
            await asyncio.to_thread(releases.note_load, self._record, load)
        except OutsideError as error:
            log.warning("student %s: %s is not noted: %s", self._student.base_url, load.release_id, error)
            # Noted again at the next look.
            del self._loads[load.release_id]
