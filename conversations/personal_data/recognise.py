"""All recognisers together: where personal data stands in a text, and of which kind.

In: a text and the rules. Out: spans that do not overlap, left to right. The most certain recogniser goes first, and what it has
taken no later one reads, so that a phone number is not found inside a card.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

from conversations.personal_data.internet import email_spans, ip_v4_spans, ip_v6_spans
from conversations.personal_data.keys import checksum_spans, key_spans
from conversations.personal_data.names import NameList
from conversations.personal_data.payment import card_spans, iban_spans
from conversations.personal_data.phones import phone_spans
from conversations.personal_data.writing import read, without

BUILT_IN_KINDS = ("KEY", "EMAIL", "IBAN", "CARD", "IP", "PHONE")
NAME = "NAME"
_INTERNATIONAL = re.compile(r"\+|00[1-9]")


class Span(NamedTuple):
    """A piece of a text that is personal."""

    start: int
    end: int
    kind: str


Recogniser = Callable[[str], Iterable[tuple[int, int]]]


@dataclass(frozen=True)
class RedactionRules:
    """What counts as personal beyond the built-in kinds.

    `regions` are the ISO codes of countries whose national phone formats customers use; `patterns` maps a kind such as
    `ORDER` (capital letters and digits, 20 at most) to a regular expression; `names` are people's names, which get the kind NAME.
    """

    regions: tuple[str, ...] = ()
    patterns: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind that these rules find; the chat can put these back, and no other."""
        return frozenset((*BUILT_IN_KINDS, *self.patterns, *((NAME,) if self.names else ())))

    def spans(self, text: str, taken: Iterable[tuple[int, int]] = ()) -> list[Span]:
        """Return the personal data of a text outside the spans that are `taken` already."""
        for start, end in taken:
            text = without(text, start, end)
        writing = read(text)
        plain = writing.plain
        found: list[Span] = []
        for kind, recogniser in self._recognisers:
            for start, end in _apart(recogniser(plain)):
                plain = without(plain, start, end)
                if kind:
                    found.append(Span(*writing.original_span(start, end), kind))
        return sorted(found)

    @cached_property
    def _recognisers(self) -> tuple[tuple[str, Recogniser], ...]:
        """Each kind with its recogniser, the most certain first; what has no kind is taken and stays as it is."""
        patterns = [(kind, partial(_pattern_spans, re.compile(pattern))) for kind, pattern in self.patterns.items()]
        return (
            ("KEY", key_spans),
            ("EMAIL", email_spans),
            ("", checksum_spans),
            ("IBAN", iban_spans),
            *patterns,
            ("PHONE", _international_spans),
            ("IP", ip_v6_spans),
            ("CARD", card_spans),
            ("IP", ip_v4_spans),
            ("PHONE", partial(phone_spans, regions=self.regions)),
            (NAME, NameList(self.names).spans),
        )


def _pattern_spans(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Yield an operator's pattern."""
    return _tearing_no_card(text, (found.span() for found in pattern.finditer(text) if found.group()))


def _international_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield international numbers: plus or 00 makes them certain, although some have as many digits as a card."""
    if _INTERNATIONAL.search(text):
        spans = phone_spans(text, ())
        yield from _tearing_no_card(text, (span for span in spans if _INTERNATIONAL.match(text, span[0])))


def _tearing_no_card(text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the spans but those that hold a part of a card's number and leave the rest of it."""
    cards = list(card_spans(text))
    for start, end in spans:
        torn = (
            card_start < end and start < card_end and (start > card_start or end < card_end)
            for card_start, card_end in cards
        )
        if not any(torn):
            yield start, end


def _apart(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans left to right without those that overlap an earlier or, at the same place, a longer one."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept
