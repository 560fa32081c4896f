"""What teachers believed beside what they said: the log-probabilities in their raw replies become soft labels of the rows.

In: the raw reply to the request of a row's own answer. Out: `assemble/soft_labels.jsonl`, a line for each row of training and
validation whose teacher gave log-probabilities for the very words that the row teaches. Beliefs of several teachers are never
mixed. Knows no student: whose tokens these are is the business of training.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from conversations.decisions import AnswerAuthor
from conversations.messages import Json
from conversations.replies import find_reply
from conversations.store import Record
from distill.rows import AnswerRow, DatasetRow, SoftLabelRow, TokenBelief

# Single tokens with which models end an answer. As text a model would spell them in several tokens.
_ENDS = frozenset(
    {"<|im_end|>", "<|end|>", "<|endoftext|>", "<|eot_id|>", "<|eot|>", "<|end_of_text|>", "<|return|>", "<end_of_turn>"}
    | {"</s>", "<eos>", "<｜end▁of▁sentence｜>"}
)
_CONTROL = re.compile(r"<[|｜][^<>]*[|｜]>")
# So vLLM writes tokens where it is told to give their numbers, which say nothing without its tokenizer.
_NUMBER = re.compile(r"token_id:\d+")
# What the schema says of a token that was not among the likeliest.
_NO_LOG_PROBABILITY = -9999.0
# A certain token may be a little more than certain by rounding; what is above this is no log-probability.
_ROUNDING = 1e-3


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    token: str
    logprob: Annotated[float, BeforeValidator(lambda told: math.inf if told is None else told)] = _NO_LOG_PROBABILITY
    bytes_: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(default=None, alias="bytes")

    def spelt(self) -> bytes | None:
        """Return the token's bytes, empty for an end of the answer; None where they are not told.

        vLLM tells of a token that is part of a character as an empty text, and of the one that completes it as the character.
        """
        if self.token in _ENDS:
            return b""
        if _CONTROL.fullmatch(self.token) or _NUMBER.fullmatch(self.token):
            return None
        spelt = self.token.encode("utf-8", "replace") if self.bytes_ is None else bytes(self.bytes_)
        return spelt or None


class _Token(_Choice):
    top_logprobs: list[_Choice] | None = []

    def is_sound(self) -> bool:
        """Tell whether every log-probability is told here, and can be one."""
        return self.top_logprobs is not None and all(not each.logprob > _ROUNDING for each in (self, *self.top_logprobs))


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: list[_Token] | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")
    logprobs: _Content | None = None


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")
    choices: list[_Answer] = Field(min_length=1)


class SoftLabelling:
    """Makes the soft labels of rows, and counts them and why others have none."""

    def __init__(self, record: Record, with_log_probabilities: Iterable[str]) -> None:
        self._record = record
        self._teachers = frozenset(with_log_probabilities)
        self._rows: Counter[str] = Counter()
        self._tokens = 0
        self._without: Counter[str] = Counter()

    def lines(self, learnt: Iterable[tuple[DatasetRow, AnswerRow | None]]) -> Iterator[str]:
        """Yield the line of each row whose teacher gave log-probabilities; the answer is None where no teacher's is learnt."""
        for row, answer in learnt:
            if answer is None or answer.author is not AnswerAuthor.TEACHER or answer.teacher not in self._teachers:
                continue
            reply = find_reply(self._record, answer.request_hash)
            beliefs = beliefs_in(reply.reply_json) if reply else ()
            if not beliefs:
                self._without["no_log_probabilities"] += 1
            elif _words(beliefs) != row.messages[-1].content.strip():
                self._without["other_words"] += 1
            else:
                self._rows[answer.teacher] += 1
                self._tokens += len(beliefs)
                yield SoftLabelRow(
                    decision_id=row.decision_id,
                    conversation_id=row.conversation_id,
                    answer_id=answer.answer_id,
                    teacher=answer.teacher,
                    tokens=beliefs,
                ).model_dump_json()

    def figures(self) -> dict[str, Json]:
        """Return how many rows have soft labels, at how many tokens, by whom, and why rows of these teachers have none."""
        return {
            "rows": self._rows.total(),
            "tokens": self._tokens,
            "by_teacher": dict(sorted(self._rows.items())),
            "without": dict(sorted(self._without.items())),
        }


def beliefs_in(reply_json: str) -> tuple[TokenBelief, ...]:
    """Return what a raw reply believes, token by token; nothing where it has no log-probabilities that can be read."""
    try:
        content = _Reply.model_validate(json.loads(reply_json)).choices[0].logprobs
    except (ValueError, RecursionError, ValidationError):
        return ()
    tokens = (content.content if content else None) or []
    if any(_NUMBER.fullmatch(choice.token) for token in tokens for choice in (token, *(token.top_logprobs or ()))):
        return ()
    beliefs: list[TokenBelief] = []
    begun: list[_Token] = []
    for token in tokens:
        said = token.spelt()
        if said is None and _CONTROL.fullmatch(token.token):
            begun = []
            continue
        begun.append(token)
        if said is None:
            continue
        beliefs.append(_belief(said, begun))
        begun = []
        if not said:
            break
    return tuple(beliefs)


def _belief(said: bytes, tokens: Sequence[_Token]) -> TokenBelief:
    """Return the belief at the first of the tokens that together said this; as likely as all of them together.

    It has no choices where one of the tokens has no log-probability, or one that cannot be.
    """
    if not all(token.is_sound() for token in tokens):
        return TokenBelief(said=said, choices=())
    choices: dict[bytes, float] = {}
    for choice in tokens[0].top_logprobs or ():
        spelt = choice.spelt()
        if spelt is not None and math.isfinite(choice.logprob) and choice.logprob > _NO_LOG_PROBABILITY:
            choices[spelt] = _sum(choices.get(spelt), choice.logprob)
    together = sum(token.logprob for token in tokens)
    if said not in choices and math.isfinite(together) and together > _NO_LOG_PROBABILITY:
        choices[said] = together
    return TokenBelief(said=said, choices=tuple(sorted(choices.items(), key=lambda choice: (-choice[1], choice[0]))))


def _sum(first: float | None, second: float) -> float:
    """Return the log-probability of either, as of two tokens that end an answer."""
    if first is None:
        return second
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))


def _words(beliefs: Sequence[TokenBelief]) -> str:
    return b"".join(belief.said for belief in beliefs).decode("utf-8", "replace").strip()
