"""Calls of tools as ShareGPT files write them, and as the OpenAI chat format does.

In: the text of a `function_call`. Out: a message with `tool_calls`, and the way back. The arguments keep the text that they
were written as. The form is the one that LLaMA-Factory reads (https://llamafactory.readthedocs.io, data preparation).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from conversations.exchange.raw_json import Member, Refused, element_starts, members, object_text, on_one_line, parse
from conversations.messages import ChatMessage, Json, Role

_ROLE_NAMES = {Role.SYSTEM: "system", Role.USER: "human", Role.ASSISTANT: "gpt", Role.TOOL: "observation"}


def call_message(text: str, place: int) -> ChatMessage:
    """Return the message of a `function_call`; a text that is no call stays the text of an answer."""
    calls = _calls(text)
    if not calls:
        return ChatMessage(Role.ASSISTANT, text)
    written = [
        {"id": f"call_{place}_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return ChatMessage(
        Role.ASSISTANT, "", object_text({"content": "null", "tool_calls": json.dumps(written, ensure_ascii=False)})
    )


def with_call_ids(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages with each result of a tool naming the call that it answers."""
    found: list[ChatMessage] = []
    waiting: list[str] = []
    for message in messages:
        if message.role is Role.ASSISTANT:
            waiting = [call_id for call_id, _, _ in tool_calls(message)]
        if message.role is Role.TOOL and not message.extra_json and waiting:
            message = replace(message, extra_json=object_text({"tool_call_id": json.dumps(waiting.pop(0))}))
        found.append(message)
    return found


def tool_calls(message: ChatMessage) -> list[tuple[str, str, str]]:
    """Return the calls of a message: id, name of the tool, and the arguments' text."""
    given = json.loads(message.extra_json).get("tool_calls") if message.extra_json else None
    found: list[tuple[str, str, str]] = []
    for call in given if isinstance(given, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            found.append((str(call.get("id", "")), str(function.get("name", "")), str(function.get("arguments", ""))))
    return found


def spoken(messages: Sequence[ChatMessage]) -> Iterator[dict[str, Json]]:
    """Yield messages as ShareGPT writes them."""
    for message in messages:
        calls = tool_calls(message)
        if message.content or not calls:
            yield {"from": _ROLE_NAMES[message.role], "value": message.content}
        if calls:
            texts = [
                object_text({"name": json.dumps(name, ensure_ascii=False), "arguments": _argument_text(arguments)})
                for _, name, arguments in calls
            ]
            yield {"from": "function_call", "value": texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"}


def _calls(text: str) -> list[tuple[str, str]]:
    try:
        value = parse(text)
        start = len(text) - len(text.lstrip())
        starts = [start] if isinstance(value, dict) else element_starts(text, start) if isinstance(value, list) else []
        told = [members(text, each)[0] if text[each] == "{" else {} for each in starts]
    except Refused:
        return []
    if not all("name" in each and isinstance(each["name"].value, str) for each in told):
        return []
    return [(str(each["name"].value), _arguments(each.get("arguments"))) for each in told]


def _arguments(member: Member | None) -> str:
    if member is None:
        return "{}"
    return member.value if isinstance(member.value, str) else member.raw


def _argument_text(arguments: str) -> str:
    try:
        parse(arguments)
    except Refused:
        return json.dumps(arguments, ensure_ascii=False)
    return on_one_line(arguments)
