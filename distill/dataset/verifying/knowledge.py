"""What is known for sure when an answer is held against the handbook: its sentences, quantities, values and links.

In: texts, of the passages that an answer rests on or of the whole handbook. Out: what can be looked up in them. Everything is
worked out once for each set of passages, so that many answers cost little.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from distill.dataset.handbook.answering import stem
from distill.dataset.handbook.articles import Handbook, Passage, sentences
from distill.dataset.similarity import words
from distill.dataset.verifying.quantities import Quantity, links, plain, quantities, values, word_values

_NEGATIONS = frozenset(
    words(
        "not no never cannot nor without don't doesn't didn't won't can't isn't aren't wasn't mustn't shouldn't "
        "needn't wouldn't couldn't "
        "nicht kein keine keinen nie niemals ne pas jamais nunca не ні ніколи"
    )
)
_EMPTY_WORDS = frozenset(
    words(
        "a an the this that these those and or but if then so as at by for from in into of on onto to with up out "
        "it its is are was were be "
        "been being am do does did has have had will would can could shall should may might must i you he she we "
        "they me him her us them "
        "my your his our their please just also too very there here what which who how when where why than about "
        "over under again only "
        "der die das den dem des ein eine einen und oder aber wenn dann so als an bei für von in zu mit auf ist "
        "sind war sie ihr ihre wir "
        "ich es bitte auch nur le la les un une des et ou mais si à de du en dans pour par sur est sont vous nous "
        "votre el los las una y "
        "o en por para con es son su usted і й та або але якщо то в у на з із для до від це ви ми ваш ваша"
    )
)
_CONTRACTIONS = re.compile(r"\b(can)not\b|\b(\w+?)n['\s]t\b", re.IGNORECASE)
# "No, you must …" answers a question, and "do not forget to" asks for what it names.
_NO_DENIAL = re.compile(
    r"^\W*(?:yes|no|nope|nein|ja|non|oui|ні|так)(?:\s*[,.!;]|(?= (?:you|we|i|it|they|that|this)\b))"
    r"|\b(?:do not|don't|never) (?:forget|hesitate|worry)\b|\bnot only\b",
    re.IGNORECASE,
)
_LISTED_SENTENCES = 12
_RAREST_WORDS = 6


@dataclass(frozen=True)
class Said:
    """A sentence as it can be compared: its words of content, whether it denies, and what it counts."""

    text: str
    stems: frozenset[str]
    denies: bool
    counted: tuple[Quantity, ...]

    @classmethod
    def of(cls, text: str) -> "Said":
        """Read a sentence."""
        text = _NO_DENIAL.sub(" ", text)
        spoken = words(_CONTRACTIONS.sub(lambda found: f"{found[1] or found[2]} not", text.replace("’", "'")))
        denials = sum(word in _NEGATIONS for word in spoken)
        return cls(text, content_of(spoken), denials % 2 == 1, tuple(quantities(plain(text))))


@dataclass(frozen=True)
class Knowledge:
    """Texts that an answer may rest on."""

    texts: tuple[str, ...]

    @cached_property
    def whole(self) -> str:
        """All the texts as one."""
        return "\n".join(self.texts)

    @cached_property
    def values(self) -> frozenset[str]:
        """Every number and code, those written as words too."""
        return frozenset(values(plain(self.whole)) | word_values(self.whole))

    @cached_property
    def counted(self) -> frozenset[tuple[str, str, float]]:
        """The keys of every quantity."""
        return frozenset(each.key for each in quantities(plain(self.whole)))

    @cached_property
    def units_of(self) -> frozenset[tuple[str, str]]:
        """Which number stands with which dimension."""
        return frozenset((each.dimension, each.value) for each in quantities(plain(self.whole)))

    @cached_property
    def links(self) -> frozenset[str]:
        """Every web address, written one way."""
        return frozenset(links(self.whole))

    @cached_property
    def sentences(self) -> tuple[Said, ...]:
        """Every sentence."""
        return tuple(Said.of(each) for text in self.texts for each in sentences(text))

    @cached_property
    def stems(self) -> frozenset[str]:
        """Every word of content."""
        return frozenset(stem for sentence in self.sentences for stem in sentence.stems)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, sentence in enumerate(self.sentences):
            for each in sentence.stems:
                places.setdefault(each, []).append(place)
        return places

    def most_like(self, said: Said) -> list[tuple[float, Said]]:
        """Return the sentences that share the most words of content with this one, the share of its words beside each."""
        if not said.stems:
            return []
        # The rarest words find it; common ones would list half of the handbook.
        rarest = sorted((each for each in said.stems if each in self._places), key=lambda each: len(self._places[each]))
        found = Counter(place for each in rarest[:_RAREST_WORDS] for place in self._places[each])
        near = [self.sentences[place] for place, _ in found.most_common(_LISTED_SENTENCES)]
        return sorted(((len(said.stems & each.stems) / len(said.stems), each) for each in near), key=lambda each: -each[0])


class Shelf:
    """The handbook, with what is known by any set of its passages kept."""

    def __init__(self, handbook: Handbook) -> None:
        self.handbook = handbook
        self._kept: dict[tuple[str, ...], Knowledge] = {}

    def gone(self, passages: Sequence[str]) -> str:
        """Return the first of these passages that the handbook has no more; empty when it has all."""
        return next((name for name in passages if name not in self.handbook.passages), "")

    def known(self, passages: Sequence[str]) -> Knowledge:
        """Return what these passages say; what the whole handbook says where there are none."""
        cited = tuple(name for name in passages if name in self.handbook.passages)
        if cited not in self._kept:
            chosen: Sequence[Passage] = [self.handbook.passages[name] for name in cited]
            self._kept[cited] = Knowledge(
                tuple(f"{each.title}.\n{each.text}" for each in chosen or self.handbook.passages.values())
            )
        return self._kept[cited]


def content_of(spoken: Sequence[str]) -> frozenset[str]:
    """Return the words that carry what is said, their English endings cut off."""
    return frozenset(
        stem(word) for word in spoken if word not in _EMPTY_WORDS and word not in _NEGATIONS and not word.isdigit()
    )
