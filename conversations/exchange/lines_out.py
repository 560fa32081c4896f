"""A recorded conversation written as a line: OpenAI chat, ShareGPT, OpenAI's fine-tuning format, or rows of a spreadsheet.

In: a conversation with the turns that were said in its visible thread. Out: text. Tools, tool calls and every key that is not
ours are written as they came. What a format has no place for is named in docs/importing.md.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from conversations.exchange import sharegpt
from conversations.exchange.raw_json import members, on_one_line
from conversations.messages import Author, ChatMessage, Consent, Json, Role, TurnStatus, Vote
from conversations.redaction import RedactionRules, redact_messages

# Without the escapes that JSON does not ask for.
_encode = json.JSONEncoder(ensure_ascii=False).encode
_FINE_TUNING_KEYS = {
    Role.SYSTEM: ("name",),
    Role.USER: ("name",),
    Role.ASSISTANT: ("name", "tool_calls", "function_call", "refusal"),
    Role.TOOL: ("name", "tool_call_id"),
}
# What spreadsheets take for the beginning of a formula, full-width and small forms too, behind what they pass over.
_FORMULA = re.compile(
    "[\\s\"'`\u00a0\u00ab\u00bb\u2018-\u201f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*[=+\\-@\uff1d\uff0b\uff0d\uff20\ufe62\ufe63\ufe66\ufe6b\u2212]"
    "|[\t\r\n]"
)
CSV_COLUMNS = (
    "conversation_id", "source_id", "customer_id", "conversation_created_at", "language", "tags", "consent", "labels",
    "message", "role", "author", "status", "release_id", "created_at", "content", "extra", "vote", "vote_reason",
)  # fmt: skip


@dataclass(frozen=True)
class WrittenTurn:
    """A turn of the visible thread in which something was said."""

    message: ChatMessage
    author: Author
    status: TurnStatus
    created_at_utc: str
    release_id: str | None
    vote: Vote | None
    vote_reason: str


@dataclass(frozen=True)
class WrittenConversation:
    """A conversation as an export gives it away; the texts of JSON are as they came."""

    conversation_id: str
    source_id: str
    customer_id: str
    created_at_utc: str
    consent: Consent
    language: str
    tags: tuple[str, ...]
    labels_json: str
    tools_json: str
    extra_json: str
    turns: tuple[WrittenTurn, ...]


class LeftOut(Exception):
    """A format has no place for this conversation; the text says why."""


def chat_line(told: WrittenConversation) -> str:
    """Return the whole conversation in the OpenAI chat format, which an import takes back with nothing lost."""
    extra = {key: member.raw for key, member in members(told.extra_json)[0].items()} if told.extra_json else {}
    details = _details(told, extra.pop("turns", "[]"))
    votes: list[Json] = [
        {"message": place, "value": turn.vote.value, **({"reason": turn.vote_reason} if turn.vote_reason else {})}
        for place, turn in enumerate(told.turns)
        if turn.vote
    ]
    parts = {
        "id": _encode(told.source_id),
        "customer_id": _encode(told.customer_id),
        "created_at": _encode(told.created_at_utc),
        **({"tools": told.tools_json} if told.tools_json else {}),
        "messages": f"[{', '.join(_message_text(turn.message) for turn in told.turns)}]",
        "labels": told.labels_json,
        "feedback": _encode(votes),
        **({"language": _encode(told.language)} if told.language else {}),
        **({"tags": _encode(list(told.tags))} if told.tags else {}),
        **({"consent": _encode(told.consent is Consent.YES)} if told.consent is not Consent.UNKNOWN else {}),
        **({"turns": _encode(details)} if details else {}),
        **extra,
    }
    return _object(parts) + "\n"


def sharegpt_line(told: WrittenConversation) -> tuple[str, int]:
    """Return the conversation as ShareGPT, in the form that LLaMA-Factory reads, and how many messages it has there."""
    messages = [turn.message for turn in told.turns]
    fields: dict[str, Json] = {"id": told.source_id}
    if messages[0].role is Role.SYSTEM:
        fields["system"] = messages.pop(0).content
    spoken: list[Json] = list(sharegpt.spoken(messages))
    fields["conversations"] = spoken
    if told.tools_json:
        fields["tools"] = told.tools_json
    return _encode(fields) + "\n", len(spoken) + ("system" in fields)


def example_of(told: WrittenConversation) -> WrittenConversation:
    """Return the conversation cut behind its last answer, for a student to learn from. Raises LeftOut."""
    if told.consent is Consent.NO:
        raise LeftOut("consent is no")
    answers = [place for place, turn in enumerate(told.turns) if turn.message.role is Role.ASSISTANT]
    if not answers:
        raise LeftOut("no answer")
    if not any(_is_worth_learning(told.turns[place]) for place in answers):
        raise LeftOut("every answer was voted down or broken off")
    turns = told.turns[: answers[-1] + 1]
    if any(turn.message.role is Role.TOOL and '"tool_call_id"' not in turn.message.extra_json for turn in turns):
        raise LeftOut("a tool's result does not name its call")
    return replace(told, turns=turns)


def fine_tuning_line(example: WrittenConversation) -> str:
    """Return an example of OpenAI's supervised fine-tuning.

    Answers that the customer voted down, and those that were broken off, have weight 0. The form is the one of
    https://platform.openai.com/docs/guides/supervised-fine-tuning.
    """
    messages: list[str] = []
    for turn in example.turns:
        given = members(turn.message.extra_json)[0] if turn.message.extra_json else {}
        kept = {key: given[key].raw for key in _FINE_TUNING_KEYS[turn.message.role] if key in given}
        calls = "tool_calls" in kept or "function_call" in kept
        content = "null" if calls and not turn.message.content else _encode(turn.message.content)
        weight = {"weight": "0"} if turn.message.role is Role.ASSISTANT and not _is_worth_learning(turn) else {}
        messages.append(_object({"role": _encode(turn.message.role.value), "content": content, **kept, **weight}))
    parts = {"messages": f"[{', '.join(messages)}]"}
    if example.tools_json and isinstance(json.loads(example.tools_json), list):
        parts["tools"] = example.tools_json
    further = members(example.extra_json)[0] if example.extra_json else {}
    if "parallel_tool_calls" in further and isinstance(further["parallel_tool_calls"].value, bool):
        parts["parallel_tool_calls"] = further["parallel_tool_calls"].raw
    return _object(parts) + "\n"


def csv_rows(told: WrittenConversation) -> Iterator[list[str]]:
    """Yield a row for each turn, in the order of CSV_COLUMNS, with no cell that a spreadsheet would run."""
    for place, turn in enumerate(told.turns):
        row = [
            told.conversation_id, told.source_id, told.customer_id, told.created_at_utc, told.language, ", ".join(told.tags),
            told.consent.value, told.labels_json, str(place), turn.message.role.value, turn.author.value, turn.status.value,
            turn.release_id or "", turn.created_at_utc, turn.message.content, turn.message.extra_json,
            turn.vote.value if turn.vote else "", turn.vote_reason,
        ]  # fmt: skip
        yield [harmless_cell(cell) for cell in row]


def harmless_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe goes before one that begins like one.

    See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def redacted(told: WrittenConversation, rules: RedactionRules, customer_alias: str) -> WrittenConversation:
    """Return the conversation with personal data replaced by placeholders and the customer by an alias.

    Tools, which are the operator's own, stay.
    """
    beside = json.dumps(
        {"id": told.source_id, "labels": json.loads(told.labels_json), "tags": list(told.tags)}
        | {"reasons": [turn.vote_reason for turn in told.turns]}
        | ({"extra": json.loads(told.extra_json)} if told.extra_json else {})
    )
    messages = [*(turn.message for turn in told.turns), ChatMessage(Role.USER, "", beside)]
    clean, _ = redact_messages(messages, rules)
    facts = json.loads(clean[-1].extra_json)
    return replace(
        told,
        source_id=told.source_id if facts["id"] == told.source_id else told.conversation_id,
        customer_id=customer_alias,
        tags=tuple(facts["tags"]),
        labels_json=_encode(facts["labels"]),
        extra_json=_encode(facts["extra"]) if told.extra_json else "",
        turns=tuple(
            replace(turn, message=message, vote_reason=reason)
            for turn, message, reason in zip(told.turns, clean, facts["reasons"], strict=False)
        ),
    )


def _details(told: WrittenConversation, kept: str) -> list[Json]:
    """Return how turns came to be where that differs from a message that was imported whole.

    A release that this record does not know was kept beside the conversation when it came in.
    """
    kept_releases = {each["message"]: each["release_id"] for each in json.loads(kept)}
    found: list[Json] = []
    for place, turn in enumerate(told.turns):
        usual = Author.CUSTOMER if turn.message.role is Role.USER else Author.IMPORTED
        release_id = turn.release_id or kept_releases.get(place)
        if (turn.author, turn.status, release_id) == (usual, TurnStatus.COMPLETE, None) and _same_moment(told, turn):
            continue
        detail: dict[str, Json] = {
            "message": place,
            "author": turn.author.value,
            "status": turn.status.value,
            "created_at": turn.created_at_utc,
        }
        found.append({**detail, "release_id": release_id} if release_id else detail)
    return found


def _same_moment(told: WrittenConversation, turn: WrittenTurn) -> bool:
    return turn.created_at_utc == told.created_at_utc


def _message_text(message: ChatMessage) -> str:
    parts = {"role": _encode(message.role.value), "content": _encode(message.content)}
    if message.extra_json:
        parts |= {key: on_one_line(member.raw) for key, member in members(message.extra_json)[0].items()}
    return _object(parts)


def _object(parts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{_encode(key)}: {on_one_line(raw)}" for key, raw in parts.items()) + "}"


def _is_worth_learning(turn: WrittenTurn) -> bool:
    return turn.vote is not Vote.DOWN and turn.status is TurnStatus.COMPLETE
