"""One answer and everything that can be said of it without asking a model: the row of an evaluation.

In: a row of the edition, an answer with how it came, and the standards. Out: a row with its scores; what does not apply to its task,
or to its labels, is None. Likeness in meaning and the judge's word come later, for many answers at once.
"""

from dataclasses import dataclass
from typing import Literal

from conversations.messages import Role
from distill.evaluation.scoring import texts
from distill.evaluation.scoring.facts import fact_scores
from distill.evaluation.scoring.form import evidence_of, format_fault, refuses
from distill.evaluation.scoring.leaks import leak_in
from distill.evaluation.scoring.meaning import similarities
from distill.evaluation.scoring.metric import Metric, metrics_of
from distill.evaluation.scoring.standards import Standards
from distill.rows import DatasetRow, EvaluationRow

Model = Literal["base", "candidate", "released", "teacher"]
MODELS: tuple[Model, ...] = ("base", "candidate", "released", "teacher")


@dataclass(frozen=True)
class Given:
    """An answer as a model gave it. Times in milliseconds; `failure` is why there is no answer, empty when there is one."""

    model: Model
    release_id: str
    text: str
    timed: bool
    first_token_ms: float | None = None
    latency_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""
    failure: str = ""


def row_of(row: DatasetRow, given: Given, standards: Standards) -> EvaluationRow:
    """Return the row of an answer, scored by all that needs no model; the scores of a failure are empty."""
    return EvaluationRow(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        topic=row.topic,
        task=row.task,
        turn_depth=row.turn_depth,
        model=given.model,
        release_id=given.release_id,
        text=given.text,
        scores={} if given.failure else _scores(row, given, standards),
        timed=given.timed,
        first_token_ms=given.first_token_ms,
        latency_ms=given.latency_ms,
        prompt_tokens=given.prompt_tokens,
        completion_tokens=given.completion_tokens,
        finish_reason=given.finish_reason,
        failure=given.failure,
    )


def references_of(row: DatasetRow) -> tuple[str, ...]:
    """Return the right answers that are known apart from any model: that of a file, and those that people gave here."""
    return tuple(dict.fromkeys(each for each in (row.labels.reference, *row.labels.replies) if each.strip()))


def _scores(row: DatasetRow, given: Given, standards: Standards) -> dict[str, float | None]:
    wanted = metrics_of(row.task)
    known: dict[Metric, float | None] = {Metric.ANSWER_WORDS: float(len(given.text.split()))}
    known |= _against_labels(row, given.text, standards)
    known |= _against_references(row, given.text, wanted)
    if given.model != "teacher" and row.messages[-1].content:
        known[Metric.TEACHER_LIKENESS] = texts.likeness(given.text, row.messages[-1].content)
        known[Metric.TEACHER_BLEU] = texts.bleu(given.text, (row.messages[-1].content,))
    known |= _behaviour(row, given, standards)
    return {metric: known.get(metric) if metric in wanted else None for metric in Metric}


def _against_labels(row: DatasetRow, text: str, standards: Standards) -> dict[Metric, float]:
    question = "\n".join(message.content for message in row.messages[:-1] if message.role is Role.USER)
    return fact_scores(text, labels=row.labels, question=question, yardstick=standards.yardstick)


def _against_references(row: DatasetRow, text: str, wanted: tuple[Metric, ...]) -> dict[Metric, float | None]:
    references = references_of(row)
    if not references:
        return {}
    found: dict[Metric, float | None] = {}
    for metric, measure in (
        (Metric.EXACT_MATCH, texts.exact_match),
        (Metric.TOKEN_F1, texts.token_f1),
        (Metric.NLI_ACCURACY, texts.nli_accuracy),
        (Metric.MATH_ACCURACY, texts.math_accuracy),
        (Metric.REFERENCE_BLEU, texts.bleu),
    ):
        if metric in wanted:
            found[metric] = measure(text, references)
    if Metric.REFERENCE_ROUGE_1 in wanted:
        found[Metric.REFERENCE_ROUGE_1], found[Metric.REFERENCE_ROUGE_L] = texts.rouge(text, references)
    return found


def _behaviour(row: DatasetRow, given: Given, standards: Standards) -> dict[Metric, float]:
    evidence = evidence_of(row, given.text, standards, finish_reason=given.finish_reason)
    return {
        Metric.REFUSAL_RATE: float(refuses(evidence)),
        Metric.LEAK_RATE: float(leak_in(evidence, standards.stolen) is not None),
        Metric.FORMAT_FAULT_RATE: float(format_fault(evidence) is not None),
    }


def with_similarities(rows: list[EvaluationRow], edition: dict[str, DatasetRow]) -> list[EvaluationRow]:
    """Return the rows with how near they are in meaning to the right answers and to the teacher's; embeds all at once."""
    asked: list[tuple[int, Metric, tuple[str, tuple[str, ...]]]] = []
    for place, row in enumerate(rows):
        if row.failure:
            continue
        known, wanted = edition[row.decision_id], metrics_of(row.task)
        references, teacher = references_of(known), known.messages[-1].content
        if references and Metric.REFERENCE_SIMILARITY in wanted:
            asked.append((place, Metric.REFERENCE_SIMILARITY, (row.text, references)))
        if teacher and row.model != "teacher":
            asked.append((place, Metric.TEACHER_SIMILARITY, (row.text, (teacher,))))
    found = list(rows)
    for (place, metric, _), value in zip(asked, similarities([pair for *_, pair in asked]), strict=True):
        found[place] = found[place].model_copy(update={"scores": {**found[place].scores, metric.value: value}})
    return found
