"""The words of the record: what a turn, an author and a status are, and how each gets its name and digest.

In: plain values. Out: frozen values, identifiers and content hashes. Never touches a file or a database.
"""

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from typing_extensions import TypeAliasType

from conversations.errors import OperatorError

# Far above what a person writes or a model reads, and far below what one row may hold.
MAX_MESSAGE_CHARACTERS = 8_000_000

# A named recursive type, so that pydantic can read it too.
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str | int | float | bool | None")


class Role(StrEnum):
    """The speaker of a message, in the terms of the OpenAI chat format."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Author(StrEnum):
    """Who wrote a turn."""

    CUSTOMER = "customer"
    STUDENT = "student"
    OPERATOR = "operator"
    IMPORTED = "imported"


class TurnStatus(StrEnum):
    """How far a turn has come. A failure is a status, never a text."""

    PENDING = "pending"
    STREAMING = "streaming"
    COMPLETE = "complete"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


OPEN_STATUSES = (TurnStatus.PENDING, TurnStatus.STREAMING)


class ConversationState(StrEnum):
    """Who answers the customer now."""

    BOT = "bot"
    WAITING = "waiting"
    HUMAN = "human"
    RESOLVED = "resolved"


class Consent(StrEnum):
    """Whether the customer agreed that the conversation may be learnt from."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Vote(StrEnum):
    """A customer's thumb on an answer."""

    UP = "up"
    DOWN = "down"


class Split(StrEnum):
    """What a decision is used for, decided once by the hash of its cluster."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True)
class ChatMessage:
    """One message as a model sees it.

    `extra_json` holds the other keys of an OpenAI message (tool calls, names) as they came, or an empty string.
    """

    role: Role
    content: str
    extra_json: str = ""

    def as_openai(self) -> dict[str, Json]:
        """Return the message in the OpenAI chat format."""
        extra: dict[str, Json] = json.loads(self.extra_json) if self.extra_json else {}
        return {"role": self.role.value, "content": self.content, **extra}


_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: Json | Sequence[Json]) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN.

    Raises ValueError for a number that JSON has no name for.
    """
    return _canonical(value)


def content_hash(value: Json | Sequence[Json]) -> str:
    """Return the SHA-256 of the canonical JSON of a value, with the algorithm in front.

    Lone surrogates, which JSON can carry and UTF-8 cannot, are hashed in their escaped form.
    """
    return "sha256:" + hashlib.sha256(canonical_json(value).encode("utf-8", "backslashreplace")).hexdigest()


def messages_hash(messages: Sequence[ChatMessage]) -> str:
    """Return the content hash of a list of messages, every key and byte of them."""
    return content_hash([message.as_openai() for message in messages])


_names_lock = threading.Lock()
_last_name_us = 0


def new_name(kind: str) -> str:
    """Return a fresh name such as `turn_0197c1…`, which sorts by the order of its making, also when the clock goes backwards."""
    global _last_name_us
    with _names_lock:
        _last_name_us = max(_last_name_us + 1, time.time_ns() // 1000)
        return f"{kind}_{_last_name_us:014x}{secrets.token_hex(5)}"


def storable_text(text: str) -> str:
    """Return the text without what no database holds and no reader sees: NULs left out, broken surrogates replaced."""
    return text.replace("\x00", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_storable(text: str) -> None:
    """Raise OperatorError, which says what and where, for a text that the record could not give back as it came."""
    if len(text) > MAX_MESSAGE_CHARACTERS:
        raise OperatorError(f"a message of {len(text)} characters; {MAX_MESSAGE_CHARACTERS} are allowed; shorten it")
    if "\x00" in text:
        raise OperatorError(f"a message with a NUL at character {text.index(chr(0))}; leave it out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OperatorError(
            f"a message with half a surrogate pair at character {error.start}; send whole characters"
        ) from None


def utc_now() -> str:
    """Return the present time as ISO 8601 in UTC with milliseconds."""
    return utc_text(datetime.now(UTC))


def utc_text(moment: datetime) -> str:
    """Return a moment as ISO 8601 in UTC with milliseconds and the suffix Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
