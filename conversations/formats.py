"""One line of a conversation log, read strictly: OpenAI chat `messages` or ShareGPT `conversations`.

In: the bytes of a line. Out: a frozen conversation with what had to be repaired or was noticed, or `LineRejected` with the
reason. Knows no database. What can be kept is kept as it came; the rest is said.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import NoReturn

from conversations.messages import (
    ChatMessage,
    Consent,
    Json,
    Role,
    Vote,
    canonical_json,
    conversation_hash,
    messages_hash,
    utc_text,
)

MAX_LINE_BYTES = 32 * 1024 * 1024
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "customer": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "agent": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
_KNOWN_KEYS = {"role", "content", "from", "value"}
MAX_LEVELS = 64
# Control characters that no message needs; line breaks and tabs of each kind stay.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKUP = re.compile(r"<\s*/?\s*[a-zA-Z!][^>]*>|javascript:|data:text/html|!\[[^\]]*\]\(", re.IGNORECASE)
_CONTROL_TOKENS = re.compile(r"<\|[a-z_0-9]+\|>|\[/?INST\]|<(?:start|end)_of_turn>|<</?SYS>>")
_HIDDEN = re.compile("[\u202a-\u202e\u2060-\u2064\u200b\u00ad\ufeff\U000e0000-\U000e007f]")


class LineRejected(Exception):
    """The line cannot become a conversation; the text says why."""


@dataclass(frozen=True)
class ImportedConversation:
    """A conversation as a line tells it. `votes` maps the position of a message to a thumb."""

    source_id: str
    customer_id: str | None
    created_at_utc: str | None
    consent: Consent
    labels: Mapping[str, Json]
    tools_json: str
    messages: tuple[ChatMessage, ...]
    votes: Mapping[int, Vote]
    repairs: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def content_hash(self) -> str:
        """The hash of everything that was said, tools included."""
        return conversation_hash(self.messages, self.tools_json)


def parse_line(line: bytes) -> ImportedConversation:
    """Read one line of a log.

    Raises LineRejected with the reason when it cannot be read.
    """
    repairs: list[str] = []
    fields = _object(line, repairs)
    raw_messages = fields.get("messages")
    if raw_messages is None and isinstance(fields.get("conversations"), list):
        raw_messages = fields["conversations"]
        repairs.append("ShareGPT form")
    if not isinstance(raw_messages, list) or not raw_messages:
        raise LineRejected("expected `messages`, a list of objects with `role` and `content`, with at least one in it")
    read = [_message(position, raw, repairs) for position, raw in enumerate(raw_messages)]
    kept = [position for position, message in enumerate(read) if not _is_empty(message)]
    if len(kept) < len(read):
        repairs.append(f"{len(read) - len(kept)} empty messages left out")
    messages = tuple(read[position] for position in kept)
    if not any(message.role is Role.USER for message in messages):
        raise LineRejected("no message of a customer (role user) with any text")
    labels = fields.get("labels")
    if labels is not None and not isinstance(labels, dict):
        repairs.append("labels that are no object left out")
        labels = None
    moved = {old: new for new, old in enumerate(kept)}
    return ImportedConversation(
        source_id=_source_id(fields, messages, repairs),
        customer_id=_optional_name(fields, "customer_id"),
        created_at_utc=_moment(fields, repairs),
        consent=_consent(fields),
        labels=labels or {},
        tools_json=canonical_json(fields["tools"]) if fields.get("tools") is not None else "",
        messages=messages,
        votes=_votes(fields, moved, repairs),
        repairs=(*repairs, *_order_repairs(messages)),
        flags=tuple(_flags(fields, messages)),
    )


def _object(line: bytes, repairs: list[str]) -> Mapping[str, Json]:
    if len(line) > MAX_LINE_BYTES:
        raise LineRejected(f"the line has {len(line)} bytes; {MAX_LINE_BYTES} are allowed")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineRejected(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        repairs.append("byte order mark removed")
        text = text.lstrip("\ufeff")
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise LineRejected(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise LineRejected("nested too deeply") from None
    except ValueError as error:
        raise LineRejected(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise LineRejected(f"expected an object, found {type(value).__name__}")
    for key, each in value.items():
        # A broken name would name somebody else once repaired.
        value[key] = each if key in ("id", "customer_id") else _sound(each, 1, repairs)
    return value


def _sound(value: Json, level: int, repairs: list[str]) -> Json:
    """Return the value with broken surrogates, which no database takes, replaced in every text of it."""
    if level > MAX_LEVELS:
        raise LineRejected(f"nested deeper than {MAX_LEVELS} levels")
    if isinstance(value, dict):
        return {_sound_text(key, repairs): _sound(each, level + 1, repairs) for key, each in value.items()}
    if isinstance(value, list):
        return [_sound(each, level + 1, repairs) for each in value]
    return _sound_text(value, repairs) if isinstance(value, str) else value


def _sound_text(text: str, repairs: list[str]) -> str:
    if not _SURROGATES.search(text):
        return text
    if "broken surrogates replaced" not in repairs:
        repairs.append("broken surrogates replaced")
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


class _Repeated(dict[str, Json]):
    """An object in which a key stood twice; the last one counts."""


def _pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Repeated(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _message(position: int, raw: Json, repairs: list[str]) -> ChatMessage:
    where = f"message {position}"
    if not isinstance(raw, dict):
        raise LineRejected(f"{where}: expected an object with `role` and `content`, found {type(raw).__name__}")
    role_name = raw.get("role", raw.get("from"))
    if not isinstance(role_name, str):
        raise LineRejected(f"{where}: `role` is {role_name!r}; expected one of {', '.join(Role)}")
    role = _ROLES.get(role_name.strip().lower())
    if role is None:
        raise LineRejected(f"{where}: unknown role {role_name[:40]!r}; expected one of {', '.join(Role)}")
    if role_name != role.value:
        repairs.append(f"{where}: role {role_name[:40]!r} read as {role.value!r}")
    extra = {key: value for key, value in raw.items() if key not in _KNOWN_KEYS}
    content = _content(where, raw, bool(extra.get("tool_calls")), repairs)
    return ChatMessage(role, content, json.dumps(extra, ensure_ascii=False) if extra else "")


def _content(where: str, raw: Mapping[str, Json], has_tool_calls: bool, repairs: list[str]) -> str:
    content = raw.get("content", raw.get("value"))
    if content is None and has_tool_calls:
        repairs.append(f"{where}: a tool call without content")
        content = ""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        repairs.append(f"{where}: {len(content)} content parts joined")
        content = "\n".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        raise LineRejected(f"{where}: `content` is {type(content).__name__}; expected text")
    sound = "".join(character for character in _CONTROLS.sub("", content) if not _is_noncharacter(character))
    if sound != content:
        repairs.append(f"{where}: control characters left out")
    return sound


def _is_noncharacter(character: str) -> bool:
    code = ord(character)
    return 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE


def _is_empty(message: ChatMessage) -> bool:
    visible = "".join(c for c in message.content if unicodedata.category(c) not in ("Cf", "Zs", "Zl", "Zp", "Cc"))
    return not visible and not message.extra_json


def _source_id(fields: Mapping[str, Json], messages: tuple[ChatMessage, ...], repairs: list[str]) -> str:
    name = fields.get("id")
    if isinstance(name, bool | list | dict | float):
        raise LineRejected(f"`id` is {type(name).__name__}; expected text")
    if isinstance(name, str) and _SURROGATES.search(name):
        raise LineRejected("`id` has a broken surrogate")
    if name is None or name == "":
        repairs.append("no id: made from the content")
        return messages_hash(messages)
    if isinstance(name, int):
        repairs.append("id given as a number")
    return str(name)


def _optional_name(fields: Mapping[str, Json], key: str) -> str | None:
    value = fields.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise LineRejected(f"`{key}` is {type(value).__name__}; expected text")
    if _SURROGATES.search(str(value)):
        raise LineRejected(f"`{key}` has a broken surrogate")
    return str(value)


def _moment(fields: Mapping[str, Json], repairs: list[str]) -> str | None:
    value = fields.get("created_at")
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return utc_text(datetime.fromtimestamp(value, UTC))
        moment = datetime.fromisoformat(str(value))
        return utc_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        repairs.append("created_at that is no ISO 8601 time left out")
        return None


def _consent(fields: Mapping[str, Json]) -> Consent:
    value = fields.get("consent")
    if value is None:
        return Consent.UNKNOWN
    if value is True or value == "yes":
        return Consent.YES
    if value is False or value == "no":
        return Consent.NO
    raise LineRejected(f"`consent` is {value!r}; expected true or false")


def _votes(fields: Mapping[str, Json], moved: Mapping[int, int], repairs: list[str]) -> dict[int, Vote]:
    votes: dict[int, Vote] = {}
    given = fields.get("feedback")
    for each in given if isinstance(given, list) else []:
        position = each.get("message") if isinstance(each, dict) else None
        value = each.get("value") if isinstance(each, dict) else None
        if isinstance(position, int) and position in moved and value in ("up", "down"):
            votes[moved[position]] = Vote(str(value))
        else:
            repairs.append(f"feedback {str(each)[:60]!r} left out: expected a message's position and up or down")
    return votes


def _order_repairs(messages: tuple[ChatMessage, ...]) -> list[str]:
    """Name what is unusual about the order; every message is kept as it came."""
    spoken = [message.role for message in messages if message.role is not Role.TOOL]
    found: list[str] = []
    if any(role is Role.SYSTEM for role in spoken[1:]):
        found.append("a system message after the first place, kept where it stands")
    talk = [role for role in spoken if role is not Role.SYSTEM]
    if talk and talk[0] is Role.ASSISTANT:
        found.append("begins with the assistant")
    if any(one is two for one, two in pairwise(talk)):
        found.append("one speaker twice in a row")
    return found


def _flags(fields: Mapping[str, Json], messages: tuple[ChatMessage, ...]) -> list[str]:
    """Name what a person should know of the conversation; it is kept unchanged."""
    texts = [message.content for message in messages]
    found: list[str] = []
    if isinstance(fields, _Repeated):
        found.append("a key stands twice; the last one counts")
    name = str(fields.get("id") or "")
    if len(name) > 200 or re.search(r"[\s/\\<>'\";]|\.\.", name) or name.upper() in ("CON", "PRN", "AUX", "NUL"):
        found.append("an unusual id, kept as text only")
    if any(_MARKUP.search(text) for text in texts):
        found.append("markup or script in a message")
    if any(_CONTROL_TOKENS.search(text) for text in texts):
        found.append("control tokens of a chat format typed as text")
    if any(_HIDDEN.search(text) for text in texts):
        found.append("invisible or direction-changing characters")
    said = [text.strip().casefold() for text in texts]
    if len(said) >= 6 and len(set(said)) * 2 <= len(said):
        found.append("the same message again and again")
    return found
