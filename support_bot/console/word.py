"""The operator's word below a comparison: write a better answer, or approve or reject one that was given.

In: an operator's text, or a click on an answer. Out: the next version of the operator's own answer, or a review of somebody's; both
in the record and in its audit, and both above every rule when the next run decides what may be learnt. Changes no answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from conversations import decisions, reviews
from conversations.corrections import correct, personal_in
from conversations.decisions import Answer, AnswerAuthor
from conversations.errors import Failure
from conversations.messages import Split
from conversations.redaction import RedactionRules
from conversations.reviews import ReviewVerdict
from conversations.store import Record
from support_bot.console import markup
from support_bot.console.desk import QUIETLY, Desk

MAX_ANSWER_CHARACTERS = 8_000
MAX_NOTE_CHARACTERS = 500
_EXPLAINED = (
    "What you write is learnt in place of the teacher's answer. What you approve is learnt whatever the rules say; what you reject "
    "never is; both are about that one answer. What the customer said of themselves becomes placeholders such as <EMAIL_1>. It counts "
    "from the next run on."
)


@dataclass(frozen=True)
class WordPanel:
    """The panel, what it needs to know, and how it is filled for a decision."""

    column: gr.Column
    decision_id: gr.State
    given: gr.Radio
    said: gr.HTML

    def outputs(self) -> list[gr.components.Component | gr.Column]:
        """Return what `filled` fills."""
        return [self.column, self.decision_id, self.given, self.said]


def panel(desk: Desk, side_by_side: gr.HTML, compared: Callable[[str], str]) -> WordPanel:
    """Lay the panel out, hidden until a decision is chosen. `compared` draws the answers of a decision anew."""
    with gr.Column(visible=False, elem_id="word") as column:
        gr.HTML(markup.heading("Your word") + markup.note(_EXPLAINED), apply_default_css=False)
        decision_id = gr.State("")
        answer = gr.Textbox(
            label="A better answer",
            placeholder="what the student should say to this customer",
            lines=3,
            max_length=MAX_ANSWER_CHARACTERS,
            elem_id="better-answer",
        )
        with gr.Row(elem_classes="tools"):
            save = gr.Button("Save this answer", variant="primary", scale=0, min_width=180, elem_id="save-answer")
        given = gr.Radio([], label="Or judge an answer that was given", elem_id="given")
        note = gr.Textbox(
            label="Note", placeholder="why, for the audit (optional)", max_length=MAX_NOTE_CHARACTERS, elem_id="review-note"
        )
        with gr.Row(elem_classes="tools"):
            approve = gr.Button("Approve", scale=0, min_width=130, elem_id="approve")
            reject = gr.Button("Reject", variant="stop", scale=0, min_width=130, elem_id="reject")
        said = gr.HTML("", apply_default_css=False, elem_id="word-said")

    def write(decision: str, text: str, request: gr.Request) -> tuple[object, ...]:
        operator = desk.operator(request)
        try:
            written = correct(desk.record, decision, text, operator=operator, rules=desk.rules)
        except Failure as failure:
            return markup.note(str(failure)), gr.skip(), gr.skip(), gr.skip()
        return (
            markup.note(what_becomes_of(desk.record, written, desk.rules)),
            "",
            compared(decision),
            _choices(desk, decision),
        )

    def review(verdict: ReviewVerdict) -> Callable[[str, str | None, str, gr.Request], tuple[object, ...]]:
        def handle(decision: str, answer_id: str | None, why: str, request: gr.Request) -> tuple[object, ...]:
            operator = desk.operator(request)
            if not answer_id:
                return markup.note("Choose an answer above first."), gr.skip(), gr.skip(), gr.skip()
            try:
                reviews.review(desk.record, answer_id, verdict, reviewed_by=operator, note=why.strip()[:MAX_NOTE_CHARACTERS])
            except Failure as failure:
                return markup.note(str(failure)), gr.skip(), gr.skip(), gr.skip()
            return markup.note(f"The answer is {verdict.value}."), "", compared(decision), _choices(desk, decision)

        return handle

    save.click(write, [decision_id, answer], [said, answer, side_by_side, given], **QUIETLY)
    for button, verdict in ((approve, ReviewVerdict.APPROVED), (reject, ReviewVerdict.REJECTED)):
        button.click(review(verdict), [decision_id, given, note], [said, note, side_by_side, given], **QUIETLY)
    return WordPanel(column, decision_id, given, said)


def what_becomes_of(record: Record, written: Answer, rules: RedactionRules) -> str:
    """Return what an operator is told of an answer just saved: its version, and whether and when it is learnt."""
    saved = f"Saved as version {written.version} of your answer"
    if decisions.decision(record, written.decision_id).split is Split.TEST:
        return (
            f"{saved}. This question is for the test set: your answer is never learnt. It counts as a right answer if no edition "
            "holds the question yet; an edition that does stays as it is."
        )
    personal = personal_in(written, rules)
    if personal:
        return (
            f"{saved}. It holds what looks personal and is not the customer's: {', '.join(personal)}. The run leaves the answer out, "
            "unless that is the company's own and stands in the system prompt; else write the answer without it."
        )
    return f"{saved}; the next run learns it."


def filled(desk: Desk, decision_id: str) -> tuple[object, ...]:
    """Return the panel for a decision, or hidden when there is none."""
    return gr.Column(visible=bool(decision_id)), decision_id, _choices(desk, decision_id), ""


def _choices(desk: Desk, decision_id: str) -> gr.Radio:
    """Return the answers that may be judged: the newest of each author but the students'."""
    newest: dict[tuple[AnswerAuthor, str], Answer] = {}
    for each in decisions.answers(desk.record, decision_id) if decision_id else []:
        if each.author is not AnswerAuthor.STUDENT:
            newest.setdefault((each.author, each.author_name), each)
    return gr.Radio(choices=[(_told(each), each.answer_id) for each in newest.values()], value=None)


def _told(answer: Answer) -> str:
    beginning = " ".join(answer.content.split())[:60]
    return f"{answer.author_name}: {beginning}{'…' if len(answer.content) > 60 else ''}"
