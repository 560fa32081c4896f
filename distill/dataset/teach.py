"""Teach: every chosen decision, held-out ones too, gets an answer: of a person, or of a teacher, once for each content.

In: `choose/decisions.jsonl`. Out: `teach/answers.jsonl` and the answers in the record. Each request is named by the hash of
everything that decides its answer; a reply that was paid for is used again and never bought twice, even after a kill. A
teacher's first decisions are a trial: one that fails them is not paid for the rest. What stands in the files does not depend on
who answered first.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import groupby

from conversations import spending
from conversations.decisions import AnswerAuthor, NewAnswer, add_answers, there_among
from conversations.errors import Refused
from conversations.messages import Json
from distill.dataset.judge import open_judge
from distill.dataset.teaching.asking import Asker
from distill.dataset.teaching.batch import BatchTransport
from distill.dataset.teaching.budget import CapReached, Purse, caps_of, teachers_of, told_caps
from distill.dataset.teaching.people import PeoplesAnswers
from distill.dataset.teaching.several import Chosen, NoAnswer, Teachers
from distill.dataset.teaching.teacher import RequestRefused, Unanswered
from distill.dataset.teaching.trial import Trial, trial_rows
from distill.rows import AnswerRow, ChosenRow, read_rows
from distill.run import Counts, Outcome, Run, Stage
from distill.settings import TeacherTable

_SECONDS_BETWEEN_STARTS = 0.003

Work = Callable[[ChosenRow], Awaitable[None]]

log = logging.getLogger(__name__)


def teach(run: Run) -> Outcome:
    """Have every chosen decision answered and write the answers.

    Raises Refused when a trial fails, OperatorError for a teacher that must not or cannot be used, OutsideError when one
    stops answering.
    """
    tables = teachers_of(run.settings)
    rows = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    lesson = _Lesson(run, rows, tables)
    asyncio.run(lesson.give())
    _say_what_caps_left(run, rows, lesson)
    _say_whose_replies_were_left(rows, tables)
    chosen = {row.decision_id: lesson.chosen[row.decision_id] for row in rows if row.decision_id in lesson.chosen}
    answers = _entered(run, chosen)
    lesson.missing |= {name: NoAnswer("gone") for name in chosen.keys() - {each.decision_id for each in answers}}
    run.write_rows(Stage.TEACH, "answers.jsonl", answers)
    return Outcome(_counts(rows, answers, lesson.missing), _details(run, answers, lesson))


class _Lesson:
    """The asking of one stage: who answers, what was taken for each decision, and what is missing, and why."""

    def __init__(self, run: Run, rows: Sequence[ChosenRow], tables: Mapping[str, TeacherTable]) -> None:
        self._run, self._rows, self._tables = run, rows, tables
        self._teach = run.settings.teach
        self._done = 0
        self._purse = Purse(run.record, run.run_id, caps_of(run.settings))
        self.askers: dict[str, Asker] = {}
        self.teachers: Teachers | None = None
        self.judge_details: dict[str, Json] = {}
        self.chosen: dict[str, Chosen] = {}
        self.missing: dict[str, NoAnswer] = {}

    async def give(self) -> None:
        """Try each teacher that is to answer everything, then have everything answered."""
        settings, purse = self._run.settings, self._purse
        async with AsyncExitStack() as opened:
            for name, table in self._tables.items():
                if table.kind != "logged":
                    self.askers[name] = await opened.enter_async_context(
                        Asker(name, table, record=self._run.record, purse=purse)
                    )
            judge = await opened.enter_async_context(open_judge(self._run, purse)) if self._teach.best_of else None
            people = PeoplesAnswers(self._run.record, settings) if self._teach.people_first else None
            self.teachers = Teachers(settings, self._tables, self.askers, people, judge)
            unanswered = [row for row in self._rows if self.teachers.by_people(row) is None]
            if any(table.handbook_passages for table in self._tables.values()):
                self.teachers.library.prepare(unanswered)
            for name in self._first_line():
                asked = [row for row in unanswered if self._is_asked(name, row)]
                await self._try_out(self.teachers, name, asked)
                if self._teach.transport == "batch":
                    await self._fetch(self.teachers, name, asked)
            await self._all(self._rows, self._answer)
            if judge is not None:
                self.judge_details = judge.details()

    def _first_line(self) -> list[str]:
        """Return the teachers that are to answer whatever people have not: the first one that is a model, and the best_of."""
        models = [name for name in (self._teach.teacher, *self._teach.fallback) if name in self.askers]
        first = models[:1] if not self._teach.best_of or self._teach.teacher in self.askers else []
        return list(dict.fromkeys((*first, *self._teach.best_of)))

    def _is_asked(self, name: str, row: ChosenRow) -> bool:
        """Tell whether a decision comes to a teacher, or a reply in the log stands before it."""
        assert self.teachers is not None
        return name in self._teach.best_of or not self.teachers.is_in_log_before(name, row)

    async def _try_out(self, teachers: Teachers, name: str, rows: Sequence[ChosenRow]) -> None:
        """Put the first decisions to a teacher, with as many calls at most.

        Raises Refused or OutsideError when it fails them.
        """
        asker = self.askers[name]
        trial = Trial(asker, decisions=self._teach.smoke_decisions, max_failures=self._teach.max_smoke_failures)

        async def put(row: ChosenRow) -> None:
            try:
                answered = await asker.ask(teachers.request(name, row), may_call=trial.may_call)
            except CapReached:
                trial.capped()
            except RequestRefused:
                trial.refused()
            except Unanswered:
                trial.unanswered()
            else:
                trial.answered(answered.reply)

        await self._all(trial_rows(rows, self._teach.smoke_decisions), put)
        trial.end()

    async def _fetch(self, teachers: Teachers, name: str, rows: Sequence[ChosenRow]) -> None:
        """Have a teacher's answers come by batch; what it cut off is fetched once more with twice the room."""
        asker = self.askers[name]
        first, with_twice_the_room = ([teachers.request(name, row, factor) for row in rows] for factor in (1, 2))
        transport = BatchTransport(
            asker,
            self._run.run_id,
            [*first, *with_twice_the_room],
            poll_seconds=self._teach.batch_poll_seconds,
            max_requests=self._teach.max_batch_requests,
        )
        await transport.fetch(first)
        known = [asker.known(request) for request in first]
        await transport.fetch(
            [
                again
                for answered, again in zip(known, with_twice_the_room, strict=True)
                if answered is not None and answered.reply.truncated
            ]
        )
        asker.only_known = True
        asker.refused |= transport.refused
        asker.capped |= transport.capped

    async def _answer(self, row: ChosenRow) -> None:
        assert self.teachers is not None
        try:
            self.chosen[row.decision_id] = await self.teachers.answer(row)
        except NoAnswer as missing:
            self.missing[row.decision_id] = missing
        self._done += 1
        calls = sum(asker.calls for asker in self.askers.values())
        reused = sum(asker.reused for asker in self.askers.values())
        note = f"{self._done} of {len(self._rows)} decisions, {calls} calls, {reused} reused"
        self._run.report_progress(Stage.TEACH, self._done / max(1, len(self._rows)), note)

    async def _all(self, rows: Sequence[ChosenRow], work: Work) -> None:
        """Work rows off: the decisions of one conversation in order and one at a time, so that providers' prompt caches hit."""
        waiting = _by_conversation(rows)

        async def work_off(place: int) -> None:
            # All at once they would stay in step: a burst of replies, a burst of requests, and idle time between.
            await asyncio.sleep(place * _SECONDS_BETWEEN_STARTS)
            for conversation in waiting:
                for row in conversation:
                    if self._purse.is_closed:
                        return
                    await work(row)

        places = max((asker.table.concurrency for asker in self.askers.values()), default=1)
        workers = [asyncio.create_task(work_off(place)) for place in range(places)]
        try:
            ended, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            failure = next((found for each in ended if (found := each.exception()) is not None), None)
            if failure is not None:
                await self._purse.close()
                raise failure
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _say_what_caps_left(run: Run, rows: Sequence[ChosenRow], lesson: _Lesson) -> None:
    """Warn of decisions that have no answer because a cap is used up.

    Raises Refused when it has left nothing at all.
    """
    left = sum(each.reason == "cap" for each in lesson.missing.values())
    if not left:
        return
    told = (
        f"{left} of {len(rows)} decisions have no answer because a cap is used up: "
        f"{told_caps(spending.spent(run.record, run.run_id), caps_of(run.settings))}; raise the cap in [teach] and run again: what "
        "was answered is kept"
    )
    if not lesson.chosen:
        raise Refused(told)
    log.warning("%s", told)


def _say_whose_replies_were_left(rows: Sequence[ChosenRow], tables: Mapping[str, TeacherTable]) -> None:
    """Warn of a teacher that gives replies of the log and finds none of its authors there."""
    authors = Counter(row.logged.author.value for row in rows if row.logged is not None)
    for name, table in tables.items():
        if table.kind == "logged" and authors and not any(authors[author] for author in table.logged_authors):
            found = ", ".join(f"{count} by {author!r}" for author, count in sorted(authors.items()))
            log.warning(
                "[teachers.%s]: no logged reply is by one of logged_authors = %s; there are %s%s",
                name, json.dumps(table.logged_authors), found,
                '; logged_authors = ["operator", "imported"] takes imported ones, where people wrote them'
                if authors["imported"] else "",
            )  # fmt: skip


def _by_conversation(rows: Sequence[ChosenRow]) -> Iterator[list[ChosenRow]]:
    """Yield the decisions of each conversation in the order they were asked, the conversations as they come first."""
    place: dict[str, int] = {}
    for row in rows:
        place.setdefault(row.conversation_id, len(place))
    ordered = sorted(rows, key=lambda row: (place[row.conversation_id], row.turn_depth, len(row.messages)))
    for _, conversation in groupby(ordered, key=lambda row: row.conversation_id):
        yield list(conversation)


def _entered(run: Run, chosen: Mapping[str, Chosen]) -> list[AnswerRow]:
    """Enter answers in the record and return their rows, the same in every run over the same record; those erased meanwhile go."""
    new = {
        decision_id: NewAnswer(
            decision_id=decision_id,
            author=each.given.author,
            author_name=each.given.teacher,
            content=each.given.text,
            extra_json=each.given.extra_json,
            passages=each.given.passages,
            request_hash=each.given.answered.stored.request_hash if each.given.answered else None,
        )
        for decision_id, each in chosen.items()
        if not each.given.answer_id
    }
    names = {each.decision_id: each.answer_id for each in add_answers(run.record, list(new.values()), run_id=run.run_id)}
    there = there_among(run.record, chosen)
    return [
        _answer_row(decision_id, each, names.get(decision_id, each.given.answer_id))
        for decision_id, each in chosen.items()
        if decision_id in there
    ]


def _answer_row(decision_id: str, chosen: Chosen, answer_id: str) -> AnswerRow:
    given, stored = chosen.given, chosen.given.answered.stored if chosen.given.answered else None
    return AnswerRow(
        decision_id=decision_id,
        answer_id=answer_id,
        teacher=given.teacher,
        author=given.author,
        text=given.text,
        extra_json=given.extra_json,
        finish_reason=given.finish_reason,
        passages=given.passages,
        request_hash=stored.request_hash if stored else "",
        prompt_tokens=stored.prompt_tokens if stored else 0,
        completion_tokens=stored.completion_tokens if stored else 0,
        cost_usd=stored.cost_usd if stored else 0.0,
        latency_ms=round(stored.latency_ms, 1) if stored else 0.0,
        licence=given.licence,
        agreement=chosen.agreement,
    )


def _counts(rows: Sequence[ChosenRow], answers: Sequence[AnswerRow], missing: Mapping[str, NoAnswer]) -> Counts:
    rejected = Counter(each.reason for each in missing.values() if each.is_rejection)
    return Counts(
        taken_in=len(rows),
        accepted=len(answers),
        rejected=rejected.total(),
        unscored=len(missing) - rejected.total(),
        rejected_by_reason=dict(sorted(rejected.items())),
    )


def _details(run: Run, answers: Sequence[AnswerRow], lesson: _Lesson) -> dict[str, Json]:
    assert lesson.teachers is not None
    settings = run.settings
    rejected: list[Json] = [name for name, each in sorted(lesson.missing.items()) if each.reason == "request_refused"]
    unscored = Counter(each.reason for each in lesson.missing.values() if not each.is_rejection)
    spent = spending.spent(run.record, run.run_id)
    by_teacher = Counter(answer.teacher for answer in answers)
    teachers: dict[str, Json] = {}
    for name, asker in lesson.askers.items():
        faults: dict[str, Json] = dict(sorted(asker.faults.items()))
        teachers[name] = {
            "model": asker.table.model,
            "kind": asker.table.kind,
            "licence_allows_training": asker.table.licence_allows_training,
            "answers_taken": by_teacher[name],
            "calls": asker.calls,
            "reused": asker.reused,
            "faults": faults,
        }
    agreements = [answer.agreement for answer in answers if answer.agreement is not None]
    return {
        "teacher": settings.teach.teacher,
        "teachers": teachers,
        "answers_by_teacher": dict(sorted(by_teacher.items())),
        "by_people": sum(answer.author is not AnswerAuthor.TEACHER for answer in answers),
        "passed_on": dict(sorted(lesson.teachers.passed_on.items())),
        "calls": sum(asker.calls for asker in lesson.askers.values()),
        "reused": sum(asker.reused for asker in lesson.askers.values()),
        "truncated": sum(answer.finish_reason == "length" for answer in answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
        **costs_of(answers),
        "spent_usd": round(spent.usd, 6),
        "spent_tokens": spent.tokens,
        "spent_calls": spent.calls,
        "spent_by_teacher": {
            name: {"usd": round(each.usd, 6), "calls": each.calls, "tokens": each.tokens}
            for name, each in spending.spent_by_teacher(run.record, run.run_id).items()
        },
        "agreement": round(sum(agreements) / len(agreements), 4) if agreements else None,
        "judge": lesson.judge_details or None,
        "request_refused": rejected,
        "unscored_by_reason": dict(sorted(unscored.items())),
    }


def costs_of(answers: Sequence[AnswerRow]) -> dict[str, Json]:
    """Return what the answers cost, and what 1,000 of those cost that a provider was asked for; None where it was asked for none."""
    asked = [answer.cost_usd for answer in answers if answer.request_hash]
    return {
        "cost_usd": round(sum(answer.cost_usd for answer in answers), 6),
        "cost_usd_per_1000_turns": round(1000 * sum(asked) / len(asked), 6) if asked else None,
    }
