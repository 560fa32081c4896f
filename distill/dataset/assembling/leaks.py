"""Leaks: what a training row must not show of the test set.

In: the rows of the edition, with every text that is known as a right answer to them. Out: the reason why a row must not be
learnt, or none. Three things are looked for: the decision's conversation or cluster is tested; its question is the near-duplicate
of a tested one (word trigrams, exactly) or its prompt has the same words; a reference of eight words or more stands in its prompt,
earlier turns included, whatever its case, spaces and punctuation.

Two kinds of reference say nothing of one customer, and are not looked for: those that are word for word the handbook's passages,
which a teacher out of the handbook says to everybody, and the fixed sentences with which the product itself declines or greets.
Both are counted.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil

from conversations.messages import Role
from distill.dataset.prompt_names import prompt_name
from distill.dataset.similarity import trigrams, words
from distill.rows import ChosenRow, DatasetRow

TWIN_OF_TEST = "twin_of_test"
JOINS_TEST = "joins_test"
TEST_ANSWER_IN_PROMPT = "test_answer_in_prompt"
MIN_REFERENCE_WORDS = 8

Gram = tuple[str, ...]


class HeldOut:
    """The test set as training must not know it."""

    def __init__(self, near_duplicate_jaccard: float) -> None:
        self._threshold = near_duplicate_jaccard
        self._decisions: set[str] = set()
        self._conversations: set[str] = set()
        self._clusters: set[str] = set()
        self._questions: set[frozenset[Gram]] = set()
        self._prompts: set[bytes | None] = set()
        self._references: dict[Gram, set[Gram]] = {}
        self._twins: _Twins | None = None
        self._seen: dict[bytes, bool] = {}
        self.counts: Counter[str] = Counter()

    def add(self, row: DatasetRow, references: Iterable[str], known_texts: "KnownTexts") -> None:
        """Take in a row of the edition with the texts that answer it."""
        self._decisions.add(row.decision_id)
        self._conversations.add(row.conversation_id)
        self._clusters.add(row.cluster_id)
        self._questions.add(trigrams(row.question))
        # The last message is the answer.
        self._prompts.add(prompt_name(row.messages[:-1]))
        for said in {tuple(words(text)) for text in references}:
            if len(said) < MIN_REFERENCE_WORDS:
                continue
            kind = known_texts.kind_of(said)
            self.counts[kind or "references"] += 1
            if kind is None:
                self._references.setdefault(said[:MIN_REFERENCE_WORDS], set()).add(said)

    def reason_against(self, row: ChosenRow, ours: frozenset[str]) -> str | None:
        """Return why a decision must not be learnt; `ours` are system prompts that stand before every conversation."""
        if (
            row.decision_id in self._decisions
            or row.conversation_id in self._conversations
            or row.cluster_id in self._clusters
        ):
            return JOINS_TEST
        if self._twins is None:
            self._twins = _Twins(self._questions, self._threshold)
        prompt = prompt_name(row.messages)
        if self._twins.has_one(trigrams(row.question)) or (prompt is not None and prompt in self._prompts):
            return TWIN_OF_TEST
        if self._references and any(
            self._shows_answer(message.content)
            for message in row.messages
            if message.role is not Role.SYSTEM or message.content not in ours
        ):
            return TEST_ANSWER_IN_PROMPT
        return None

    def _shows_answer(self, text: str) -> bool:
        # The turns of a conversation stand in the prompts of all its decisions.
        name = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        if name not in self._seen:
            self._seen[name] = self._holds_reference(words(text))
        return self._seen[name]

    def _holds_reference(self, said: Sequence[str]) -> bool:
        for start in range(len(said) - MIN_REFERENCE_WORDS + 1):
            for found in self._references.get(tuple(said[start : start + MIN_REFERENCE_WORDS]), ()):
                if tuple(said[start : start + len(found)]) == found:
                    return True
        return False


class KnownTexts:
    """Texts that are nobody's secret: the handbook's passages, and sentences that the product says by itself."""

    _FIRST_WORDS = 3

    def __init__(self, passages: Iterable[str], fixed: Iterable[str]) -> None:
        self._fixed = {tuple(words(text)) for text in fixed}
        self._passages: dict[Gram, list[Gram]] = {}
        for text in passages:
            said = tuple(words(text))
            if len(said) >= self._FIRST_WORDS:
                self._passages.setdefault(said[: self._FIRST_WORDS], []).append(said)

    def kind_of(self, said: Gram) -> str | None:
        """Return `fixed_references` or `handbook_references`, or None for words that only the test set holds."""
        if said in self._fixed:
            return "fixed_references"
        left = place = 0
        while place < len(said):
            found = self._passage_at(said, place)
            left += not found
            place += found or 1
        return "handbook_references" if left < MIN_REFERENCE_WORDS and left < len(said) else None

    def _passage_at(self, said: Gram, place: int) -> int:
        """Return the length of the longest passage that begins at a place, 0 where none does."""
        begun = self._passages.get(said[place : place + self._FIRST_WORDS], [])
        return max((len(each) for each in begun if said[place : place + len(each)] == each), default=0)


class _Twins:
    """The tested questions by their rarest trigrams: two sets of Jaccard t share one of their first |x| - ceil(t |x|) + 1.

    Prefix filtering (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007), so the answer is exact.
    """

    def __init__(self, questions: Iterable[frozenset[Gram]], threshold: float) -> None:
        self._threshold = threshold
        known = [grams for grams in questions if grams]
        self._counts = Counter(gram for grams in known for gram in grams)
        self._by_gram: dict[Gram, list[frozenset[Gram]]] = {}
        for grams in known:
            for gram in self._rarest(grams):
                self._by_gram.setdefault(gram, []).append(grams)

    def has_one(self, grams: frozenset[Gram]) -> bool:
        return any(
            len(grams & other) >= self._threshold * len(grams | other)
            for gram in self._rarest(grams)
            for other in self._by_gram.get(gram, ())
        )

    def _rarest(self, grams: frozenset[Gram]) -> list[Gram]:
        ordered = sorted(grams, key=lambda gram: (self._counts[gram], gram))
        return ordered[: len(ordered) - ceil(self._threshold * len(ordered) - 1e-9) + 1]


def references_of(row: DatasetRow, logged: Iterable[str]) -> list[str]:
    """Return every text that is known as an answer to a tested question; `logged` are the replies in the log."""
    given = row.messages[-1].content if row.messages[-1].role is Role.ASSISTANT else ""
    texts = [given, row.labels.reference, *row.labels.replies, *logged]
    return [text for text in texts if text]
