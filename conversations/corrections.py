"""Corrections: the answer that an operator wants the student to learn, in place of whatever a teacher says.

In: an operator's words for a decision. Out: the next version of that operator's answer, with placeholders where the conversation's own
redaction has them, so that it can be learnt as it stands; what the customer never said, such as the company's address, stays. Earlier
versions stay. Knows no page and asks nobody.
"""

import json
from dataclasses import replace

from conversations import audit, decisions, turns
from conversations.decisions import Answer, AnswerAuthor
from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Json, Role, TurnStatus, check_storable
from conversations.redaction import PLACEHOLDER, Placeholders, RedactionRules, Redactor
from conversations.store import Record


def correct(record: Record, decision_id: str, text: str, *, operator: str, rules: RedactionRules) -> Answer:
    """Enter what an operator says is the right answer for a decision, and return it as it will be learnt.

    What the conversation has a placeholder for becomes that. Raises OperatorError for a decision that is
    not there, and for a text that is empty or cannot be stored.
    """
    wanted = text.strip()
    if not wanted:
        raise OperatorError("the answer is empty; write what the student should have said")
    check_storable(wanted)
    decision = decisions.decision(record, decision_id)
    every = turns.all_turns(record, decision.conversation_id)
    redactor = Redactor(rules)
    # The placeholders of the conversation are given in the order in which things were said.
    for turn in turns.branch_to(every, decision.question_turn_id):
        if turn.status is not TurnStatus.FAILED:
            redactor.redact_message(ChatMessage(turn.role, turn.content, turn.extra_json))
    answer = decisions.add_answer(
        record,
        decision_id,
        author=AnswerAuthor.OPERATOR,
        author_name=operator,
        content=redacted_as_known(redactor, ChatMessage(Role.ASSISTANT, wanted)).content,
    )
    audit.note_alone(
        record, operator, "answer written", decision_id, {"answer": answer.answer_id, "version": answer.version}
    )
    return answer


def redacted_as_known(redactor: Redactor, message: ChatMessage) -> ChatMessage:
    """Return a message with the placeholders that the redactor has already given; other personal data in it stays as it is."""
    known = redactor.placeholders.originals.keys()
    redacted = redactor.redact_message(message)
    new = {name: text for name, text in redactor.placeholders.originals.items() if name not in known}
    if not new:
        return redacted
    extra_json = redacted.extra_json
    if extra_json != message.extra_json:
        extra_json = json.dumps(_restored(json.loads(extra_json), Placeholders(new)), ensure_ascii=False)
    return replace(redacted, content=Placeholders(new).restore(redacted.content), extra_json=extra_json)


def _restored(value: Json, placeholders: Placeholders) -> Json:
    if isinstance(value, dict):
        return {key: _restored(each, placeholders) for key, each in value.items()}
    if isinstance(value, list):
        return [_restored(each, placeholders) for each in value]
    return placeholders.restore(value) if isinstance(value, str) else value


def personal_in(answer: Answer, rules: RedactionRules) -> tuple[str, ...]:
    """Return the pieces of an answer that look personal and have no placeholder: the run learns none that is not the company's."""
    typed = [found.span() for found in PLACEHOLDER.finditer(answer.content)]
    return tuple(answer.content[span.start : span.end] for span in rules.spans(answer.content, typed))
