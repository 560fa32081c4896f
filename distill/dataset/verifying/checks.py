"""Every rule for one answer, in the order in which they look: the first that finds something gives the reason.

In: the evidence. Out: the reason against the answer and what was found, or nothing. No rule calls anybody.
"""

from collections.abc import Callable, Mapping

from distill.dataset.verifying import forms, grounding, manner, tasks, tool_calls
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.reasons import AcceptedAs, Against
from distill.dataset.verifying.refusals import declines

Check = Callable[[Evidence], str | None]

_CHECKS: Mapping[Against, Check] = {
    Against.TRUNCATED: forms.truncated,
    Against.FILTERED_BY_TEACHER: forms.filtered,
    Against.TOOL_CALL_INVALID: tool_calls.tool_call_invalid,
    Against.EMPTY: forms.empty,
    Against.CONTROL_TOKENS: forms.control_tokens,
    Against.BROKEN_TEXT: forms.broken_text,
    Against.UNSAFE_MARKUP: forms.unsafe_markup,
    Against.TEMPLATE_LEFT: forms.template_left,
    Against.ERROR_TEXT: forms.error_text,
    Against.TOO_SHORT: forms.too_short,
    Against.TOO_LONG: forms.too_long,
    Against.SYSTEM_PROMPT_LEAKED: forms.system_prompt_leaked,
    Against.PLACEHOLDER_NOT_IN_QUESTION: forms.placeholder_not_in_question,
    Against.PLACEHOLDER_UNKNOWN_TO_CHAT: forms.placeholder_unknown_to_chat,
    Against.PERSONAL_DATA: forms.personal_data,
    Against.REPEATS_ITSELF: forms.repeats_itself,
    Against.ECHOES_CUSTOMER: manner.echoes_customer,
    Against.ROLES_SWAPPED: manner.roles_swapped,
    Against.REFUSAL: manner.refusal,
    Against.RUDE: manner.rude,
    Against.IGNORES_DANGER: manner.ignores_danger,
    Against.IGNORES_WISH_FOR_PERSON: manner.ignores_wish_for_person,
    Against.WRONG_LANGUAGE: manner.wrong_language,
    Against.NOT_A_LABEL: tasks.not_a_label,
    Against.CONTRADICTS_REFERENCE: tasks.contradicts_reference,
    Against.CONTRADICTS_EARLIER_REPLY: manner.contradicts_earlier_reply,
    Against.CONTRADICTS_HANDBOOK: grounding.contradicts_handbook,
    Against.UNSUPPORTED_BY_HANDBOOK: grounding.unsupported_by_handbook,
}
# What would break the product or hurt a person, whoever wrote it.
_NEVER: Mapping[Against, Check] = {
    reason: _CHECKS[reason]
    for reason in (
        Against.CONTROL_TOKENS,
        Against.PLACEHOLDER_NOT_IN_QUESTION,
        Against.PLACEHOLDER_UNKNOWN_TO_CHAT,
        Against.PERSONAL_DATA,
        Against.EMPTY,
    )
}
_DETAIL_CHARACTERS = 200


def reason_against(evidence: Evidence) -> tuple[str, str]:
    """Return the first reason against an answer and what was found; two empty strings when nothing speaks against it.

    Raises CannotSay where a rule could not be applied.
    """
    return _first(_CHECKS, evidence)


def never_learnt(evidence: Evidence) -> tuple[str, str]:
    """Return what even an operator's word cannot put into training, and what was found."""
    return _first(_NEVER, evidence)


def accepted_as(evidence: Evidence) -> AcceptedAs:
    """Return what sort of answer an accepted one is."""
    if manner.refuses_as_wanted(evidence):
        return AcceptedAs.REFUSED
    return AcceptedAs.DECLINED if declines(evidence.answer.text, evidence.table.declining_phrases) else AcceptedAs.ANSWERED


def _first(checks: Mapping[Against, Check], evidence: Evidence) -> tuple[str, str]:
    for reason, check in checks.items():
        found = check(evidence)
        if found is not None:
            return reason.value, found[:_DETAIL_CHARACTERS]
    return "", ""
