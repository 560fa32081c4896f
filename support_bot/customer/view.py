"""What the chat page shows of a conversation: bubbles, thumbs, and one plain sentence where an answer did not come.

In: a conversation in the record. Out: frozen values for the page. A failure is a notice beside the chat, never a bubble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from conversations import turns
from conversations.messages import OPEN_STATUSES, Consent, Role, TurnStatus, Vote
from conversations.store import Record
from conversations.turns import Turn
from support_bot.customer.safe_text import plain, reduced
from support_bot.session import MESSAGE_TOO_LONG, question_without_answer, was_too_long

COULD_NOT_ANSWER = "I couldn't answer just now. Please try again."
WAS_INTERRUPTED = "My answer was interrupted. Please try again."
WAS_STOPPED = "You stopped this answer."


class Bubble(TypedDict):
    """One message as Gradio's Chatbot takes it."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class View:
    """A conversation as its customer sees it. `shown_turn_ids` names the turn of each bubble."""

    conversation_id: str
    bubbles: tuple[Bubble, ...]
    shown_turn_ids: tuple[str, ...]
    thumbs: tuple[str | None, ...]
    notice: str
    can_retry: bool
    consent: bool


EMPTY = View("", (), (), (), "", False, False)


def view_of(record: Record, conversation_id: str, *, question_turn_id: str | None = None) -> View:
    """Return what the customer sees now; an answer on its way is left out, for the page follows that itself.

    With a question, what the customer sees up to it, whatever was answered before.
    """
    thread = turns.branch_to(turns.all_turns(record, conversation_id), question_turn_id)
    closed = [turn for turn in thread if turn.status not in OPEN_STATUSES]
    shown = [turn for turn in closed if turn.role in (Role.USER, Role.ASSISTANT) and turn.content.strip()]
    unanswered = question_without_answer(thread)
    return View(
        conversation_id=conversation_id,
        bubbles=tuple(_bubble(turn) for turn in shown),
        shown_turn_ids=tuple(turn.turn_id for turn in shown),
        thumbs=tuple(_thumb(turn.vote) for turn in shown if turn.role is Role.ASSISTANT),
        notice=_notice(thread),
        can_retry=unanswered is not None,
        consent=turns.conversation(record, conversation_id).consent is Consent.YES,
    )


def answer_bubble(text: str) -> Bubble:
    """Return the bubble of an answer."""
    return {"role": "assistant", "content": reduced(text)}


def _bubble(turn: Turn) -> Bubble:
    if turn.role is Role.USER:
        return {"role": "user", "content": plain(turn.content)}
    return answer_bubble(turn.content)


def _thumb(vote: Vote | None) -> str | None:
    match vote:
        case Vote.UP:
            return "Like"
        case Vote.DOWN:
            return "Dislike"
        case None:
            return None


def _notice(thread: Sequence[Turn]) -> str:
    if not thread:
        return ""
    if thread[-1].role is Role.USER:
        return COULD_NOT_ANSWER
    if was_too_long(thread[-1]):
        return MESSAGE_TOO_LONG
    match thread[-1].status:
        case TurnStatus.FAILED:
            return COULD_NOT_ANSWER
        case TurnStatus.INTERRUPTED:
            return WAS_INTERRUPTED
        case TurnStatus.STOPPED:
            return WAS_STOPPED
        case _:
            return ""
