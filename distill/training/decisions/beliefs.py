"""A teacher's tokens put to the student's: what it believed at each of them, said in the student's vocabulary.

In: an answer's token ids and the beliefs of the teacher that gave it, of whose tokenizer nothing is known but the bytes of its
tokens. Out: soft labels for those tokens that begin where one of the teacher's began; with one tokenizer for both these are all,
and exact. What no token of the student can say goes to the rest; a position without a belief is learnt from its word alone.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np

from conversations.prompt import Renderer
from distill.rows import TokenBelief
from distill.training.decisions.training_row import SoftLabels

# How much of an answer is read before a place to see how its words are cut there, and how many tokens must come out as they stand
# in the answer. A tokenizer that joins letters over a longer stretch than this is asked for the whole answer up to there.
_WINDOW_BYTES = 160
_SHARED_TOKENS = 8
# Bytes of UTF-8 that begin no character.
_WITHIN = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))


class OtherWords(Exception):
    """The beliefs are those of another answer."""


@dataclass(frozen=True)
class _Answer:
    """An answer in the student's tokens; the last one ends the turn. Places count bytes of the text.

    `lead` is a space that the tokenizer puts before every text, or nothing.
    """

    text: bytes
    lead: bytes
    token_ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class _Told:
    """A teacher's beliefs, where each ends in the text, and which begins at a place."""

    beliefs: Sequence[TokenBelief]
    ends: tuple[int, ...]
    beginning_at: Mapping[int, int]


@dataclass(frozen=True)
class _Before:
    """What stands before a place of an answer, or enough of it, and its tokens."""

    text: bytes
    token_ids: tuple[int, ...]


class Alignment:
    """Puts the beliefs of teachers to one student."""

    def __init__(self, renderer: Renderer) -> None:
        """Raise OperatorError where the student's tokenizer is of a kind whose tokens have no bytes."""
        self._renderer = renderer
        self._bytes = renderer.token_bytes()
        # SentencePiece's tokens for single bytes stand before those for characters, which are what texts are made of.
        self._ids = {spelt: token_id for token_id, spelt in sorted(self._bytes.items())}

    def soft_labels(self, text: str, answer_ids: tuple[int, ...], beliefs: Sequence[TokenBelief]) -> SoftLabels | None:
        """Return the soft labels of an answer, or None where not one of its tokens has any.

        answer_ids: the tokens of the stripped text and the end of turn. Raises OtherWords where the beliefs spell another text.
        """
        wanted = text.strip().encode("utf-8", "replace")
        told = _told(wanted, beliefs)
        answer = self._answer(wanted, answer_ids)
        if answer is None:
            return None
        return _as_arrays([self._masses(answer, place, told) for place in range(len(answer_ids))])

    def _answer(self, text: bytes, token_ids: tuple[int, ...]) -> _Answer | None:
        """Return where the tokens stand; None for a text that the tokenizer changes before it cuts it."""
        ends = list(accumulate(len(self._bytes.get(token_id, b"")) for token_id in token_ids[:-1]))
        spelt = b"".join(self._bytes.get(token_id, b"") for token_id in token_ids[:-1])
        if spelt not in (text, b" " + text):
            return None
        lead = len(spelt) - len(text)
        places = [end - lead for end in ends]
        return _Answer(text, spelt[:lead], token_ids, (0, *places), (*places, len(text)))

    def _masses(self, answer: _Answer, place: int, told: _Told) -> dict[int, float]:
        """Return how likely the teacher held each token of the student at a place of the answer; nothing where it is not known."""
        start, is_last = answer.starts[place], place == len(answer.token_ids) - 1
        at = told.beginning_at.get(start)
        # A space that stands alone before the text takes no place: what follows begins where it does.
        if at is None or is_last != (not told.beliefs[at].said) or (place and answer.starts[place - 1] == start):
            return {}
        masses: dict[int, float] = {}
        before = cache(lambda: self._before(answer, place))
        for spelt, log_probability in told.beliefs[at].choices:
            mass = math.exp(log_probability)
            if spelt == told.beliefs[at].said:
                token_id: int | None = answer.token_ids[place]
                mass = _until(told, at, answer.ends[place])
            else:
                token_id = self._first_token(answer, place, spelt, before)
            if token_id is not None and mass > 0:
                masses[token_id] = masses.get(token_id, 0.0) + mass
        return masses

    def _first_token(self, answer: _Answer, place: int, spelt: bytes, before: Callable[[], _Before]) -> int | None:
        """Return the token with which the student would begin to say this at a place; None where it would not begin there."""
        if not spelt:
            return answer.token_ids[-1]
        if place == 0:
            spelt = spelt.lstrip()
            if not spelt:
                return None
            if answer.lead + spelt in self._ids:
                return self._ids[answer.lead + spelt]
        elif spelt in self._ids:
            return self._ids[spelt]
        known = before()
        try:
            text = (known.text + spelt).decode("utf-8")
        except UnicodeDecodeError:
            return None
        token_ids, here = self._renderer.unfinished(text), len(known.token_ids)
        return token_ids[here] if token_ids[:here] == known.token_ids and len(token_ids) > here else None

    def _before(self, answer: _Answer, place: int) -> _Before:
        """Return the end of what stands before a place where it is cut as within the whole answer, else all of it.

        So the work grows with the length of an answer and not with its square.
        """
        start, text = answer.starts[place], answer.text
        whole = _Before(text[:start], answer.token_ids[:place])
        first = _sound_place(answer, bisect_right(answer.starts, start - _WINDOW_BYTES) - 1, -1)
        if place - first < _SHARED_TOKENS or first <= 0:
            return whole
        end = answer.starts[_sound_place(answer, min(place + _SHARED_TOKENS, len(answer.starts) - 1), 1)]
        token_ids = self._renderer.unfinished(text[answer.starts[first] : end].decode("utf-8"))
        # Counted from the end, because a tokenizer may put a space before a text or take one away.
        behind, here = end - start, len(token_ids)
        while behind > 0 and here:
            here -= 1
            behind -= len(self._bytes.get(token_ids[here], b""))
        shared = answer.token_ids[place - _SHARED_TOKENS : place]
        if behind or token_ids[max(0, here - _SHARED_TOKENS) : here] != shared:
            return whole
        return _Before(text[answer.starts[first] : start], token_ids[:here])


def _sound_place(answer: _Answer, place: int, step: int) -> int:
    """Return the nearest place in a direction at which no character is cut in two."""
    while 0 < place < len(answer.starts) and answer.text[answer.starts[place] : answer.starts[place] + 1] in _WITHIN:
        place += step
    return place


def _told(text: bytes, beliefs: Sequence[TokenBelief]) -> _Told:
    """Return where in a text the beliefs stand; white space around it, which is not learnt, stands outside."""
    said = b"".join(belief.said for belief in beliefs).decode("utf-8", "replace")
    before = len((said[: len(said) - len(said.lstrip())]).encode("utf-8"))
    if said.strip().encode("utf-8", "replace") != text:
        raise OtherWords
    ends = tuple(end - before for end in accumulate(len(belief.said) for belief in beliefs))
    beginning_at: dict[int, int] = {}
    for place, (start, end) in enumerate(zip((-before, *ends), ends, strict=False)):
        # The token with the first letter begins the text, whatever white space stands in it before.
        if end > 0:
            beginning_at.setdefault(max(0, start), place)
    return _Told(beliefs, ends, beginning_at)


def _until(told: _Told, at: int, end: int) -> float:
    """Return how likely the teacher held what it said from one of its tokens on, up to a place: 0 where that is not known.

    Where a token of the student takes several of the teacher's, these are as likely as all of them together.
    """
    log_probability = 0.0
    while True:
        choices = dict(told.beliefs[at].choices)
        log_probability += choices.get(told.beliefs[at].said, -math.inf)
        if told.ends[at] >= end:
            return math.exp(log_probability)
        at += 1


def _as_arrays(masses: Sequence[Mapping[int, float]]) -> SoftLabels | None:
    """Return the choices of each token of the answer, the likeliest first."""
    most = max(map(len, masses))
    if not most:
        return None
    token_ids = np.full((len(masses), most), -1, dtype=np.int32)
    log_probabilities = np.full((len(masses), most), -np.inf, dtype=np.float32)
    for place, of_token in enumerate(masses):
        ordered = sorted(of_token.items(), key=lambda choice: (-choice[1], choice[0]))
        token_ids[place, : len(ordered)] = [token_id for token_id, _ in ordered]
        log_probabilities[place, : len(ordered)] = [math.log(mass) for _, mass in ordered]
    return SoftLabels(token_ids, log_probabilities)
