"""The worst cases of a run: where the new student falls furthest behind the teacher, every model's answer side by side.

In: a run's rows, its test edition and the handbook. Out: the cases as the page shows them. They stand on the page alone, which an
erasure removes when it names the person's decision; no report and no record holds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conversations.messages import Role
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.changes import without_retired
from distill.evaluation.evaluate import ROWS
from distill.evaluation.page.words import MODEL_TITLES
from distill.evaluation.scoring.facts import Yardstick, wrong_statements
from distill.evaluation.scoring.metric import score_of
from distill.evaluation.scoring.standards import yardstick_of
from distill.rows import DatasetRow, EvaluationRow, LabelsRow, MessageRow, read_rows
from distill.run import Run, Stage

WORST = 20


@dataclass(frozen=True)
class CaseAnswer:
    """One model's answer to a case. `wrong` are the concrete things in it that neither the right articles nor the customer say."""

    title: str
    text: str
    score: float | None
    wrong: tuple[str, ...]
    failure: str


@dataclass(frozen=True)
class Case:
    """A question with what was said before it, what a good answer states, and what each model answered."""

    decision_id: str
    topic: str
    gap: float | None
    question: str
    history: tuple[MessageRow, ...]
    expected: tuple[str, ...]
    answers: tuple[CaseAnswer, ...]


def worst_cases(run: Run, models: Sequence[str]) -> list[Case]:
    """Return the cases in which the new student does worst: no answer, the widest gap to the teacher, the lowest score.

    A case that the student answers as well as can be is none.
    """
    metric = run.settings.evaluate.quality_metric
    answers: dict[str, dict[str, EvaluationRow]] = {}
    for row in read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow):
        answers.setdefault(row.decision_id, {})[row.model] = row
    ranked: list[tuple[bool, float, float, str]] = []
    for decision_id, by_model in answers.items():
        score, gap = _score(by_model, "candidate", metric), _gap(by_model, metric)
        if score is not None and score < 1:
            answered = not by_model["candidate"].failure
            ranked.append((answered, 0.0 if gap is None else gap, score, decision_id))
    handbook = Handbook.load(run.settings.handbook.path) if run.settings.handbook else None
    yardstick = yardstick_of(run)
    asked = {row.decision_id: row for row in read_rows(run.folder / Stage.ASSEMBLE / "test.jsonl", DatasetRow)}
    cases: list[Case] = []
    for *_, decision_id in sorted(ranked):
        # What an erasure took from the test edition is shown no more.
        if decision_id in asked and len(cases) < WORST:
            labels = without_retired(asked[decision_id].labels, handbook)
            cases.append(_case(asked[decision_id], labels, answers[decision_id], models, metric, yardstick))
    return cases


def _case(
    row: DatasetRow,
    labels: LabelsRow,
    answers: Mapping[str, EvaluationRow],
    models: Sequence[str],
    metric: str,
    yardstick: Yardstick,
) -> Case:
    messages = row.messages[:-1]
    last = max((place for place, message in enumerate(messages) if message.role is Role.USER), default=len(messages) - 1)
    asked = "\n".join(message.content for message in messages if message.role is Role.USER)

    def wrong(text: str) -> tuple[str, ...]:
        if labels.answerable is None:
            return ()
        found = wrong_statements(text, labels=labels, question=asked, yardstick=yardstick)
        return tuple(yardstick.facts[each].says if each in yardstick.facts else each for each in found)

    return Case(
        decision_id=row.decision_id,
        topic=row.topic,
        gap=_gap(answers, metric),
        question=messages[last].content,
        history=tuple(each for place, each in enumerate(messages) if place != last and each.role is not Role.SYSTEM),
        expected=tuple(fact.says for fact in labels.facts) or tuple(filter(None, (labels.reference, *labels.replies))),
        answers=tuple(
            CaseAnswer(MODEL_TITLES[name], found.text, score_of(found, metric), wrong(found.text), found.failure)
            for name in models
            if (found := answers.get(name)) is not None
        ),
    )


def _score(answers: Mapping[str, EvaluationRow], model: str, metric: str) -> float | None:
    """Return a model's score; 0 for an answer that the new student did not give, as in the share that it keeps."""
    row = answers.get(model)
    return 0.0 if model == "candidate" and row is not None and row.failure else score_of(row, metric)


def _gap(answers: Mapping[str, EvaluationRow], metric: str) -> float | None:
    student, teacher = _score(answers, "candidate", metric), _score(answers, "teacher", metric)
    return student - teacher if student is not None and teacher is not None else None
