"""The conversation engine: takes a customer's message, has the student answer it, and writes everything into the record.

In: a conversation's name and a text. Out: turns in the record, and glimpses of an answer while it grows. Each answer is
written by a task of its own, so a page that reloads or goes away only stops watching. A failure becomes a status and a
code, never text. Knows nothing of any page; the student is asked with the token ids that training would score.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import StrEnum

from conversations import releases, rollouts, turns
from conversations.async_record import AsyncRecord
from conversations.errors import OperatorError, OutsideError
from conversations.messages import Author, Consent, Role, TurnStatus, Vote, new_name
from conversations.prompt import (
    Prompt,
    PromptTooLong,
    Renderer,
    SpokenTurn,
    digest_of_settings,
    messages_for_model,
)
from conversations.redaction import Placeholders, StreamRestorer
from conversations.releases import StudentServer
from conversations.store import Record
from conversations.turns import ReplyInProgress, Turn
from support_bot.completion import AnswerFailed, Decoding, FailureCode, Students
from support_bot.growing import Growing
from support_bot.routing import choose_server, is_loading, is_starting
from support_bot.settings import SupportBotSettings
from support_bot.shadowing import Answered, Shadowing

SECONDS_BETWEEN_SAVES = 1.0
SECONDS_BETWEEN_GLIMPSES = 0.125
# A rollback may restore a release that a server has to load first; the check with real prompts is most of it.
SECONDS_TO_WAIT_FOR_A_LOAD = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
# How long a record that cannot be written to is asked again to take a finished answer.
SECONDS_TO_SAVE = 60.0
_SECONDS_BETWEEN_TRIES = 1.0
MESSAGE_TOO_LONG = "Your message is too long for me to read. Please send it in shorter parts."

_log = logging.getLogger(__name__)


class Availability(StrEnum):
    """Whether a new conversation would be answered now."""

    READY = "ready"
    STARTING = "starting"
    UNAVAILABLE = "unavailable"


class NoReleaseYet(Exception):
    """No student is in service, so nothing could answer; the message was not taken."""


class NothingToRetry(Exception):
    """The last question of the conversation has its answer or can have none, or there is no question."""


class MessageRefused(Exception):
    """The message is empty or too long to be answered, or too many answers are on their way; the text says which."""


@dataclass(frozen=True)
class Glimpse:
    """An answer at one moment. `is_open` is false when it has reached its final status."""

    turn_id: str | None
    text: str
    is_open: bool


class Session:
    """Answers the conversations of one process. Open it inside a running event loop and close it there."""

    def __init__(self, record: Record, settings: SupportBotSettings) -> None:
        """Read the student's tokenizer.

        Raises OperatorError when the checkpoint folder has none.
        """
        self.record = record
        self.stored = AsyncRecord(record)
        self.settings = settings
        self._renderer = Renderer.load(settings.student.base)
        self._prompt_version = digest_of_settings(settings.prompt.system, self._renderer)
        self._growing: dict[str, Growing] = {}
        self._students = Students()
        self._decoding = Decoding(
            max_tokens=settings.prompt.max_answer_tokens,
            temperature=settings.prompt.temperature,
            stop_ids=self._renderer.stop_ids,
            max_first_token_seconds=settings.serve.max_first_token_seconds,
            max_answer_seconds=settings.serve.max_answer_seconds,
        )
        self._shadowing = Shadowing(
            self.stored, self._students, self._decoding, at_once=settings.serve.shadow_answers_at_once
        )

    async def ask(self, conversation_id: str, text: str) -> Turn:
        """Take a customer's message into the record, begin the answer, and return the message's turn.

        Raises MessageRefused for an empty or overlong message and while too many answers are on their way, NoReleaseYet before the
        first student, and ReplyInProgress while the last question is being answered; nothing is written then.
        """
        said = await self._checked(text)
        if await self.stored.read(releases.in_service) is None:
            raise NoReleaseYet
        conversation = await self.stored.read(turns.conversation, conversation_id)
        return await self._take(self._reserve(conversation_id, conversation.customer_id), said)

    async def open(self, customer_id: str, text: str, *, channel: str, consent: Consent) -> str:
        """Begin a customer's conversation with their first message, and return its name.

        Raises as `ask`; a message that is not taken leaves no empty conversation.
        """
        said = await self._checked(text)
        if await self.stored.read(releases.in_service) is None:
            raise NoReleaseYet
        # The answer has its place before the conversation has its name.
        growing = self._reserve(new_name("opening"), customer_id)
        try:
            opened = await self.stored.write(
                turns.create_conversation, customer_id=customer_id, channel=channel, consent=consent
            )
        except BaseException:
            self._release(growing)
            raise
        del self._growing[growing.conversation_id]
        growing.conversation_id = opened.conversation_id
        self._growing[growing.conversation_id] = growing
        await self._take(growing, said)
        return opened.conversation_id

    async def retry(self, conversation_id: str) -> None:
        """Begin a second answer to the last question, beside the one that did not come through.

        Raises NothingToRetry when the last question has its answer or can have none, ReplyInProgress while one is on its way, and
        MessageRefused while too many answers are.
        """
        conversation = await self.stored.read(turns.conversation, conversation_id)
        growing = self._reserve(conversation_id, conversation.customer_id)
        try:
            thread = await self.stored.read(turns.thread, conversation_id)
            question = question_without_answer(thread)
        except BaseException:
            self._release(growing)
            raise
        if question is None:
            self._release(growing)
            raise NothingToRetry(conversation_id)
        self._start(growing, question.turn_id)

    async def stop(self, conversation_id: str) -> None:
        """End the answer on its way as stopped by the customer, and keep what was said; without one, do nothing."""
        growing = self._growing.get(conversation_id)
        if growing is None or growing.task is None:
            return
        growing.ends_as = TurnStatus.STOPPED
        growing.task.cancel()
        await asyncio.wait([growing.task])

    async def follow(self, conversation_id: str) -> AsyncIterator[Glimpse]:
        """Yield the growing answer of a conversation until it is closed; without one, yield nothing.

        The first words come at once, later ones at most eight times a second.
        """
        growing = self._growing.get(conversation_id)
        while growing is not None:
            changed = growing.changed
            yield Glimpse(growing.turn_id, growing.text, growing.is_open)
            if not growing.is_open:
                return
            had_text = bool(growing.text)
            await changed.wait()
            if had_text and growing.is_open:
                with suppress(TimeoutError):
                    await asyncio.wait_for(_closed(growing), SECONDS_BETWEEN_GLIMPSES)

    def is_answering(self, conversation_id: str) -> bool:
        """Tell whether an answer of the conversation is on its way in this process."""
        return conversation_id in self._growing

    def question_on_answer(self, conversation_id: str) -> str | None:
        """Return the turn of the question that is being answered in this process, or None."""
        growing = self._growing.get(conversation_id)
        return growing.question_turn_id or None if growing is not None else None

    def availability(self) -> Availability:
        """Tell whether a student with the release in service is there, from what its supervisor last wrote."""
        release_id = releases.in_service(self.record)
        if release_id is not None and releases.servers_with(self.record, release_id):
            return Availability.READY
        is_coming = is_starting(self.record, release_id) or (release_id is not None and is_loading(self.record, release_id))
        return Availability.STARTING if is_coming else Availability.UNAVAILABLE

    def vote(self, conversation_id: str, customer_id: str, turn_id: str, vote: Vote | None) -> None:
        """Record a customer's thumb on an answer of one conversation; None takes it back."""
        if turns.turn(self.record, turn_id).conversation_id != conversation_id:
            raise OperatorError(f"the turn {turn_id!r} is not part of the conversation {conversation_id!r}")
        if vote is None:
            turns.withdraw_vote(self.record, turn_id, customer_id)
        else:
            turns.vote_on(self.record, turn_id, customer_id, vote)

    async def close(self) -> None:
        """End every answer on its way as interrupted, and close the connections to the students."""
        tasks = [growing.task for growing in self._growing.values() if growing.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._shadowing.close()
        await self._students.close()
        await asyncio.to_thread(self.stored.close)

    async def _checked(self, text: str) -> str:
        # A NUL byte or a lone surrogate cannot be stored as text.
        said = text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8").strip()
        longest = self.settings.serve.max_message_chars
        if not said:
            raise MessageRefused("Please write a message first.")
        if len(said) > longest:
            raise MessageRefused(f"Your message has {len(said)} characters; please keep it under {longest}.")
        try:
            await asyncio.to_thread(self._render, [SpokenTurn(Role.USER, TurnStatus.COMPLETE, said)])
        except PromptTooLong:
            raise MessageRefused(MESSAGE_TOO_LONG) from None
        return said

    def _reserve(self, conversation_id: str, customer_id: str) -> Growing:
        if conversation_id in self._growing:
            raise ReplyInProgress(conversation_id)
        own = sum(each.customer_id == customer_id for each in self._growing.values())
        if own >= self.settings.serve.customer_answers_at_once:
            raise MessageRefused("Your other questions are still being answered. Please wait until one of them is.")
        if len(self._growing) >= self.settings.serve.answers_at_once:
            raise MessageRefused("Very many people are writing right now. Please try again in a moment.")
        growing = Growing(conversation_id, customer_id)
        self._growing[conversation_id] = growing
        return growing

    async def _take(self, growing: Growing, said: str) -> Turn:
        """Write the message for whose answer a place is reserved, begin the answer, and return the message's turn."""
        try:
            question = await self.stored.write(
                turns.append_message, growing.conversation_id, Role.USER, Author.CUSTOMER, said
            )
        except BaseException:
            self._release(growing)
            raise
        self._start(growing, question.turn_id)
        return question

    def _release(self, growing: Growing) -> None:
        growing.is_open = False
        if self._growing.get(growing.conversation_id) is growing:
            del self._growing[growing.conversation_id]
        growing.tell()

    def _start(self, growing: Growing, question_turn_id: str) -> None:
        growing.question_turn_id = question_turn_id
        growing.task = asyncio.create_task(self._write(growing), name=f"reply {growing.conversation_id}")

    async def _write(self, growing: Growing) -> None:
        """Write one answer into the record; its turn is closed when this returns, unless the disk takes nothing for a long while."""
        status, code = TurnStatus.FAILED, FailureCode.OUR_BUG
        try:
            await self._answer(growing)
            status = TurnStatus.COMPLETE
        except AnswerFailed as failure:
            code = failure.code
            _log.warning("reply %s failed: %s", growing.turn_id, code)
        except ReplyInProgress:
            _log.warning("conversation %s is being answered by another process", growing.conversation_id)
        except asyncio.CancelledError:
            status = growing.ends_as
        except Exception:  # noqa: BLE001  # a bug of ours, told with its traceback; the turn is closed all the same
            _log.exception("reply %s of conversation %s broke", growing.turn_id, growing.conversation_id)
        saving = asyncio.create_task(self._finish(growing, status, code))
        await _to_its_end(saving)
        self._release(growing)
        if saving.exception() is not None:
            _log.error("reply %s could not be saved as %s", growing.turn_id, status, exc_info=saving.exception())
        if status is TurnStatus.COMPLETE:
            self._shadowing.offer(Answered(growing.question_turn_id, growing.release_id, growing.token_ids, growing.said))

    async def _finish(self, growing: Growing, status: TurnStatus, code: FailureCode) -> None:
        """Close the turn of an answer, if one was begun; what the disk does not take is tried again for a while."""
        if growing.turn_id is None:
            return
        growing.text = growing.text.rstrip()
        measures = growing.measures()
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while True:
            try:
                await self.stored.write(
                    turns.finish_reply,
                    growing.turn_id,
                    status=status,
                    content=growing.text,
                    measures=measures,
                    failure_code=code.value if status is TurnStatus.FAILED else None,
                )
                return
            except OutsideError as error:
                if time.monotonic() > deadline:
                    raise
                _log.warning("reply %s is not saved yet: %s", growing.turn_id, error)
            await asyncio.sleep(_SECONDS_BETWEEN_TRIES)

    async def _answer(self, growing: Growing) -> None:
        # A pending turn that is half begun when the cancellation comes must still be found and closed.
        beginning = asyncio.create_task(self.stored.write(self._begin, growing))
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await _to_its_end(beginning)
            raise
        prompt, placeholders = await self.stored.read(self._prompt, growing)
        growing.token_ids = prompt.token_ids
        growing.prompt_tokens = len(prompt.token_ids)
        server = await self._server(growing.release_id)
        restorer = StreamRestorer(placeholders)
        try:
            await self._stream(growing, server, restorer)
        except AnswerFailed as failure:
            if failure.code is not FailureCode.UNREACHABLE:
                raise
            other = await self._other_server(growing.release_id, server)
            if other is None:
                raise
            await self._stream(growing, other, restorer)
        growing.grow(restorer.finish())
        if not growing.text.strip():
            raise AnswerFailed(FailureCode.EMPTY)

    async def _stream(self, growing: Growing, server: StudentServer, restorer: StreamRestorer) -> None:
        """Let an answer grow from what a server streams."""
        last_saved = time.monotonic()
        stream = self._students.stream(server.base_url, growing.release_id, growing.token_ids, self._decoding)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                growing.take(piece, restorer.feed(piece.text))
                if growing.text and time.monotonic() - last_saved >= SECONDS_BETWEEN_SAVES:
                    last_saved = time.monotonic()
                    await self.stored.write(_save, growing)

    async def _server(self, release_id: str) -> StudentServer:
        """Return a server with the release; where a ready one is just loading it, wait for that a while."""
        deadline = time.monotonic() + SECONDS_TO_WAIT_FOR_A_LOAD
        while True:
            try:
                return await self.stored.read(choose_server, release_id)
            except OutsideError as error:
                if time.monotonic() > deadline or not await self.stored.read(is_loading, release_id):
                    _log.warning("%s", error)
                    raise AnswerFailed(FailureCode.NO_SERVER) from None
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    async def _other_server(self, release_id: str, unreached: StudentServer) -> StudentServer | None:
        """Return another server with the release, after one that could not be reached before its first token."""
        try:
            other = await self.stored.read(choose_server, release_id, avoiding=[unreached.base_url])
        except OutsideError:
            return None
        _log.warning("%s could not be reached; %s answers instead", unreached.base_url, other.base_url)
        return other

    def _begin(self, record: Record, growing: Growing) -> None:
        """Choose the release that answers, and write the pending turn."""
        conversation = turns.conversation(record, growing.conversation_id)
        rested = rollouts.has_rested(
            record, growing.conversation_id, growing.question_turn_id, hours=self.settings.serve.rest_hours
        )
        release_id = rollouts.release_for(record, growing.conversation_id, conversation.release_id, rested=rested)
        if release_id is None:
            raise AnswerFailed(FailureCode.NO_SERVER)
        if release_id != conversation.release_id:
            turns.hold_release(record, growing.conversation_id, release_id)
        growing.release_id = release_id
        growing.turn_id = turns.begin_reply(
            record,
            growing.conversation_id,
            question_turn_id=growing.question_turn_id,
            release_id=release_id,
            prompt_version=self._prompt_version,
            decoding={"max_tokens": self._decoding.max_tokens, "temperature": self._decoding.temperature},
        ).turn_id

    def _prompt(self, record: Record, growing: Growing) -> tuple[Prompt, Placeholders]:
        """Return what the student reads, redacted, and the table that puts the customer's own data back."""
        thread = turns.branch_to(turns.all_turns(record, growing.conversation_id), growing.question_turn_id)
        spoken = [SpokenTurn(each.role, each.status, each.content, each.extra_json) for each in thread]
        try:
            return self._render(spoken)
        except PromptTooLong as error:
            _log.warning("conversation %s: %s", growing.conversation_id, error)
            raise AnswerFailed(FailureCode.PROMPT_TOO_LONG) from None

    def _render(self, spoken: Sequence[SpokenTurn]) -> tuple[Prompt, Placeholders]:
        """Return the prompt of what was said, and its table.

        Raises PromptTooLong when the last of it does not fit even alone.
        """
        messages, placeholders = messages_for_model(
            spoken, system_prompt=self.settings.prompt.system, rules=self.settings.redaction.rules
        )
        return self._renderer.prompt(messages, max_prompt_tokens=self.settings.prompt.max_prompt_tokens), placeholders


def question_without_answer(thread: list[Turn]) -> Turn | None:
    """Return the last question of a thread when its answer failed, was interrupted, or was never begun.

    A question that was too long for the prompt will be so again, and does not count.
    """
    if not thread or was_too_long(thread[-1]):
        return None
    last = thread[-1]
    if last.role is Role.USER:
        return last
    gave_up = last.status in (TurnStatus.FAILED, TurnStatus.INTERRUPTED)
    if (gave_up or (last.status is TurnStatus.STOPPED and not last.content)) and len(thread) > 1:
        return thread[-2]
    return None


def was_too_long(reply: Turn) -> bool:
    """Tell whether a reply failed because its question does not fit into the prompt."""
    return reply.failure_code == FailureCode.PROMPT_TOO_LONG


def _save(record: Record, growing: Growing) -> None:
    if growing.turn_id is not None:
        turns.save_partial(record, growing.turn_id, growing.text, first_token_ms=growing.first_token_ms)


async def _to_its_end(task: asyncio.Task[None]) -> None:
    """Wait until a task is done, however often the waiting is cancelled."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])


async def _closed(growing: Growing) -> None:
    while growing.is_open:
        await growing.changed.wait()
