"""What the event loop's view of the record promises: writes in the order they were asked for, reads beside them, none lost."""

import asyncio
import threading

import pytest
from conftest import talk_of

from conversations import turns
from conversations.async_record import AsyncRecord
from conversations.errors import OperatorError
from conversations.messages import Author, Role
from conversations.store import Record


def test_messages_are_written_in_the_order_they_were_asked_for(record: Record) -> None:
    talk = talk_of(record, "anna")

    async def chat() -> None:
        stored = AsyncRecord(record)
        said = (stored.write(turns.append_message, talk, Role.USER, Author.CUSTOMER, f"{number}") for number in range(50))
        await asyncio.gather(*said)
        stored.close()

    asyncio.run(chat())
    assert [turn.content for turn in turns.thread(record, talk)] == [f"{number}" for number in range(50)]


def test_a_write_is_done_though_nobody_waits_for_it_any_more(record: Record) -> None:
    talk = talk_of(record, "anna")

    async def chat() -> None:
        stored = AsyncRecord(record)
        go = threading.Event()
        slow = asyncio.create_task(stored.write(lambda _: go.wait(10)))
        impatient = asyncio.create_task(stored.write(turns.append_message, talk, Role.USER, Author.CUSTOMER, "hello"))
        await asyncio.sleep(0.05)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        go.set()
        await slow
        await asyncio.to_thread(stored.close)

    asyncio.run(chat())
    assert [turn.content for turn in turns.thread(record, talk)] == ["hello"]


def test_a_read_does_not_wait_for_a_writer_and_the_loop_waits_for_neither(record: Record) -> None:
    talk = talk_of(record, "anna", "hello")

    async def chat() -> tuple[int, int]:
        stored = AsyncRecord(record)
        go = threading.Event()

        def hold(held: Record) -> None:
            with held.write() as transaction:
                transaction.execute("DELETE FROM feedback")
                go.wait(10)

        writing = asyncio.create_task(stored.write(hold))
        await asyncio.sleep(0.05)
        read = await asyncio.wait_for(stored.read(turns.thread, talk), 5)
        ticks = 0
        while ticks < 5:
            await asyncio.sleep(0)
            ticks += 1
        assert not writing.done()
        go.set()
        await writing
        await asyncio.to_thread(stored.close)
        return len(read), ticks

    assert asyncio.run(chat()) == (1, 5)


def test_a_refusal_reaches_whoever_asked(record: Record) -> None:
    async def chat() -> None:
        stored = AsyncRecord(record)
        with pytest.raises(OperatorError, match="no conversation 'gone'"):
            await stored.write(turns.append_message, "gone", Role.USER, Author.CUSTOMER, "hello")
        stored.close()

    asyncio.run(chat())
