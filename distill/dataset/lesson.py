"""A lesson: one sitting with a teacher, in which each request is asked once, several at a time, within the caps.

In: requests. Out: for each request hash an answer, or why there is none. A raw reply is in the record before anybody reads
it, so that a killed command pays for no answer twice. The first few requests decide whether the teacher is fit to be asked
more. It never judges what an answer says.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from conversations import decisions
from conversations.errors import Failure, OutsideError, Refused
from conversations.store import Record
from distill.dataset.asking import TeacherRequest
from distill.dataset.budget import Purse, cost_usd, worst_cost_usd
from distill.dataset.teacher import BadReply, RawReply, Reply, RequestRejected, Teacher, TryAgain, read_reply, read_usage
from distill.run import Run, Stage
from distill.settings import TeacherTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How often a failed attempt is repeated, and how many seconds are waited between.

    `attempts_when_silent` holds where nothing came back at all; `failures_in_a_row` requests given up end the lesson.
    """

    attempts: int = 5
    attempts_when_silent: int = 2
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 120.0
    failures_in_a_row: int = 8

    def allows(self, attempt: int, reason: str) -> bool:
        """Tell whether there is another attempt after this one, counted from 1."""
        return attempt < (self.attempts_when_silent if reason in ("timeout", "unreachable") else self.attempts)

    def wait_after(self, attempt: int) -> float:
        """Return a wait that doubles with each attempt, with jitter so that requests do not come back all at once."""
        return min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Answered:
    """A usable answer, the request that got it, and what it took."""

    request: TeacherRequest
    reply: Reply
    kept: decisions.TeacherReply


@dataclass(frozen=True)
class Unanswered:
    """Why there is no usable answer: rejected is the teacher's doing, unscored that of something outside that failed."""

    outcome: Literal["rejected", "unscored"]
    reason: str
    detail: str = ""


PATIENCE = Patience()

Result = Answered | Unanswered

_STOPPED = Unanswered("unscored", "stopped")
CAP = Unanswered("unscored", "cap")


@dataclass(frozen=True)
class Lesson:
    """What a lesson brought: a result for each request hash, and how many replies were in the record before."""

    results: Mapping[str, Result]
    reused: int


async def hold_lesson(
    run: Run, table: TeacherTable, requests: Sequence[TeacherRequest], patience: Patience = PATIENCE
) -> Lesson:
    """Ask every request once. Whatever ends the lesson early, requests under way are waited for and their replies kept.

    Raises Refused when too many of the first requests fail, OperatorError or OutsideError when the teacher cannot be asked.
    """
    teach = run.settings.teach
    different = {request.request_hash: request for request in requests}
    results: dict[str, Result] = {}
    failed: list[Unanswered] = []
    purse = Purse(run.record, run.run_id, teach.teacher, max_cost_usd=teach.max_cost_usd, max_calls=teach.max_calls)

    def note(request: TeacherRequest, result: Result) -> None:
        results[request.request_hash] = result
        share = len(results) / len(different)
        run.report_progress(Stage.TEACH, min(share, 0.999), f"{len(results)} of {len(different)} questions")

    async with Teacher(teach.teacher, table) as teacher:
        asker = _Asker(run.record, table, teacher, purse, patience)

        # The first few get no second chance, so that an unfit teacher costs little.
        async def try_out(request: TeacherRequest) -> None:
            result = await asker.ask(request)
            if isinstance(result, Unanswered) and result != CAP:
                failed.append(result)
                if len(failed) > teach.max_smoke_failures:
                    asker.stop(_unfit(run, failed))
            if not _is_truncated(result):
                note(request, result)

        async def ask(request: TeacherRequest) -> None:
            result = await asker.ask(request)
            note(request, await asker.ask(request.doubled()) if _is_truncated(result) else result)

        await asker.ask_in_parallel(list(different.values())[: teach.smoke_decisions], try_out)
        await asker.ask_in_parallel([different[name] for name in different if name not in results], ask)
    return Lesson(results, asker.reused)


def _is_truncated(result: Result) -> bool:
    return isinstance(result, Unanswered) and result.reason == "truncated"


def _unfit(run: Run, failed: Sequence[Unanswered]) -> Failure:
    """Return why a teacher that failed the first questions is not asked the others."""
    teach = run.settings.teach
    counted = Counter(each.reason for each in failed)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counted.items()))
    what = (
        f"the teacher {teach.teacher!r} failed {len(failed)} of the first {teach.smoke_decisions} questions ({reasons}); "
        f"at most {teach.max_smoke_failures} may fail ([teach] max_smoke_failures), so no more were asked"
    )
    if all(each.outcome == "unscored" for each in failed):
        return OutsideError(f"{what}; run again when it answers: what has come is kept")
    detail = next((f"; it says: {each.detail}" for each in failed if each.detail), "")
    table = f"[teachers.{teach.teacher}]"
    advice = f"raise {table} max_answer_tokens" if counted["truncated"] else f"try {table} model by hand, or choose another"
    return Refused(f"{what}{detail}; {advice}")


class _Asker:
    """Asks one request until there is a result, within patience and purse. `stop` makes all others end early."""

    def __init__(self, record: Record, table: TeacherTable, teacher: Teacher, purse: Purse, patience: Patience) -> None:
        self._record = record
        self._table = table
        self._teacher = teacher
        self._purse = purse
        self._patience = patience
        self._stopped_by: Failure | None = None
        self._capped = False
        self._given_up_in_a_row = 0
        self._quiet_until = 0.0
        self._bought: set[str] = set()
        self.reused = 0

    def stop(self, failure: Failure) -> None:
        """End the lesson; the first reason counts."""
        self._stopped_by = self._stopped_by or failure

    async def ask_in_parallel(
        self, requests: Sequence[TeacherRequest], ask: Callable[[TeacherRequest], Awaitable[None]]
    ) -> None:
        """Ask requests in their order, as many at a time as the teacher's settings say.

        Raises what stopped the lesson, once the requests under way have ended.
        """
        waiting = iter(requests)

        async def work() -> None:
            for request in waiting:
                if self._stopped_by is not None:
                    return
                await ask(request)

        await asyncio.gather(*(work() for _ in range(min(self._table.concurrency, len(requests)))))
        if self._stopped_by is not None:
            raise self._stopped_by

    async def ask(self, request: TeacherRequest) -> Result:
        """Return the result for a request: from the record where it was answered before, from the teacher otherwise."""
        kept = decisions.find_reply(self._record, request.request_hash)
        if kept is not None and not isinstance(found := _result_of(request, kept), BadReply):
            self.reused += request.request_hash not in self._bought
            return found
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(request)
            except TryAgain as failure:
                again = self._patience.allows(attempt, failure.reason) and self._stopped_by is None
                if not again:
                    return self._give_up(failure)
                await self._wait(failure, attempt)
            except RequestRejected as failure:
                return Unanswered("rejected", "bad_request", str(failure))
            except Failure as failure:
                self.stop(failure)
                return _STOPPED

    async def _attempt(self, request: TeacherRequest) -> Result:
        """Reserve, send, keep, settle, read: in this order."""
        while (quiet_seconds := self._quiet_until - time.monotonic()) > 0 and self._stopped_by is None:
            await asyncio.sleep(min(quiet_seconds, 1.0))
        if self._stopped_by is not None:
            return _STOPPED
        most_usd = worst_cost_usd(self._table, request)
        reservation = None if self._capped else await self._purse.reserve(most_usd)
        if reservation is None:
            if not self._capped:
                log.warning("a cap of [teach] is reached; the decisions that are left stay unasked")
            self._capped = True
            return CAP
        try:
            raw = await self._teacher.ask_once(request)
        except TryAgain as failure:
            if failure.reason == "unreachable":
                await self._purse.cancel(reservation)
            else:
                await self._purse.settle(reservation, None if failure.perhaps_paid else 0.0)
            raise
        except (RequestRejected, Failure):
            await self._purse.settle(reservation, 0.0)
            raise
        kept = self._keep(request, raw, most_usd)
        await self._purse.settle(reservation, kept.cost_usd)
        result = _result_of(request, kept)
        if isinstance(result, BadReply):
            raise TryAgain("bad_reply", str(result))
        self._given_up_in_a_row = 0
        return result

    def _keep(self, request: TeacherRequest, raw: RawReply, most_usd: float) -> decisions.TeacherReply:
        """Write a reply into the record as it came; one that reports no usage is taken to have cost the most it can."""
        usage = read_usage(raw.text)
        kept = decisions.TeacherReply(
            request_hash=request.request_hash,
            decision_id=request.decision_id,
            teacher=request.teacher,
            reply_json=raw.text,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            cost_usd=cost_usd(self._table, usage) if usage else most_usd,
            latency_ms=raw.latency_ms,
        )
        decisions.save_reply(self._record, kept)
        self._bought.add(request.request_hash)
        return kept

    async def _wait(self, failure: TryAgain, attempt: int) -> None:
        asked = failure.wait_seconds
        if asked is not None and asked > self._patience.longest_wait_seconds:
            self.stop(
                OutsideError(
                    f"{failure}: the teacher asks to wait {asked:.0f} s, longer than "
                    f"{self._patience.longest_wait_seconds:.0f} s; run again later: what has come is kept"
                )
            )
            return
        seconds = self._patience.wait_after(attempt) if asked is None else asked
        log.warning("%s; attempt %d failed, the next one in %.1f s", failure, attempt, seconds)
        if failure.reason == "rate_limited" and asked is not None:
            # The limit is the account's, so everybody waits.
            self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)
        await asyncio.sleep(seconds)

    def _give_up(self, failure: TryAgain) -> Unanswered:
        if failure.reason == "unreachable":
            start = "start it with `distill teacher`" if self._table.kind == "handbook" else "start it or mend base_url"
            self.stop(OutsideError(f"nothing answers at {failure.detail}; {start}, and run again"))
            return _STOPPED
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= self._patience.failures_in_a_row:
            self.stop(
                OutsideError(
                    f"{self._given_up_in_a_row} questions in a row got no answer, the last one for {failure}; "
                    "run again when the teacher answers: what has come is kept"
                )
            )
        outcome: Literal["rejected", "unscored"] = "rejected" if failure.reason == "bad_reply" else "unscored"
        return Unanswered(outcome, failure.reason)


def _result_of(request: TeacherRequest, kept: decisions.TeacherReply) -> Result | BadReply:
    """Return what a kept reply is worth: an answer, a reason why not, or that it must be asked for again."""
    try:
        reply = read_reply(kept.reply_json)
    except BadReply as error:
        return error
    match reply.finish_reason:
        case "stop" if reply.text:
            return Answered(request, reply, kept)
        case "stop":
            return Unanswered("rejected", "empty")
        case "length":
            return Unanswered("rejected", "truncated")
        case reason:
            return Unanswered("rejected", reason)
