"""What the handbook teacher says: the handbook searched by meaning, helped by rare words that question and article share.

In: a conversation's messages. Out: the answer of the article (or of two, for two problems in one message), a courteous word
for a greeting, or an honest refusal. It says the handbook's own sentences only and is no large language model. Its weights
were tuned on one half of the demo's customers and measured on the other; nothing in here knows a word of the demo.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversations.messages import ChatMessage, Role
from distill.dataset.handbook.articles import Article, Handbook, Passage, described_in, sentences
from distill.dataset.similarity import Embedder, Vectors, words

DECLINED = "I don't know that from my handbook, so I'm passing this to a colleague."
WELCOME = "You're welcome. Just write again if something else comes up."
GREETING = "Hello! Tell me what is wrong and I will look it up."

# How much each view of an article counts, against a whole view of 1.
_SENTENCE_WEIGHT = 1.0
_ANSWER_WEIGHT = 0.4
_TITLE_WEIGHT = 0.4
_RARE_WORD_WEIGHT = 0.3
_EARLIER_WEIGHT = 0.25
_COMMON_SHARE = 0.25
_MIN_SCORE = 1.15
_SECOND_MIN_SCORE = 1.7
_SECOND_MARGIN = 0.15
_COURTESY_LIKENESS = 0.45
_MAX_EARLIER = 2
_MAX_COURTESY_WORDS = 25

_THANKS = ("Thank you, goodbye.", "Thanks anyway, I will ask somebody else.", "Okay, good night.")
_HELLOS = ("Hello there!", "Good morning, is anybody there?", "Hi")
_CLAUSE_END = re.compile(
    r"\s*(?:[,;:–—]\s+|\.\.+\s*|\s)(?=(?:and|also|plus|but|second(?:ly)?|another|besides|then|oh|on top)\b)", re.IGNORECASE
)
_MIN_CLAUSE_WORDS = 4

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class HandbookAnswer:
    """An answer and the hashes of the passages it rests on; none for a refusal or a courtesy."""

    text: str
    passages: tuple[str, ...] = ()
    articles: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """Something that can be found: an article with an answer of its own, or one passage of an article without."""

    article: Article
    passage: Passage
    whole: str
    cues: tuple[str, ...]

    @property
    def said(self) -> str:
        """The passage below its title."""
        return f"{self.article.title}. {self.passage.text}"


class HandbookTeacher:
    """A searchable handbook; safe for several threads once made."""

    def __init__(self, handbook: Handbook, embedder: Embedder, vectors_in: Path | None = None) -> None:
        """Embed the handbook; with a folder, once for each handbook, because a large one takes minutes."""
        self._embedder = embedder
        self._entries = [entry for article in handbook.articles for entry in _entries(article)]
        if vectors_in is not None:
            known = f"{handbook.digest.removeprefix('sha256:')[:24]}.npy"
            embedder.remember([text for entry in self._entries for text in _texts_of(entry)], vectors_in / known)
        self._whole = embedder.embed([entry.whole for entry in self._entries])
        self._titles = embedder.embed([entry.article.title for entry in self._entries])
        self._said = embedder.embed([entry.said for entry in self._entries])
        self._cues = [embedder.embed(entry.cues) for entry in self._entries]
        self._lexicon = _Lexicon([f"{entry.article.title} {entry.whole}" for entry in self._entries])
        self._thanks = embedder.embed(_THANKS)
        self._hellos = embedder.embed(_HELLOS)

    def answer(self, messages: Sequence[ChatMessage]) -> HandbookAnswer:
        """Answer the last customer message in the light of the earlier ones; the bot's own words are not looked at."""
        asked = [message.content for message in messages if message.role is Role.USER and message.content.strip()]
        if not asked:
            return HandbookAnswer(GREETING)
        # All that is compared below, at once: the embedder keeps it, and one pass costs little more than one text.
        self._embedder.embed([*asked[-1 - _MAX_EARLIER :], *_clauses(asked[-1])])
        alone = self.scores([asked[-1]])[0]
        courtesy = self._courtesy(asked[-1])
        if courtesy and float(alone.max()) < _MIN_SCORE:
            return HandbookAnswer(courtesy)
        whole = self.in_context(asked)
        best = int(whole.argmax())
        if float(whole[best]) < _MIN_SCORE:
            return HandbookAnswer(DECLINED)
        found = [best, *self._second_problem(asked[-1], alone, best)]
        entries = [self._entries[index] for index in found]
        return HandbookAnswer(
            " ".join(entry.passage.text for entry in entries),
            tuple(entry.passage.passage_hash for entry in entries),
            tuple(entry.article.article_id for entry in entries),
        )

    def scores(self, texts: Sequence[str]) -> Scores:
        """Return how well each entry fits each text. Shape: (texts, entries)."""
        asked = self._embedder.embed(texts)
        meaning = asked @ (self._whole + _ANSWER_WEIGHT * self._said + _TITLE_WEIGHT * self._titles).T
        cues = np.stack([_mean_of_best_two(asked @ cues.T) for cues in self._cues], axis=1)
        rare = np.stack([self._lexicon.shared(text) for text in texts])
        return np.asarray(meaning + _SENTENCE_WEIGHT * cues + _RARE_WORD_WEIGHT * rare, np.float32)

    def in_context(self, asked: Sequence[str]) -> Scores:
        """Return the scores of the last message, helped by the customer's earlier ones."""
        scores = self.scores(asked[-1 - _MAX_EARLIER :])
        weights = np.array([_EARLIER_WEIGHT ** (len(scores) - 1 - place) for place in range(len(scores))], np.float32)
        return np.asarray(weights @ scores / weights.sum(), np.float32)

    def passages_for(self, asked: Sequence[str], count: int) -> tuple[Passage, ...]:
        """Return the passages that fit a customer's messages best, the best first."""
        if not asked:
            return ()
        order = np.argsort(-self.in_context(asked), kind="stable")[:count]
        return tuple(self._entries[int(index)].passage for index in order)

    def _second_problem(self, question: str, alone: Scores, best: int) -> list[int]:
        """Return the entry of a second problem that the message clearly names, if there is one."""
        clauses = _clauses(question)
        if len(clauses) < 2:
            return []
        by_clause = self.scores(clauses)
        candidates: list[tuple[float, int]] = []
        for scores in by_clause:
            index = int(scores.argmax())
            if self._entries[index].article is self._entries[best].article:
                continue
            lead = float(scores[index] - scores[best])
            if float(scores[index]) >= _SECOND_MIN_SCORE and lead >= _SECOND_MARGIN:
                candidates.append((float(scores[index]), index))
        return [max(candidates)[1]] if candidates else []

    def _courtesy(self, question: str) -> str:
        if len(words(question)) > _MAX_COURTESY_WORDS or "?" in question:
            return GREETING if self._is_like(question, self._hellos) else ""
        if self._is_like(question, self._thanks):
            return WELCOME
        return GREETING if self._is_like(question, self._hellos) else ""

    def _is_like(self, question: str, examples: Vectors) -> bool:
        return float((self._embedder.embed([question]) @ examples.T).max()) >= _COURTESY_LIKENESS


class _Lexicon:
    """The rare words of each entry, weighed by how rare they are in this handbook."""

    def __init__(self, texts: Sequence[str]) -> None:
        said = [frozenset(stem(word) for word in words(text)) for text in texts]
        seen_in = Counter(word for each in said for word in each)
        most = max(2, math.ceil(len(texts) * _COMMON_SHARE))
        top = math.log(1 + len(texts)) ** 2
        self._size = len(texts)
        # A word of one entry weighs 1, a word of many next to nothing: squared inverse document frequency.
        self._weights = {
            word: math.log(1 + len(texts) / count) ** 2 / top for word, count in seen_in.items() if count <= most
        }
        self._places: dict[str, list[int]] = {}
        for place, each in enumerate(said):
            for word in each & self._weights.keys():
                self._places.setdefault(word, []).append(place)

    def shared(self, text: str) -> Scores:
        """Return the weight of the words that a text shares with each entry. Shape: (entries,)."""
        found = np.zeros(self._size, np.float32)
        for word in {stem(word) for word in words(text)} & self._weights.keys():
            found[self._places[word]] += self._weights[word]
        return found


def _entries(article: Article) -> list[_Entry]:
    if not article.has_answer:
        return [
            _Entry(article, passage, f"{article.title}. {passage.text}", (passage.text,)) for passage in article.passages
        ]
    told = described_in(article)
    return [_Entry(article, article.passages[0], f"{article.title}. {' '.join(told)}", tuple(told) or (article.title,))]


def _texts_of(entry: _Entry) -> tuple[str, ...]:
    return (entry.whole, entry.article.title, entry.said, *entry.cues)


def _mean_of_best_two(likeness: Vectors) -> Scores:
    """Return, for each text, the mean of its two most similar cues. Shape: (texts, cues) to (texts,)."""
    best = np.sort(likeness, axis=1)[:, -2:]
    return np.asarray(best.mean(axis=1), np.float32)


def _clauses(question: str) -> list[str]:
    pieces = [piece for sentence in sentences(question) for piece in _CLAUSE_END.split(sentence)]
    return [piece for piece in pieces if len(words(piece)) >= _MIN_CLAUSE_WORDS]


def stem(word: str) -> str:
    """Cut English endings off, roughly: the aim is that `bills` meets `billed`."""
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
