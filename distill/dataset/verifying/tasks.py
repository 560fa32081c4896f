"""What an answer must be for the tasks that come from files: a label, or the right result.

In: the evidence. Out: what is wrong, or None. Conversations pass untouched.
"""

import re

from distill.dataset.similarity import words
from distill.dataset.verifying.evidence import Evidence
from distill.rows import Task

NLI_LABELS = frozenset({"entailment", "neutral", "contradiction"})

_FINAL = re.compile(r"(?:####|\\boxed\{|(?:answer|result)(?: is|:)?)\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?(?:/\d+)?)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def not_a_label(evidence: Evidence) -> str | None:
    """Look for an answer to an inference question that is none of its labels and nothing else."""
    if evidence.row.task is not Task.NLI:
        return None
    said = label_of(evidence.answer.text)
    return None if said in (evidence.labels_seen or NLI_LABELS) else evidence.answer.text[:80]


def contradicts_reference(evidence: Evidence) -> str | None:
    """Look for a label or a final number other than the right one that the file gives."""
    reference, answer = evidence.row.labels.reference, evidence.answer.text
    if not reference:
        return None
    if evidence.row.task is Task.NLI and label_of(answer) != label_of(reference):
        return f"{label_of(answer)}, and right is {label_of(reference)}"
    if evidence.row.task is Task.MATH:
        right, said = final_number(reference), final_number(answer)
        if right is not None and said != right:
            return f"{said}, and right is {right}"
    return None


def label_of(text: str) -> str:
    """Return a label without case and punctuation."""
    return " ".join(words(text))


def final_number(text: str) -> float | None:
    """Return the number that a solution ends in: the one it marks as its result, or the last one."""
    marked = _FINAL.findall(text) or _NUMBER.findall(text)
    if not marked:
        return None
    whole, _, divisor = marked[-1].replace(",", "").partition("/")
    try:
        return round(float(whole) / float(divisor or 1), 6)
    except ZeroDivisionError:
        return None
