"""The tab Conversations: find one by its words and by what is known of it, and read it turn by turn.

In: what an operator types. Out: a list, page by page, and one conversation with every branch of it. Reads only.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import gradio as gr

from conversations import checks, releases, search, tags, turns
from conversations.errors import OperatorError
from conversations.messages import OPEN_STATUSES, TurnStatus, Vote
from conversations.store import Record
from conversations.turns import Turn
from support_bot.console import markup
from support_bot.console.desk import QUIETLY, Desk, Drawing

PAGE_SIZE = 25
ANY = "any"
_THUMBS = {Vote.UP: ("thumb up", "good"), Vote.DOWN: ("thumb down", "bad")}


@dataclass(frozen=True)
class Wishes:
    """What the operator typed and chose, in the order of the fields on the page."""

    words: str = ""
    status: str = ANY
    release: str = ANY
    thumb: str = ANY
    language: str = ANY
    tag: str = ANY
    since: str = ""
    until: str = ""
    disagreement: bool = False
    flagged: bool = False

    @classmethod
    def of(cls, fields: Sequence[str | bool]) -> "Wishes":
        """Read the values of the fields; an emptied one comes as None."""
        words, status, release, thumb, language, tag, since, until = (str(each or "") for each in fields[:-2])
        return cls(words, status, release, thumb, language, tag, since, until, *map(bool, fields[-2:]))

    def filters(self) -> search.Filters:
        """Return them as the search takes them.

        Raises OperatorError for a day that is none.
        """
        return search.Filters(
            status=TurnStatus(self.status) if self.status != ANY else None,
            release_id=self.release if self.release != ANY else None,
            vote=Vote(self.thumb) if self.thumb != ANY else None,
            language=self.language if self.language != ANY else None,
            tag=self.tag if self.tag != ANY else None,
            since=_day(self.since),
            until=_day(self.until),
            has_disagreement=self.disagreement,
            is_flagged=self.flagged,
        )


def tab(desk: Desk) -> Drawing:
    """Lay the tab out and return how it is drawn anew."""
    record = desk.record
    cursors = gr.State([""])
    with gr.Row(elem_classes="tools"):
        query = gr.Textbox(label="Words", placeholder="words that were said", scale=3, elem_id="find")
        status = gr.Dropdown([ANY, *TurnStatus], value=ANY, label="Status of a turn", scale=1, filterable=False)
        release = gr.Dropdown([ANY], value=ANY, label="Release", scale=1, filterable=False)
        vote = gr.Dropdown([ANY, *Vote], value=ANY, label="Thumb", scale=1, filterable=False)
    with gr.Row(elem_classes="tools"):
        language = gr.Dropdown([ANY], value=ANY, label="Language", scale=1, filterable=False)
        tag = gr.Dropdown([ANY], value=ANY, label="Tag", scale=1)
        since = gr.Textbox(label="Begun from (UTC)", placeholder="2026-03-01", max_length=10, scale=1, elem_id="since")
        until = gr.Textbox(label="to", placeholder="2026-03-31", max_length=10, scale=1, elem_id="until")
        disagreement = gr.Checkbox(label="Answers disagree", scale=1, elem_id="disagreement")
        flagged = gr.Checkbox(label="Flagged by an import", scale=1, elem_id="flagged")
    with gr.Row(elem_classes="two"):
        with gr.Column(scale=2, min_width=300):
            found = gr.HTML(js_on_load=markup.CHOICES_SCRIPT, apply_default_css=False, elem_id="found")
            with gr.Row(elem_classes="pager"):
                back = gr.Button("Newer", size="sm", interactive=False)
                on = gr.Button("Older", size="sm", interactive=False)
        with gr.Column(scale=3, min_width=320):
            reader = gr.HTML(markup.note("Choose a conversation to read it."), apply_default_css=False, elem_id="reader")
    wishes = [query, status, release, vote, language, tag, since, until, disagreement, flagged]
    listed = [found, cursors, back, on]

    def first(*wished: str | bool) -> tuple[object, ...]:
        return _listing(record, Wishes.of(wished), [""])

    def older(seen: list[str], *wished: str | bool) -> tuple[object, ...]:
        return _listing(record, Wishes.of(wished), seen)

    def newer(seen: list[str], *wished: str | bool) -> tuple[object, ...]:
        return _listing(record, Wishes.of(wished), seen[:-2] or [""])

    def read(event: gr.EventData) -> str:
        return read_conversation(record, str(event.key))

    def draw() -> tuple[object, ...]:
        choices = (
            [each.release_id for each in releases.releases(record)],
            [code for code in checks.statistics(record).by_language if code != checks.UNKNOWN_LANGUAGE],
            tags.every_tag(record),
        )
        anew = [gr.Dropdown(choices=[ANY, *known], value=ANY) for known in choices]
        return (*_listing(record, Wishes(), [""]), *anew, "", ANY, ANY, "", "", False, False)

    gr.on([each.submit for each in (query, since, until)], first, wishes, listed, **QUIETLY)
    gr.on(
        [each.input for each in (status, release, vote, language, tag, disagreement, flagged)],
        first,
        wishes,
        listed,
        **QUIETLY,
    )
    on.click(older, [cursors, *wishes], listed, **QUIETLY)
    back.click(newer, [cursors, *wishes], listed, **QUIETLY)
    found.click(read, None, reader, **QUIETLY)
    return draw, [*listed, release, language, tag, query, status, vote, since, until, disagreement, flagged]


def _day(text: str) -> date | None:
    if not text.strip():
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise OperatorError(f"{text!r} is no day; write it as 2026-03-01") from None


def read_conversation(record: Record, conversation_id: str) -> str:
    """Return a conversation as HTML: every turn with its author, status, release, times and thumb."""
    try:
        conversation = turns.conversation(record, conversation_id)
    except OperatorError as error:
        return markup.note(str(error))
    every = turns.all_turns(record, conversation_id)
    seen = {turn.turn_id for turn in turns.branch_to(every)}
    facts = markup.table(
        ("customer", "channel", "answered by", "language", "consent", "tags", "release held", "begun (UTC)"),
        [
            (
                markup.code(conversation.customer_id),
                conversation.channel,
                conversation.state,
                conversation.language or "unknown",
                conversation.consent,
                ", ".join(tags.tags_of(record, conversation_id)) or "none",
                markup.code(conversation.release_id),
                markup.moment(conversation.created_at_utc),
            )
        ],
        empty="",
    )
    flag = markup.note(f"Flagged by the import: {conversation.flagged_reason}") if conversation.flagged_reason else ""
    spoken = "".join(_turn(turn, is_branch=turn.turn_id not in seen) for turn in every)
    name = f"<p>{markup.code(conversation_id).html}</p>"
    return f"{markup.heading('Conversation')}{name}{flag}{facts}<ol class='turns'>{spoken}</ol>"


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
    try:
        filters = wishes.filters()
    except OperatorError as error:
        return markup.note(str(error)), [""], gr.Button(interactive=False), gr.Button(interactive=False)
    found = search.find(record, wishes.words, filters, after=cursors[-1], limit=PAGE_SIZE + 1)
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
    facts = " · ".join(["", count, each.channel, *([each.language] if each.language else [])])
    return " ".join([markup.moment(each.updated_at_utc).html, html.escape(facts.strip()), *thumbs])
