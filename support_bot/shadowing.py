"""The shadow: a release on trial answers a sample of live questions again, out of the customer's sight.

In: a question that was just answered, with the token ids of its prompt. Out: a row in the record. Takes nothing from the customer:
their answer is whole before the shadow begins, at most a few shadows are on their way at once, and what comes above is dropped.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from conversations import rollouts, shadows
from conversations.async_record import AsyncRecord
from conversations.errors import OutsideError
from conversations.rollouts import Rollout, RolloutKind
from conversations.shadows import ShadowAnswer
from support_bot.completion import AnswerFailed, Decoding, FailureCode, Students
from support_bot.routing import choose_server

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A question with the reply that its customer got, as the model said it: placeholders are not put back."""

    question_turn_id: str
    release_id: str
    token_ids: Sequence[int]
    said: str


class Shadowing:
    """The shadow answers on their way in one process. Close it in the event loop that used it, before the students."""

    def __init__(self, stored: AsyncRecord, students: Students, decoding: Decoding, *, at_once: int) -> None:
        self._stored = stored
        self._students = students
        self._decoding = decoding
        self._at_once = at_once
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, answered: Answered) -> None:
        """Let the shadow answer a question too, where one is running and the question falls into its sample. Waits for nothing."""
        if len(self._tasks) >= self._at_once:
            return
        task = asyncio.create_task(self._answer(answered), name=f"shadow of {answered.question_turn_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what is on its way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, answered: Answered) -> None:
        try:
            shadow = await self._stored.read(rollouts.running, RolloutKind.SHADOW)
            if (
                shadow is None
                or shadow.release_id == answered.release_id
                or not rollouts.falls_into(shadow, answered.question_turn_id)
            ):
                return
            await self._stored.write(shadows.keep, await self._said(shadow, answered))
        except OutsideError as error:
            # A disk that is full is told by the customers' own turns.
            _log.warning("the shadow's answer to %s is not kept: %s", answered.question_turn_id, error)

    async def _said(self, shadow: Rollout, answered: Answered) -> ShadowAnswer:
        """Ask the shadow and return what it said; a failure becomes its code."""
        began = time.monotonic()
        text, first_token_ms, failure_code = "", None, None
        prompt_tokens: int | None = len(answered.token_ids)
        completion_tokens = None
        try:
            server = await self._stored.read(choose_server, shadow.release_id)
            stream = self._students.stream(server.base_url, shadow.release_id, answered.token_ids, self._decoding)
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    text += piece.text
                    if first_token_ms is None and text.strip():
                        first_token_ms = _ms_since(began)
                    completion_tokens = piece.completion_tokens or completion_tokens
            if not text.strip():
                raise AnswerFailed(FailureCode.EMPTY)
        except OutsideError:
            failure_code = FailureCode.NO_SERVER
        except AnswerFailed as failure:
            failure_code = failure.code
        text, said = text.strip(), answered.said.strip()
        return ShadowAnswer(
            rollout_id=shadow.rollout_id,
            question_turn_id=answered.question_turn_id,
            release_id=shadow.release_id,
            content=text,
            failure_code=failure_code.value if failure_code else None,
            first_token_ms=first_token_ms,
            latency_ms=_ms_since(began),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            is_same=None if failure_code else text == said,
            length_ratio=None if failure_code or not said else len(text) / len(said),
        )


def _ms_since(began_monotonic: float) -> float:
    return (time.monotonic() - began_monotonic) * 1000
