"""Answers of a student over the serving path that customers get: the same prompt function, the same vLLM.

In: chosen decisions, a release that a server has loaded. Out: one answer a decision with its times and tokens. An answer
that could not be had is a failure with its reason, never a text.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

import openai

from conversations import releases
from conversations.errors import OutsideError
from conversations.messages import ChatMessage
from conversations.prompt import PromptTooLong, Renderer, RoleUnknown
from conversations.settings import PromptTable
from conversations.store import Record

_TIMEOUT_SECONDS = 300

Found = TypeVar("Found")


@dataclass(frozen=True)
class Question:
    """A decision to be answered: its redacted messages, the last one the customer's."""

    decision_id: str
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True)
class Generated:
    """What a student answered. Times in milliseconds from the request; `failure` is empty when there is an answer."""

    decision_id: str
    text: str
    first_token_ms: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    failure: str = ""
    finish_reason: str = ""


class Student:
    """A release as it is served now. Opened for one event loop; close it."""

    def __init__(
        self,
        base_url: str,
        release_id: str,
        renderer: Renderer,
        prompt: PromptTable,
        max_answer_tokens: int,
        *,
        max_retries: int = 2,
    ) -> None:
        self.release_id = release_id
        self._client = openai.AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="none", max_retries=max_retries, timeout=_TIMEOUT_SECONDS
        )
        self._renderer = renderer
        self._prompt = prompt
        self._max_answer_tokens = max_answer_tokens

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def answer(self, question: Question) -> Generated:
        """Return the student's answer to one question."""
        try:
            rendered = self._renderer.prompt(question.messages, max_prompt_tokens=self._prompt.max_prompt_tokens)
        except PromptTooLong as error:
            return _failed(question, f"prompt too long: {error}")
        except RoleUnknown as error:
            return _failed(question, str(error))
        started = time.perf_counter()
        first: float | None = None
        pieces: list[str] = []
        usage: openai.types.CompletionUsage | None = None
        finish_reason = ""
        try:
            stream = await self._client.completions.create(
                model=self.release_id,
                prompt=list(rendered.token_ids),
                max_tokens=self._max_answer_tokens,
                temperature=self._prompt.temperature,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"stop_token_ids": list(self._renderer.stop_ids)},
            )
            async for event in stream:
                usage = event.usage or usage
                for choice in event.choices[:1]:
                    finish_reason = choice.finish_reason or finish_reason
                    if choice.text:
                        first = first or _since_ms(started)
                        pieces.append(choice.text)
        except openai.APIError as error:
            return _failed(question, f"{type(error).__name__}: {error}")
        return Generated(
            decision_id=question.decision_id,
            text="".join(pieces).strip(),
            first_token_ms=first,
            latency_ms=_since_ms(started),
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            finish_reason=finish_reason,
        )


async def answer_together(
    student: Student, questions: Sequence[Question], concurrency: int, on_answer: Callable[[Generated], None]
) -> None:
    """Have a student answer many questions, so many at once, telling each answer as it comes."""
    gate = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> None:
        async with gate:
            on_answer(await student.answer(question))

    await side_by_side([one(question) for question in questions])


async def side_by_side(tasks: Sequence[Coroutine[object, object, Found]]) -> list[Found]:
    """Await all of them at once and return what they found, in their order. The first failure ends the others and is raised as it is.

    A group of failures, as a TaskGroup raises it, would be taken for a bug of ours whatever is in it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            begun = [group.create_task(each) for each in tasks]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [each.result() for each in begun]


def wait_until_loaded(record: Record, release_id: str, timeout_seconds: float) -> releases.StudentServer:
    """Wait until a healthy server has a release in memory, and return it.

    Raises OutsideError when nobody loads it in time, or a server says that it cannot.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        ready = releases.servers_with(record, release_id)
        if ready:
            return ready[0]
        failed = [load for load in releases.loads(record) if load.release_id == release_id and not load.loaded]
        if failed:
            raise OutsideError(
                f"the student server {failed[0].server_id!r} could not load {release_id!r}: {failed[0].detail}"
            )
        time.sleep(0.25)
    fresh = [server for server in releases.servers(record) if server.is_fresh]
    known = ", ".join(f"{server.server_id} {server.state}" for server in fresh) or "none"
    to_do = (
        "it goes on loading: run the same command again, or raise [evaluate] load_timeout_seconds"
        if any(server.state is releases.ServerState.READY for server in fresh)
        else "start `support-bot student` and run the same command again"
    )
    raise OutsideError(
        f"nobody loaded the release {release_id!r} within {timeout_seconds:g} s (student servers: {known}); {to_do}"
    )


def _since_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _failed(question: Question, reason: str) -> Generated:
    return Generated(question.decision_id, "", None, None, None, None, reason[:300])
