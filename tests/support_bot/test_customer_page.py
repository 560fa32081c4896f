"""What the customers' page does with clicks that come at the wrong moment; its handlers are called as Gradio calls them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_world import ChatWorld
from starlette.routing import Mount

from conversations import turns
from support_bot.access import CUSTOMER_COOKIE, customer_of
from support_bot.customer.page import PENDING_NOTICE, chat_application
from support_bot.session import Session

BROWSER = SimpleNamespace(cookies={CUSTOMER_COOKIE: "a" * 32})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ChatWorld]:
    made = ChatWorld(tmp_path)
    yield made
    made.close()


class Window:
    """A browser's window: presses buttons, and gets what the page shows by the names of its parts."""

    def __init__(self, session: Session) -> None:
        mounted = [route.app for route in chat_application(session).routes if isinstance(route, Mount)]
        self._blocks = next(app.blocks for app in mounted if hasattr(app, "blocks"))
        self._handlers = {each.name: each for each in self._blocks.fns.values()}
        state = self._handlers["begin_anew"].inputs[0]
        self._state = deepcopy(state.value)

    async def send(self, text: str, conversation_id: str = "") -> AsyncIterator[dict]:
        async for updates in self._handlers["send"].fn(text, conversation_id, False, self._state, BROWSER):
            yield named(updates)

    async def retry(self, conversation_id: str) -> AsyncIterator[dict]:
        async for updates in self._handlers["retry"].fn(conversation_id, self._state, BROWSER):
            yield named(updates)

    def begin_anew(self) -> dict:
        return named(self._handlers["begin_anew"].fn(self._state))


def named(updates: dict) -> dict:
    return {component.elem_id or "check": update for component, update in updates.items()}


def with_window(world: ChatWorld, act: Callable[[Session, Window], Awaitable[None]]) -> None:
    async def run() -> None:
        session = Session(world.record, world.settings)
        try:
            await act(session, Window(session))
        finally:
            await session.close()

    asyncio.run(run())


async def shown(page: AsyncIterator[dict]) -> list[dict]:
    return [updates async for updates in page]


def own_conversations(world: ChatWorld) -> list[str]:
    own = turns.conversations_of(world.record, customer_of(BROWSER.cookies))
    return [each.conversation_id for each in own]


def test_double_click_on_send_opens_one_conversation_and_asks_once(world):
    async def act(session, window):
        first, second = await asyncio.gather(shown(window.send("Hello")), shown(window.send("Hello")))
        assert first[0]["message"] == ""
        assert [list(updates) for updates in second] == [["notice"]] and PENDING_NOTICE in second[0]["notice"]

    with_window(world, act)
    (conversation_id,) = own_conversations(world)
    assert len(turns.all_turns(world.record, conversation_id)) == 2


def test_click_before_the_browser_has_heard_of_the_opened_conversation_opens_no_second_one(world):
    world.student.seconds_before_first = 0.3

    async def act(session, window):
        first = window.send("Hello")
        assert (await anext(first))["message"] == ""
        (late,) = await shown(window.send("Hello"))
        assert PENDING_NOTICE in late["notice"]
        await shown(first)
        window.begin_anew()
        await shown(window.send("Another matter"))

    with_window(world, act)
    assert len(own_conversations(world)) == 2


def test_refused_message_leaves_the_window_free_for_the_next(world):
    async def act(session, window):
        (refused,) = await shown(window.send(" "))
        assert "Please write a message first." in refused["notice"]
        assert (await shown(window.send("Hello")))[0]["message"] == ""

    with_window(world, act)


def test_new_conversation_pressed_while_the_first_message_is_being_taken_holds(world):
    async def act(session, window):
        sending = asyncio.create_task(shown(window.send("Hello")))
        await asyncio.sleep(0)
        window.begin_anew()
        assert await sending == []

    with_window(world, act)
    assert len(own_conversations(world)) == 1


def test_second_try_does_not_show_the_broken_half_beside_the_new_answer(world):
    world.student.dies_after_pieces = 3

    async def act(session, window):
        broken = (await shown(window.send("Hello")))[-1]
        assert len(broken["chat"].value) == 2
        world.student.dies_after_pieces = None
        # The new answer's turn waits for the writer, and the page does not.
        busy = asyncio.create_task(session.stored.write(lambda _: time.sleep(0.3)))
        await asyncio.sleep(0)
        tries = await shown(window.retry(broken["conversation"]))
        await busy
        assert len(tries[0]["chat"].value) == 1
        for updates in tries[1:-1]:
            assert [bubble["role"] for bubble in updates["chat"]] == ["user", "assistant"]
        assert len(tries[-1]["chat"].value) == 2

    with_window(world, act)
