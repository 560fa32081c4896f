"""Why an answer is or is not learnt, one code each; they stand in verdicts, manifests, the console and the data card.

In and out: names. A code, once used in a record, keeps its meaning.
"""

from enum import StrEnum


class Against(StrEnum):
    """What speaks against an answer; the order is the order in which the rules look."""

    REJECTED_BY_OPERATOR = "rejected_by_operator"
    PASSAGE_CHANGED = "passage_changed"
    TRUNCATED = "truncated"
    FILTERED_BY_TEACHER = "filtered_by_teacher"
    TOOL_CALL_INVALID = "tool_call_invalid"
    EMPTY = "empty"
    CONTROL_TOKENS = "control_tokens"
    BROKEN_TEXT = "broken_text"
    UNSAFE_MARKUP = "unsafe_markup"
    TEMPLATE_LEFT = "template_left"
    ERROR_TEXT = "error_text"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    SYSTEM_PROMPT_LEAKED = "system_prompt_leaked"
    PLACEHOLDER_NOT_IN_QUESTION = "placeholder_not_in_question"
    PLACEHOLDER_UNKNOWN_TO_CHAT = "placeholder_unknown_to_chat"
    PERSONAL_DATA = "personal_data"
    REPEATS_ITSELF = "repeats_itself"
    ECHOES_CUSTOMER = "echoes_customer"
    ROLES_SWAPPED = "roles_swapped"
    REFUSAL = "refusal"
    RUDE = "rude"
    IGNORES_DANGER = "ignores_danger"
    IGNORES_WISH_FOR_PERSON = "ignores_wish_for_person"
    WRONG_LANGUAGE = "wrong_language"
    NOT_A_LABEL = "not_a_label"
    CONTRADICTS_REFERENCE = "contradicts_reference"
    CONTRADICTS_EARLIER_REPLY = "contradicts_earlier_reply"
    CONTRADICTS_HANDBOOK = "contradicts_handbook"
    UNSUPPORTED_BY_HANDBOOK = "unsupported_by_handbook"
    NEAR_COPY_OF_OTHER_TOPIC = "near_copy_of_other_topic"
    DECLINED_SURPLUS = "declined_surplus"
    WORSE_THAN_LOGGED = "worse_than_logged"
    ERASED = "erased"


class Unsaid(StrEnum):
    """Why there is no verdict on a decision."""

    NO_ANSWER = "no_answer"
    TOOL_SCHEMA_BROKEN = "tool_schema_broken"
    JUDGE_DID_NOT_SAY = "judge_did_not_say"


class AcceptedAs(StrEnum):
    """What sort of answer was accepted."""

    ANSWERED = "answered"
    DECLINED = "declined"
    REFUSED = "refused"
    BY_OPERATOR = "by_operator"


class CannotSay(Exception):
    """A rule could not be applied: the answer is neither good nor bad by it."""

    def __init__(self, reason: Unsaid, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail
