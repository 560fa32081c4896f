"""Personal data out of a conversation and back in: typed, stable placeholders such as `<EMAIL_1>`.

In: the texts of one conversation, in order. Out: the same texts with placeholders, and the table that puts them back.
The same writing gets the same placeholder throughout the conversation, and comes back to the letter. What is personal,
`personal_data` says. Light enough for the chat process; works without a network. What it removes from texts that go to a teacher
or into training never leaves this machine.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from conversations.messages import ChatMessage, Json, Role
from conversations.personal_data.recognise import RedactionRules, Span

__all__ = [
    "KIND",
    "PLACEHOLDER",
    "Placeholders",
    "RedactionRules",
    "Redactor",
    "SecondPass",
    "StreamRestorer",
    "redact_messages",
]

# The name of a kind; short, so that a stream holds little back.
KIND = re.compile(r"[A-Z][A-Z0-9]{0,19}")
PLACEHOLDER = re.compile(rf"<{KIND.pattern}_\d{{1,9}}>")
# The kind of a placeholder that stands in the text already.
_TYPED = "typed"

# Finds what is personal in a text and was overlooked, by heavier means than the chat has.
SecondPass = Callable[[str], Iterable[Span]]


@dataclass(frozen=True)
class Placeholders:
    """The table of one conversation: placeholder to original text."""

    originals: Mapping[str, str]

    def restore(self, text: str) -> str:
        """Return the text with every placeholder of this conversation put back."""
        return PLACEHOLDER.sub(lambda found: self.originals.get(found.group(), found.group()), text)


class Redactor:
    """Redacts the texts of one conversation, in order, with one table of placeholders."""

    def __init__(self, rules: RedactionRules | None = None, second_pass: SecondPass | None = None) -> None:
        self._rules = rules or RedactionRules()
        self._second_pass = second_pass
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

    def redact_message(self, message: ChatMessage) -> ChatMessage:
        """Return the message with its text and its other keys' values redacted; who speaks loses the key `name`.

        A tool's message keeps it: there it names a function.
        """
        extra = message.extra_json if message.role is Role.TOOL else _without_name(message.extra_json)
        return replace(message, content=self.redact(message.content), extra_json=self.redact_json(extra))

    def redact_json(self, text: str) -> str:
        """Redact the values inside a JSON text; a number that is personal, such as a card's, becomes a string.

        A text that holds nothing personal comes back byte for byte.
        """

        def walk(value: Json) -> Json:
            if isinstance(value, dict):
                return {key: walk(each) for key, each in value.items()}
            if isinstance(value, list):
                return [walk(each) for each in value]
            if isinstance(value, bool) or value is None:
                return value
            redacted = self.redact(str(value))
            return value if redacted == str(value) else redacted

        value: Json = json.loads(text) if text else None
        redacted = walk(value)
        return text if redacted == value else json.dumps(redacted, ensure_ascii=False)

    @property
    def placeholders(self) -> Placeholders:
        """The table so far."""
        return Placeholders(dict(self._originals))

    def _name(self, kind: str, original: str) -> str:
        # Another writing of the same value has a placeholder of its own: what is put back must be what was written.
        key = (kind, original)
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

    def _spans(self, text: str) -> list[Span]:
        """Return the spans to replace, left to right: what stands there as a placeholder, what the rules find, and the rest."""
        found = [Span(*typed.span(), _TYPED) for typed in PLACEHOLDER.finditer(text)]
        found += self._rules.spans(text, [(span.start, span.end) for span in found])
        if self._second_pass:
            found += _outside(sorted(found), self._second_pass(text))
        return sorted(found)


def _without_name(extra_json: str) -> str:
    """Return a message's other keys without the name of who speaks; byte for byte where there is none."""
    if '"name"' not in extra_json:
        return extra_json
    extra: Json = json.loads(extra_json)
    if not isinstance(extra, dict) or "name" not in extra:
        return extra_json
    kept = {key: value for key, value in extra.items() if key != "name"}
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def _outside(found: Sequence[Span], further: Iterable[Span]) -> list[Span]:
    """Return those of the further spans that no found one touches and that do not overlap one another."""
    kept = list(found)
    for span in sorted(further, key=lambda each: (each.start, -each.end)):
        if not any(span.start < other.end and other.start < span.end for other in kept):
            kept.append(span)
    return kept[len(found) :]


def redact_messages(
    messages: Sequence[ChatMessage],
    rules: RedactionRules | None = None,
    second_pass: SecondPass | None = None,
    redactor: Redactor | None = None,
) -> tuple[tuple[ChatMessage, ...], Placeholders]:
    """Return the messages of one conversation redacted, with the table that puts the originals back.

    A second pass runs where its costs are borne, which is never the chat. Who has more of the conversation to redact brings the
    redactor, so that the same writing gets the same placeholder there.
    """
    using = redactor or Redactor(rules, second_pass)
    redacted = tuple(using.redact_message(message) for message in messages)
    return redacted, using.placeholders


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
