"""What a student reads: the one place where a conversation becomes token ids, for serving and for training alike.

In: the turns of a conversation. Out: the redacted messages that a model reads, and their token ids. Control tokens are inserted
by id and every text is encoded as text, so a customer who types `<|im_end|>` stays text. Uses the light `tokenizers` package
only; it must never load a model library, and nothing else may build a prompt.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tokenizers import Tokenizer

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role, TurnStatus
from conversations.redaction import Placeholders, RedactionRules, Redactor, SecondPass, redact_messages
from conversations.token_bytes import bytes_of_tokens

PROMPT_VERSION = "1"
_CONTROL = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


class ChatFormat(StrEnum):
    """How a student's chat template marks the turns."""

    CHATML = "chatml"
    LLAMA3 = "llama3"
    PHI3 = "phi3"
    PHI4_MINI = "phi4-mini"


@dataclass(frozen=True)
class Prompt:
    """Token ids that end where the student's answer begins, and how many of the oldest messages did not fit."""

    token_ids: tuple[int, ...]
    dropped_messages: int


class PromptTooLong(Exception):
    """The system prompt and the last question alone exceed the limit."""


@dataclass(frozen=True)
class _Marks:
    """The control tokens of one format: what opens a turn, what stands between header and text, what ends it."""

    first: tuple[str, ...]
    open: Mapping[Role, tuple[str, ...]]
    header_text: bool
    after_header: tuple[str, ...]
    gap: str
    end: str
    after_end: str
    stops: tuple[str, ...]


_PHI_ROLES = {role: (f"<|{role.value}|>",) for role in (Role.SYSTEM, Role.USER, Role.ASSISTANT)}
_MARKS = {
    ChatFormat.CHATML: _Marks(
        (), dict.fromkeys(Role, ("<|im_start|>",)), True, (), "\n", "<|im_end|>", "\n", ("<|im_end|>",)
    ),
    ChatFormat.LLAMA3: _Marks(
        ("<|begin_of_text|>",),
        dict.fromkeys(Role, ("<|start_header_id|>",)),
        True,
        ("<|end_header_id|>",),
        "\n\n",
        "<|eot_id|>",
        "",
        ("<|eot_id|>", "<|end_of_text|>"),
    ),
    # Phi-3's role tokens swallow the line break after them, so none is encoded.
    ChatFormat.PHI3: _Marks((), _PHI_ROLES, False, (), "", "<|end|>", "", ("<|end|>", "<|endoftext|>")),
    ChatFormat.PHI4_MINI: _Marks((), _PHI_ROLES, False, (), "", "<|end|>", "", ("<|end|>", "<|endoftext|>")),
}


class Renderer:
    """Renders conversations for one student."""

    def __init__(self, tokenizer: Tokenizer, chat_format: ChatFormat, tokenizer_digest: str) -> None:
        self._tokenizer = tokenizer
        # Control tokens that stand in a customer's text are encoded as the characters they are. Some tokenizers do not call
        # all of theirs special: Phi-4-mini's tool marks, Phi-3's `</s>`.
        self._tokenizer.add_special_tokens(
            [token for token in tokenizer.get_added_tokens_decoder().values() if _CONTROL.fullmatch(token.content)]
        )
        self._tokenizer.encode_special_tokens = True
        self._marks = _MARKS[chat_format]
        self.chat_format = chat_format
        self.stop_ids = tuple(
            token_id for token_id in (tokenizer.token_to_id(mark) for mark in self._marks.stops) if token_id is not None
        )
        self.digest = hashlib.sha256(f"{PROMPT_VERSION} {chat_format} {tokenizer_digest}".encode()).hexdigest()

    @classmethod
    def load(cls, student_dir: Path) -> "Renderer":
        """Read the tokenizer of a checkpoint folder.

        Raises OperatorError where there is none or its chat format is unknown.
        """
        path = student_dir / "tokenizer.json"
        if not path.is_file():
            raise OperatorError(
                f"{path}: no such file; expected a Hugging Face checkpoint folder with its tokenizer; "
                "set [student] base to one, or make the embedded student with `make env`"
            )
        tokenizer = Tokenizer.from_file(str(path))
        return cls(tokenizer, _recognise(tokenizer, path), hashlib.sha256(path.read_bytes()).hexdigest())

    def prompt(self, messages: Sequence[ChatMessage], *, max_prompt_tokens: int) -> Prompt:
        """Return the token ids of the conversation, ending with the opening of the student's turn.

        Drops the oldest messages that do not fit, never the system prompt or the last message.
        Raises PromptTooLong when those alone do not fit.
        """
        system = [message for message in messages[:1] if message.role is Role.SYSTEM]
        rest = [self._message_ids(message) for message in messages[len(system) :]]
        fixed = self._ids(*self._marks.first)
        for message in system:
            fixed += self._message_ids(message)
        opening = self._opening(Role.ASSISTANT, "")
        room = max_prompt_tokens - len(fixed) - len(opening)
        kept = _newest_that_fit([len(ids) for ids in rest], room)
        if rest and kept == 0:
            raise PromptTooLong(
                f"the system prompt and the last message take {len(fixed) + len(opening) + len(rest[-1])} tokens; "
                f"{max_prompt_tokens} are allowed"
            )
        token_ids = fixed + [token for ids in rest[len(rest) - kept :] for token in ids] + opening
        return Prompt(tuple(token_ids), len(rest) - kept)

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the ids that a student learns to say: the answer and the end-of-turn token."""
        return (*self._text(text.strip()), *self._ids(self._marks.end))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text that stands alone, as an answer does; what looks like a control token in it stays text."""
        return tuple(self._text(text))

    def token_bytes(self) -> Mapping[int, bytes]:
        """Return what each token spells, control tokens left out.

        Raises OperatorError where the tokenizer is neither byte-level nor of SentencePiece's kind.
        """
        return bytes_of_tokens(self._tokenizer)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _message_ids(self, message: ChatMessage) -> list[int]:
        if message.role is Role.ASSISTANT:
            # As the student said it: the header of its own turn, then its words, encoded apart.
            ids = self._opening(Role.ASSISTANT, "") + self._text(message.content.strip())
        else:
            ids = self._opening(message.role, message.content)
        return ids + self._ids(self._marks.end) + self._text(self._marks.after_end)

    def _opening(self, role: Role, content: str) -> list[int]:
        marks = self._marks
        if role not in marks.open:
            raise OperatorError(f"the chat format {self.chat_format} has no role {role.value!r}")
        header = role.value if marks.header_text else ""
        if marks.after_header:
            return [
                *self._ids(*marks.open[role]),
                *self._text(header),
                *self._ids(*marks.after_header),
                *self._text(marks.gap + content),
            ]
        return [*self._ids(*marks.open[role]), *self._text(header + marks.gap + content)]

    def _ids(self, *marks: str) -> list[int]:
        return [token_id for mark in marks if (token_id := self._tokenizer.token_to_id(mark)) is not None]

    def _text(self, text: str) -> list[int]:
        # A lone surrogate can arrive from JSON and has no UTF-8 form.
        sound = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._tokenizer.encode(sound, add_special_tokens=False).ids) if sound else []


def _newest_that_fit(lengths: Sequence[int], room: int) -> int:
    """Return how many items, counted from the end, fit into the room."""
    kept = 0
    for length in reversed(lengths):
        room -= length
        if room < 0:
            break
        kept += 1
    return kept


def _recognise(tokenizer: Tokenizer, path: Path) -> ChatFormat:
    def has(*marks: str) -> bool:
        return all(tokenizer.token_to_id(mark) is not None for mark in marks)

    if has("<|im_start|>", "<|im_end|>"):
        return ChatFormat.CHATML
    if has("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        return ChatFormat.LLAMA3
    if has("<|user|>", "<|assistant|>", "<|end|>"):
        # The two Phi formats differ in the vocabulary they came with (32 thousand and 200 thousand entries).
        return ChatFormat.PHI4_MINI if tokenizer.get_vocab_size() > 100_000 or has("<|tool|>") else ChatFormat.PHI3
    raise OperatorError(
        f"{path}: none of the chat formats {', '.join(ChatFormat)} fits its control tokens; "
        "choose a student with one of them"
    )


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
