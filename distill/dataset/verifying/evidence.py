"""What an answer is held against, in one value that every check reads.

In: the rows of choose and teach, the settings, the handbook. Out: an answer with its question, its history and what is known.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from conversations.messages import Json, Role
from conversations.redaction import RedactionRules, SecondPass
from distill.dataset.verifying.knowledge import Knowledge
from distill.rows import AnswerRow, ChosenRow
from distill.settings import VerifyTable

PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9]*_\d+>")


@dataclass(frozen=True)
class Evidence:
    """An answer with all that it is held against. `allowed` is what the handbook says; None without one.

    `labels_seen` are the right answers that the rows of its task have, where the task has a closed set of them. `own_words` is
    what the operator wrote in the settings for student and teacher: the contact data in it are the company's own.
    """

    row: ChosenRow
    answer: AnswerRow
    allowed: Knowledge | None
    table: VerifyTable
    rules: RedactionRules
    second_pass: SecondPass | None = None
    labels_seen: frozenset[str] = frozenset()
    own_words: str = ""

    @cached_property
    def asked(self) -> str:
        """Everything that was said before the answer."""
        return "\n".join(message.content for message in self.row.messages)

    @cached_property
    def customer(self) -> tuple[str, ...]:
        """What the customer said, the question last."""
        return tuple(message.content for message in self.row.messages if message.role is Role.USER)

    @property
    def question(self) -> str:
        """The customer's last message."""
        return self.customer[-1] if self.customer else ""

    @cached_property
    def heard(self) -> Knowledge:
        """What can be known from the conversation alone."""
        return Knowledge(tuple(message.content for message in self.row.messages))

    @cached_property
    def printed(self) -> str:
        """What the operator wrote: in the settings, and in the instructions that head the conversation."""
        head = takewhile(lambda message: message.role is Role.SYSTEM, self.row.messages)
        return "\n".join([self.own_words, *(message.content for message in head)])

    @property
    def extra(self) -> dict[str, Json]:
        """What the answer says beside its text; {} where that is no JSON object."""
        try:
            found = json.loads(self.answer.extra_json) if self.answer.extra_json else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def tool_calls(self) -> list[Json]:
        """The tool calls of the answer, as they came."""
        calls = self.extra.get("tool_calls")
        return calls if isinstance(calls, list) else []
