"""Names for prompts that are the same but for case and punctuation, of a first question or of a whole history.

In: the messages of a prompt. Out: a name that two prompts share where the same words were said. Compares nothing by likeness: that is
for `similarity`.
"""

import hashlib
from collections.abc import Sequence

from distill.dataset.similarity import words
from distill.rows import MessageRow


class SamePrompt:
    """Tells whether two prompts are the same but for case, punctuation and system prompt. Messages go in one after the other.

    A first question is named by its words alone. A later one means what went before it, so it is named by all that was said.
    """

    def __init__(self) -> None:
        self._said = hashlib.sha256()
        self._is_first = True

    def add(self, role: str, text: str) -> None:
        """Take in what was said before the question."""
        if role != "system":
            self._said.update(_as_bytes(role, text))
            self._is_first = False

    def named(self, role: str, text: str) -> bytes | None:
        """Return the name of the prompt that ends with this message; None where no word was said."""
        if self._is_first and not words(text):
            return None
        whole = self._said.copy()
        whole.update(_as_bytes(role, text))
        return whole.digest()[:16]


def _as_bytes(role: str, text: str) -> bytes:
    return f"{role} {' '.join(words(text))}\n".encode("utf-8", "replace")


def prompt_name(messages: Sequence[MessageRow]) -> bytes | None:
    """Return the name of the prompt that messages are, as `SamePrompt` gives it."""
    prompt = SamePrompt()
    for message in messages[:-1]:
        prompt.add(message.role, f"{message.content} {message.extra_json}")
    return prompt.named(messages[-1].role, f"{messages[-1].content} {messages[-1].extra_json}") if messages else None
