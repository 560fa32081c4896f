"""The judge's word on an evaluation: a grade for each model's answer, and the candidate's answers beside the others'.

In: the scored rows and the edition. Out: rows with the judge's scores, every ruling with what the judge wrote, and how it judges: its
own likings, and its agreement with the operators' blind votes. It is asked through the same purse as teachers, so that the caps of
[teach] hold and no ruling is paid twice. What it has not said stays empty.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from conversations import decisions, votes
from conversations.messages import Json
from conversations.redaction import Redactor
from conversations.votes import BlindVote, Choice
from distill.dataset.judge import Judge, Preference, open_judge
from distill.evaluation.answering.asking import drawn_by_hash
from distill.evaluation.answering.generation import Found, side_by_side
from distill.evaluation.scoring.agreement import Agreement, agreement_of
from distill.evaluation.scoring.form import as_chosen, evidence_of
from distill.evaluation.scoring.leaks import personal_data_in
from distill.evaluation.scoring.metric import Metric, metrics_of
from distill.evaluation.scoring.row import Model
from distill.evaluation.scoring.standards import Standards
from distill.rows import DatasetRow, EvaluationRow, RowModel
from distill.run import Run

_WORTH = {Preference.FIRST: 1.0, Preference.TIE: 0.5, Preference.SECOND: 0.0, Preference.UNSCORED: None}
_CHOSEN = {Preference.FIRST: Choice.LEFT, Preference.SECOND: Choice.RIGHT, Preference.TIE: Choice.TIE}
_AGAINST: Mapping[Model, Metric] = {"teacher": Metric.JUDGE_WINS_TEACHER, "released": Metric.JUDGE_WINS_RELEASED}


class JudgedRow(RowModel):
    """One ruling. A comparison says whether the candidate's answer is better than that of `against`, asked in both orders.

    `replies` are the judge's own words: one for a grade, two for a comparison; empty where it was not asked or did not answer.
    """

    decision_id: str
    kind: Literal["grade", "comparison"]
    model: Model
    against: Literal["", "teacher", "released"] = ""
    grade: int | None = None
    preference: Preference | None = None
    why: str = ""
    replies: tuple[str, ...] = ()

    @property
    def score(self) -> float | None:
        """What the ruling is worth, from 0 to 1."""
        if self.kind == "grade":
            return None if self.grade is None else (self.grade - 1) / 9
        return None if self.preference is None else _WORTH[self.preference]

    @property
    def metric(self) -> Metric:
        """What the ruling is a figure of."""
        return Metric.JUDGE_GRADE if self.kind == "grade" else _AGAINST[self.against or "teacher"]


@dataclass(frozen=True)
class Judged:
    """Every ruling, and how the judge judges."""

    rulings: tuple[JudgedRow, ...]
    details: Mapping[str, Json]


async def judged(
    run: Run,
    rows: Sequence[EvaluationRow],
    edition: Mapping[str, DatasetRow],
    standards: Standards,
    tell: Callable[[float, str], None],
) -> Judged:
    """Have the judge grade and compare the answers to at most [evaluate] judged_decisions decisions.

    Raises OperatorError for a judge that the settings name wrongly or that will not serve us.
    """
    judgeable = (row.decision_id for row in edition.values() if Metric.JUDGE_GRADE in metrics_of(row.task))
    drawn = {*drawn_by_hash(judgeable, run.settings.evaluate.judged_decisions)}
    by_model = {(row.decision_id, row.model): row for row in rows if row.decision_id in drawn and not row.failure}
    async with open_judge(run) as judge:
        asked = [
            *(partial(_graded, judge, edition[name], row, standards) for (name, _), row in by_model.items()),
            *(
                partial(_compared, judge, edition[name], row, other, standards)
                for (name, model), row in by_model.items()
                if model == "candidate"
                for against in _AGAINST
                if (other := by_model.get((name, against))) is not None
            ),
        ]
        rulings = await _all_of(asked, lambda done: tell(done / len(asked), f"{done} of {len(asked)} rulings"))
        agreement = await _agreement(judge, run, edition, standards)
        bias = judge.details()
    flags, down = bias.pop("flags"), bias.pop("down")
    counts = Counter((ruling.kind, ruling.score is not None) for ruling in rulings)
    details: dict[str, Json] = {
        "judge": run.settings.judge.teacher if run.settings.judge else "",
        "decisions": len(drawn),
        "graded": counts["grade", True],
        "compared": counts["comparison", True],
        "unscored": counts["grade", False] + counts["comparison", False],
        "down": down,
        "flags": flags,
        "bias": bias,
        "agreement": agreement.as_json(),
    }
    return Judged(tuple(rulings), details)


def with_rulings(rows: Sequence[EvaluationRow], rulings: Sequence[JudgedRow]) -> list[EvaluationRow]:
    """Return the rows with what the judge's rulings are worth."""
    scores: dict[tuple[str, Model], dict[str, float | None]] = {}
    for ruling in rulings:
        scores.setdefault((ruling.decision_id, ruling.model), {})[ruling.metric.value] = ruling.score
    return [
        row.model_copy(update={"scores": {**row.scores, **scores.get((row.decision_id, row.model), {})}}) for row in rows
    ]


async def _graded(judge: Judge, row: DatasetRow, given: EvaluationRow, standards: Standards) -> JudgedRow:
    text = _shown(row, given.text, standards)
    grade = await judge.grade(as_chosen(row), text, known=_known(row, standards))
    return JudgedRow(
        decision_id=row.decision_id,
        kind="grade",
        model=given.model,
        grade=grade.grade,
        why=grade.why,
        replies=(grade.reply,) if grade.reply else (),
    )


async def _compared(
    judge: Judge, row: DatasetRow, candidate: EvaluationRow, other: EvaluationRow, standards: Standards
) -> JudgedRow:
    texts = (_shown(row, each.text, standards) for each in (candidate, other))
    comparison = await judge.compare(as_chosen(row), *texts, known=_known(row, standards))
    assert other.model in _AGAINST
    return JudgedRow.model_validate(
        {
            "decision_id": row.decision_id,
            "kind": "comparison",
            "model": candidate.model,
            "against": other.model,
            "preference": comparison.preference,
            "why": comparison.detail,
            "replies": [reply for reply in comparison.verdicts if reply],
        }
    )


def _known(row: DatasetRow, standards: Standards) -> str:
    """Return what the handbook says of the matter: the articles that are labelled as right; empty where none are."""
    texts = standards.yardstick.article_texts
    return "\n\n".join(texts[name] for name in row.labels.articles if name in texts)


async def _agreement(judge: Judge, run: Run, edition: Mapping[str, DatasetRow], standards: Standards) -> Agreement:
    """Return how the judge's rulings agree with the newest blind votes on answers to decisions of the edition."""
    wanted = [vote for vote in votes.votes(run.record) if vote.decision_id in edition][
        : run.settings.evaluate.judged_decisions
    ]
    rulings = await _all_of(
        [partial(_ruled, judge, run, edition[vote.decision_id], vote, standards) for vote in wanted], lambda _: None
    )
    return agreement_of([(vote.choice, ruling) for vote, ruling in zip(wanted, rulings, strict=True)])


async def _ruled(judge: Judge, run: Run, row: DatasetRow, vote: BlindVote, standards: Standards) -> Choice | None:
    """Return what the judge says of the two answers of a vote; of an answer that is gone it cannot be asked."""
    texts = {answer.answer_id: answer.content for answer in decisions.answers(run.record, row.decision_id)}
    left, right = texts.get(vote.left_answer_id), texts.get(vote.right_answer_id)
    if left is None or right is None:
        return None
    shown = (_shown(row, text, standards) for text in (left, right))
    comparison = await judge.compare(as_chosen(row), *shown, known=_known(row, standards))
    return _CHOSEN.get(comparison.preference)


def _shown(row: DatasetRow, text: str, standards: Standards) -> str:
    """Return an answer as the judge may read it, who may be far away: personal data in it are redacted, whoever wrote it."""
    if personal_data_in(evidence_of(row, text, standards)) is None:
        return text
    redactor = Redactor(standards.rules, standards.second_pass)
    for message in row.messages[:-1]:
        redactor.redact(message.content)
    return redactor.redact(text)


async def _all_of(asked: Sequence[Callable[[], Awaitable[Found]]], tell: Callable[[int], None]) -> list[Found]:
    """Await all of them at once, telling how many are done."""
    done = 0

    async def one(ask: Callable[[], Awaitable[Found]]) -> Found:
        nonlocal done
        found = await ask()
        done += 1
        tell(done)
        return found

    return await side_by_side([one(each) for each in asked])
