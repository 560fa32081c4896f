"""One line of a conversation log, read strictly: OpenAI chat `messages` or ShareGPT `conversations`.

In: the bytes of a line. Out: a frozen conversation with what had to be repaired or was noticed, or `LineRejected` with the
reason. Knows no database. What can be kept is kept as it came, byte for byte in tools, tool calls and every key that is not
ours; the rest is said.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from conversations.exchange import line_facts, sharegpt
from conversations.exchange.line_facts import LineRejected, Thumb, TurnDetail
from conversations.exchange.oddities import oddities
from conversations.exchange.raw_json import (
    Member,
    Refused,
    element_starts,
    has_repeated_key,
    may_be_broken,
    members,
    object_text,
    on_one_line,
    parse,
    sound_raw,
    sound_text,
)
from conversations.messages import (
    MAX_MESSAGE_CHARACTERS,
    OPEN_STATUSES,
    ChatMessage,
    Consent,
    Json,
    Role,
    TurnStatus,
    content_hash,
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
    "chatgpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "agent": Role.ASSISTANT,
    "function_call": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
    "observation": Role.TOOL,
}
_OWN_KEYS = ("id", "customer_id", "created_at", "labels", "feedback", "consent", "language", "tags", "turns")
_PLAIN_KEYS = {"role", "content"}


@dataclass(frozen=True)
class ImportedConversation:
    """A conversation as a line tells it. `thumbs` and `details` are by the position of a message.

    `tools_json` and `extra_json` are texts as they came: the tools, and an object of every key of the line that is not ours.
    """

    source_id: str
    customer_id: str | None
    created_at_utc: str | None
    consent: Consent
    labels: Mapping[str, Json]
    language: str
    tags: tuple[str, ...]
    tools_json: str
    extra_json: str
    messages: tuple[ChatMessage, ...]
    thumbs: Mapping[int, Thumb]
    details: Mapping[int, TurnDetail]
    repairs: tuple[str, ...]
    flags: tuple[str, ...]

    @cached_property
    def content_hash(self) -> str:
        """The hash of everything that was said, tools included, however it was spelled."""
        return conversation_hash(self.messages, self.tools_json)


def parse_line(line: bytes) -> ImportedConversation:
    """Read one line of a log.

    Raises LineRejected with the reason when it cannot be read.
    """
    repairs: list[str] = []
    try:
        text, fields, has_repeats = _fields(line, repairs)
        key = _messages_key(fields, repairs)
        read = _messages(text, fields[key], repairs)
        tools_json = _tools(fields)
    except Refused as error:
        raise LineRejected(str(error)) from None
    taken = {key, "messages", *(["tools"] if tools_json else [])}
    if key == "conversations":
        read = sharegpt.with_call_ids(read)
        system = fields.get("system")
        if system is not None and isinstance(system.value, str) and read[0].role is not Role.SYSTEM:
            first = ChatMessage(Role.SYSTEM, _sound_content("`system`", system.value, repairs))
            read = [first, *read]
            taken.add("system")
    # Positions that the line names are those of its own list.
    added = len(read) - _count(fields[key])
    kept = [place for place, message in enumerate(read) if not is_empty(message)]
    if len(kept) < len(read):
        repairs.append(f"{len(read) - len(kept)} empty messages left out")
    messages = tuple(read[place] for place in kept)
    if not any(message.role is Role.USER for message in messages):
        raise LineRejected("no message of a customer (role user) with any text")
    about = {name: fields[name].value for name in _OWN_KEYS if name in fields and fields[name].value is not None}
    moved = {old - added: new for new, old in enumerate(kept) if old >= added}
    details = line_facts.turn_details(about, moved, messages, repairs)
    extra = {name: on_one_line(sound_raw(member)) for name, member in fields.items() if name not in (*_OWN_KEYS, *taken)}
    releases = [{"message": place, "release_id": each.release_id} for place, each in details.items() if each.release_id]
    if releases:
        # Told again by an export, also where this record does not know the release.
        extra["turns"] = json.dumps(releases)
    source_id = line_facts.name(about, "id", repairs)
    if source_id is None:
        repairs.append("no id: made from the content")
    flags = oddities(source_id or "", messages)
    if has_repeats:
        flags.insert(0, "a key stands twice; the last one counts")
    return ImportedConversation(
        source_id=source_id or content_hash([said_in(message) for message in messages]),
        customer_id=line_facts.name(about, "customer_id", repairs),
        created_at_utc=line_facts.created_at(about, repairs),
        consent=line_facts.consent(about),
        labels=line_facts.labels(about, repairs),
        language=line_facts.language(about, repairs),
        tags=line_facts.tags(about, repairs),
        tools_json=tools_json,
        extra_json=object_text(extra),
        messages=messages,
        thumbs=line_facts.thumbs(about, moved, repairs),
        details=details,
        repairs=(*repairs, *_order_repairs(messages)),
        flags=tuple(flags),
    )


def conversation_hash(messages: Sequence[ChatMessage], tools_json: str) -> str:
    """Return the content hash of what a conversation says, tools included, however it was spelled."""
    tools: dict[str, Json] = {"tools": parse(tools_json)} if tools_json else {}
    said: list[Json] = [said_in(message) for message in messages]
    return content_hash([*said, {"role": "system", "content": "", **tools}])


def said_in(message: ChatMessage) -> dict[str, Json]:
    """Return what counts when two messages are compared: no content is as good as an empty one."""
    said = message.as_openai()
    return {**said, "content": ""} if said["content"] is None else said


def is_empty(message: ChatMessage) -> bool:
    """Tell whether a message shows nothing and does nothing."""
    if message.extra_json:
        return False
    return all(unicodedata.category(each) in ("Cf", "Zs", "Zl", "Zp", "Cc") for each in message.content)


def is_said(status: TurnStatus, message: ChatMessage) -> bool:
    """Tell whether a turn is part of what was said: not open, not failed, not empty."""
    return status not in (*OPEN_STATUSES, TurnStatus.FAILED) and not is_empty(message)


def _fields(line: bytes, repairs: list[str]) -> tuple[str, dict[str, Member], bool]:
    if len(line) > MAX_LINE_BYTES:
        raise LineRejected(f"the line has {len(line)} bytes; {MAX_LINE_BYTES} are allowed")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineRejected(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    if text.startswith("\ufeff"):
        repairs.append("byte order mark removed")
        text = text.lstrip("\ufeff")
    text = text.strip(" \t\r\n")
    if not text.startswith("{"):
        found = type(parse(text)).__name__
        hint = "; a JSON array is no JSON Lines: write each element on a line of its own" if found == "list" else ""
        raise LineRejected(f"expected an object, found {found}{hint}")
    fields, end, is_repeated = members(text)
    if end != len(text):
        raise LineRejected(f"not JSON: something follows the object at character {end}")
    if may_be_broken(text) and any(sound_raw(each) != each.raw for each in fields.values()):
        repairs.append("broken surrogates replaced")
    return text, fields, has_repeated_key(each.value for each in fields.values()) or is_repeated


def _messages_key(fields: Mapping[str, Member], repairs: list[str]) -> str:
    for key in ("messages", "conversations"):
        if key in fields and isinstance(fields[key].value, list) and fields[key].value:
            if key == "conversations":
                repairs.append("ShareGPT form")
            return key
    raise LineRejected("expected `messages`, a list of objects with `role` and `content`, with at least one in it")


def _tools(fields: Mapping[str, Member]) -> str:
    """Return the text of the tools as it came. ShareGPT files often hold it as a text in a text."""
    tools = fields.get("tools")
    if tools is None or tools.value in (None, ""):
        return ""
    if isinstance(tools.value, str):
        try:
            inner = parse(tools.value)
            # It would stand in a line of its own where it is exported.
            has_repeated_key([inner])
        except Refused:
            return sound_raw(tools)
        if isinstance(inner, list | dict) and not may_be_broken(tools.value):
            return on_one_line(sound_text(tools.value).strip())
    return on_one_line(sound_raw(tools))


def _messages(text: str, told: Member, repairs: list[str]) -> list[ChatMessage]:
    raws = told.value if isinstance(told.value, list) else []
    # Only what has keys beside role and content needs a second look at its text.
    plain = all(isinstance(each, dict) and each.keys() == _PLAIN_KEYS and isinstance(each["content"], str) for each in raws)
    starts = [] if plain else element_starts(text, told.start)
    return [_message(place, raw, text, starts, repairs) for place, raw in enumerate(raws)]


def _message(place: int, raw: Json, text: str, starts: list[int], repairs: list[str]) -> ChatMessage:
    where = f"message {place}"
    if not isinstance(raw, dict):
        raise LineRejected(f"{where}: expected an object with `role` and `content`, found {type(raw).__name__}")
    role_key = "role" if "role" in raw else "from"
    content_key = "content" if "content" in raw else "value"
    role_name = raw.get(role_key)
    if not isinstance(role_name, str):
        raise LineRejected(f"{where}: `role` is {role_name!r}; expected one of {', '.join(Role)}")
    role = _ROLES.get(role_name.strip().lower())
    if role is None:
        raise LineRejected(f"{where}: unknown role {role_name[:40]!r}; expected one of {', '.join(Role)}")
    if role_name != role.value and role_key == "role":
        repairs.append(f"{where}: role {role_name[:40]!r} read as {role.value!r}")
    taken = {role_key, content_key}
    if raw.keys() <= taken and isinstance(raw.get(content_key), str):
        plain = _sound_content(where, str(raw[content_key]), repairs)
        return sharegpt.call_message(plain, place) if role_name == "function_call" else ChatMessage(role, plain)
    parts = members(text, starts[place])[0] if starts else {}
    extra = {key: on_one_line(sound_raw(member)) for key, member in parts.items() if key not in taken}
    content = raw.get(content_key)
    if not isinstance(content, str):
        # Written back as it came: null beside a tool call, or parts with pictures among them.
        if content_key in parts:
            extra = {"content": on_one_line(sound_raw(parts[content_key])), **extra}
        content = _text_of_parts(where, content, bool(raw.get("tool_calls") or raw.get("function_call")), repairs)
    return ChatMessage(role, _sound_content(where, content, repairs), object_text(extra))


def _text_of_parts(where: str, content: Json, has_call: bool, repairs: list[str]) -> str:
    if content is None and has_call:
        repairs.append(f"{where}: a tool call without content")
        return ""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        repairs.append(f"{where}: the text of {len(content)} content parts joined")
        return "\n".join(text for text in texts if isinstance(text, str))
    raise LineRejected(f"{where}: `content` is {type(content).__name__}; expected text")


def _sound_content(where: str, content: str, repairs: list[str]) -> str:
    if len(content) > MAX_MESSAGE_CHARACTERS:
        raise LineRejected(f"{where}: {len(content)} characters; {MAX_MESSAGE_CHARACTERS} are allowed; shorten it")
    if "\x00" in content:
        repairs.append(f"{where}: NUL characters left out")
        content = content.replace("\x00", "")
    return sound_text(content)


def _order_repairs(messages: tuple[ChatMessage, ...]) -> list[str]:
    """Name what is unusual about the order; every message is kept as it came."""
    found: list[str] = []
    if any(message.role is Role.SYSTEM for message in messages[1:]):
        found.append("a system message after the first place, kept where it stands")
    talk = [message.role for message in messages if message.role is not Role.SYSTEM]
    if talk and talk[0] is Role.ASSISTANT:
        found.append("begins with the assistant")
    if any(one is two and one is not Role.TOOL for one, two in pairwise(talk)):
        found.append("one speaker twice in a row")
    return found


def _count(told: Member) -> int:
    return len(told.value) if isinstance(told.value, list) else 0
