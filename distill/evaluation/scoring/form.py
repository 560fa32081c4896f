"""How an answer behaves: faults of its form, and whether it says no.

In: the evidence that verify's checks read, made of an answer of any model. Out: the first fault, or None. The checks are verify's
own, so that a fault that would keep an answer out of training is the same fault here.
"""

from conversations.decisions import AnswerAuthor
from conversations.messages import Split
from distill.dataset.verifying import forms
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.refusals import declines, refusal_in
from distill.evaluation.scoring.standards import Standards
from distill.rows import AnswerRow, ChosenRow, DatasetRow

_FAULTS = (
    forms.empty,
    forms.truncated,
    forms.control_tokens,
    forms.broken_text,
    forms.unsafe_markup,
    forms.template_left,
    forms.placeholder_not_in_question,
    forms.repeats_itself,
)


def as_chosen(row: DatasetRow) -> ChosenRow:
    """Return a row of the edition as the decision that it was, without its answer."""
    return ChosenRow(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        cluster_id=row.cluster_id,
        topic=row.topic,
        split=Split.TEST,
        chosen_because="edition",
        task=row.task,
        language=row.language,
        turn_depth=row.turn_depth,
        labels=row.labels,
        offered=row.offered,
        messages=row.messages[:-1],
    )


def evidence_of(row: DatasetRow, text: str, standards: Standards, *, finish_reason: str = "") -> Evidence:
    """Return an answer to a row of the edition as verify's checks read it."""
    answer = AnswerRow(
        decision_id=row.decision_id,
        answer_id="",
        teacher="",
        author=AnswerAuthor.STUDENT,
        text=text,
        finish_reason=finish_reason,
        passages=(),
        request_hash="",
        prompt_tokens=0,
        completion_tokens=0,
        cost_usd=0.0,
        latency_ms=0.0,
    )
    return Evidence(
        as_chosen(row),
        answer,
        standards.allowed,
        standards.table,
        standards.rules,
        standards.second_pass,
        own_words=standards.own_words,
    )


def format_fault(evidence: Evidence) -> str | None:
    """Return the first fault of an answer's form; None where it has none.

    A fault is: no word, a cut at the limit or in mid-sentence, marks of a chat format, thoughts, broken or hidden characters,
    markup that a page must not show, a gap that nobody filled, a placeholder that the conversation does not have, the same again
    and again.
    """
    return next((found for check in _FAULTS if (found := check(evidence)) is not None), None)


def refuses(evidence: Evidence) -> bool:
    """Tell whether an answer says no, or that it does not know, whatever was asked."""
    text, table = evidence.answer.text, evidence.table
    return declines(text, table.declining_phrases) or refusal_in(text, table.refusal_phrases) is not None
