"""Several teachers for one decision: people first, then one after the other, or all of them with a judge who picks.

In: chosen rows. Out: one answer a decision, which names its teacher, and how alike the answers were where several gave one; or
the reason for which there is none. The best of several is taken only above the judge's floor.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from conversations.decisions import AnswerAuthor
from conversations.errors import OutsideError
from distill.dataset.handbook.answering import HandbookTeacher
from distill.dataset.handbook.articles import Handbook, Passage
from distill.dataset.judge import Judge, best_of
from distill.dataset.similarity import load_embedder, words
from distill.dataset.teaching.asking import Answered, Asker
from distill.dataset.teaching.budget import CapReached
from distill.dataset.teaching.people import Given, PeoplesAnswers, licence_of, logged_answer
from distill.dataset.teaching.replies import Fault
from distill.dataset.teaching.requests import Request, asked_in, request_for
from distill.dataset.teaching.teacher import RequestRefused, Unanswered
from distill.dataset.teaching.trial import Guard, what_is_bad
from distill.rows import ChosenRow
from distill.settings import DistillSettings, TeacherTable, handbook_vectors


class NoAnswer(Exception):
    """No teacher has answered; `reason` says why, `is_rejection` whether the teacher, or the judge, said no."""

    def __init__(self, reason: str, *, is_rejection: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_rejection = reason, is_rejection


@dataclass(frozen=True)
class Chosen:
    """The answer that was taken for a decision."""

    given: Given
    agreement: float | None = None


@dataclass
class Library:
    """The handbook passages that go before a teacher."""

    handbook: Handbook | None
    vectors_in: Path | None = None
    _found: dict[tuple[str, int], tuple[Passage, ...]] = field(default_factory=dict)
    _search: HandbookTeacher | None = None

    def passages(self, row: ChosenRow, count: int) -> tuple[Passage, ...]:
        """Return the passages that fit a decision's question best, so many at most."""
        if self.handbook is None or count == 0:
            return ()
        if (row.decision_id, count) not in self._found:
            self._found[row.decision_id, count] = self._opened(self.handbook).passages_for(asked_in(row), count)
        return self._found[row.decision_id, count]

    def prepare(self, rows: Sequence[ChosenRow]) -> None:
        """Embed what customers asked, together, which takes a fraction of the time of one after the other."""
        if self.handbook is not None and rows:
            self._opened(self.handbook)
            load_embedder().embed(list(dict.fromkeys(text for row in rows for text in asked_in(row)[-3:])))

    def _opened(self, handbook: Handbook) -> HandbookTeacher:
        if self._search is None:
            self._search = HandbookTeacher(handbook, load_embedder(), self.vectors_in)
        return self._search


class Teachers:
    """All who answer in one run."""

    def __init__(
        self,
        settings: DistillSettings,
        tables: Mapping[str, TeacherTable],
        askers: Mapping[str, Asker],
        people: PeoplesAnswers | None,
        judge: Judge | None,
    ) -> None:
        self._settings, self._tables, self._askers = settings, tables, askers
        self._people, self._judge = people, judge
        handbook = Handbook.load(settings.handbook.path) if settings.handbook else None
        self.library = Library(handbook, handbook_vectors(settings))
        # Teachers that have stopped answering: their fallback goes on without them.
        self._away: dict[str, OutsideError] = {}
        self._guards: dict[str, Guard] = {}
        self.passed_on: Counter[str] = Counter()

    def by_people(self, row: ChosenRow) -> Given | None:
        """Return what people have answered, where they go first."""
        return self._people.given(row) if self._people else None

    def is_in_log_before(self, name: str, row: ChosenRow) -> bool:
        """Tell whether a reply in the log is taken before this teacher is asked."""
        chain = (self._settings.teach.teacher, *self._settings.teach.fallback)
        before = chain[: chain.index(name)] if name in chain else ()
        logged = [other for other in before if self._tables[other].kind == "logged"]
        return any(logged_answer(row, other, self._tables[other]) is not None for other in logged)

    def request(self, name: str, row: ChosenRow, limit_factor: int = 1) -> Request:
        """Build the request for a decision to one of the teachers."""
        table = self._tables[name]
        return request_for(
            row,
            name=name,
            table=table,
            instruction=self._settings.teach.instruction,
            passages=self.library.passages(row, table.handbook_passages),
            handbook_digest=self.library.handbook.digest if self.library.handbook else "",
            limit_factor=limit_factor,
        )

    async def answer(self, row: ChosenRow) -> Chosen:
        """Return the answer for a decision.

        Raises NoAnswer when there is none, OutsideError when a teacher that nobody stands in for has stopped answering, and
        OperatorError when one will not serve us.
        """
        given = self.by_people(row)
        if given is not None:
            return Chosen(given)
        teach = self._settings.teach
        if teach.best_of:
            return await self._best(row, list(dict.fromkeys((teach.teacher, *teach.best_of))))
        return Chosen(await self._first_good(row, (teach.teacher, *teach.fallback)))

    async def _best(self, row: ChosenRow, names: Sequence[str]) -> Chosen:
        """Ask all and let the judge pick; where no answer is whole, the fallback is asked."""
        assert self._judge is not None and self._settings.judge is not None
        found = await asyncio.gather(*(self._given(row, name) for name in names))
        good = [each for each in found if isinstance(each, Given) and not problem_of(each)]
        if not good:
            return Chosen(await self._first_good(row, self._settings.teach.fallback, so_far=found))
        texts = [each.text for each in good]
        agreement = agreement_of(texts)
        place = await best_of(self._judge, row, texts, self._settings.judge.min_grade)
        if place is None:
            # What the judge has said is kept, so that asking again costs nothing.
            grades = await asyncio.gather(*(self._judge.grade(row, text) for text in dict.fromkeys(texts)))
            if all(grade.grade is None for grade in grades):
                raise NoAnswer("judge_silent")
            raise NoAnswer("below_floor", is_rejection=True)
        return Chosen(good[place], agreement)

    async def _first_good(self, row: ChosenRow, names: Sequence[str], so_far: "Sequence[Given | NoAnswer]" = ()) -> Given:
        """Return the first answer that is whole; where there is none, the first one as it is, for `verify` to rule on."""
        found = list(so_far)
        for place, name in enumerate(names):
            each = await self._given(row, name)
            found.append(each)
            reason = each.reason if isinstance(each, NoAnswer) else problem_of(each)
            if isinstance(each, Given) and not reason:
                return each
            if place + 1 < len(names):
                self.passed_on[f"{name}: {reason}"] += 1
        for each in found:
            if isinstance(each, Given):
                return each
        raise next(each for each in found if isinstance(each, NoAnswer))

    async def _given(self, row: ChosenRow, name: str) -> "Given | NoAnswer":
        """Return a teacher's answer, or why it has none."""
        table = self._tables[name]
        if table.kind == "logged":
            return logged_answer(row, name, table) or NoAnswer("no_logged_reply")
        if name in self._away:
            return NoAnswer("no_answer")
        try:
            answered = await self._askers[name].answer(lambda factor: self.request(name, row, factor))
        except CapReached:
            return NoAnswer("cap")
        except RequestRefused:
            self._look_at(name, "request_refused")
            return NoAnswer("request_refused", is_rejection=True)
        except Unanswered:
            self._look_at(name, "no_answer")
            return NoAnswer("no_answer")
        except OutsideError as failure:
            if not self._has_substitute(name):
                raise
            self._away[name] = failure
            return NoAnswer("no_answer")
        self._look_at(name, what_is_bad(answered.reply))
        return self._given_by(name, row, answered)

    def _look_at(self, name: str, bad: str) -> None:
        """Show the guard of a teacher one more answer; what came in a batch is paid for already.

        Raises Refused when too many are bad.
        """
        if self._askers[name].only_known:
            return
        teach = self._settings.teach
        if name not in self._guards:
            first = teach.smoke_decisions if name in teach.fallback else 0
            self._guards[name] = Guard(name, first=first, max_failures=teach.max_smoke_failures)
        self._guards[name].note(bad)

    def _has_substitute(self, name: str) -> bool:
        """Tell whether somebody who has not stopped answering is asked for what this teacher leaves."""
        after = self._settings.teach.fallback
        after = after[after.index(name) + 1 :] if name in after else after
        return any(self._tables[other].kind != "logged" and other not in self._away for other in after)

    def _given_by(self, name: str, row: ChosenRow, answered: Answered) -> Given:
        shown = self.library.passages(row, self._tables[name].handbook_passages)
        return Given(
            teacher=name,
            author=AnswerAuthor.TEACHER,
            text=answered.reply.text,
            finish_reason=answered.reply.finish_reason,
            extra_json=answered.reply.extra_json,
            passages=answered.reply.handbook_passages or tuple(passage.passage_hash for passage in shown),
            licence=licence_of(self._tables[name]),
            answered=answered,
        )


def problem_of(given: Given) -> str:
    """Return what keeps an answer from being whole, so that the next teacher is asked; empty when nothing does."""
    reply = given.answered.reply if given.answered else None
    if reply is None:
        return ""
    if reply.truncated:
        return "truncated"
    if reply.is_empty:
        return "empty"
    if reply.finish_reason == "content_filter":
        return "filtered"
    return "tool_calls_unasked" if Fault.TOOL_CALLS_UNASKED in reply.faults else ""


def agreement_of(texts: Sequence[str]) -> float | None:
    """Return how alike answers are: the mean over their pairs of the words they share, as F1 (0 to 1); None for one alone."""
    if len(texts) < 2:
        return None
    counted = [Counter(words(text)) for text in texts]
    shares = [
        2 * (one & other).total() / (one.total() + other.total()) if one or other else 1.0
        for one, other in combinations(counted, 2)
    ]
    return round(sum(shares) / len(shares), 4)
