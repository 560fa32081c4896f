"""How a question with its history, and an answer to it, are drawn beside each other.

In: turns and answers from the record. Out: HTML, in which every word is shown as it was written.
"""

import html
from collections.abc import Sequence

from conversations import turns
from conversations.decisions import Decision
from conversations.store import Record
from conversations.turns import Turn
from support_bot.console import markup


def history(record: Record, decision: Decision) -> str:
    """Return what was said up to a decision's question."""
    thread = turns.branch_to(turns.all_turns(record, decision.conversation_id), decision.question_turn_id)
    return f"<ol class='turns'>{''.join(_spoken(turn) for turn in thread if turn.content)}</ol>"


def column(title: str, content: str | None, facts: Sequence[markup.Markup], *, nothing: str) -> str:
    """Return one answer under its title, and below it what is known of it."""
    body = markup.words(content) if content else markup.note(nothing)
    line = " ".join(fact.html for fact in facts)
    return f'<section class="answer"><h3>{html.escape(title)}</h3>{body}<p class="line">{line}</p></section>'


def _spoken(turn: Turn) -> str:
    line = f'<div class="line">{markup.pill(turn.author).html}</div>'
    return f'<li class="turn {turn.role}">{line}{markup.words(turn.content)}</li>'
