"""The judge: any configured model that compares two answers, or grades one against a rubric.

In: a decision, and answers to it. Out: a preference or a grade, or that the judge did not say. Each pair is asked in both
orders and disagreement is a tie, so that a judge with a liking for a place decides nothing. A judge that is down, refuses or
talks leaves everything unscored: it never gives a grade that it has not written, and is never told whose answer it reads.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain

from conversations.errors import OperatorError, OutsideError
from conversations.messages import ChatMessage, Json
from distill.dataset.teaching.asking import Asker
from distill.dataset.teaching.budget import CapReached, Purse, caps_of
from distill.dataset.teaching.requests import Request, make_request
from distill.dataset.teaching.teacher import RequestRefused, Unanswered
from distill.dataset.verifying.bias import Bias, Compared, Preference, bias_of
from distill.dataset.verifying.rulings import Grade, Side, comparing, grading, read_grade, read_side, reason_in
from distill.rows import ChosenRow
from distill.run import Run
from distill.settings import DistillSettings, JudgeTable, TeacherTable

__all__ = ["Bias", "Comparison", "Grade", "Judge", "Preference", "best_of", "family_of", "judge_teacher", "open_judge"]

_FAMILIES: Mapping[str, str] = {
    r"(?:chat)?gpt|o[134](?:-|$)": "gpt",
    r"claude": "claude",
    r"deepseek": "deepseek",
    r"(?:meta-)?llama": "llama",
    r"qwen|qwq": "qwen",
    r"gemini": "gemini",
    r"gemma": "gemma",
    r"mistral|mixtral|ministral|magistral": "mistral",
    r"phi": "phi",
    r"command": "command",
    r"grok": "grok",
}

Ask = Callable[[Request], Awaitable[str]]
"""Returns the text of the judge's reply; raises Unanswered or RequestRefused where there is none."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Which of two answers is better, and what the judge replied when the first stood first, and when it stood second."""

    preference: Preference
    verdicts: tuple[str, str]
    detail: str


class Judge:
    """Asks for comparisons and grades, not more than its table allows at once, and keeps count of its own bias."""

    def __init__(self, table: JudgeTable, teacher: TeacherTable, ask: Ask) -> None:
        self._table, self._teacher, self._ask = table, teacher, ask
        self._places = asyncio.Semaphore(table.concurrency)
        self._compared: list[Compared] = []
        self._down = ""

    async def compare(self, row: ChosenRow, first: str, second: str, *, known: str = "") -> Comparison:
        """Return which answer is better, asked in both orders; answers of the same words are a tie and nobody is asked.

        `known` is what the handbook says of the matter.
        """
        if first.strip() == second.strip():
            return Comparison(Preference.TIE, ("", ""), "the same words")
        rubric = self._table.rubric
        replies = await asyncio.gather(
            self._reply(row, comparing(rubric, row, first, second, known)),
            self._reply(row, comparing(rubric, row, second, first, known)),
        )
        sides = read_side(replies[0]), read_side(replies[1])
        preference, detail = _settled(*sides)
        self._compared.append(Compared(preference, *sides, len(first.split()), len(second.split())))
        why = reason_in(replies[0]) if preference is not Preference.UNSCORED else self._down
        return Comparison(preference, replies, f"{detail}: {why}" if why else detail)

    async def grade(self, row: ChosenRow, answer: str, *, known: str = "") -> Grade:
        """Return the grade of an answer against the rubric; `known` is what the handbook says of the matter."""
        reply = await self._reply(row, grading(self._table.rubric, row, answer, known))
        return replace(read_grade(reply), reply=reply) if reply else Grade(None, self._down or "the judge did not answer")

    def bias(self) -> Bias:
        """Return what all comparisons so far show of the judge's own likings."""
        return bias_of(self._compared)

    def details(self) -> dict[str, Json]:
        """Return the bias figures for a manifest, and warn of a strong one."""
        bias = self.bias()
        for flag in bias.flags:
            log.warning(
                "[judge] teacher = %r %s: its comparisons are worth little; try another model", self._table.teacher, flag
            )
        found: dict[str, Json] = {name: value for name, value in asdict(bias).items() if name != "flags"}
        return {**found, "flags": list(bias.flags), "down": self._down}

    async def _reply(self, row: ChosenRow, messages: Sequence[ChatMessage]) -> str:
        """Return the judge's reply, empty where there is none; one that cannot be reached is not asked again."""
        request = make_request(row.decision_id, messages, name=self._table.teacher, table=self._teacher)
        async with self._places:
            if self._down:
                return ""
            try:
                return await self._ask(request)
            except (Unanswered, RequestRefused) as failure:
                log.warning("[judge] %s: no ruling on %s: %s", self._table.teacher, row.decision_id, failure)
            except OutsideError as failure:
                log.warning("[judge] %s is down, and the rest stays unscored: %s", self._table.teacher, failure)
                self._down = f"the judge is down: {failure}"
        return ""


async def best_of(judge: Judge, row: ChosenRow, candidates: Sequence[str], min_grade: int) -> int | None:
    """Return the place of the best answer, the earlier one of two alike; None where none has a grade of `min_grade`.

    Grades come first, so that the best of four refusals is none; among equal grades the judge compares, and a later answer
    takes the place only when it wins in both orders. What has no grade is not the best.
    """
    different = list(dict.fromkeys(candidates))
    grades = dict(zip(different, await asyncio.gather(*(judge.grade(row, each) for each in different)), strict=True))
    good = {text: grade.grade for text, grade in grades.items() if grade.grade is not None and grade.grade >= min_grade}
    if not good:
        return None
    level = [text for text in different if good.get(text) == max(good.values())]
    best = level[0]
    for challenger in level[1:]:
        if (await judge.compare(row, best, challenger)).preference is Preference.SECOND:
            best = challenger
    return candidates.index(best)


def judge_teacher(settings: DistillSettings) -> TeacherTable:
    """Return the table of the model that judges, at temperature 0; warn when it is of the family of a teacher it judges.

    Raises OperatorError when no judge is set, its name is unknown, or it is no model.
    """
    place = f"{settings.settings_file} [judge]"
    if settings.judge is None:
        raise OperatorError(f"{place}: there is no such table; expected teacher = a name of [teachers]; add it")
    name = settings.judge.teacher
    table = settings.teachers.get(name)
    if table is None:
        known = ", ".join(sorted(settings.teachers)) or "none"
        raise OperatorError(f"{place}: teacher = {name!r} is not in [teachers]; known are: {known}")
    if table.kind != "model":
        raise OperatorError(
            f"{place}: teacher = {name!r} is of the kind {table.kind!r}; expected a model that can judge; name another"
        )
    judged = {settings.teach.teacher, *settings.teach.fallback, *settings.teach.best_of} & settings.teachers.keys()
    for other in sorted(judged):
        asked = settings.teachers[other]
        if asked.kind == "model" and family_of(asked) == family_of(table):
            log.warning(
                "%s: teacher = %r is of the family %r, as is the teacher %r that it judges; models prefer their own kind: "
                "name one of another family", place, name, family_of(table), other,
            )  # fmt: skip
    return table.model_copy(update={"temperature": 0.0})


def family_of(table: TeacherTable) -> str:
    """Return whose model a teacher is, as its table says or its model's name tells."""
    if table.family:
        return table.family.strip().casefold()
    # 'meta-llama/Llama-3.1-405B-Instruct' and 'openrouter:openai/gpt-5' name the model last.
    name = re.split(r"[/:]", table.model.casefold())[-1] or table.model.casefold()
    known = next((family for pattern, family in _FAMILIES.items() if re.match(pattern, name)), "")
    return known or next(chain(re.findall(r"[a-z]+", name), [name]))


@asynccontextmanager
async def open_judge(run: Run, purse: Purse | None = None) -> AsyncIterator[Judge]:
    """Open the judge that the settings name; what it takes stands under the caps of the run.

    `purse` is that of whoever asks teachers in the same event loop. Raises OperatorError as `judge_teacher` does.
    """
    table = judge_teacher(run.settings)
    assert run.settings.judge is not None
    asker = Asker(
        run.settings.judge.teacher,
        table,
        record=run.record,
        purse=purse or Purse(run.record, run.run_id, caps_of(run.settings)),
        purpose="judge",
        concurrency=run.settings.judge.concurrency,
    )

    async def ask(request: Request) -> str:
        try:
            return (await asker.ask(request)).reply.text
        except CapReached:
            raise Unanswered("a cap of [teach] is reached") from None

    async with asker:
        yield Judge(run.settings.judge, table, ask)


def _settled(first_as_a: Side | None, second_as_a: Side | None) -> tuple[Preference, str]:
    """Return what two replies say together, the second given on the answers in reverse order."""
    if first_as_a is None or second_as_a is None:
        return Preference.UNSCORED, "no readable ruling in both orders"
    match first_as_a, second_as_a:
        case Side.A, Side.B:
            return Preference.FIRST, "the first is better in both orders"
        case Side.B, Side.A:
            return Preference.SECOND, "the second is better in both orders"
        case Side.TIE, Side.TIE:
            return Preference.TIE, "a tie in both orders"
    return Preference.TIE, "the two orders disagree"
