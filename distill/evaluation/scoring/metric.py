"""The names of the metrics, as they stand in rows, reports and settings, what each is, and which task has which.

In: a task. Out: names. A `rate` is better when it is low; what is held against the teacher's words is likeness and never called
accuracy, and no teacher has a figure of its own in it.
"""

from enum import StrEnum
from math import isfinite

from distill.rows import EvaluationRow, Task


class Metric(StrEnum):
    """One figure of one answer, from 0 to 1, but for the words; a report holds its mean over the decisions it applies to."""

    # Against the handbook's facts and the labels of conversations.
    FACT_ACCURACY = "fact_accuracy"
    WRONG_FACT_RATE = "wrong_fact_rate"
    DECLINED_RATE = "declined_rate"
    UNANSWERABLE_DECLINED_RATE = "unanswerable_declined_rate"
    UNANSWERABLE_WRONG_FACT_RATE = "unanswerable_wrong_fact_rate"
    # Against the right answer of a data set's file, or against people's replies in the log.
    EXACT_MATCH = "exact_match"
    TOKEN_F1 = "token_f1"
    NLI_ACCURACY = "nli_accuracy"
    MATH_ACCURACY = "math_accuracy"
    REFERENCE_BLEU = "reference_bleu"
    REFERENCE_ROUGE_1 = "reference_rouge_1"
    REFERENCE_ROUGE_L = "reference_rouge_l"
    REFERENCE_SIMILARITY = "reference_similarity"
    # By a judge: the grade (1 is 0, 10 is 1), and how often it is liked better than the teacher's and the released student's
    # answers (a tie counts a half). The last two are the candidate's alone.
    JUDGE_GRADE = "judge_grade"
    JUDGE_WINS_TEACHER = "judge_wins_teacher"
    JUDGE_WINS_RELEASED = "judge_wins_released"
    # Likeness to the teacher.
    TEACHER_LIKENESS = "teacher_likeness"
    TEACHER_BLEU = "teacher_bleu"
    TEACHER_SIMILARITY = "teacher_similarity"
    # How the answer behaves: it says no or that it does not know, whatever was asked; personal data or another customer's words
    # in it; chat marks, gaps or cut-off sentences in it.
    REFUSAL_RATE = "refusal_rate"
    LEAK_RATE = "leak_rate"
    FORMAT_FAULT_RATE = "format_fault_rate"
    ANSWER_WORDS = "answer_words"


_OF_ALL = (
    Metric.TEACHER_LIKENESS,
    Metric.TEACHER_BLEU,
    Metric.TEACHER_SIMILARITY,
    Metric.REFUSAL_RATE,
    Metric.LEAK_RATE,
    Metric.FORMAT_FAULT_RATE,
    Metric.ANSWER_WORDS,
)
# The teacher has them too, and more is better: the share of the teacher's quality that is kept can be told in these.
_QUALITY = (
    Metric.FACT_ACCURACY,
    Metric.EXACT_MATCH,
    Metric.TOKEN_F1,
    Metric.NLI_ACCURACY,
    Metric.MATH_ACCURACY,
    Metric.REFERENCE_BLEU,
    Metric.REFERENCE_ROUGE_1,
    Metric.REFERENCE_ROUGE_L,
    Metric.REFERENCE_SIMILARITY,
    Metric.JUDGE_GRADE,
)


def score_of(row: EvaluationRow | None, metric: str) -> float | None:
    """Return an answer's figure by a metric, or None where there is none, or none that the metric can have."""
    value = None if row is None or row.failure else row.scores.get(metric)
    if value is None or not isfinite(value) or value < 0:
        return None
    return value if value <= 1 or metric == Metric.ANSWER_WORDS else None


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """Return the metrics that answers to a task can have."""
    match task:
        case Task.CONVERSATION:
            own: tuple[Metric, ...] = (
                Metric.FACT_ACCURACY,
                Metric.WRONG_FACT_RATE,
                Metric.DECLINED_RATE,
                Metric.UNANSWERABLE_DECLINED_RATE,
                Metric.UNANSWERABLE_WRONG_FACT_RATE,
                Metric.REFERENCE_BLEU,
                Metric.REFERENCE_SIMILARITY,
                Metric.JUDGE_GRADE,
                Metric.JUDGE_WINS_TEACHER,
                Metric.JUDGE_WINS_RELEASED,
            )
        case Task.QA:
            own = (Metric.EXACT_MATCH, Metric.TOKEN_F1)
        case Task.SUMMARIZATION:
            own = (
                Metric.REFERENCE_ROUGE_1,
                Metric.REFERENCE_ROUGE_L,
                Metric.REFERENCE_BLEU,
                Metric.REFERENCE_SIMILARITY,
            )
        case Task.NLI:
            own = (Metric.NLI_ACCURACY,)
        case Task.MATH:
            own = (Metric.MATH_ACCURACY,)
    return (*own, *_OF_ALL)


def quality_metrics_of(task: Task) -> tuple[Metric, ...]:
    """Return the metrics of a task that [evaluate] quality_metric may name: more is better, and the teacher has them too."""
    return tuple(metric for metric in metrics_of(task) if metric in _QUALITY)
