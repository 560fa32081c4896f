"""How each known chat format marks the turns of a conversation, as its model's publisher writes them.

In: the control tokens of a tokenizer. Out: the format and its marks, spelt out. Knows no ids and encodes nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from conversations.messages import Role


class ChatFormat(StrEnum):
    """How a student's chat template marks the turns."""

    CHATML = "chatml"
    LLAMA3 = "llama3"
    LLAMA3_1 = "llama3.1"
    PHI3 = "phi3"
    PHI4_MINI = "phi4-mini"
    OWN_TEMPLATE = "own-template"


@dataclass(frozen=True)
class Marks:
    """What stands around the words of the turns; control tokens are spelt out among text.

    `system_first` is all that stands before the words of a system message that begins the conversation, `no_system` what begins
    one without. `open` and `close` stand around the words of the other turns, `between` behind every turn that another follows.
    `close` of the assistant begins with `end`, the token that a student learns to say. `strips_text`: the format knows no space
    around what was said.
    """

    system_first: str
    no_system: str
    open: Mapping[Role, str]
    close: Mapping[Role, str]
    between: str
    end: str
    stops: tuple[str, ...]
    strips_text: bool = False


def _chatml() -> Marks:
    opened = {role: f"<|im_start|>{role}\n" for role in Role}
    closed = dict.fromkeys(Role, "<|im_end|>")
    return Marks(opened[Role.SYSTEM], "", opened, closed, "\n", "<|im_end|>", ("<|im_end|>",))


def _llama3(preamble: str) -> Marks:
    opened = {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in Role}
    closed = dict.fromkeys(Role, "<|eot_id|>")
    first = f"<|begin_of_text|>{opened[Role.SYSTEM]}{preamble}"
    # With a preamble there is always a system turn; without one the first turn follows at once.
    alone = f"{first}<|eot_id|>" if preamble else "<|begin_of_text|>"
    stops = ("<|eot_id|>", "<|end_of_text|>")
    return Marks(first, alone, opened, closed, "", "<|eot_id|>", stops, strips_text=True)


def _phi(after_mark: str) -> Marks:
    opened = {role: f"<|{role}|>{after_mark}" for role in (Role.SYSTEM, Role.USER, Role.ASSISTANT)}
    closed = dict.fromkeys(opened, "<|end|>")
    return Marks(opened[Role.SYSTEM], "", opened, closed, after_mark, "<|end|>", ("<|end|>", "<|endoftext|>"))


# Llama 3.1's template writes today's date, and this one where it is told none: it stays, so that a prompt is the same every day.
_LLAMA3_1_PREAMBLE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
MARKS = {
    ChatFormat.CHATML: _chatml(),
    ChatFormat.LLAMA3: _llama3(""),
    ChatFormat.LLAMA3_1: _llama3(_LLAMA3_1_PREAMBLE),
    ChatFormat.PHI3: _phi("\n"),
    ChatFormat.PHI4_MINI: _phi(""),
}


def recognise(control: Collection[str], vocabulary_size: int) -> ChatFormat | None:
    """Return the known format that a tokenizer's control tokens belong to, or None."""

    def has(*marks: str) -> bool:
        return all(mark in control for mark in marks)

    # Phi-4 (the large one) has ChatML's tokens too, but closes a header with one of its own.
    if has("<|im_start|>", "<|im_end|>") and not has("<|im_sep|>"):
        return ChatFormat.CHATML
    if has("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        return ChatFormat.LLAMA3_1 if has("<|eom_id|>") else ChatFormat.LLAMA3
    if has("<|user|>", "<|assistant|>", "<|end|>"):
        # The two Phi formats differ in the vocabulary they came with (32 thousand and 200 thousand entries).
        return ChatFormat.PHI4_MINI if vocabulary_size > 100_000 or has("<|tool|>") else ChatFormat.PHI3
    return None
