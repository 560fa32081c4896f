"""The replies in the log to tested questions that a run has not chosen: they may stand in what it learns from.

In: the record and the decisions. Out: of each the replies that followed its question, redacted as its conversation is.
"""

from collections.abc import Collection

from conversations.decisions import decisions
from conversations.dialogues import Dialogue, dialogues
from conversations.messages import ChatMessage, Role, TurnStatus
from conversations.redaction import Redactor
from conversations.store import Record
from distill.dataset.choosing.candidates import heard
from distill.dataset.second_pass import second_pass
from distill.settings import DistillSettings


def logged_replies(record: Record, settings: DistillSettings, decision_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the replies to each of these questions, by decision; those of a conversation that is gone are not among them."""
    if not decision_ids:
        return {}
    asked: dict[str, dict[str, str]] = {}
    for each in decisions(record):
        if each.decision_id in decision_ids:
            asked.setdefault(each.conversation_id, {})[each.decision_id] = each.question_turn_id
    return {
        name: replies
        for dialogue in dialogues(record, sorted(asked))
        for name, replies in _replies(dialogue, asked[dialogue.conversation.conversation_id], settings).items()
    }


def _replies(dialogue: Dialogue, asked: dict[str, str], settings: DistillSettings) -> dict[str, tuple[str, ...]]:
    """Return what assistants said between each question and the customer's next words, tries of every branch included."""
    redactor = Redactor(settings.redaction.rules, second_pass(settings.redaction))
    # The placeholders are given on the branch that the rows of this conversation are made of.
    for turn in heard(dialogue.turns):
        redactor.redact_message(ChatMessage(turn.role, turn.content, turn.extra_json))
    place_of = {turn.turn_id: turn.position for turn in dialogue.turns}
    found: dict[str, tuple[str, ...]] = {}
    for name, question in asked.items():
        begin = place_of.get(question, -1)
        end = min((t.position for t in dialogue.turns if t.role is Role.USER and t.position > begin), default=None)
        found[name] = tuple(
            redactor.redact(turn.content)
            for turn in dialogue.turns
            if turn.role is Role.ASSISTANT
            and turn.status is not TurnStatus.FAILED
            and turn.content
            and turn.position > begin
            and (end is None or turn.position < end)
        )
    return found
