"""Corrections: the answer that an operator wants the student to learn, in place of whatever a teacher says.

In: an operator's words for a decision. Out: the next version of that operator's answer, with placeholders where the conversation's own
redaction has them, so that it can be learnt as it stands. Earlier versions stay. Knows no page and asks nobody.
"""

from conversations import audit, decisions, turns
from conversations.decisions import Answer, AnswerAuthor
from conversations.errors import OperatorError
from conversations.messages import ChatMessage, TurnStatus, check_storable
from conversations.redaction import RedactionRules, Redactor
from conversations.store import Record


def correct(record: Record, decision_id: str, text: str, *, operator: str, rules: RedactionRules) -> Answer:
    """Enter what an operator says is the right answer for a decision, and return it as it will be learnt.

    What is personal in it becomes the placeholder that the conversation has for it. Raises OperatorError for a decision that is
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
        content=redactor.redact(wanted),
    )
    audit.note_alone(
        record, operator, "answer written", decision_id, {"answer": answer.answer_id, "version": answer.version}
    )
    return answer
