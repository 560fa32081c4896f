"""Which turns of a conversation a model reads, and how they are redacted.

In: turns as they were said. Out: messages, and the table that puts the originals back. Knows no tokenizer.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from conversations.messages import ChatMessage, Role, TurnStatus
from conversations.prompt.renderer import Renderer
from conversations.redaction import Placeholders, RedactionRules, Redactor, SecondPass, redact_messages


@dataclass(frozen=True)
class SpokenTurn:
    """What the prompt needs to know of a turn."""

    role: Role
    status: TurnStatus
    content: str
    extra_json: str = ""


def messages_for_model(
    turns: Sequence[SpokenTurn],
    *,
    system_prompt: str,
    rules: RedactionRules | None = None,
    second_pass: SecondPass | None = None,
    redactor: Redactor | None = None,
) -> tuple[tuple[ChatMessage, ...], Placeholders]:
    """Return the messages that a model may read, redacted, with the table that puts the originals back.

    What was said counts, without failed or empty turns; a stopped or interrupted answer with the part that the customer saw.
    The configured system prompt stands first, unless the conversation brought its own; that one is redacted like all that was
    said, because logs carry customers' data in it, while the configured one is the operator's own text. A second pass runs
    where its costs are borne, which is never the chat. A redactor that is given has the rules and the second pass in it.
    """
    said = [
        ChatMessage(turn.role, turn.content, turn.extra_json)
        for turn in turns
        if (turn.content or turn.extra_json) and turn.status is not TurnStatus.FAILED
    ]
    redacted, placeholders = redact_messages(said, rules, second_pass, redactor)
    if said and said[0].role is Role.SYSTEM:
        return redacted, placeholders
    return (ChatMessage(Role.SYSTEM, system_prompt), *redacted), placeholders


def digest_of_settings(system_prompt: str, renderer: Renderer) -> str:
    """Return the prompt version that a turn records: prompt code, chat format, tokenizer and system prompt."""
    text = json.dumps([renderer.digest, system_prompt], ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
