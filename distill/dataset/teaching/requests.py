"""The request for a decision: its logged history as a teacher gets it, and the hash of everything that decides the answer.

In: redacted messages and what was offered beside them, with keys in the order in which they were logged. Out: the body, byte
for byte as it is sent. The company's instruction and handbook passages stand before the teacher alone, never the student. Who asks,
in which run, at what price and how many at once is no part of it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from conversations.messages import ChatMessage, Json, Role
from distill.dataset.handbook.articles import Passage
from distill.rows import ChosenRow, OfferedRow
from distill.settings import TeacherTable

NOTHING_OFFERED = OfferedRow()


@dataclass(frozen=True)
class Request:
    """One request to one teacher. `body` is what is sent, as JSON; `request_hash` names everything that decides the answer.

    `messages` and `beside` (tools and schema, as JSON) are what the prompt of it is made of.
    """

    decision_id: str
    teacher: str
    messages: tuple[ChatMessage, ...]
    beside: str
    body: str
    max_tokens: int
    offers_tools: bool
    passages: tuple[str, ...]
    request_hash: str


def make_request(
    decision_id: str,
    messages: Sequence[ChatMessage],
    *,
    name: str,
    table: TeacherTable,
    offered: OfferedRow = NOTHING_OFFERED,
    instruction: str = "",
    passages: Sequence[Passage] = (),
    handbook_digest: str = "",
    limit_factor: int = 1,
) -> Request:
    """Build the request that puts these messages to a teacher."""
    limit = table.max_answer_tokens * limit_factor
    told = _told(messages, instruction, passages)
    body: dict[str, Json] = {
        "model": table.model,
        "messages": [message.as_openai() for message in told],
        table.limit_parameter: limit,
    }
    if not table.omit_temperature:
        body["temperature"] = table.temperature
    if table.seed is not None:
        body["seed"] = table.seed
    if table.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": table.top_logprobs}
    for key, logged in (
        ("tools", offered.tools_json),
        ("tool_choice", offered.tool_choice_json),
        ("response_format", offered.response_format_json),
    ):
        if logged:
            body[key] = json.loads(logged)
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Request(
        decision_id=decision_id,
        teacher=name,
        messages=tuple(told),
        beside=" ".join(logged for logged in (offered.tools_json, offered.response_format_json) if logged),
        body=text,
        max_tokens=limit,
        offers_tools=bool(body.get("tools")),
        passages=tuple(passage.passage_hash for passage in passages),
        # The handbook teacher reads the handbook itself, so a changed one changes its answers.
        request_hash=_hash(table.base_url.rstrip("/"), text, handbook_digest if table.kind == "handbook" else ""),
    )


def request_for(
    row: ChosenRow,
    *,
    name: str,
    table: TeacherTable,
    instruction: str = "",
    passages: Sequence[Passage] = (),
    handbook_digest: str = "",
    limit_factor: int = 1,
) -> Request:
    """Build the request for a chosen decision."""
    return make_request(
        row.decision_id,
        [message.message() for message in row.messages],
        name=name,
        table=table,
        offered=row.offered,
        instruction=instruction,
        passages=passages,
        handbook_digest=handbook_digest,
        limit_factor=limit_factor,
    )


def asked_in(row: ChosenRow) -> list[str]:
    """Return what the customer has said up to and with the question."""
    return [message.content for message in row.messages if message.role is Role.USER]


def _told(messages: Sequence[ChatMessage], instruction: str, passages: Sequence[Passage]) -> list[ChatMessage]:
    """Return the messages as sent: after the system prompt, instruction and passages, then the conversation."""
    head = 1 if messages and messages[0].role is Role.SYSTEM else 0
    more = [ChatMessage(Role.SYSTEM, instruction)] if instruction else []
    if passages:
        text = "\n\n".join(f"{passage.title}\n{passage.text}" for passage in passages)
        more.append(ChatMessage(Role.SYSTEM, f"From the company's handbook:\n\n{text}"))
    return [*messages[:head], *more, *messages[head:]]


def _hash(*parts: str) -> str:
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
