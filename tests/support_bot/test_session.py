import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from chat_world import ChatWorld

from conversations import releases, turns
from conversations.messages import Author, Consent, Role, TurnStatus, Vote
from conversations.prompt import Renderer
from conversations.releases import Load
from conversations.turns import Conversation, ReplyInProgress, Turn
from support_bot.access import CUSTOMER_COOKIE, customer_of, own_conversation
from support_bot.completion import FailureCode
from support_bot.customer.view import view_of
from support_bot.session import (
    MESSAGE_TOO_LONG,
    Availability,
    Glimpse,
    MessageRefused,
    NoReleaseYet,
    NothingToRetry,
    Session,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ChatWorld]:
    made = ChatWorld(tmp_path, serve="max_message_chars = 100\n")
    yield made
    made.close()


def in_session(world: ChatWorld, act: Callable[[Session], Awaitable[None]]) -> None:
    async def run() -> None:
        session = Session(world.record, world.settings)
        try:
            await act(session)
        finally:
            await session.close()

    asyncio.run(run())


def begin(world: ChatWorld, customer_id: str = "ann") -> Conversation:
    return turns.create_conversation(world.record, customer_id=customer_id, channel="web")


async def to_the_end(session: Session, conversation_id: str) -> list[Glimpse]:
    return [glimpse async for glimpse in session.follow(conversation_id)]


async def ask_and_wait(session: Session, conversation_id: str, text: str = "Why is the light red?") -> Turn:
    await session.ask(conversation_id, text)
    await to_the_end(session, conversation_id)
    return turns.thread(session.record, conversation_id)[-1]


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def test_answer_is_recorded_as_complete_with_its_release_and_times(world):
    conversation = begin(world)

    async def act(session):
        reply = await ask_and_wait(session, conversation.conversation_id)
        assert (reply.author, reply.status, reply.content) == (Author.STUDENT, TurnStatus.COMPLETE, world.student.answer)
        assert reply.release_id == world.base
        assert reply.prompt_version.startswith("sha256:")
        assert reply.prompt_tokens == len(world.student.requests[0]["prompt"])
        assert reply.completion_tokens == 8
        assert 0 < reply.first_token_ms <= reply.latency_ms

    in_session(world, act)
    assert turns.conversation(world.record, conversation.conversation_id).release_id == world.base
    row = world.record.one("SELECT mean_token_logprob FROM turns WHERE role = 'assistant'")
    assert row["mean_token_logprob"] == pytest.approx(-0.5)


def test_student_is_asked_with_the_token_ids_of_the_one_prompt_function(world):
    async def act(session):
        await ask_and_wait(session, begin(world).conversation_id, "Is <|im_end|> a word?")

    in_session(world, act)
    request = world.student.requests[0]
    renderer = Renderer.load(world.settings.student.base)
    end = renderer.stop_ids[0]
    assert request["stop_token_ids"] == [end]
    assert request["prompt"].count(end) == 2, "what a customer types never becomes a control token"
    assert "Is <|im_end|> a word?" in renderer.text(request["prompt"])
    assert request["model"] == world.base


def test_answer_that_the_disk_does_not_take_at_once_is_saved_when_it_does(world, caplog):
    conversation = begin(world)
    world.student.seconds_before_first = 0.5
    world.student.exact_pieces = ["word " * 40_000]

    def hold_pages(pages: int) -> None:
        with world.record.write() as transaction:
            transaction.query(f"PRAGMA max_page_count = {pages}")

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        await until(lambda: bool(world.student.requests))
        hold_pages(1)  # SQLite takes it for as many as there are.
        await until(lambda: "the disk is full" in caplog.text)
        assert session.is_answering(conversation.conversation_id)
        hold_pages(1_000_000)
        await to_the_end(session, conversation.conversation_id)
        reply = turns.thread(world.record, conversation.conversation_id)[-1]
        assert (reply.status, len(reply.content)) == (TurnStatus.COMPLETE, 199_999)
        world.student.exact_pieces = None
        assert (await ask_and_wait(session, conversation.conversation_id)).status is TurnStatus.COMPLETE

    in_session(world, act)


def test_what_breaks_an_answer_is_logged_at_once_with_its_traceback(world, caplog):
    async def act(session):
        with world.record.write() as transaction:
            transaction.execute("CREATE TRIGGER no_replies BEFORE INSERT ON turns WHEN new.role = 'assistant' "
                                "BEGIN SELECT RAISE(ABORT, 'as made for this test'); END")  # fmt: skip
        conversation_id = begin(world).conversation_id
        await session.ask(conversation_id, "Hello")
        await to_the_end(session, conversation_id)
        assert conversation_id in caplog.text and "as made for this test" in caplog.text

    in_session(world, act)


def test_answer_that_is_whole_stays_whole_however_often_it_is_stopped_while_it_is_being_saved(world):
    conversation = begin(world)
    world.student.seconds_before_first = 0.3

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        await until(lambda: bool(world.student.requests))
        writer_is_free = asyncio.Event()
        busy = asyncio.create_task(session.stored.write(lambda _: time.sleep(1.5)))
        busy.add_done_callback(lambda _: writer_is_free.set())
        async for glimpse in session.follow(conversation.conversation_id):
            if glimpse.text == world.student.answer:
                break
        await asyncio.sleep(0.1)
        assert not writer_is_free.is_set(), "the machine is too slow to stop the answer while it waits for the writer"
        await asyncio.gather(*(session.stop(conversation.conversation_id) for _ in range(3)))
        reply = turns.thread(world.record, conversation.conversation_id)[-1]
        assert (reply.status, reply.content) == (TurnStatus.COMPLETE, world.student.answer)
        assert not session.is_answering(conversation.conversation_id)

    in_session(world, act)


def test_turn_stands_pending_before_the_first_token(world):
    conversation = begin(world)
    world.student.seconds_before_first = 0.8

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        await until(lambda: bool(world.student.requests))
        reply = turns.thread(world.record, conversation.conversation_id)[-1]
        assert (reply.status, reply.content) == (TurnStatus.PENDING, "")
        await to_the_end(session, conversation.conversation_id)

    in_session(world, act)


def test_stopped_answer_keeps_what_was_said_and_frees_the_student(world):
    conversation = begin(world)
    world.student.seconds_per_piece = 0.2

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        async for glimpse in session.follow(conversation.conversation_id):
            if len(glimpse.text) > 10:
                break
        await session.stop(conversation.conversation_id)
        reply = turns.thread(world.record, conversation.conversation_id)[-1]
        assert reply.status is TurnStatus.STOPPED
        assert reply.content and world.student.answer.startswith(reply.content)
        assert len(reply.content) < len(world.student.answer)
        await until(lambda: world.student.disconnects == 1)

    in_session(world, act)


def test_watcher_that_goes_away_does_not_end_the_answer(world):
    conversation = begin(world)
    world.student.seconds_per_piece = 0.05

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        async for _ in session.follow(conversation.conversation_id):
            break
        await until(lambda: not session.is_answering(conversation.conversation_id))

    in_session(world, act)
    assert turns.thread(world.record, conversation.conversation_id)[-1].content == world.student.answer


def test_watcher_gets_the_first_word_at_once_and_then_at_most_eight_glimpses_a_second(world):
    conversation = begin(world)
    world.student.exact_pieces = [f"w{number} " for number in range(100)]
    world.student.seconds_per_piece = 0.01

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        started = time.monotonic()
        glimpses = await to_the_end(session, conversation.conversation_id)
        seconds = time.monotonic() - started
        assert len(glimpses) <= 8 * seconds + 4
        assert next(glimpse.text for glimpse in glimpses if glimpse.text).split()[0] == "w0"
        assert glimpses[-1].text == "".join(world.student.exact_pieces).strip()
        assert not glimpses[-1].is_open

    in_session(world, act)


def limit(world: ChatWorld, **seconds: float) -> None:
    serve = world.settings.serve.model_copy(update=seconds)
    world.settings = world.settings.model_copy(update={"serve": serve})


def _dies(world):
    world.student.dies_after_pieces = 3


def _ends_early(world):
    world.student.ends_after_pieces = 3


def _refuses(world):
    world.student.refuses_with = 500


def _is_slow_to_start(world):
    world.student.seconds_before_first = 5
    limit(world, max_first_token_seconds=0.3)


def _never_ends(world):
    world.student.seconds_per_piece = 1
    limit(world, max_answer_seconds=1.5)


def _says_nothing(world):
    world.student.exact_pieces = ["  ", "\n"]


@pytest.mark.parametrize(
    ("trouble", "code", "has_part"),
    [
        (_dies, FailureCode.BROKE_OFF, True),
        (_ends_early, FailureCode.BROKE_OFF, True),
        (_refuses, FailureCode.REFUSED, False),
        (_is_slow_to_start, FailureCode.SLOW_START, False),
        (_never_ends, FailureCode.TOO_LONG, True),
        (_says_nothing, FailureCode.EMPTY, False),
    ],
)
def test_trouble_with_the_student_is_a_failed_turn_with_a_code_and_no_error_text(world, trouble, code, has_part):
    conversation = begin(world)
    trouble(world)

    async def act(session):
        reply = await ask_and_wait(session, conversation.conversation_id)
        assert (reply.status, reply.failure_code) == (TurnStatus.FAILED, code)
        assert bool(reply.content) is has_part
        assert world.student.answer.startswith(reply.content)

    in_session(world, act)


def test_student_that_is_gone_is_a_failed_turn_and_the_next_one_works_when_it_is_back(world):
    conversation = begin(world)

    async def act(session):
        world.say_down()
        assert session.availability() is Availability.UNAVAILABLE
        reply = await ask_and_wait(session, conversation.conversation_id)
        assert (reply.status, reply.failure_code, reply.content) == (TurnStatus.FAILED, FailureCode.NO_SERVER, "")
        world.say_up()
        assert session.availability() is Availability.READY
        reply = await ask_and_wait(session, conversation.conversation_id, "Are you back?")
        assert reply.status is TurnStatus.COMPLETE

    in_session(world, act)
    renderer = Renderer.load(world.settings.student.base)
    asked = renderer.text(world.student.requests[0]["prompt"])
    assert "Why is the light red?" in asked and "Are you back?" in asked


def test_assistant_is_said_to_be_starting_only_while_a_server_starts_or_a_load_goes_on(world):
    async def act(session):
        world.say_starting()
        assert session.availability() is Availability.STARTING
        world.say_up()
        world.new_release("tuned-1")
        releases.promote(world.record, "tuned-1", actor="test", reason="the gate passed")
        assert session.availability() is Availability.READY
        releases.forget_load(world.record, "server", "tuned-1")
        assert session.availability() is Availability.STARTING
        releases.note_load(world.record, Load("server", "tuned-1", False, "no memory"))
        assert session.availability() is Availability.UNAVAILABLE

    in_session(world, act)


def test_retry_is_a_branch_beside_the_answer_that_failed(world):
    conversation = begin(world)
    world.student.dies_after_pieces = 2

    async def act(session):
        failed = await ask_and_wait(session, conversation.conversation_id)
        world.student.dies_after_pieces = None
        await session.retry(conversation.conversation_id)
        await to_the_end(session, conversation.conversation_id)
        thread = turns.thread(world.record, conversation.conversation_id)
        assert [turn.role for turn in thread] == [Role.USER, Role.ASSISTANT]
        assert thread[-1].status is TurnStatus.COMPLETE
        assert thread[-1].parent_turn_id == failed.parent_turn_id
        assert turns.turn(world.record, failed.turn_id).status is TurnStatus.FAILED
        with pytest.raises(NothingToRetry):
            await session.retry(conversation.conversation_id)

    in_session(world, act)
    assert len(turns.all_turns(world.record, conversation.conversation_id)) == 3
    assert world.student.requests[0]["prompt"] == world.student.requests[1]["prompt"]


def test_second_question_is_not_taken_while_the_first_is_being_answered(world):
    conversation = begin(world)
    world.student.seconds_per_piece = 0.1

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        with pytest.raises(ReplyInProgress):
            await session.ask(conversation.conversation_id, "Hello?")
        await to_the_end(session, conversation.conversation_id)

    in_session(world, act)
    assert len(turns.all_turns(world.record, conversation.conversation_id)) == 2


@pytest.mark.parametrize("text", ["", "  \n", "x" * 101, "\x00"])
def test_message_that_is_empty_or_too_long_leaves_nothing(world, text):
    async def act(session):
        with pytest.raises(MessageRefused):
            await session.open("ann", text, channel="web", consent=Consent.NO)

    in_session(world, act)
    assert turns.conversations_of(world.record, "ann") == []


@pytest.mark.parametrize("limited", ["one customer", "all"])
def test_message_above_the_answers_at_once_is_not_taken_and_leaves_nothing(world, limited):
    limit(world, **({"customer_answers_at_once": 2} if limited == "one customer" else {"answers_at_once": 2}))
    customers = ["ann"] * 6 if limited == "one customer" else [f"customer-{number}" for number in range(6)]
    said = "Your other questions" if limited == "one customer" else "Very many people"
    world.student.seconds_before_first = 1.0
    quiet = begin(world, "ann")

    async def act(session):
        opening = [session.open(each, "Hello", channel="web", consent=Consent.NO) for each in customers]
        told = await asyncio.gather(*opening, return_exceptions=True)
        refused = [str(each) for each in told if isinstance(each, MessageRefused)]
        opened = [each for each in told if isinstance(each, str)]
        assert len(opened) == 2 and len(refused) == 4 and all(each.startswith(said) for each in refused)
        with pytest.raises(MessageRefused, match=said):
            await session.ask(quiet.conversation_id, "Hello")
        with pytest.raises(MessageRefused, match=said):
            await session.retry(quiet.conversation_id)
        if limited == "one customer":
            await session.open("bob", "Hello", channel="web", consent=Consent.NO)
        for each in opened:
            await to_the_end(session, each)
            assert turns.thread(world.record, each)[-1].status is TurnStatus.COMPLETE
        await ask_and_wait(session, quiet.conversation_id)

    in_session(world, act)
    written = world.record.query(
        "SELECT conversation_id FROM conversations WHERE conversation_id NOT IN (SELECT conversation_id FROM turns)"
    )
    assert written == []


def allow_prompt_tokens(world: ChatWorld, tokens: int) -> None:
    prompt = world.settings.prompt.model_copy(update={"max_prompt_tokens": tokens})
    world.settings = world.settings.model_copy(update={"prompt": prompt})


def test_message_that_does_not_fit_into_the_prompt_leaves_nothing(world):
    allow_prompt_tokens(world, 100)
    talk = begin(world, "bob").conversation_id

    async def act(session):
        with pytest.raises(MessageRefused, match="shorter parts"):
            await session.open("ann", "0123456789" * 9, channel="web", consent=Consent.NO)
        with pytest.raises(MessageRefused, match="shorter parts"):
            await session.ask(talk, "0123456789" * 9)
        assert (await ask_and_wait(session, talk)).status is TurnStatus.COMPLETE

    in_session(world, act)
    assert turns.conversations_of(world.record, "ann") == []
    assert len(turns.all_turns(world.record, talk)) == 2


def test_question_that_was_too_long_for_the_prompt_is_not_offered_again(world):
    allow_prompt_tokens(world, 100)
    talk = begin(world).conversation_id
    turns.append_message(world.record, talk, Role.USER, Author.CUSTOMER, "0123456789" * 9)

    async def act(session):
        await session.retry(talk)
        await to_the_end(session, talk)
        assert turns.thread(world.record, talk)[-1].failure_code == FailureCode.PROMPT_TOO_LONG
        with pytest.raises(NothingToRetry):
            await session.retry(talk)

    in_session(world, act)
    seen = view_of(world.record, talk)
    assert (seen.notice, seen.can_retry) == (MESSAGE_TOO_LONG, False)


def test_message_before_the_first_student_leaves_nothing(tmp_path):
    world = ChatWorld(tmp_path)
    with world.record.write() as transaction:
        transaction.execute("DROP TRIGGER release_events_are_kept")
        transaction.execute("DELETE FROM release_events")

    async def act(session):
        with pytest.raises(NoReleaseYet):
            await session.open("ann", "Hello", channel="web", consent=Consent.NO)

    in_session(world, act)
    assert turns.conversations_of(world.record, "ann") == []
    world.close()


def test_promotion_changes_new_conversations_only_and_rollback_moves_open_ones(world):
    world.student.answers = {world.base: "from the base", "tuned-1": "from the tuned one"}
    early, late = begin(world), begin(world)

    async def act(session):
        assert (await ask_and_wait(session, early.conversation_id)).content == "from the base"
        world.new_release("tuned-1")
        releases.promote(world.record, "tuned-1", actor="test", reason="the gate passed")
        assert (await ask_and_wait(session, early.conversation_id)).content == "from the base"
        assert (await ask_and_wait(session, late.conversation_id)).content == "from the tuned one"
        releases.roll_back(world.record, actor="test", reason="complaints")
        assert (await ask_and_wait(session, late.conversation_id)).content == "from the base"

    in_session(world, act)
    written = [turn.release_id for turn in turns.thread(world.record, late.conversation_id) if turn.role is Role.ASSISTANT]
    assert written == ["tuned-1", world.base]


def test_student_sees_placeholders_and_the_customer_sees_their_own_data(world):
    conversation = begin(world)
    world.student.exact_pieces = ["I wrote to <", "EMA", "IL_1", "> and to <EMAIL_2>", "."]

    async def act(session):
        await session.ask(conversation.conversation_id, "Write to ann@example.com please")
        for glimpse in await to_the_end(session, conversation.conversation_id):
            assert "EMAIL_1" not in glimpse.text and not glimpse.text.endswith("<")

    in_session(world, act)
    question, reply = turns.thread(world.record, conversation.conversation_id)
    assert question.content == "Write to ann@example.com please"
    assert reply.content == "I wrote to ann@example.com and to <EMAIL_2>."
    asked = Renderer.load(world.settings.student.base).text(world.student.requests[0]["prompt"])
    assert "<EMAIL_1>" in asked and "ann@example.com" not in asked


def test_session_that_closes_leaves_its_answers_interrupted(world):
    conversation = begin(world)
    world.student.seconds_per_piece = 0.1

    async def act(session):
        await session.ask(conversation.conversation_id, "Hello")
        async for glimpse in session.follow(conversation.conversation_id):
            if glimpse.text:
                break

    in_session(world, act)
    reply = turns.thread(world.record, conversation.conversation_id)[-1]
    assert reply.status is TurnStatus.INTERRUPTED
    assert reply.content


@pytest.mark.slow
def test_answer_of_a_killed_process_is_found_interrupted_with_the_part_that_was_saved(world):
    conversation = begin(world)
    world.student.exact_pieces = [f"w{number} " for number in range(100)]
    world.student.seconds_per_piece = 0.05
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from conversations.store import Record\n"
        "from support_bot.session import Session\n"
        "from support_bot.settings import read_support_bot_settings\n"
        "async def run():\n"
        "    settings = read_support_bot_settings(Path(sys.argv[1]))\n"
        "    session = Session(Record(settings.record.path), settings)\n"
        "    await session.ask(sys.argv[2], 'Hello')\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(world.settings_file), conversation.conversation_id])
    deadline = time.monotonic() + 30
    while not (thread := turns.thread(world.record, conversation.conversation_id)) or not thread[-1].content.startswith(
        "w0"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert turns.interrupt_orphans(world.record) == 1
    reply = turns.thread(world.record, conversation.conversation_id)[-1]
    assert reply.status is TurnStatus.INTERRUPTED
    assert reply.content.startswith("w0 w1")

    async def act(session):
        await session.retry(conversation.conversation_id)
        await session.stop(conversation.conversation_id)

    in_session(world, act)


def test_conversation_belongs_to_the_browser_that_began_it(world):
    ann = customer_of({CUSTOMER_COOKIE: "a" * 32})
    bob = customer_of({CUSTOMER_COOKIE: "b" * 32})
    conversation = begin(world, ann)
    assert own_conversation(world.record, conversation.conversation_id, ann) is not None
    assert own_conversation(world.record, conversation.conversation_id, bob) is None
    assert own_conversation(world.record, conversation.conversation_id, None) is None
    assert own_conversation(world.record, "conversation_of_nobody", ann) is None
    assert customer_of({}) is None


def test_thumb_on_a_turn_of_another_conversation_is_refused(world):
    ann, bob = begin(world, "ann"), begin(world, "bob")
    theirs = turns.append_message(world.record, bob.conversation_id, Role.ASSISTANT, Author.STUDENT, "Hello")

    async def act(session):
        with pytest.raises(Exception, match="not part of the conversation"):
            session.vote(ann.conversation_id, "ann", theirs.turn_id, Vote.DOWN)

    in_session(world, act)
    assert world.record.query("SELECT * FROM feedback") == []


AFTER_A_MESSAGE = """
import asyncio, sys
from pathlib import Path
from chat_world import ChatWorld
import support_bot.app
from conversations import turns
from support_bot.session import Session

world = ChatWorld(Path(sys.argv[1]))

async def chat():
    session = Session(world.record, world.settings)
    name = turns.create_conversation(world.record, customer_id="ann", channel="web").conversation_id
    await session.ask(name, "I am jo@example.com, card 4111 1111 1111 1111, call +44 20 7946 0123 from 10.0.0.7")
    shown = [glimpse async for glimpse in session.follow(name)]
    await session.close()
    return shown

shown = asyncio.run(chat())
print(bool(shown), sorted(name for name in ("torch", "transformers", "presidio_analyzer", "spacy", "thinc") if name in sys.modules))
world.close()
"""


@pytest.mark.slow
def test_the_chat_process_loads_no_model_library_even_after_a_message_full_of_personal_data(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_MESSAGE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == "True []", done.stderr
