"""Personal data out of a conversation and back in: typed, stable placeholders such as `<EMAIL_1>`.

In: the texts of one conversation, in order. Out: the same texts with placeholders, and the table that puts them back.
The same value gets the same placeholder throughout the conversation. Checksums and parsers decide (Luhn, mod 97,
phonenumbers, ipaddress), so that order numbers and version numbers are not eaten. Light enough for the chat process;
works without a network. What it removes from texts that go to a teacher or into training never leaves this machine.
"""

import ipaddress
import json
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import phonenumbers
from stdnum import iban, luhn

from conversations.messages import ChatMessage, Json

# Each pattern looks behind itself, so that it starts once in a run of its own characters and stays linear on long texts.
# Begins at a boundary and is bounded, so that a long run of letters costs no more than its length.
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,6}\.[^\W\d_]{2,24}", re.UNICODE)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{2,4}){3,8}\b", re.IGNORECASE)
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d.,]*\d)")
_IP_V4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IP_V6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE)
_KEY = re.compile(
    r"(?<![\w-])(?:(?:sk|pk|rk|ghp|gho|xox[bp]|hf|glpat)[-_][\w-]{16,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)\b"
)
# "version 4.12.7.1" and "firmware 10.2.0.4" look like addresses and are not.
_VERSION_BEFORE = re.compile(
    r"(?:version|firmware|release|build|\bv\.?|\bver\.?|верс\w*|прошивк\w*)\s*:?\s*$", re.IGNORECASE
)
_VERSION_REACH = 24
# The name of a kind; short, so that a stream holds little back.
KIND = re.compile(r"[A-Z][A-Z0-9]{0,19}")
PLACEHOLDER = re.compile(rf"<{KIND.pattern}_\d{{1,9}}>")
# The kind of a placeholder that stands in the text already.
_TYPED = "typed"
# Ways of writing that do not make another value of it.
_SPACING = re.compile(r"[\s().-]")


@dataclass(frozen=True)
class RedactionRules:
    """What counts as personal beyond the built-in kinds.

    `regions` are the ISO codes of countries whose national phone formats customers use; `patterns` maps a kind such as
    `ORDER` (capital letters and digits, 20 at most) to a regular expression.
    """

    regions: tuple[str, ...] = ()
    patterns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Placeholders:
    """The table of one conversation: placeholder to original text."""

    originals: Mapping[str, str]

    def restore(self, text: str) -> str:
        """Return the text with every placeholder of this conversation put back."""
        return PLACEHOLDER.sub(lambda found: self.originals.get(found.group(), found.group()), text)


class Redactor:
    """Redacts the texts of one conversation, in order, with one table of placeholders."""

    def __init__(self, rules: RedactionRules | None = None) -> None:
        self._rules = rules or RedactionRules()
        self._patterns = {kind: re.compile(pattern) for kind, pattern in self._rules.patterns.items()}
        self._names: dict[tuple[str, str], str] = {}
        self._originals: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def redact(self, text: str) -> str:
        """Return the text with each piece of personal data replaced by its placeholder."""
        parts: list[str] = []
        end_of_last = 0
        for start, end, kind in self._spans(text):
            parts += [text[end_of_last:start], self._name(kind, text[start:end])]
            end_of_last = end
        return "".join(parts) + text[end_of_last:]

    @property
    def placeholders(self) -> Placeholders:
        """The table so far."""
        return Placeholders(dict(self._originals))

    def _name(self, kind: str, original: str) -> str:
        key = (kind, _value(kind, original))
        if key not in self._names:
            # A customer who types a placeholder gets it back: it stands for itself, or for its text where it is taken.
            is_free = kind == _TYPED and original not in self._originals
            self._names[key] = original if is_free else self._fresh(original[1:].split("_")[0] if kind == _TYPED else kind)
            self._originals[self._names[key]] = original
        return self._names[key]

    def _fresh(self, kind: str) -> str:
        while True:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            name = f"<{kind}_{self._counts[kind]}>"
            if name not in self._originals:
                return name

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        """Return the spans to replace, left to right, the first and longest one where several overlap."""
        found: list[tuple[int, int, str]] = []
        for kind, spans in self._recognisers():
            for start, end in spans(text):
                place = bisect(found, (start, end, kind))
                is_clear_before = place == 0 or found[place - 1][1] <= start
                if is_clear_before and (place == len(found) or end <= found[place][0]):
                    found.insert(place, (start, end, kind))
        return found

    def _recognisers(self) -> Iterator[tuple[str, Callable[[str], Iterator[tuple[int, int]]]]]:
        """Yield each kind with its recogniser, the most certain kind first."""
        yield _TYPED, partial(_spans_of, PLACEHOLDER)
        yield "EMAIL", partial(_spans_of, _EMAIL)
        yield "KEY", partial(_spans_of, _KEY)
        for kind, pattern in self._patterns.items():
            yield kind, partial(_spans_of, pattern)
        yield "IBAN", _iban_spans
        yield "CARD", lambda text: (found.span() for found in _CARD.finditer(text) if _is_card(found.group()))
        yield "IP", _address_spans
        yield "PHONE", self._phone_spans

    def _phone_spans(self, text: str) -> Iterator[tuple[int, int]]:
        # Without a region only numbers with a country code can be told, and those begin with a plus.
        international = (None,) if "+" in text else ()
        for region in (*international, *self._rules.regions):
            for match in phonenumbers.PhoneNumberMatcher(text, region):
                yield match.start, match.end


def _spans_of(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    return (found.span() for found in pattern.finditer(text))


def _value(kind: str, original: str) -> str:
    """Return what two writings of the same value share."""
    match kind:
        case "EMAIL" | "IP":
            return original.casefold()
        case "PHONE" | "CARD" | "IBAN":
            return _SPACING.sub("", original).upper()
        case _:
            return original


def _iban_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield account numbers; words may follow in the same breath, so the longest beginning that checks is taken."""
    for found in _IBAN.finditer(text):
        ends = [found.end(), *(found.start() + gap.start() for gap in reversed(list(re.finditer(" ", found.group()))))]
        for end in ends:
            if iban.is_valid(text[found.start() : end]):
                yield found.start(), end
                break


def _is_card(digits_text: str) -> bool:
    digits = re.sub(r"[ -]", "", digits_text)
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn.is_valid(digits)


def _address_spans(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IP_V4, _IP_V6):
        for found in pattern.finditer(text):
            if _VERSION_BEFORE.search(text[max(0, found.start() - _VERSION_REACH) : found.start()]):
                continue
            try:
                ipaddress.ip_address(found.group())
            except ValueError:
                continue
            yield found.span()


def redact_messages(
    messages: Sequence[ChatMessage], rules: RedactionRules | None = None
) -> tuple[tuple[ChatMessage, ...], Placeholders]:
    """Return the messages of one conversation redacted, with the table that puts the originals back.

    The system prompt is the operator's own text and stays as it is.
    """
    redactor = Redactor(rules)
    redacted = tuple(
        message
        if message.role == "system"
        else replace(
            message, content=redactor.redact(message.content), extra_json=_redact_json(redactor, message.extra_json)
        )
        for message in messages
    )
    return redacted, redactor.placeholders


def _redact_json(redactor: Redactor, text: str) -> str:
    """Redact the values inside a JSON text; a number that is personal, such as a card's, becomes a string."""

    def walk(value: Json) -> Json:
        if isinstance(value, dict):
            return {key: walk(each) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each) for each in value]
        if isinstance(value, bool) or value is None:
            return value
        redacted = redactor.redact(str(value))
        return value if redacted == str(value) else redacted

    return json.dumps(walk(json.loads(text)), ensure_ascii=False) if text else ""


class StreamRestorer:
    """Puts placeholders back in a text that arrives in pieces; holds back only what may be half a placeholder."""

    _HALF = re.compile(rf"<(?:{KIND.pattern}(?:_\d{{0,9}})?)?\Z")

    def __init__(self, placeholders: Placeholders) -> None:
        self._placeholders = placeholders
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take the next piece and return what may be shown now."""
        text = self._held + piece
        half = self._HALF.search(text)
        cut = half.start() if half else len(text)
        self._held = text[cut:]
        return self._placeholders.restore(text[:cut])

    def finish(self) -> str:
        """Return what was held back."""
        rest, self._held = self._held, ""
        return self._placeholders.restore(rest)
