"""The customers' chat page: a Gradio page over the record.

In: a session. Out: one web application. The history comes from the record and the customer from their cookie; the browser
brings a text and a conversation's name, and the name counts only if the cookie's customer owns it. The page watches an
answer and never makes one, so it may be reloaded or closed at any time.
"""

import html
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from conversations import turns
from conversations.messages import Consent, Vote
from conversations.store import Record
from conversations.turns import ReplyInProgress
from support_bot.access import CustomerDoor, Door, customer_of, own_conversation
from support_bot.customer.view import COULD_NOT_ANSWER, EMPTY, Bubble, View, answer_bubble, view_of
from support_bot.session import Availability, MessageRefused, NoReleaseYet, NothingToRetry, Session
from support_bot.settings import QUEUE_LOOK_SECONDS, ServeTable

PENDING_NOTICE = "Please wait until this answer is finished, or stop it."
STARTING = "The assistant is starting. It will be here in a moment."
UNAVAILABLE = "The assistant is unavailable right now. Please try again a little later."
SECONDS_BETWEEN_CHECKS = 3
# Gradio runs no more jobs at once than it has threads, whatever else is set.
MAX_OPEN_PAGES = 400
# Beyond them; what comes above is answered with 503 and kept nowhere.
MAX_WAITING_PAGES = 400
_FOCUS_MESSAGE = "() => { document.querySelector('#message textarea')?.focus(); }"

# What a handler gives back: an update for each component it names.
Updates: TypeAlias = dict[gr.components.Component, object]
Tone: TypeAlias = Literal["quiet", "trouble"]


@dataclass(frozen=True)
class _Parts:
    """The components that change while a customer chats."""

    conversation: gr.Textbox
    chat: gr.Chatbot
    notice: gr.HTML
    retry: gr.Button
    message: gr.Textbox
    send: gr.Button
    stop: gr.Button
    consent: gr.Checkbox
    banner: gr.HTML
    check: gr.Timer

    def all(self) -> list[gr.components.Component]:
        """Return them in one list, as Gradio wants the outputs of a handler."""
        return list(vars(self).values())


@dataclass
class _Window:
    """One window of a customer's browser; counts how often it went on to a new conversation.

    A second click may come while the first still opens the conversation, or before the browser has heard its name: `is_sending`
    and `opened_id` tell the two from a wish for two conversations.
    """

    conversations_left: int = 0
    is_sending: bool = False
    opened_id: str = ""


def chat_application(session: Session) -> FastAPI:
    """Return the web application with the chat page at its root."""
    application = FastAPI(openapi_url=None)
    # With a policy of its own on the application, Gradio does not let every origin in.
    application.add_middleware(CORSMiddleware, allow_origins=[])
    application.add_middleware(CustomerDoor)
    application.add_middleware(Door)
    table = session.settings.serve
    gr.mount_gradio_app(
        application,
        _page(session),
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        theme=gr.themes.Base(
            primary_hue="teal",
            neutral_hue="slate",
            radius_size="lg",
            font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=[Path(__file__).with_name("style.css")],
        head=_head(table),
    )
    return application


def _head(table: ServeTable) -> str:
    initial = html.escape(table.brand.strip()[:1].upper() or "S")
    icon = (
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
        "%3Crect width='32' height='32' rx='9' fill='%230f766e'/%3E%3Ctext x='16' y='22' text-anchor='middle' "
        f"font-family='system-ui' font-size='18' font-weight='700' fill='white'%3E{initial}%3C/text%3E%3C/svg%3E"
    )
    return f'<link rel="icon" href="{icon}"><meta name="color-scheme" content="light dark">'


def _page(session: Session) -> gr.Blocks:
    table = session.settings.serve
    with gr.Blocks(title=f"{table.brand} · {table.chat_title}", analytics_enabled=False, fill_height=True) as page:
        with gr.Row(elem_id="top"):
            gr.HTML(
                f'<h1><span class="brand">{html.escape(table.brand)}</span>{html.escape(table.chat_title)}</h1>',
                elem_id="title",
                apply_default_css=False,
            )
            new = gr.Button("New conversation", elem_id="new", size="sm", variant="secondary")
        _wire(session, _parts(table), new)
    page.max_threads = MAX_OPEN_PAGES
    page.queue(default_concurrency_limit=None, api_open=False, max_size=MAX_WAITING_PAGES)
    page._queue.sleep_when_free = QUEUE_LOOK_SECONDS
    return page


def _parts(table: ServeTable) -> _Parts:
    banner = gr.HTML("", elem_id="banner", visible=False, apply_default_css=False)
    chat = gr.Chatbot(
        elem_id="chat",
        label="Conversation",
        show_label=False,
        container=False,
        height="100%",
        sanitize_html=True,
        allow_tags=False,
        reasoning_tags=[],
        latex_delimiters=[],
        buttons=[],
        feedback_options=("Like", "Dislike"),
        group_consecutive_messages=False,
        layout="bubble",
        placeholder=f"**{_as_text(table.chat_title)}**\n\nAsk a question in your own words.",
    )
    with gr.Row(elem_id="status"):
        notice = gr.HTML("", elem_id="notice", apply_default_css=False)
        retry = gr.Button("Try again", elem_id="retry", size="sm", visible=False)
    with gr.Row(elem_id="composer"):
        message = gr.Textbox(
            elem_id="message",
            label="Your message",
            show_label=False,
            container=False,
            placeholder="Write a message",
            lines=1,
            max_lines=6,
            max_length=table.max_message_chars,
            autofocus=True,
        )
        send = gr.Button("Send", elem_id="send", variant="primary")
        stop = gr.Button("Stop", elem_id="stop", variant="stop", visible=False)
    with gr.Row(elem_id="small-print"):
        gr.HTML(f"<p>{html.escape(table.chat_welcome)}</p>", elem_id="disclosure", apply_default_css=False)
        consent = gr.Checkbox(
            label="This conversation may be used to improve answers", value=False, elem_id="consent", container=False
        )
    conversation = gr.Textbox(visible="hidden", elem_id="conversation", label="Conversation name")
    check = gr.Timer(SECONDS_BETWEEN_CHECKS)
    return _Parts(conversation, chat, notice, retry, message, send, stop, consent, banner, check)


def _wire(session: Session, parts: _Parts, new: gr.Button) -> None:
    """Connect the components with the session."""
    # Gradio copies the first value for each window of a browser and hands the copy to every handler.
    window = gr.State(_Window())

    async def show(window: _Window, request: gr.Request) -> AsyncIterator[Updates]:
        left_before = window.conversations_left
        conversation_id = await session.stored.read(_newest, customer_of(request.cookies))
        if conversation_id is None:
            yield _updates(parts, EMPTY)
            return
        async for updates in _watch(session, parts, window, conversation_id, left_before):
            yield updates

    async def send(
        text: str, conversation_id: str, agrees: bool, window: _Window, request: gr.Request
    ) -> AsyncIterator[Updates]:
        if window.is_sending:
            yield {parts.notice: _sentence(PENDING_NOTICE, "trouble")}
            return
        window.is_sending = True
        left_before = window.conversations_left
        customer_id = customer_of(request.cookies)
        trouble = ""
        try:
            conversation_id = conversation_id or window.opened_id
            own = await session.stored.read(own_conversation, conversation_id, customer_id)
            if customer_id is None:
                trouble = "Please reload this page and allow its cookie; it keeps your conversation yours."
            elif own is None:
                consent = Consent.YES if agrees else Consent.NO
                conversation_id = await session.open(customer_id, text, channel="web", consent=consent)
            else:
                await session.ask(conversation_id, text)
        except MessageRefused as refusal:
            trouble = str(refusal)
        except ReplyInProgress:
            trouble = PENDING_NOTICE
        except NoReleaseYet:
            trouble = STARTING
        finally:
            window.is_sending = False
        if window.conversations_left != left_before:
            return
        if trouble:
            yield {parts.notice: _sentence(trouble, "trouble")}
            return
        window.opened_id = conversation_id
        yield {parts.conversation: conversation_id, parts.message: ""}
        async for updates in _watch(session, parts, window, conversation_id, left_before):
            yield updates

    async def retry(conversation_id: str, window: _Window, request: gr.Request) -> AsyncIterator[Updates]:
        left_before = window.conversations_left
        own = await session.stored.read(own_conversation, conversation_id, customer_of(request.cookies))
        if own is None:
            return
        try:
            with suppress(NothingToRetry, ReplyInProgress):
                await session.retry(conversation_id)
        except MessageRefused as refusal:
            yield {parts.notice: _sentence(str(refusal), "trouble")}
            return
        async for updates in _watch(session, parts, window, conversation_id, left_before):
            yield updates

    async def stop(conversation_id: str, request: gr.Request) -> None:
        if await session.stored.read(own_conversation, conversation_id, customer_of(request.cookies)):
            await session.stop(conversation_id)

    async def like(conversation_id: str, thumb: gr.LikeData, request: gr.Request) -> None:
        await session.stored.write(_vote, session, conversation_id, customer_of(request.cookies), thumb.index, thumb.liked)

    async def agree(agrees: bool, conversation_id: str, request: gr.Request) -> None:
        consent = Consent.YES if agrees else Consent.NO
        if await session.stored.read(own_conversation, conversation_id, customer_of(request.cookies)):
            await session.stored.write(turns.set_consent, conversation_id, consent)

    def begin_anew(window: _Window) -> Updates:
        window.conversations_left += 1
        window.opened_id = ""
        return _updates(parts, EMPTY)

    async def check() -> Updates:
        return _presence(parts, await session.stored.read(lambda _: session.availability()))

    outputs = parts.all()
    page = gr.context.Context.root_block
    assert page is not None
    quietly: dict[str, object] = {"show_progress": "hidden", "api_visibility": "private"}
    # What takes a moment goes past Gradio's queue: there, a stream that closes takes younger events with it.
    at_once = {**quietly, "queue": False}
    # Never once only: a watcher of a conversation that was left may still be pending.
    watching = {**quietly, "trigger_mode": "multiple"}
    page.load(show, [window], outputs, **quietly)
    gr.on(
        [parts.send.click, parts.message.submit],
        send,
        [parts.message, parts.conversation, parts.consent, window],
        outputs,
        **watching,
    )
    parts.retry.click(retry, [parts.conversation, window], outputs, **watching)
    parts.stop.click(stop, [parts.conversation], None, **at_once).then(None, js=_FOCUS_MESSAGE)
    new.click(begin_anew, [window], outputs, **at_once).then(None, js=_FOCUS_MESSAGE)
    parts.chat.like(like, [parts.conversation], None, **at_once)
    parts.consent.input(agree, [parts.consent, parts.conversation], None, **at_once)
    parts.check.tick(check, None, outputs, **at_once)


async def _watch(
    session: Session, parts: _Parts, window: _Window, conversation_id: str, left_before: int
) -> AsyncIterator[Updates]:
    """Yield what changes on the page until the answer on its way is closed or its conversation is left.

    Ends with the conversation as the record has it, however early the answer was closed. `left_before` is how many conversations
    the window had left when the customer asked for what is shown.
    """
    if session.is_answering(conversation_id):
        # Not the newest branch: until the answer's turn is written, that one ends in the answer before it.
        question_turn_id = session.question_on_answer(conversation_id)
        before = await session.stored.read(view_of, conversation_id, question_turn_id=question_turn_id)
        if window.conversations_left != left_before:
            return
        yield _updates(parts, before, is_answering=True)
        async for glimpse in session.follow(conversation_id):
            if window.conversations_left != left_before:
                return
            if glimpse.is_open and glimpse.text:
                yield {parts.chat: [*before.bubbles, answer_bubble(glimpse.text)]}
    view = await session.stored.read(view_of, conversation_id)
    updates = _updates(parts, view)
    if view.notice == COULD_NOT_ANSWER:
        updates |= _presence(parts, await session.stored.read(lambda _: session.availability()))
    if window.conversations_left == left_before:
        yield updates


def _updates(parts: _Parts, view: View, *, is_answering: bool = False) -> Updates:
    bubbles: list[Bubble] = list(view.bubbles)
    if is_answering:
        notice = _sentence("The assistant is writing", "quiet", is_busy=True)
    else:
        notice = _sentence(view.notice, "trouble" if view.can_retry else "quiet")
    return {
        parts.conversation: view.conversation_id,
        parts.chat: gr.Chatbot(value=bubbles, feedback_value=list(view.thumbs)),
        parts.notice: notice,
        parts.retry: gr.Button(visible=view.can_retry and not is_answering),
        parts.send: gr.Button(visible=not is_answering),
        parts.stop: gr.Button(visible=is_answering),
        **({parts.consent: view.consent} if view.conversation_id else {}),
    }


def _presence(parts: _Parts, availability: Availability) -> Updates:
    """Return the banner for how things stand; once the assistant is there, nobody needs to ask again."""
    text = {Availability.READY: "", Availability.STARTING: STARTING, Availability.UNAVAILABLE: UNAVAILABLE}[availability]
    is_ready = availability is Availability.READY
    return {
        parts.banner: gr.HTML(f'<p role="status">{html.escape(text)}</p>', visible=not is_ready),
        parts.check: gr.Timer(active=not is_ready),
    }


def _sentence(text: str, tone: Tone, *, is_busy: bool = False) -> str:
    dots = '<span class="dots" aria-hidden="true"><i></i><i></i><i></i></span>' if is_busy else ""
    return f'<p role="status" class="{tone}">{html.escape(text)}{dots}</p>' if text else '<p role="status"></p>'


def _newest(record: Record, customer_id: str | None) -> str | None:
    own = turns.conversations_of(record, customer_id) if customer_id else []
    return own[0].conversation_id if own else None


def _vote(
    record: Record, session: Session, conversation_id: str, customer_id: str | None, index: object, liked: bool | str | None
) -> None:
    if customer_id is None or own_conversation(record, conversation_id, customer_id) is None:
        return
    shown = view_of(record, conversation_id).shown_turn_ids
    if not isinstance(index, int) or not 0 <= index < len(shown):
        return
    vote = {True: Vote.UP, "Like": Vote.UP, False: Vote.DOWN, "Dislike": Vote.DOWN}.get(liked or False)
    session.vote(conversation_id, customer_id, shown[index], vote)


def _as_text(text: str) -> str:
    return html.escape(text).replace("*", "\\*")
