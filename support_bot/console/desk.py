"""What every tab of the console is given: the record, and who is asking.

In: a request. Out: the name of the operator behind it, or a refusal. Each tab's writing handlers ask here again, although
the door before the page has asked already.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import gradio as gr

from conversations.redaction import RedactionRules
from conversations.store import Record
from support_bot.access import Operators

# How every event of the console is wired. Outside the queue an answer comes back with its own request; within it, an answer to a
# click that comes just as the one before is finished can be lost on Gradio's stream, and the button waits for ever.
QUIETLY: dict[str, object] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}

# A tab's handler that draws its page anew, and the components that it draws.
Drawing: TypeAlias = tuple[Callable[[], tuple[object, ...]], list[gr.components.Component | gr.Column]]


@dataclass(frozen=True)
class Desk:
    """The record and the operators of one console, and what counts as personal there."""

    record: Record
    operators: Operators
    rules: RedactionRules

    def operator(self, request: gr.Request) -> str:
        """Return who is asking.

        Raises gr.Error, which the page shows, when the session has ended.
        """
        operator = self.operators.who(dict(request.cookies))
        if operator is None:
            raise gr.Error("Your session has ended. Please log in again.", print_exception=False)
        return operator
