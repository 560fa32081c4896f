"""Renders conversations for one student, as token ids.

In: redacted messages and a student's tokenizer. Out: prompts that end where the answer begins, and answers that end with the
end-of-turn token, both of the same ids in serving and in training.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role
from conversations.prompt.chat_template import read_template
from conversations.prompt.marks import MARKS, ChatFormat, Marks, recognise
from conversations.prompt.own_template import difference, marks_of_template
from conversations.prompt.spelling import Mark, Spelling

PROMPT_VERSION = "2"


@dataclass(frozen=True)
class Prompt:
    """Token ids that end where the student's answer begins, and how many of the oldest messages did not fit."""

    token_ids: tuple[int, ...]
    dropped_messages: int


class PromptTooLong(Exception):
    """The system prompt and the last question alone exceed the limit."""


class RoleUnknown(OperatorError):
    """A message is of a role that the student's chat format has no form for."""


class Renderer:
    """Renders conversations for one student."""

    def __init__(self, spelling: Spelling, chat_format: ChatFormat, marks: Marks, tokenizer_digest: str) -> None:
        self._spelling = spelling
        self._marks = marks
        self._behind_a_turn = marks.end + marks.between
        self.chat_format = chat_format
        self.stop_ids = tuple(spelling.control[mark][0] for mark in marks.stops if mark in spelling.control)
        written = f"{PROMPT_VERSION} {chat_format} {tokenizer_digest}"
        if chat_format is ChatFormat.OWN_TEMPLATE:
            written += f" {marks}"
        self.digest = hashlib.sha256(written.encode()).hexdigest()

    @classmethod
    def load(cls, student_dir: Path) -> "Renderer":
        """Read the tokenizer of a checkpoint folder.

        A student of no known chat format, or whose template writes otherwise than the known format that its control tokens are
        of, is rendered by the marks of its own template.
        Raises OperatorError where there is no tokenizer, or no template whose turns can be told apart safely.
        """
        path = student_dir / "tokenizer.json"
        if not path.is_file():
            raise OperatorError(
                f"{path}: no such file; expected a Hugging Face checkpoint folder with its tokenizer; "
                "set [student] base to one, or make the embedded student with `make env`"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001  # the package raises nothing narrower
            raise OperatorError(
                f"{path}: cannot be read as a tokenizer: {error}; expected one in the format of Hugging Face's tokenizers "
                "package; download the checkpoint again, or choose another student"
            ) from None
        spelling, digest = Spelling(tokenizer), hashlib.sha256(path.read_bytes()).hexdigest()
        chat_format = recognise(spelling.control, tokenizer.get_vocab_size())
        template, as_published = read_template(student_dir), Tokenizer.from_file(str(path))
        as_published.no_truncation()
        as_published.no_padding()
        if chat_format is not None:
            known = cls(spelling, chat_format, MARKS[chat_format], digest)
            if template is None or not difference(known, template, as_published):
                return known
        if template is None:
            raise OperatorError(
                f"{student_dir}: its control tokens are of no chat format that is known here, and it has no chat template; expected "
                "chat_template.jinja, or 'chat_template' in tokenizer_config.json; choose a student that was made for chat"
            )
        renderer = cls(spelling, ChatFormat.OWN_TEMPLATE, marks_of_template(template, tuple(spelling.control)), digest)
        why_otherwise = difference(renderer, template, as_published)
        if why_otherwise:
            raise template.refusal(why_otherwise)
        return renderer

    def prompt(self, messages: Sequence[ChatMessage], *, max_prompt_tokens: int) -> Prompt:
        """Return the token ids of the conversation, ending with the opening of the student's turn.

        Drops the oldest messages that do not fit, never the system prompt or the last message.
        Raises PromptTooLong when those alone do not fit, RoleUnknown for a message that the format cannot write.
        """
        has_system = bool(messages) and messages[0].role is Role.SYSTEM
        first = self._system_ids(messages[0]) if has_system else []
        unread = self._too_long_to_read(messages[has_system:], max_prompt_tokens)
        said = messages[has_system + unread :]
        if unread and not said:
            raise PromptTooLong(
                f"the last message has {len(messages[-1].content)} letters; {max_prompt_tokens} tokens are allowed"
            )
        rest = [self._following(self._turn(message, self._behind_a_turn)) for message in said]
        opening = self._following(self._opened(self._behind_a_turn))
        fixed = len(first) + len(opening) + (0 if has_system else len(self._spelling.ids(Mark(self._marks.no_system))))
        kept = _newest_that_fit([len(ids) for ids in rest], max_prompt_tokens - fixed)
        if rest and kept == 0:
            raise PromptTooLong(
                f"the system prompt and the last message take {fixed + len(rest[-1])} tokens; {max_prompt_tokens} are allowed"
            )
        turns = [*rest[len(rest) - kept :], opening]
        if not has_system:
            turns[0] = self._turn(said[-kept], self._marks.no_system) if kept else self._opened(self._marks.no_system)
        return Prompt((*first, *(token for ids in turns for token in ids)), unread + len(rest) - kept)

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the ids that a student learns to say: the answer and the end-of-turn token."""
        opening = Mark(self._behind_a_turn + self._marks.open[Role.ASSISTANT])
        return tuple(self._spelling.continued(opening, text.strip(), Mark(self._marks.end)))

    def unfinished(self, text: str) -> tuple[int, ...]:
        """Return the ids of an answer as far as it is said, white space around it kept, and without the end of the turn."""
        return tuple(self._spelling.continued(Mark(self._behind_a_turn + self._marks.open[Role.ASSISTANT]), text))

    def token_bytes(self) -> Mapping[int, bytes]:
        """Return what each token spells, control tokens left out.

        Raises OperatorError where the tokenizer is neither byte-level nor of SentencePiece's kind.
        """
        return self._spelling.token_bytes()

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens left out."""
        return self._spelling.text(token_ids)

    def _following(self, ids: list[int]) -> list[int]:
        """Return the ids of a turn without the end of the one before it, which they begin with for the tokenizer's sake."""
        return ids[len(self._spelling.ids(Mark(self._marks.end))) :]

    def _system_ids(self, message: ChatMessage) -> list[int]:
        marks = self._marks
        return self._spelling.ids(Mark(marks.system_first), self._words(message), Mark(marks.close[Role.SYSTEM]))

    def _opened(self, before: str) -> list[int]:
        return self._spelling.ids(Mark(before + self._marks.open[Role.ASSISTANT]))

    def _turn(self, message: ChatMessage, before: str) -> list[int]:
        """Return the ids of one turn behind what stands before it."""
        marks = self._marks
        if message.role not in marks.open:
            raise RoleUnknown(
                f"the chat format {self.chat_format} has no role {message.role.value!r} at this place; expected "
                f"{', '.join(marks.open)}; leave such conversations out, or choose a student whose format has it"
            )
        opening, close = Mark(before + marks.open[message.role]), Mark(marks.close[message.role])
        if message.role is Role.ASSISTANT:
            # As the student said it: the header of its own turn, then its words.
            return self._spelling.ids(opening) + self._spelling.continued(opening, message.content.strip(), close)
        return self._spelling.ids(opening, self._words(message), close)

    def _too_long_to_read(self, said: Sequence[ChatMessage], max_prompt_tokens: int) -> int:
        """Return how many of the oldest messages end with one whose length alone says that it cannot fit.

        A customer can paste megabytes, and cutting those into tokens to drop them takes seconds and gigabytes.
        """
        for count in range(len(said), 0, -1):
            if self._spelling.fewest_tokens(said[count - 1].content) > max_prompt_tokens:
                return count
        return 0

    def _words(self, message: ChatMessage) -> str:
        return message.content.strip() if self._marks.strips_text else message.content


def _newest_that_fit(lengths: Sequence[int], room: int) -> int:
    """Return how many items, counted from the end, fit into the room."""
    kept = 0
    for length in reversed(lengths):
        room -= length
        if room < 0:
            break
        kept += 1
    return kept
