"""A teacher: any OpenAI-compatible endpoint, asked with a conversation's logged history.

In: redacted messages. Out: the raw reply, and what can be read of it. It retries what may pass (429, 5xx, timeouts) a bounded
number of times, waits as long as the teacher asks, and never repeats a request that the teacher has refused. It sees
redacted text only and never logs a key or a customer's words.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversations.errors import OperatorError, OutsideError
from conversations.messages import ChatMessage, Json, Role, content_hash
from conversations.settings import secret
from distill.dataset.handbook.articles import Passage
from distill.settings import TeacherTable

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

MAX_TRIES = 5
_MAX_WAIT_SECONDS = 60.0
_MAX_ASKED_WAIT_SECONDS = 300.0
_MAY_PASS = (408, 409, 425, 429)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Everything that decides an answer. `passages` are put before the teacher, never before the student."""

    decision_id: str
    messages: tuple[ChatMessage, ...]
    passages: tuple[Passage, ...]
    max_tokens: int
    request_hash: str


@dataclass(frozen=True)
class RawReply:
    """A reply as it came, before anybody reads it."""

    body: str
    latency_ms: float


@dataclass(frozen=True)
class Delay:
    """A failure that may pass: the seconds that the teacher asks to wait (0: it does not say), and whether it may cost."""

    asked_seconds: float
    may_be_billed: bool


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    message: _Said
    finish_reason: str | None = None


class ParsedReply(BaseModel):
    """What is read of a reply; `handbook_passages` is the handbook teacher's own field."""

    model_config = ConfigDict(extra="ignore")
    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Usage | None = None
    handbook_passages: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The answer; what the teacher says instead where it refuses; empty when it said nothing."""
        said = self.choices[0].message
        return (said.content or said.refusal or "").strip()

    @property
    def finish_reason(self) -> str:
        """Why the teacher stopped."""
        return self.choices[0].finish_reason or "unknown"

    @property
    def truncated(self) -> bool:
        """Tell whether the limit on its length cut the answer off."""
        return self.finish_reason == "length"


class Unanswered(Exception):
    """The teacher has not answered after every try; another time it may."""


class RequestRefused(Exception):
    """The teacher refuses this very request (400, 413, 422); repeating it cannot help."""


class Teacher:
    """An open connection to one teacher; an async context manager."""

    def __init__(self, name: str, table: TeacherTable) -> None:
        """Open the client.

        Raises OperatorError when its key is not in the environment.
        """
        from openai import AsyncOpenAI

        key = key_of(name, table)
        self._name, self._table = name, table
        self._client = AsyncOpenAI(base_url=table.base_url, api_key=key, max_retries=0, timeout=table.timeout_seconds)

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask_once(self, request: Request) -> RawReply | Delay:
        """Send a request once: the raw reply, or the delay when a failure may pass.

        Raises OperatorError for a refused key, an unpaid account or an unknown model or address, OutsideError when nobody
        listens, RequestRefused when this very request is the trouble.
        """
        import openai

        began = time.monotonic()
        try:
            reply = await self._client.chat.completions.with_raw_response.create(
                model=self._table.model,
                # Our messages are what was logged, key for key; the client's types cannot know that.
                messages=cast("list[ChatCompletionMessageParam]", [each.as_openai() for each in _put_before(request)]),
                temperature=self._table.temperature,
                max_tokens=request.max_tokens,
            )
        except openai.APIStatusError as error:
            return self._wait_or_raise(request, error.status_code, error.response.headers.get("retry-after", ""), str(error))
        except openai.APITimeoutError:
            log.warning("%s: no answer within %g s", self._name, self._table.timeout_seconds)
            return Delay(0.0, may_be_billed=True)
        except openai.APIConnectionError as error:
            raise self._nobody_there(error) from None
        return RawReply(reply.text, (time.monotonic() - began) * 1000)

    def _wait_or_raise(self, request: Request, status: int, retry_after: str, told: str) -> Delay:
        where = f"the teacher {self._name!r} at {self._table.base_url}"
        variable = self._table.api_key_variable
        if status in (401, 403):
            key = f"the key in the environment variable {variable}" if variable else "a request without a key"
            what = "set api_key_variable in its table" if not variable else f"export a valid {variable}"
            raise OperatorError(f"{where} refuses {key} (HTTP {status}); {what} and run again: what was answered is kept")
        if status == 402:
            raise OperatorError(f"{where} asks for payment (HTTP 402); top the account up and run again: answers are kept")
        if status == 404:
            raise OperatorError(
                f"{where} does not know the model {self._table.model!r} or this address (HTTP 404); mend model or base_url"
            )
        if status in _MAY_PASS or status >= 500:
            asked = _seconds(retry_after)
            log.warning("%s: HTTP %d%s", self._name, status, f", asks to wait {asked:g} s" if asked else "")
            return Delay(asked, may_be_billed=False)
        log.warning("%s: refuses the request of %s (HTTP %d)", self._name, request.decision_id, status)
        raise RequestRefused(f"HTTP {status}: {told[:200]}")

    def _nobody_there(self, error: Exception) -> OutsideError:
        what = "start it with `distill teacher`" if self._table.kind == "handbook" else "start it, or mend base_url"
        return OutsideError(
            f"the teacher {self._name!r} at {self._table.base_url} cannot be reached ({error.__cause__ or error}); "
            f"{what}, and run again: what was answered is kept"
        )


async def wait_before_next(tries: int, delay: Delay) -> None:
    """Wait before another try: as long as the teacher asked for, or twice as long each time, with some chance in it."""
    own = min(_MAX_WAIT_SECONDS, 0.5 * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)
    seconds = min(delay.asked_seconds, _MAX_ASKED_WAIT_SECONDS) if delay.asked_seconds > 0 else own
    log.info("trying again in %.1f s (try %d of %d)", seconds, tries + 1, MAX_TRIES)
    await asyncio.sleep(seconds)


def make_request(
    decision_id: str,
    messages: Sequence[ChatMessage],
    *,
    name: str,
    table: TeacherTable,
    instruction: str = "",
    passages: Sequence[Passage] = (),
    handbook_digest: str = "",
    limit_factor: int = 1,
) -> Request:
    """Build the request for a decision: its history byte for byte, and a hash of all that decides the answer."""
    told = list(messages)
    if instruction:
        after_system = 1 if told and told[0].role is Role.SYSTEM else 0
        told.insert(after_system, ChatMessage(Role.SYSTEM, instruction))
    limit = table.max_answer_tokens * limit_factor
    decides: list[Json] = [
        name,
        table.model,
        table.base_url,
        [message.as_openai() for message in told],
        table.temperature,
        limit,
        [passage.passage_hash for passage in passages],
        # The handbook teacher reads the handbook itself, so a changed one changes its answers.
        handbook_digest if table.kind == "handbook" else "",
    ]
    return Request(decision_id, tuple(told), tuple(passages), limit, content_hash(decides))


def parse_reply(body: str) -> ParsedReply | None:
    """Read a raw reply; None when it is not a chat completion."""
    try:
        return ParsedReply.model_validate_json(body)
    except ValidationError:
        return None


def key_of(name: str, table: TeacherTable) -> str:
    """Return a teacher's key out of the environment.

    Raises OperatorError when the variable that its table names is not set.
    """
    if not table.api_key_variable:
        return "none"
    return secret(table.api_key_variable, f"the teacher {name!r} at {table.base_url} asks for a key")


def is_on_this_machine(table: TeacherTable) -> bool:
    """Tell whether a teacher's address is this machine's own."""
    host = (urlsplit(table.base_url).hostname or "").lower()
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")


def _put_before(request: Request) -> tuple[ChatMessage, ...]:
    """Return the messages as sent: the handbook's passages stand before the customer's words, for the teacher alone."""
    if not request.passages:
        return request.messages
    text = "\n\n".join(f"{passage.title}\n{passage.text}" for passage in request.passages)
    told = ChatMessage(Role.SYSTEM, f"From the company's handbook:\n\n{text}")
    head = sum(1 for message in request.messages[:2] if message.role is Role.SYSTEM)
    return (*request.messages[:head], told, *request.messages[head:])


def _seconds(retry_after: str) -> float:
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 0.0
