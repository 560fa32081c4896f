"""Whom a run may ask and pay: licences, the most that a request can cost, and the purse that all who ask share.

In: the settings, requests. Out: reservations in the record, or a refusal. A reservation assumes the most that a request can
cost, so that no cap is ever passed, whatever the concurrency. It sends nothing.
"""

import asyncio
import logging
from collections import Counter

from conversations import spending
from conversations.errors import OperatorError
from conversations.spending import Caps, Spent
from conversations.store import Record
from distill.dataset.teaching.replies import most_prompt_tokens
from distill.dataset.teaching.requests import Request
from distill.dataset.teaching.teacher import is_on_this_machine, key_of
from distill.settings import DistillSettings, TeacherTable

log = logging.getLogger(__name__)


class CapReached(Exception):
    """The next request would pass the cap on money, tokens or calls."""


class Purse:
    """What a run may spend, shared by its teachers and its judge; used inside one event loop."""

    def __init__(self, record: Record, run_id: str, caps: Caps) -> None:
        self._record, self._run_id, self._caps = record, run_id, caps
        self._under_way = 0
        self._released = asyncio.Event()
        self.is_closed = False

    @property
    def caps(self) -> Caps:
        """What the run may spend at most."""
        return self._caps

    async def reserve(self, payee: str, usd: float, tokens: int) -> str:
        """Reserve for one request; what is on its way may cost less than it reserved, so its end is waited for.

        Raises CapReached when nothing is on its way and there is no room, or the purse was closed.
        """
        while not self.is_closed:
            (spending_id,) = spending.reserve(self._record, self._run_id, payee, [(usd, tokens)], self._caps)
            if spending_id is not None:
                self._under_way += 1
                return spending_id
            if self._under_way == 0:
                raise CapReached
            self._released.clear()
            await self._released.wait()
        raise CapReached

    async def close(self) -> None:
        """Let nothing more leave, and wait until what is on its way has come: it is paid for."""
        self.is_closed = True
        self._released.set()
        while self._under_way > 0:
            self._released.clear()
            await self._released.wait()

    def passed_cap(self) -> str:
        """Say which cap the run has passed, and by what; empty when it has passed none."""
        spent, caps = spending.spent(self._record, self._run_id), self._caps
        is_passed = spent.usd > caps.usd or (caps.tokens is not None and spent.tokens > caps.tokens)
        return told_caps(spent, caps) if is_passed else ""

    def told(self) -> str:
        """Say how far the run has come to its caps."""
        return told_caps(spending.spent(self._record, self._run_id), self._caps)

    def release(self) -> None:
        """Say that a request is no longer on its way; whoever waits for room looks again."""
        self._under_way -= 1
        self._released.set()


def caps_of(settings: DistillSettings) -> Caps:
    """Return what a run may spend."""
    return Caps(settings.teach.max_cost_usd, settings.teach.max_calls, settings.teach.max_tokens)


def told_caps(spent: Spent, caps: Caps) -> str:
    """Say in words what was spent of what may be."""
    of_tokens = f" of max_tokens = {caps.tokens}" if caps.tokens is not None else ""
    return (
        f"the run has taken ${spent.usd:.4f} of max_cost_usd = {caps.usd:g}, {spent.calls} of max_calls = {caps.calls} and "
        f"{spent.tokens} tokens{of_tokens}"
    )


def most_it_costs(table: TeacherTable, request: Request, *, share: float = 1.0) -> tuple[float, int]:
    """Return the most that a request can cost, in US dollars and in tokens; `share` is that of a batch."""
    prompt = most_prompt_tokens(request)
    dearest = max(table.prompt_usd_per_million, table.cached_prompt_usd_per_million or 0.0)
    usd = (prompt * dearest + request.max_tokens * table.completion_usd_per_million) * share / 1e6
    return usd, prompt + request.max_tokens


def teachers_of(settings: DistillSettings) -> dict[str, TeacherTable]:
    """Return the tables of every teacher that [teach] names, in the order in which they are asked.

    Raises OperatorError for a name that is not there, a licence that does not allow training, and several teachers without a
    judge to choose among them.
    """
    names = dict.fromkeys((settings.teach.teacher, *settings.teach.best_of, *settings.teach.fallback))
    tables = {name: _allowed(name, settings) for name in names}
    _check_no_name_twice(settings)
    if settings.teach.best_of and settings.judge is None:
        raise OperatorError(
            f"{settings.settings_file} [teach]: best_of needs a judge to pick the best; add a table [judge] with teacher = a name "
            "of [teachers], or leave best_of out"
        )
    for name in settings.teach.best_of:
        if tables[name].kind == "logged":
            raise OperatorError(
                f"{settings.settings_file} [teach]: best_of names {name!r}, which is of the kind 'logged' and is asked nothing; "
                "name it as teacher or in fallback, or set people_first = true"
            )
    return tables


def _check_no_name_twice(settings: DistillSettings) -> None:
    teach = settings.teach
    for key, names in (("fallback", (teach.teacher, *teach.fallback)), ("best_of", teach.best_of)):
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            where = "is the teacher already or stands there twice" if key == "fallback" else "stands there twice"
            raise OperatorError(
                f"{settings.settings_file} [teach]: {key} names {twice!r}, which {where}; the same teacher is asked once: take it out"
            )


def check_teachers(settings: DistillSettings) -> None:
    """Make sure that every teacher and the judge can be asked.

    Raises OperatorError as `teachers_of` does, and for a key that is not in the environment.
    """
    asked = dict(teachers_of(settings))
    if settings.judge is not None and settings.judge.teacher in settings.teachers:
        asked[settings.judge.teacher] = settings.teachers[settings.judge.teacher]
    for name, table in asked.items():
        if table.kind != "logged":
            key_of(name, table)
            _warn_of_no_price(f"{settings.settings_file} [teachers.{name}]", table)


def _allowed(name: str, settings: DistillSettings) -> TeacherTable:
    table = settings.teachers.get(name)
    place = f"{settings.settings_file} [teachers.{name}]"
    if table is None:
        known = ", ".join(sorted(settings.teachers)) or "none"
        raise OperatorError(f"{settings.settings_file} [teach]: {name!r} is not in [teachers]; known are: {known}")
    if table.licence_allows_training == "no":
        raise OperatorError(
            f"{place}: its licence does not allow training on its answers; expected a teacher whose licence does; name another"
        )
    if table.licence_allows_training == "unknown" and not settings.teach.allow_unknown_licence:
        raise OperatorError(
            f"{place}: whether its licence allows training on its answers is unknown; find out and set "
            "licence_allows_training, or set [teach] allow_unknown_licence = true and answer for it"
        )
    return table


def _warn_of_no_price(place: str, table: TeacherTable) -> None:
    is_free = table.prompt_usd_per_million == 0 and table.completion_usd_per_million == 0
    if is_free and not is_on_this_machine(table):
        log.warning("%s: %s is not on this machine and has no price; the cap in dollars cannot hold", place, table.base_url)
