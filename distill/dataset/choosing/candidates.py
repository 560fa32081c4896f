"""Candidates: every assistant turn of the log on what went before it, and every customer question that still waits for one.

In: the record. Out: of each only what clustering and selection need; the log is read a page at a time, and what a candidate keeps of
it is its question, redacted, and a few names. The messages that go on to a teacher are made later, for what is chosen alone.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from conversations.decisions import AnswerAuthor, disputed, newest_answers
from conversations.dialogues import Dialogue, every_dialogue
from conversations.exchange.examples import CHANNEL as EXAMPLES_CHANNEL
from conversations.messages import Author, Consent, Role, TurnStatus
from conversations.redaction import PLACEHOLDER, RedactionRules, Redactor
from conversations.store import Record
from conversations.turns import Turn, branch_to
from distill.dataset.choosing.signals import Asked, Signal, signals_of
from distill.dataset.prompt_names import SamePrompt
from distill.dataset.similarity import words
from distill.settings import DistillSettings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decision as it may be taught.

    `question` is what the customer asked last, redacted by itself; `question_turn_id` the turn before the answer, which is the
    question or a tool's result; `history_digest` tells whether the same was asked on the same history, byte for byte, and
    `prompt_name` whether in the same words; `user_turn` counts the customer's messages before the question; `messages` how many
    stand before the answer.
    """

    decision_id: str
    conversation_id: str
    customer_id: str
    question_turn_id: str
    reply_turn_id: str | None
    question: str
    word_count: int
    history_digest: bytes
    prompt_name: bytes | None
    user_turn: int
    messages: int
    may_be_learnt: bool
    signals: tuple[Signal, ...]


@dataclass(frozen=True)
class Exchange:
    """What was to be answered on a branch, and the reply that counts: a person's before a bot's.

    `last` is the turn before the answer, at `place` of what was heard: the customer's `question`, or what a tool or the system told
    the assistant after it.
    """

    question: Turn
    last: Turn
    reply: Turn | None
    place: int
    user_turn: int


@dataclass(frozen=True)
class _Known:
    """What the record knows about its earlier decisions, by name."""

    disputed: Collection[str]
    operators_answers: Collection[str]


def candidates(record: Record, settings: DistillSettings) -> Iterator[Candidate]:
    """Yield every candidate of the record, in the order of the conversations."""
    known = _Known(disputed(record), newest_answers(record, AnswerAuthor.OPERATOR).keys())
    allowed = {Consent.YES, Consent.UNKNOWN} if settings.choose.learn_from_unknown_consent else {Consent.YES}
    for dialogue in every_dialogue(record):
        # What files brought in belongs to the runs on those files.
        if dialogue.conversation.channel == EXAMPLES_CHANNEL:
            continue
        yield from _candidates_of(dialogue, settings, known, dialogue.conversation.consent in allowed)


def decision_id_of(question_turn_id: str) -> str:
    """Return the name of the decision that a turn before an answer makes."""
    return f"decision_{hashlib.sha256(question_turn_id.encode()).hexdigest()[:24]}"


def heard(turns: Sequence[Turn], turn_id: str | None = None) -> list[Turn]:
    """Return the turns of a branch that a model reads (the newest branch by default), oldest first."""
    branch = branch_to(turns, turn_id)
    return [turn for turn in branch if (turn.content or turn.extra_json) and turn.status is not TurnStatus.FAILED]


def exchanges(branch: Sequence[Turn]) -> Iterator[Exchange]:
    """Yield each place of a branch where the assistant answered, and each question that still waits for an answer."""
    user_turn = -1
    question: Turn | None = None
    for place, turn in enumerate(branch):
        if turn.role is Role.USER:
            user_turn += 1
            question = turn
        if question is None or turn.role is Role.ASSISTANT:
            continue
        following = branch[place + 1] if place + 1 < len(branch) else None
        is_answered = following is not None and following.role is Role.ASSISTANT
        waits = turn is question and _never_answered(branch, place)
        if is_answered or waits:
            yield Exchange(question, turn, _reply(branch, place), place, user_turn)


def next_question(branch: Sequence[Turn], place: int) -> int:
    """Return where the customer speaks again after the turn at a place, or the end."""
    return next((at for at in range(place + 1, len(branch)) if branch[at].role is Role.USER), len(branch))


def _never_answered(branch: Sequence[Turn], place: int) -> bool:
    """Tell whether a question got no answer, and the customer did not go on speaking either."""
    end = next_question(branch, place)
    went_on = end == place + 1 < len(branch)
    return not went_on and not any(turn.role is Role.ASSISTANT for turn in branch[place + 1 : end])


def _reply(branch: Sequence[Turn], place: int) -> Turn | None:
    """Return the reply to a question: the first that a person gave before the customer spoke again, or what came next."""
    for turn in branch[place + 1 :]:
        if turn.role is Role.USER:
            break
        if turn.author is Author.OPERATOR and turn.role is Role.ASSISTANT and turn.content:
            return turn
    following = branch[place + 1] if place + 1 < len(branch) else None
    return following if following is not None and following.role is Role.ASSISTANT else None


def _candidates_of(dialogue: Dialogue, settings: DistillSettings, known: _Known, may_be_learnt: bool) -> Iterator[Candidate]:
    branch = heard(dialogue.turns)
    digest = hashlib.sha256(f"{dialogue.tools_json}\x00".encode("utf-8", "replace"))
    prompt = SamePrompt()
    hashed = 0
    for exchange in exchanges(branch):
        question, last = exchange.question, exchange.last
        name = decision_id_of(last.turn_id)
        told = _redacted_alone(question.content, settings.redaction.rules)
        for turn in branch[hashed : exchange.place]:
            _add(digest, turn.role, turn.content, turn.extra_json)
            prompt.add(turn.role, f"{turn.content} {turn.extra_json}")
        said = told if last is question else last.content
        _add(digest, last.role, said, last.extra_json)
        prompt_name = prompt.named(last.role, f"{said} {last.extra_json}")
        prompt.add(last.role, f"{said} {last.extra_json}")
        hashed = exchange.place + 1
        asked = Asked(
            last,
            exchange.reply,
            dialogue.turns,
            dialogue.conversation.state,
            name in known.disputed,
            name in known.operators_answers,
        )
        yield Candidate(
            decision_id=name,
            conversation_id=dialogue.conversation.conversation_id,
            customer_id=dialogue.conversation.customer_id,
            question_turn_id=last.turn_id,
            reply_turn_id=exchange.reply.turn_id if exchange.reply else None,
            question=told,
            word_count=len(words(question.content)),
            history_digest=digest.copy().digest()[:16],
            prompt_name=prompt_name,
            user_turn=exchange.user_turn,
            messages=exchange.place + 1,
            may_be_learnt=may_be_learnt,
            signals=signals_of(asked, settings.choose.low_confidence_logprob),
        )


def _redacted_alone(text: str, rules: RedactionRules) -> str:
    """Redact a question without its conversation; placeholders lose their numbers, which tell the place and not the words."""
    redacted = Redactor(rules).redact(text)
    return PLACEHOLDER.sub(lambda found: re.sub(r"_\d+>$", ">", found.group()), redacted) if "<" in redacted else redacted


def _add(digest: "hashlib._Hash", *parts: str) -> None:
    for part in parts:
        raw = part.encode("utf-8", "replace")
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
