"""One streamed request to a student server: token ids out, pieces of text back, every failure by its code.

In: a server's address, a release and the ids of a prompt. Out: pieces of an answer as they come. Never retries (the
customer decides that) and never turns an error into text. Knows nothing of the record.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import openai

_log = logging.getLogger(__name__)


class FailureCode(StrEnum):
    """Why a reply failed, as the record notes it."""

    NO_SERVER = "no_server"
    UNREACHABLE = "unreachable"
    REFUSED = "refused_by_server"
    BROKE_OFF = "broke_off"
    SLOW_START = "first_token_timeout"
    TOO_LONG = "answer_timeout"
    PROMPT_TOO_LONG = "prompt_too_long"
    EMPTY = "empty_answer"
    OUR_BUG = "our_bug"


class AnswerFailed(Exception):
    """The student gave no whole answer."""

    def __init__(self, code: FailureCode) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True)
class Decoding:
    """How the student chooses its words, and how long it may take: to its first one, and in all."""

    max_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    max_first_token_seconds: float
    max_answer_seconds: float


@dataclass(frozen=True)
class Piece:
    """A few tokens of an answer. The counts of tokens come with the last piece."""

    text: str
    token_logprobs: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Students:
    """The connections to student servers, one pool for each. Close it in the event loop that used it."""

    def __init__(self) -> None:
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    async def stream(
        self, base_url: str, release_id: str, token_ids: Sequence[int], decoding: Decoding
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of an answer; stop iterating and the server stops generating.

        Raises AnswerFailed with the code of what went wrong.
        """
        has_begun = False
        has_ended = False
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        pieces = self._pieces(base_url, release_id, token_ids, decoding)
        try:
            while True:
                seconds = decoding.max_answer_seconds if has_begun else decoding.max_first_token_seconds
                # The deadline stands around one step only: an async generator must not yield inside it.
                async with asyncio.timeout_at(asked_at + seconds):
                    piece, is_last = await anext(pieces)
                has_begun = has_begun or bool(piece.text)
                has_ended = has_ended or is_last
                yield piece
        except StopAsyncIteration:
            if not has_ended:
                raise AnswerFailed(FailureCode.BROKE_OFF) from None
        except TimeoutError:
            raise AnswerFailed(FailureCode.TOO_LONG if has_begun else FailureCode.SLOW_START) from None
        except openai.APIStatusError as error:
            _log.warning("%s answered %d: %s", base_url, error.status_code, error.message)
            raise AnswerFailed(FailureCode.REFUSED) from None
        except openai.APIError as error:
            _log.warning("%s: %s: %s", base_url, type(error).__name__, error)
            raise AnswerFailed(FailureCode.BROKE_OFF if has_begun else FailureCode.UNREACHABLE) from None
        finally:
            await pieces.aclose()

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def _pieces(
        self, base_url: str, release_id: str, token_ids: Sequence[int], decoding: Decoding
    ) -> AsyncGenerator[tuple[Piece, bool], None]:
        async with await self._client(base_url).completions.create(
            model=release_id,
            prompt=list(token_ids),
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            logprobs=0,
            extra_body={"stop_token_ids": list(decoding.stop_ids)},
        ) as stream:
            async for chunk in stream:
                choice = chunk.choices[0] if chunk.choices else None
                logprobs = choice.logprobs.token_logprobs if choice and choice.logprobs else None
                yield (
                    Piece(
                        text=choice.text if choice else "",
                        token_logprobs=tuple(value for value in logprobs or () if value is not None),
                        prompt_tokens=chunk.usage.prompt_tokens if chunk.usage else None,
                        completion_tokens=chunk.usage.completion_tokens if chunk.usage else None,
                    ),
                    choice is not None and choice.finish_reason is not None,
                )

    def _client(self, base_url: str) -> openai.AsyncOpenAI:
        if base_url not in self._clients:
            self._clients[base_url] = openai.AsyncOpenAI(
                base_url=f"{base_url.rstrip('/')}/v1",
                api_key="none",
                max_retries=0,
                timeout=openai.Timeout(None, connect=5),
                # A proxy of the environment must not see what customers write.
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
            )
        return self._clients[base_url]
