"""Signals: what the record says about a question that makes it worth teaching.

In: a question, its replies, and the turns around it. Out: the signals, the strongest first; a question without any is an ordinary
case. Decides nothing: how many of each are chosen is for `selection`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations.messages import Author, ConversationState, Role, TurnStatus, Vote
from conversations.turns import Turn


class Signal(StrEnum):
    """Why a decision may be chosen, the strongest first."""

    PERSON_REPLIED = "person_replied"
    OPERATOR_ANSWERED = "operator_answered"
    THUMBS_DOWN = "thumbs_down"
    HANDOFF = "handoff"
    DISAGREEMENT = "disagreement"
    RETRIED = "retried"
    FAILED = "failed"
    LOW_CONFIDENCE = "low_confidence"
    OPEN_QUESTION = "open_question"
    NEW_TOPIC = "new_topic"
    COVERAGE = "coverage"


STRENGTH = {signal: place for place, signal in enumerate(Signal)}
OF_PEOPLE = frozenset({Signal.PERSON_REPLIED, Signal.OPERATOR_ANSWERED})
_WITH_PEOPLE = (ConversationState.WAITING, ConversationState.HUMAN)


@dataclass(frozen=True)
class Asked:
    """The last turn before an answer: `reply` is what the customer was answered, `every` all turns, branches included."""

    question: Turn
    reply: Turn | None
    every: Sequence[Turn]
    state: ConversationState
    is_disputed: bool
    has_operators_answer: bool


def signals_of(asked: Asked, low_confidence_logprob: float) -> tuple[Signal, ...]:
    """Return the signals of a question, the strongest first; `coverage` alone where there is no other."""
    reply = asked.reply
    tries = [t for t in asked.every if t.parent_turn_id == asked.question.turn_id and t.author is Author.STUDENT]
    seen = [*tries, *([reply] if reply else [])]
    confidences = [t.mean_token_logprob for t in seen if t.author is Author.STUDENT and t.mean_token_logprob is not None]
    by_a_person = reply is not None and reply.author is Author.OPERATOR
    failed = any(turn.status is TurnStatus.FAILED for turn in tries)
    found = {
        Signal.PERSON_REPLIED: by_a_person,
        Signal.OPERATOR_ANSWERED: asked.has_operators_answer,
        Signal.THUMBS_DOWN: any(turn.vote is Vote.DOWN for turn in seen),
        Signal.HANDOFF: not by_a_person and _went_to_a_person(asked),
        Signal.DISAGREEMENT: asked.is_disputed,
        Signal.RETRIED: len(tries) > 1,
        Signal.FAILED: failed,
        Signal.LOW_CONFIDENCE: bool(confidences) and min(confidences) < low_confidence_logprob,
        # A question whose only reply failed is told as failed.
        Signal.OPEN_QUESTION: reply is None and not failed,
    }
    return tuple(signal for signal, is_there in found.items() if is_there) or (Signal.COVERAGE,)


def with_new_topic(signals: Collection[Signal]) -> tuple[Signal, ...]:
    """Return the signals of a question whose topic no earlier decision of the record has."""
    return strongest_first({*signals, Signal.NEW_TOPIC} - {Signal.COVERAGE})


def strongest_first(signals: Collection[Signal]) -> tuple[Signal, ...]:
    """Return signals in the order of their strength."""
    return tuple(sorted(signals, key=STRENGTH.__getitem__))


def _went_to_a_person(asked: Asked) -> bool:
    """Tell whether people had to take the conversation over after this question, or are about to."""
    return asked.state in _WITH_PEOPLE or any(
        turn.author is Author.OPERATOR and turn.role is Role.ASSISTANT and turn.position > asked.question.position
        for turn in asked.every
    )
