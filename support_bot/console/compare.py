"""The tab Compare: one decision, and beside each other what was said, what the teacher says and what the student says.

In: a decision that an operator chose. Out: the question with its history, every answer with its origin, and below them the panel
where the operator has a word in it. Above all stands the blind vote, where an operator does not know whose answers they are.
"""

import html
from collections.abc import Mapping, Sequence

import gradio as gr

from conversations import decisions, releases, reviews, search, turns
from conversations.decisions import Answer, AnswerAuthor, Decision, Verdict
from conversations.errors import OperatorError
from conversations.messages import Split
from conversations.releases import Release, ReleaseKind
from conversations.reviews import Review, ReviewVerdict
from conversations.store import Record
from conversations.turns import Turn
from support_bot.console import blind, dialogue, markup, word
from support_bot.console.desk import QUIETLY, Desk, Drawing

SHOWN_DECISIONS = 50
SEARCHED_CONVERSATIONS = 500
ANY = "any"
_VERDICT_TONES: dict[Verdict, markup.Tone] = {
    Verdict.ACCEPTED: "good",
    Verdict.REJECTED: "bad",
    Verdict.UNSCORED: "busy",
}


def tab(desk: Desk) -> Drawing:
    """Lay the tab out and return how it is drawn anew."""
    record = desk.record
    blind.panel(desk)
    with gr.Row(elem_classes="tools"):
        query = gr.Textbox(label="Words", placeholder="words of the conversation", scale=3)
        split = gr.Dropdown([ANY, *Split], value=ANY, label="Used for", scale=1, filterable=False)
    with gr.Row(elem_classes="two"):
        with gr.Column(scale=1, min_width=280):
            found = gr.HTML(js_on_load=markup.CHOICES_SCRIPT, apply_default_css=False, elem_id="decisions")
        with gr.Column(scale=3, min_width=320):
            side_by_side = gr.HTML(
                markup.note("Choose a decision to see the answers side by side."),
                apply_default_css=False,
                elem_id="side-by-side",
            )
            own = word.panel(desk, side_by_side, lambda decision_id: compare_answers(record, decision_id))

    def choose(words: str, used_for: str) -> str:
        return _listing(record, words, used_for)

    def show(event: gr.EventData) -> tuple[object, ...]:
        decision_id = str(event.key)
        return compare_answers(record, decision_id), *word.filled(desk, decision_id)

    def draw() -> tuple[object, ...]:
        return _listing(record, "", ANY), "", ANY

    gr.on([query.submit, split.input], choose, [query, split], found, **QUIETLY)
    found.click(show, None, [side_by_side, *own.outputs()], **QUIETLY)
    return draw, [found, query, split]


def compare_answers(record: Record, decision_id: str) -> str:
    """Return one decision as HTML: its history, and the answers side by side."""
    try:
        decision = decisions.decision(record, decision_id)
    except OperatorError:
        return markup.note(f"There is no decision {decision_id} any more.")
    reviewed = reviews.newest(record, decision_id)
    every = turns.all_turns(record, decision.conversation_id)
    logged = next((turn for turn in every if turn.turn_id == decision.reply_turn_id), None)
    columns = [
        dialogue.column(
            "Logged reply",
            logged.content if logged else None,
            _logged_facts(logged),
            nothing="The question got no reply.",
        ),
        *_given(
            decisions.answers(record, decision_id), {each.release_id: each for each in releases.releases(record)}, reviewed
        ),
    ]
    facts = " ".join(
        piece.html
        for piece in (
            markup.pill(decision.split),
            markup.pill(decision.topic or "no topic"),
            markup.pill(decision.chosen_because),
            markup.code(decision_id),
        )
    )
    return (
        f"{markup.heading('Question')}<p>{facts}</p>{dialogue.history(record, decision)}"
        f"{markup.heading('Answers')}<div class='answers'>{''.join(columns)}</div>"
    )


def _logged_facts(logged: Turn | None) -> list[markup.Markup]:
    if logged is None:
        return []
    return [markup.pill(logged.status), *([markup.code(logged.release_id)] if logged.release_id else [])]


def _given(answers: Sequence[Answer], known: dict[str, Release], reviewed: Mapping[str, Review]) -> list[str]:
    """Return a column for the newest answer of each author: teacher, operators, students, the base student last."""
    newest: dict[tuple[AnswerAuthor, str], Answer] = {}
    for answer in answers:
        newest.setdefault((answer.author, answer.author_name), answer)
    of_author = {author: [each for each in newest.values() if each.author is author] for author in AnswerAuthor}
    columns = [_answer_column("Teacher", each, _reviewed(reviewed, each)) for each in of_author[AnswerAuthor.TEACHER]]
    columns = columns or [dialogue.column("Teacher", None, [], nothing="The teacher has not answered this.")]
    columns += [_answer_column("Operator", each, _reviewed(reviewed, each)) for each in of_author[AnswerAuthor.OPERATOR]]
    columns += [_answer_column("A person", each, _reviewed(reviewed, each)) for each in of_author[AnswerAuthor.LOGGED]]
    tuned: list[str] = []
    base: list[str] = []
    for answer in of_author[AnswerAuthor.STUDENT]:
        release = known.get(answer.author_name)
        is_base = release is not None and release.kind is ReleaseKind.BASE
        state = [markup.pill(release.state.replace("_", " "))] if release is not None else []
        (base if is_base else tuned).append(_answer_column("Base student" if is_base else "Student", answer, state))
    students = tuned[:2] + base[:1]
    return columns + (students or [dialogue.column("Student", None, [], nothing="No student was measured on this.")])


def _reviewed(reviewed: Mapping[str, Review], answer: Answer) -> list[markup.Markup]:
    found = reviewed.get(answer.answer_id)
    if found is None:
        return []
    tone: markup.Tone = "good" if found.verdict is ReviewVerdict.APPROVED else "bad"
    return [markup.pill(f"{found.verdict} by {found.reviewed_by}", tone)]


def _answer_column(title: str, answer: Answer, more: Sequence[markup.Markup] = ()) -> str:
    facts = [markup.code(answer.author_name), *more]
    if answer.verdict is not None:
        facts.append(markup.pill(answer.verdict, _VERDICT_TONES[answer.verdict]))
    if answer.verdict_reason:
        facts.append(markup.pill(answer.verdict_reason))
    facts += [markup.Markup(f"passage {markup.code(passage).html}") for passage in answer.passages]
    return dialogue.column(title, answer.content, facts, nothing="It said nothing.")


def _listing(record: Record, words: str, used_for: str) -> str:
    wanted = [each for each in decisions.decisions(record) if used_for in (ANY, each.split)]
    if words.strip():
        fitting = {each.conversation_id for each in search.find(record, words, limit=SEARCHED_CONVERSATIONS)}
        wanted = [each for each in wanted if each.conversation_id in fitting]
    items = [_item(record, each) for each in wanted[::-1][:SHOWN_DECISIONS]]
    rest = len(wanted) - len(items)
    more = markup.note(f"{rest} more; narrow them down with words.") if rest > 0 else ""
    return markup.choices(items, chosen="", empty="No decision yet; the first run chooses them.") + more


def _item(record: Record, decision: Decision) -> tuple[str, str, str]:
    question = turns.turn(record, decision.question_turn_id).content
    return (
        decision.decision_id,
        question[:160],
        f"{markup.pill(decision.split).html} {html.escape(decision.topic)}",
    )
