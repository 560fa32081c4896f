"""The blind vote: two answers to one question without their names, and which of them an operator likes better.

In: an operator's click. Out: a vote in the record, and only then the names. Chance draws the question and the sides; nothing that is
sent to the page before the vote tells whose an answer is.
"""

import random
from collections.abc import Callable

import gradio as gr

from conversations import decisions, releases, votes
from conversations.decisions import Answer, AnswerAuthor
from conversations.errors import Failure
from conversations.store import Record
from conversations.votes import BlindVote, Choice, Pair
from support_bot.console import dialogue, markup
from support_bot.console.desk import QUIETLY, Desk

_EXPLAINED = (
    "You see one question and two answers, of students or a teacher, without their names and in an order that chance draws. Say which "
    "is better; then you see whose they are. The votes tell how far the judge of the reports can be trusted."
)
_LABELS = {Choice.LEFT: "A is better", Choice.RIGHT: "B is better", Choice.TIE: "No difference"}
# Drawn from the system, so that nobody can tell the order.
_CHANCE = random.SystemRandom()


def panel(desk: Desk) -> None:
    """Lay the panel out, closed until an operator wants to vote."""
    with gr.Accordion("Blind vote", open=False, elem_id="blind"):
        gr.HTML(markup.note(_EXPLAINED), apply_default_css=False)
        shown = gr.State(None)
        pair = gr.HTML("", apply_default_css=False, elem_id="blind-pair")
        with gr.Row(elem_classes="tools"):
            buttons = {
                choice: gr.Button(_LABELS[choice], scale=0, min_width=160, visible=False, elem_id=f"blind-{choice}")
                for choice in (Choice.LEFT, Choice.TIE, Choice.RIGHT)
            }
            following = gr.Button("Show two answers", variant="primary", scale=0, min_width=190, elem_id="blind-next")
        said = gr.HTML("", apply_default_css=False, elem_id="blind-said")
    outputs = [shown, pair, said, following, *buttons.values()]

    def show_next(request: gr.Request) -> tuple[object, ...]:
        operator = desk.operator(request)
        found = votes.next_pair(desk.record, voted_by=operator, chance=_CHANCE)
        if found is None:
            empty = markup.note("There are no two answers that you have not compared; an evaluated run brings new ones.")
            return None, "", empty, gr.Button("Show two answers"), *_visible(False)
        return found, show_pair(desk.record, found), "", gr.Button("Skip these", variant="secondary"), *_visible(True)

    def vote(choice: Choice) -> Callable[[Pair | None, gr.Request], tuple[object, ...]]:
        def handle(on: Pair | None, request: gr.Request) -> tuple[object, ...]:
            operator = desk.operator(request)
            if on is None:
                return (gr.skip(),) * len(outputs)
            try:
                made = votes.vote(
                    desk.record,
                    decision_id=on.decision_id,
                    left_answer_id=on.left.answer_id,
                    right_answer_id=on.right.answer_id,
                    choice=choice,
                    voted_by=operator,
                )
            except Failure as failure:
                return None, "", markup.note(str(failure)), gr.Button("Show two answers"), *_visible(False)
            told = markup.note(f"Noted: {_LABELS[choice]}.")
            following = gr.Button("Next two answers", variant="primary")
            return None, show_pair(desk.record, on, made), told, following, *_visible(False)

        return handle

    following.click(show_next, None, outputs, **QUIETLY)
    for choice, button in buttons.items():
        button.click(vote(choice), shown, outputs, **QUIETLY)


def show_pair(record: Record, pair: Pair, made: BlindVote | None = None) -> str:
    """Return a question and two answers as HTML; whose they are only where the vote is made."""
    columns = [
        dialogue.column(
            title, answer.content, _names(record, answer, made, choice) if made else [], nothing="It said nothing."
        )
        for title, answer, choice in (("A", pair.left, Choice.LEFT), ("B", pair.right, Choice.RIGHT))
    ]
    question = dialogue.history(record, decisions.decision(record, pair.decision_id))
    return f"{question}<div class='answers'>{''.join(columns)}</div>"


def _names(record: Record, answer: Answer, made: BlindVote, choice: Choice) -> list[markup.Markup]:
    facts = [markup.pill(answer.author), markup.code(answer.author_name)]
    if answer.author is AnswerAuthor.STUDENT:
        known = {each.release_id: each for each in releases.releases(record)}
        if answer.author_name in known:
            facts.append(markup.pill(known[answer.author_name].state.replace("_", " ")))
    if made.choice is choice:
        facts.append(markup.pill("better, you say", "good"))
    return facts


def _visible(visible: bool) -> list[gr.Button]:
    return [gr.Button(visible=visible) for _ in _LABELS]
