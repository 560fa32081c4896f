"""The tab Conversations: find one by its words, status, release or thumb, and read it turn by turn.

In: what an operator types. Out: a list, page by page, and one conversation with every branch of it. Reads only.
"""

import html
from typing import TypeAlias

import gradio as gr

from conversations import releases, search, turns
from conversations.errors import OperatorError
from conversations.messages import OPEN_STATUSES, TurnStatus, Vote
from conversations.store import Record
from conversations.turns import Turn
from support_bot.console import markup
from support_bot.console.desk import QUIETLY, Desk, Drawing

PAGE_SIZE = 25
ANY = "any"
_THUMBS = {Vote.UP: ("thumb up", "good"), Vote.DOWN: ("thumb down", "bad")}

# The words, the status, the release and the thumb that the operator chose.
Wishes: TypeAlias = tuple[str, str, str, str]


def tab(desk: Desk) -> Drawing:
    """Lay the tab out and return how it is drawn anew."""
    record = desk.record
    cursors = gr.State([""])
    with gr.Row(elem_classes="tools"):
        query = gr.Textbox(label="Words", placeholder="words that were said", scale=3, elem_id="find")
        status = gr.Dropdown([ANY, *TurnStatus], value=ANY, label="Status of a turn", scale=1, filterable=False)
        release = gr.Dropdown([ANY], value=ANY, label="Release", scale=1, filterable=False)
        vote = gr.Dropdown([ANY, *Vote], value=ANY, label="Thumb", scale=1, filterable=False)
    with gr.Row(elem_classes="two"):
        with gr.Column(scale=2, min_width=300):
            found = gr.HTML(js_on_load=markup.CHOICES_SCRIPT, apply_default_css=False, elem_id="found")
            with gr.Row(elem_classes="pager"):
                back = gr.Button("Newer", size="sm", interactive=False)
                on = gr.Button("Older", size="sm", interactive=False)
        with gr.Column(scale=3, min_width=320):
            reader = gr.HTML(markup.note("Choose a conversation to read it."), apply_default_css=False, elem_id="reader")
    wishes = [query, status, release, vote]
    listed = [found, cursors, back, on]

    def first(*wished: str) -> tuple[object, ...]:
        return _listing(record, _as_wishes(wished), [""])

    def older(seen: list[str], *wished: str) -> tuple[object, ...]:
        return _listing(record, _as_wishes(wished), seen)

    def newer(seen: list[str], *wished: str) -> tuple[object, ...]:
        return _listing(record, _as_wishes(wished), seen[:-2] or [""])

    def read(event: gr.EventData) -> str:
        return read_conversation(record, str(event.key))

    def draw() -> tuple[object, ...]:
        known = [ANY, *(each.release_id for each in releases.releases(record))]
        return (*_listing(record, ("", ANY, ANY, ANY), [""]), gr.Dropdown(choices=known, value=ANY), "", ANY, ANY)

    gr.on([query.submit, *(each.input for each in (status, release, vote))], first, wishes, listed, **QUIETLY)
    on.click(older, [cursors, *wishes], listed, **QUIETLY)
    back.click(newer, [cursors, *wishes], listed, **QUIETLY)
    found.click(read, None, reader, **QUIETLY)
    return draw, [*listed, release, query, status, vote]


def read_conversation(record: Record, conversation_id: str) -> str:
    """Return a conversation as HTML: every turn with its author, status, release, times and thumb."""
    try:
        conversation = turns.conversation(record, conversation_id)
    except OperatorError as error:
        return markup.note(str(error))
    every = turns.all_turns(record, conversation_id)
    seen = {turn.turn_id for turn in turns.branch_to(every)}
    facts = markup.table(
        ("customer", "channel", "answered by", "consent", "release held", "begun (UTC)"),
        [
            (
                markup.code(conversation.customer_id),
                conversation.channel,
                conversation.state,
                conversation.consent,
                markup.code(conversation.release_id),
                markup.moment(conversation.created_at_utc),
            )
        ],
        empty="",
    )
    spoken = "".join(_turn(turn, is_branch=turn.turn_id not in seen) for turn in every)
    name = f"<p>{markup.code(conversation_id).html}</p>"
    return f"{markup.heading('Conversation')}{name}{facts}<ol class='turns'>{spoken}</ol>"


def _turn(turn: Turn, *, is_branch: bool) -> str:
    pieces = [markup.pill(turn.author)]
    if turn.status is not TurnStatus.COMPLETE:
        pieces.append(markup.pill(turn.status, "busy" if turn.status in OPEN_STATUSES else "bad"))
    if turn.failure_code:
        pieces.append(markup.code(turn.failure_code))
    if is_branch:
        pieces.append(markup.pill("another branch"))
    if turn.vote is not None:
        text, tone = _THUMBS[turn.vote]
        pieces.append(markup.pill(text, "good" if tone == "good" else "bad"))
    if turn.release_id:
        pieces.append(markup.code(turn.release_id))
    figures = [
        f"first token {turn.first_token_ms:.0f} ms" if turn.first_token_ms is not None else "",
        f"whole {turn.latency_ms:.0f} ms" if turn.latency_ms is not None else "",
        f"{turn.prompt_tokens} + {turn.completion_tokens} tokens" if turn.completion_tokens else "",
    ]
    line = " ".join(piece.html for piece in pieces)
    small = html.escape(" · ".join(figure for figure in figures if figure))
    said = markup.words(turn.content) if turn.content else markup.note("no words")
    return (
        f'<li class="turn {turn.role}{" branch" if is_branch else ""}"><div class="line">{line} '
        f"<small>{markup.moment(turn.created_at_utc).html} {small}</small></div>{said}</li>"
    )


def _listing(record: Record, wishes: Wishes, cursors: list[str]) -> tuple[object, ...]:
    """Return the updates of the list and its pager; the last of the cursors says where the page begins."""
    query, status, release_id, vote = wishes
    filters = search.Filters(
        status=TurnStatus(status) if status != ANY else None,
        release_id=release_id if release_id != ANY else None,
        vote=Vote(vote) if vote != ANY else None,
    )
    found = search.find(record, query, filters, after=cursors[-1], limit=PAGE_SIZE + 1)
    page = found[:PAGE_SIZE]
    items = [(each.conversation_id, each.snippet or "(no words)", _second_line(each)) for each in page]
    has_more = len(found) > PAGE_SIZE
    return (
        markup.choices(items, chosen="", empty="No conversation fits. Change the words or the filters."),
        [*cursors, page[-1].cursor] if has_more else [*cursors, cursors[-1]],
        gr.Button(interactive=len(cursors) > 1),
        gr.Button(interactive=has_more),
    )


def _second_line(each: search.Found) -> str:
    thumbs = [
        markup.pill(f"{count} {name}", "good" if name == "up" else "bad").html
        for count, name in ((each.votes_up, "up"), (each.votes_down, "down"))
        if count
    ]
    count = f"{each.turns} turn{'' if each.turns == 1 else 's'}"
    return " ".join([markup.moment(each.updated_at_utc).html, html.escape(f"· {count} · {each.channel}"), *thumbs])


def _as_wishes(wished: tuple[str, ...]) -> Wishes:
    query, status, release_id, vote = wished
    return query, status, release_id, vote
