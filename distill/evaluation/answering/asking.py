"""Asking every student the same questions: a few one at a time and in turn, for latency; the rest together, for throughput.

In: the edition and the contestants. Out: their answers, and for each how many it gave together in how many seconds. Each answer is
kept at once, so that an evaluation that was killed asks nothing twice; never one whose question was erased meanwhile.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from conversations.decisions import there_among
from conversations.prompt import Renderer
from conversations.store import Record
from distill.evaluation.answering.contestants import Contestant, StudentModel
from distill.evaluation.answering.generation import Generated, Question, Student, answer_together
from distill.evaluation.page.words import MODEL_TITLES
from distill.rows import DatasetRow
from distill.run import Run, Stage
from distill.settings import DistillSettings

_JOURNAL = ".answered.jsonl"


@dataclass(frozen=True)
class Asked:
    """An answer as it came, with how it was asked."""

    model: StudentModel
    timed: bool
    generated: Generated


@dataclass(frozen=True)
class Together:
    """How many answers a student gave while it was asked several at once, and in how many seconds."""

    turns: int = 0
    seconds: float = 0.0


@dataclass
class Answers:
    """What has been answered so far; kept in a file as it comes, each line under the name of the release that gave it."""

    record: Record
    journal: Path
    release_ids: Mapping[StudentModel, str]
    asked: list[Asked] = field(default_factory=list)
    together: dict[StudentModel, Together] = field(default_factory=dict)

    @property
    def have(self) -> set[tuple[StudentModel, str]]:
        """Who has answered which decision."""
        return {(each.model, each.generated.decision_id) for each in self.asked}

    def keep(self, each: Asked) -> None:
        """Take an answer; a failure is not kept for the next try, which asks again."""
        self.asked.append(each)
        if each.generated.failure:
            return
        # An erasure changes the record first and the files after: while this is open, it is either known or still to come.
        with self.record.write() as transaction:
            if there_among(transaction, [each.generated.decision_id]):
                self._write(each.model, {"timed": each.timed, **vars(each.generated)})

    def keep_together(self, model: StudentModel, taken: Together) -> None:
        """Take how long answers given together took, beside what an earlier try has measured."""
        self._add_together(model, taken)
        self._write(model, {"turns_together": taken.turns, "seconds_together": taken.seconds})

    def _add_together(self, model: StudentModel, taken: Together) -> None:
        before = self.together.get(model, Together())
        self.together[model] = Together(before.turns + taken.turns, before.seconds + taken.seconds)

    def _write(self, model: StudentModel, values: Mapping[str, object]) -> None:
        line = {"model": model, "release_id": self.release_ids[model], **values}
        with self.journal.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")

    @classmethod
    def resumed(
        cls, record: Record, journal: Path, release_ids: Mapping[StudentModel, str], decision_ids: Collection[str]
    ) -> "Answers":
        """Return what a killed evaluation has left, of the releases that are asked now and of decisions that are still there."""
        found = cls(record, journal, release_ids)
        if not journal.is_file():
            return found
        text = journal.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            # The last line of a killed process is half written; the next one must not stand behind it.
            text = text[: text.rfind("\n") + 1]
            journal.write_text(text, encoding="utf-8")
        # By the line end alone: an answer may hold other characters that `splitlines` takes for one.
        for line in filter(None, text.split("\n")):
            values = json.loads(line)
            model: StudentModel = values.pop("model")
            # Another release may have come into service since, under the same name for the report.
            if values.pop("release_id", "") != release_ids.get(model):
                continue
            if "turns_together" in values:
                found._add_together(model, Together(values["turns_together"], values["seconds_together"]))
            elif values["decision_id"] in decision_ids:
                found.asked.append(Asked(model, values.pop("timed"), Generated(**values)))
        return found


def questions_of(rows: Sequence[DatasetRow]) -> list[Question]:
    """Return the decisions of an edition as they are asked."""
    return [Question(row.decision_id, tuple(m.message() for m in row.messages[:-1])) for row in rows]


def student_of(settings: DistillSettings, base_url: str, release_id: str, renderer: Renderer, **more: int) -> Student:
    """Return a release on a server, asked as the chat asks it."""
    limit = settings.evaluate.max_answer_tokens or settings.prompt.max_answer_tokens
    return Student(base_url, release_id, renderer, settings.prompt, limit, **more)


async def ask_all(run: Run, rows: Sequence[DatasetRow], contestants: Sequence[Contestant]) -> Answers:
    """Ask every contestant everything that it has not answered yet, and return all answers."""
    settings = run.settings
    renderer = Renderer.load(settings.student.base)
    questions = questions_of(rows)
    answers = Answers.resumed(
        run.record,
        run.stage_folder(Stage.EVALUATE) / _JOURNAL,
        {each.model: each.release_id for each in contestants},
        {question.decision_id for question in questions},
    )
    have = answers.have
    drawn = {*drawn_by_hash((question.decision_id for question in questions), settings.evaluate.timed_decisions)}
    students = {each.model: student_of(settings, each.server.base_url, each.release_id, renderer) for each in contestants}
    total = len(questions) * len(contestants)

    def keep(model: StudentModel, is_timed: bool, generated: Generated) -> None:
        answers.keep(Asked(model, is_timed, generated))
        run.report_progress(
            Stage.EVALUATE, 0.9 * len(answers.asked) / total, f"{MODEL_TITLES[model]} {len(answers.asked)}/{total}"
        )

    try:
        # One at a time and in turn, so that a slow moment of the machine meets every model.
        for question in questions:
            for model, student in students.items():
                if question.decision_id in drawn and (model, question.decision_id) not in have:
                    keep(model, True, await student.answer(question))
        for model, student in students.items():
            rest = [q for q in questions if q.decision_id not in drawn and (model, q.decision_id) not in have]
            if not rest:
                continue
            started, before = time.perf_counter(), len(answers.asked)
            await answer_together(student, rest, settings.evaluate.concurrency, partial(keep, model, False))
            seconds = time.perf_counter() - started
            given = sum(not each.generated.failure for each in answers.asked[before:])
            if given:
                answers.keep_together(model, Together(given, seconds))
    finally:
        for student in students.values():
            await student.close()
    return answers


def drawn_by_hash(decision_ids: Iterable[str], count: int) -> list[str]:
    """Return so many of the decisions in an order of their own, the same ones each time and whatever their order was."""
    return sorted(decision_ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count]
