"""The names of the metrics, as they stand in rows, reports and settings, and what each is.

In: nothing. Out: names. A `rate` is better when it is low; what is held against the teacher's words is likeness and never called
accuracy, and no teacher has a figure of its own in it.
"""

from enum import StrEnum


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
    # By a judge: the grade, and the share of the teacher's answers and of the released student's that it is liked better than.
    JUDGE_GRADE = "judge_grade"
    JUDGE_WINS_TEACHER = "judge_wins_teacher"
    JUDGE_WINS_RELEASED = "judge_wins_released"
    # Likeness to the teacher.
    TEACHER_LIKENESS = "teacher_likeness"
    TEACHER_BLEU = "teacher_bleu"
    TEACHER_SIMILARITY = "teacher_similarity"
    # How the answer behaves: personal data or another customer's words in it, chat marks or cut-off sentences in it.
    LEAK_RATE = "leak_rate"
    FORMAT_FAULT_RATE = "format_fault_rate"
    ANSWER_WORDS = "answer_words"
