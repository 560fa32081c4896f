"""Teach: every chosen decision, held-out ones too, is put to the teacher, once for each content.

In: `choose/decisions.jsonl`. Out: `teach/answers.jsonl` and the answers in the record. Each request is named by the hash of
everything that decides its answer; a reply that was paid for is used again and never bought twice, even after a kill. The
raw reply is saved before it is parsed. The first decisions are a trial: a teacher that fails them is not paid for the rest.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conversations import decisions
from conversations.decisions import AnswerAuthor, TeacherReply
from conversations.errors import OutsideError, Refused
from conversations.messages import Json, Role
from distill.dataset.handbook.answering import HandbookTeacher
from distill.dataset.handbook.articles import Handbook, Passage
from distill.dataset.similarity import load_embedder
from distill.dataset.teaching.budget import chosen_teacher, cost_usd, reserve, spoken_of
from distill.dataset.teaching.teacher import (
    MAX_TRIES,
    Delay,
    ParsedReply,
    RawReply,
    Request,
    RequestRefused,
    Teacher,
    Unanswered,
    make_request,
    parse_reply,
    wait_before_next,
)
from distill.rows import AnswerRow, ChosenRow, read_rows
from distill.run import Counts, Outcome, Run, Stage

_POLL_SECONDS = 0.02

log = logging.getLogger(__name__)


class _CapReached(Exception):
    """The next request would pass the cap on money or calls."""


@dataclass(frozen=True)
class _Answered:
    """A reply with what it took, read from the record or fresh from the teacher."""

    reply: TeacherReply
    parsed: ParsedReply


def teach(run: Run) -> Outcome:
    """Ask the teacher for every chosen decision and write its answers.

    Raises Refused when the trial fails, OperatorError for a teacher that must not or cannot be used, OutsideError when it
    stops answering.
    """
    table = chosen_teacher(run.settings)
    rows = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    asking = _Asking(run, rows)
    asyncio.run(asking.ask_all())
    answers = [asking.answer_row(row) for row in rows if row.decision_id in asking.answered]
    run.write_rows(Stage.TEACH, "answers.jsonl", answers)
    reasons = Counter(asking.failed.values())
    rejected = {reason: count for reason, count in sorted(reasons.items()) if reason in ("request_refused",)}
    refused: list[Json] = [name for name, reason in sorted(asking.failed.items()) if reason == "request_refused"]
    unscored = sum(reasons.values()) - sum(rejected.values())
    counts = Counts(
        taken_in=len(rows),
        accepted=len(answers),
        rejected=sum(rejected.values()),
        unscored=unscored,
        rejected_by_reason=rejected,
    )
    return Outcome(
        counts,
        {
            "teacher": run.settings.teach.teacher,
            "model": table.model,
            "kind": table.kind,
            "licence_allows_training": table.licence_allows_training,
            "calls": asking.calls,
            "reused": asking.reused,
            "truncated": sum(answer.finish_reason == "length" for answer in answers),
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            "completion_tokens": sum(answer.completion_tokens for answer in answers),
            "cost_usd": round(sum(answer.cost_usd for answer in answers), 6),
            "spent_usd": round(decisions.spent_usd(run.record, run.run_id), 6),
            "request_refused": refused,
            "unscored_by_reason": {name: count for name, count in sorted(reasons.items()) if name not in rejected},
        },
    )


class _Asking:
    """The asking of one stage: what was answered, what failed and why, and how many requests are on their way."""

    def __init__(self, run: Run, rows: Sequence[ChosenRow]) -> None:
        self._run, self._rows = run, rows
        self._settings = run.settings
        self._table = run.settings.teachers[run.settings.teach.teacher]
        handbook = run.settings.handbook
        self._handbook = Handbook.load(handbook.path) if handbook else None
        self._library: HandbookTeacher | None = None
        self._under_way = 0
        self._failures_in_a_row = 0
        self.answered: dict[str, _Answered] = {}
        self.failed: dict[str, str] = {}
        self.calls = 0
        self.reused = 0

    async def ask_all(self) -> None:
        """Ask for the trial's decisions first, and for the rest when they are well answered."""
        async with Teacher(self._settings.teach.teacher, self._table) as teacher:
            trial = self._rows[: self._settings.teach.smoke_decisions]
            await self._ask_some(teacher, trial, trial=True)
            await self._ask_some(teacher, self._rows, trial=False)
        self._report()

    async def _ask_some(self, teacher: Teacher, rows: Iterable[ChosenRow], *, trial: bool) -> None:
        waiting = iter(rows)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._table.concurrency):
                    group.create_task(self._work_off(teacher, waiting, trial=trial))
        except ExceptionGroup as failures:
            # The first failure has cut the others off.
            raise failures.exceptions[0] from None

    async def _work_off(self, teacher: Teacher, waiting: Iterable[ChosenRow], *, trial: bool) -> None:
        for row in waiting:
            if row.decision_id in self.failed and not trial:
                continue
            try:
                await self._ask_for(teacher, row, trial=trial)
                self._failures_in_a_row = 0
            except _CapReached:
                self._note_failure(row, "cap")
            except RequestRefused:
                self._note_failure(row, "request_refused")
            except Unanswered as failure:
                self._note_failure(row, "no_answer")
                self._failures_in_a_row += 1
                if self._failures_in_a_row >= max(3, self._table.concurrency):
                    raise OutsideError(
                        f"the teacher {self._settings.teach.teacher!r} at {self._table.base_url} has stopped answering "
                        f"({failure}); run again later: what was answered is kept"
                    ) from None
            if trial:
                self._judge_trial()
            self._report()

    def _note_failure(self, row: ChosenRow, reason: str) -> None:
        """Note why a decision has no answer; one whose answer was cut off keeps that answer."""
        if row.decision_id not in self.answered:
            self.failed[row.decision_id] = reason

    async def _ask_for(self, teacher: Teacher, row: ChosenRow, *, trial: bool) -> None:
        """Get the answer for a decision; one that was cut off is asked for once more with twice the room."""
        if row.decision_id in self.answered and not self.answered[row.decision_id].parsed.truncated:
            return
        answer = await self._answer_to(teacher, self._request(row, limit_factor=1))
        if answer.parsed.truncated and not trial:
            answer = await self._answer_to(teacher, self._request(row, limit_factor=2))
        self.answered[row.decision_id] = answer

    async def _answer_to(self, teacher: Teacher, request: Request) -> _Answered:
        """Return the reply to a request: the one paid for before, or a new one, saved before it is read."""
        known = decisions.find_reply(self._run.record, request.request_hash)
        if known is not None and (parsed := parse_reply(known.reply_json)) is not None:
            self.reused += 1
            return _Answered(known, parsed)
        unreadable = 0
        for tries in range(1, MAX_TRIES + 1):
            got = await self._reserved(teacher, request)
            if isinstance(got, Delay):
                if tries < MAX_TRIES:
                    await wait_before_next(tries, got)
                continue
            answered = self._save(request, got)
            if answered is not None:
                return answered
            unreadable += 1
            log.warning("%s: the reply for %s is no chat completion", self._settings.teach.teacher, request.decision_id)
            if unreadable > 1:
                break
        raise Unanswered(f"{request.decision_id}: no answer after {tries} tries")

    async def _reserved(self, teacher: Teacher, request: Request) -> RawReply | Delay:
        """Send a request with its money reserved; a failure that costs nothing gives the money back, a timeout may not."""
        while (spending_id := reserve(self._run.record, self._settings, self._run.run_id, request)) is None:
            # What is on its way may cost less than it reserved, which makes room.
            if self._under_way == 0:
                raise _CapReached
            await asyncio.sleep(_POLL_SECONDS)
        self._under_way += 1
        self.calls += 1
        try:
            got = await teacher.ask_once(request)
        except RequestRefused:
            decisions.settle_spending(self._run.record, spending_id, 0.0)
            raise
        finally:
            self._under_way -= 1
        if isinstance(got, RawReply):
            parsed = parse_reply(got.body)
            if parsed is not None and parsed.usage is not None:
                decisions.settle_spending(self._run.record, spending_id, self._cost(parsed))
        elif not got.may_be_billed:
            decisions.settle_spending(self._run.record, spending_id, 0.0)
        return got

    def _save(self, request: Request, got: RawReply) -> _Answered | None:
        """Save a raw reply, then read it; None when it cannot be read."""
        reply = TeacherReply(
            request.request_hash, request.decision_id, self._settings.teach.teacher, got.body, 0, 0, 0.0, got.latency_ms
        )
        decisions.save_reply(self._run.record, reply)
        parsed = parse_reply(got.body)
        if parsed is None:
            return None
        if parsed.usage is not None:
            tokens = parsed.usage.prompt_tokens, parsed.usage.completion_tokens
            reply = TeacherReply(
                reply.request_hash, reply.decision_id, reply.teacher, got.body, *tokens, self._cost(parsed), got.latency_ms
            )
            decisions.save_reply(self._run.record, reply)
        return _Answered(reply, parsed)

    def _cost(self, parsed: ParsedReply) -> float:
        if parsed.usage is None:
            return 0.0
        return cost_usd(self._table, parsed.usage.prompt_tokens, parsed.usage.completion_tokens)

    def answer_row(self, row: ChosenRow) -> AnswerRow:
        """Enter an answer in the record and return its row, the same in every run over the same record."""
        answer = self.answered[row.decision_id]
        entered = decisions.add_answer(
            self._run.record,
            row.decision_id,
            author=AnswerAuthor.TEACHER,
            author_name=self._settings.teach.teacher,
            content=answer.parsed.text,
            passages=self._passages_of(row, answer),
            run_id=self._run.run_id,
            request_hash=answer.reply.request_hash,
        )
        return AnswerRow(
            decision_id=row.decision_id,
            answer_id=entered.answer_id,
            teacher=self._settings.teach.teacher,
            text=answer.parsed.text,
            finish_reason=answer.parsed.finish_reason,
            passages=self._passages_of(row, answer),
            request_hash=answer.reply.request_hash,
            prompt_tokens=answer.reply.prompt_tokens,
            completion_tokens=answer.reply.completion_tokens,
            cost_usd=answer.reply.cost_usd,
            latency_ms=round(answer.reply.latency_ms, 1),
        )

    def _request(self, row: ChosenRow, *, limit_factor: int) -> Request:
        return make_request(
            row.decision_id,
            spoken_of(row),
            name=self._settings.teach.teacher,
            table=self._table,
            instruction=self._settings.teach.instruction,
            passages=self._shown(row),
            handbook_digest=self._handbook.digest if self._handbook else "",
            limit_factor=limit_factor,
        )

    def _shown(self, row: ChosenRow) -> tuple[Passage, ...]:
        """Return the passages that this teacher is shown."""
        if self._handbook is None or self._table.handbook_passages == 0:
            return ()
        if self._library is None:
            self._library = HandbookTeacher(self._handbook, load_embedder())
        asked = [message.content for message in spoken_of(row) if message.role is Role.USER]
        return self._library.passages_for(asked, self._table.handbook_passages)

    def _passages_of(self, row: ChosenRow, answer: _Answered) -> tuple[str, ...]:
        return answer.parsed.handbook_passages or tuple(passage.passage_hash for passage in self._shown(row))

    def _judge_trial(self) -> None:
        failures = Counter(self.failed.values())
        failures.pop("cap", None)
        if failures.pop("no_answer", 0) > self._settings.teach.max_smoke_failures:
            raise OutsideError(
                f"the teacher {self._settings.teach.teacher!r} at {self._table.base_url} does not answer; "
                "run again later: what was answered is kept"
            )
        failures["truncated"] = sum(each.parsed.truncated for each in self.answered.values())
        failures["empty"] = sum(not each.parsed.text for each in self.answered.values())
        total = sum(failures.values())
        if total > self._settings.teach.max_smoke_failures:
            told = ", ".join(f"{count} {name}" for name, count in sorted(failures.items()) if count)
            raise Refused(
                f"the trial of the teacher {self._settings.teach.teacher!r} failed: {told} among its first "
                f"{len(self.answered) + len(self.failed)} answers, {self._settings.teach.max_smoke_failures} allowed; "
                "nothing more was asked: mend its table ([teachers] max_answer_tokens, model) or name another in [teach]"
            )

    def _report(self) -> None:
        done = len(self.answered) + len(self.failed)
        note = f"{done} of {len(self._rows)} decisions, {self.calls} calls, {self.reused} reused"
        self._run.report_progress(Stage.TEACH, done / max(1, len(self._rows)), note)
