"""Asking one teacher: what was paid for before is used again; the rest is reserved, sent, saved, read and settled, in this order.

In: requests. Out: answers with what they took. What may pass is tried again a bounded number of times, at the teacher's pace; every
fault is counted by its kind. Teachers and the judge are asked through this alone, so that all of it stands under the same caps.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

from conversations.errors import OperatorError, OutsideError, Refused
from conversations.replies import TeacherReply, find_reply, put_reply, save_reply
from conversations.spending import settle, settle_one, take_back
from conversations.store import Record
from distill.dataset.teaching.budget import CapReached, Purse, most_it_costs
from distill.dataset.teaching.pace import MAX_TRIES, Pace, wait_before_next
from distill.dataset.teaching.replies import Fault, Reply, cost_usd, read_reply
from distill.dataset.teaching.requests import Request
from distill.dataset.teaching.teacher import Delay, RawReply, RequestRefused, Teacher, Unanswered
from distill.settings import TeacherTable

_MAX_UNREADABLE = 2
# Of ordinary text, for the limit on tokens a minute, which providers reckon alike; a reservation assumes more.
_BYTES_PER_TOKEN = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A reply and what was read of it; `reused` where it was paid for before."""

    stored: TeacherReply
    reply: Reply
    reused: bool


class Asker:
    """One teacher, held open for a run; an async context manager."""

    def __init__(
        self,
        name: str,
        table: TeacherTable,
        *,
        record: Record,
        purse: Purse,
        purpose: Literal["teach", "judge"] = "teach",
        concurrency: int | None = None,
        only_known: bool = False,
    ) -> None:
        """`only_known` sends nothing: what was not answered before stays unanswered."""
        self.name, self.table = name, table
        self._record, self._purse = record, purse
        self._payee = name if purpose == "teach" else f"{name} as judge"
        self._teacher = Teacher(name, table)
        self._pace = Pace(name, table, concurrency=concurrency)
        self._patience = max(3, concurrency or table.concurrency)
        self._unanswered_in_a_row = 0
        self._under_way: dict[str, asyncio.Future[Answered]] = {}
        self.only_known = only_known
        # What was refused once is refused again.
        self.refused: set[str] = set()
        # What a cap kept out of the batches.
        self.capped: set[str] = set()
        self.faults: Counter[str] = Counter()
        self.calls = 0
        self._bought: set[str] = set()
        self._found: set[str] = set()

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._teacher.__aexit__(kind, error, traceback)

    @property
    def teacher(self) -> Teacher:
        """The open connection."""
        return self._teacher

    @property
    def reused(self) -> int:
        """How many requests had been paid for before this asker was opened."""
        return len(self._found)

    @property
    def purse(self) -> Purse:
        """What pays."""
        return self._purse

    @property
    def record(self) -> Record:
        """Where replies are kept."""
        return self._record

    async def ask(self, request: Request, *, may_call: Callable[[], bool] = lambda: True) -> Answered:
        """Return the answer to a request: the one paid for before, or a new one. `may_call` is asked before each try.

        Raises Unanswered when the teacher has not answered after every try, RequestRefused when it refuses this request,
        CapReached when there is no money for it, Refused when its bill has passed a cap, OutsideError when it does not answer at
        all, and OperatorError when it will not serve us.
        """
        known = self.known(request)
        if known is not None:
            if request.request_hash not in self._bought:
                self._found.add(request.request_hash)
            return known
        if request.request_hash in self.refused:
            raise RequestRefused(f"{request.decision_id}: refused before")
        if self.only_known and request.request_hash in self.capped:
            raise CapReached
        if self.only_known:
            raise Unanswered(f"{request.decision_id}: not answered in a batch")
        same = self._under_way.get(request.request_hash)
        if same is not None:
            return replace(await asyncio.shield(same), reused=True)
        coming: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._under_way[request.request_hash] = coming
        try:
            answered = await self._buy(request, may_call)
            coming.set_result(answered)
            return answered
        except BaseException as failure:
            if isinstance(failure, asyncio.CancelledError):
                coming.cancel()
            else:
                coming.set_exception(failure)
                # Whoever waits for it hears of it; where nobody does, this call tells.
                coming.exception()
            raise
        finally:
            del self._under_way[request.request_hash]

    async def answer(self, build: Callable[[int], Request]) -> Answered:
        """Return an answer; one that was cut off is asked for once more with twice the room, and then kept as it is.

        `build` makes the request with so many times the room. Raises as `ask` does.
        """
        answered = await self.ask(build(1))
        if not answered.reply.truncated:
            return answered
        try:
            return await self.ask(build(2))
        except (Unanswered, RequestRefused, CapReached):
            return answered

    def known(self, request: Request) -> Answered | None:
        """Return the readable reply that was paid for before, if there is one."""
        stored = find_reply(self._record, request.request_hash)
        if stored is None:
            return None
        reply = read_reply(stored.reply_json, request)
        return None if isinstance(reply, Fault) else Answered(stored, reply, reused=True)

    async def _buy(self, request: Request, may_call: Callable[[], bool]) -> Answered:
        unreadable = 0
        tries = 0
        while tries < MAX_TRIES and unreadable < _MAX_UNREADABLE:
            if not may_call():
                raise Unanswered(f"{request.decision_id}: no call is left for it after {tries} tries")
            tries += 1
            got = await self._send(request)
            if isinstance(got, Answered):
                self._pace.breaker.answered()
                self._unanswered_in_a_row = 0
                return got
            self.faults[got.fault] += 1
            unreadable += isinstance(got, _Unreadable)
            if got.fault is not Fault.RATE_LIMITED:
                self._pace.breaker.failed()
            if got.asked_seconds > 0:
                self._pace.hold(got.asked_seconds)
            elif tries < MAX_TRIES and unreadable < _MAX_UNREADABLE:
                await wait_before_next(tries)
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row >= self._patience:
            raise OutsideError(
                f"the teacher {self.name!r} at {self.table.base_url} has stopped answering ({self._unanswered_in_a_row} requests in "
                "a row without an answer); run again later: what was answered is kept"
            )
        raise Unanswered(f"{request.decision_id}: no answer after {tries} tries")

    async def _send(self, request: Request) -> "Answered | Delay":
        """Send a request once, its money reserved; what surely costs nothing gives it back, what may have cost does not."""
        usd, tokens = most_it_costs(self.table, request)
        expected = len(request.body) // _BYTES_PER_TOKEN + request.max_tokens
        async with self._pace.place(expected):
            spending_id = await self._purse.reserve(self._payee, usd, tokens)
            self.calls += 1
            try:
                got = await self._teacher.ask_once(request)
                if isinstance(got, RawReply):
                    answered = self._take(request, got, spending_id, usd, tokens)
                    if isinstance(answered, Answered) and answered.reply.usage is not None:
                        usage = answered.reply.usage
                        self._pace.took(expected, usage.prompt_tokens + usage.completion_tokens)
                    return answered
                if not got.may_be_billed:
                    settle(self._record, spending_id, 0.0, 0)
                return got
            except (RequestRefused, OperatorError) as failure:
                if isinstance(failure, RequestRefused):
                    self.faults[Fault.REFUSED_REQUEST] += 1
                    self.refused.add(request.request_hash)
                settle(self._record, spending_id, 0.0, 0)
                raise
            except OutsideError:
                # Nobody was reached: it was no call.
                take_back(self._record, spending_id)
                self.calls -= 1
                raise
            finally:
                self._purse.release()

    def _take(
        self, request: Request, got: RawReply, spending_id: str, most_usd: float, most_tokens: int
    ) -> "Answered | Delay":
        """Save a raw reply, then read it, then settle what it took; what does not say so truly took all that was reserved."""
        stored = TeacherReply(request.request_hash, request.decision_id, self.name, got.body, 0, 0, 0.0, got.latency_ms)
        save_reply(self._record, stored)
        self._bought.add(request.request_hash)
        reply = read_reply(got.body, request)
        if isinstance(reply, Fault):
            log.warning("%s: the reply for %s is no chat completion: %s", self.name, request.decision_id, reply.value)
            settle(self._record, spending_id, most_usd, most_tokens)
            return _Unreadable(reply, 0.0, may_be_billed=True)
        self.faults.update(reply.faults)
        stored = priced(stored, reply, self.table, most_usd=most_usd)
        with self._record.write() as transaction:
            put_reply(transaction, stored)
            took = stored.prompt_tokens + stored.completion_tokens if reply.usage is not None else most_tokens
            settle_one(transaction, spending_id, stored.cost_usd, took)
        if Fault.USAGE_ABOVE_LIMIT in reply.faults:
            self.check_bill(request, stored)
        return Answered(stored, reply, reused=False)

    def check_bill(self, request: Request, stored: TeacherReply) -> None:
        """Look whether a request that took more than was reserved has passed a cap.

        Raises Refused when it has.
        """
        usd, tokens = most_it_costs(self.table, request)
        told = (
            f"the teacher {self.name!r} says that {request.decision_id} took {stored.prompt_tokens} prompt and "
            f"{stored.completion_tokens} completion tokens (${stored.cost_usd:.4f}), where at most {tokens} (${usd:.4f}) can be"
        )
        passed = self._purse.passed_cap()
        if passed:
            raise Refused(
                f"{told}, and with it {passed}; nothing more is asked: look at the provider's bill, then raise the cap or name "
                "another teacher; what was answered is kept"
            )
        log.warning("%s; it is booked as it says", told)


class _Unreadable(Delay):
    """A reply came and holds no answer; repeating it more than once is money thrown after it."""


def priced(stored: TeacherReply, reply: Reply, table: TeacherTable, *, most_usd: float, share: float = 1.0) -> TeacherReply:
    """Return a stored reply with what it took; one without a usage to be believed has cost the most that it could."""
    if reply.usage is None:
        return replace(stored, cost_usd=most_usd)
    return replace(
        stored,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
        cost_usd=cost_usd(table, reply.usage, share=share),
    )
