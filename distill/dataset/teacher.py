"""The client of a teacher: any endpoint that speaks the OpenAI chat completions protocol.

In: requests. Out: raw replies, and what they say once they are read. One call of `ask_once` is one request on the wire; it
tells apart what may be tried again, what concerns one question only, and what the operator must mend. It spends no money
that its caller has not reserved, keeps nothing, and never logs a key or a customer's words.
"""

import ipaddress
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.settings import secret
from distill.dataset.asking import TeacherRequest
from distill.settings import TeacherTable

if TYPE_CHECKING:
    from openai import APIStatusError

log = logging.getLogger(__name__)


class TryAgain(Exception):
    """This attempt failed and another may succeed.

    `reason` is rate_limited, server_error, timeout, unreachable, bad_reply or other_dialect; `perhaps_paid` tells whether the
    teacher may charge for the attempt all the same.
    """

    def __init__(self, reason: str, detail: str, *, wait_seconds: float | None = None, perhaps_paid: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.wait_seconds = wait_seconds
        self.perhaps_paid = perhaps_paid


class RequestRejected(Exception):
    """The teacher does not take this request (HTTP 400, 413, 422 and the like); asking again would not help."""


class BadReply(ValueError):
    """The reply is no chat completion."""


@dataclass(frozen=True)
class RawReply:
    """A reply as it came, and how long it took in milliseconds."""

    text: str
    latency_ms: float


@dataclass(frozen=True)
class Usage:
    """The tokens that a reply reports."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Reply:
    """What a reply says. `passages` are hashes of handbook passages, where the teacher names them."""

    text: str
    finish_reason: str
    passages: tuple[str, ...]


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Loose):
    content: str | None = None


class _Choice(_Loose):
    message: _Message
    finish_reason: str | None = None


class _Completion(_Loose):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    handbook_passages: tuple[str, ...] = ()


class _UsageFields(_Loose):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Accounted(_Loose):
    usage: _UsageFields


def read_reply(text: str) -> Reply:
    """Return what a raw reply says; the text is empty where the teacher said nothing.

    Raises BadReply for anything but a chat completion with a choice.
    """
    try:
        completion = _Completion.model_validate_json(text)
    except ValidationError as error:
        raise BadReply(f"{error.errors()[0]['msg']} in {text[:80]!r}") from None
    choice = completion.choices[0]
    return Reply((choice.message.content or "").strip(), choice.finish_reason or "stop", completion.handbook_passages)


def read_usage(text: str) -> Usage | None:
    """Return the tokens that a raw reply reports, or None where it does not."""
    try:
        usage = _Accounted.model_validate_json(text).usage
    except ValidationError:
        return None
    return Usage(usage.prompt_tokens, usage.completion_tokens)


def is_on_this_machine(base_url: str) -> bool:
    """Tell whether an endpoint is on this machine, so that nothing said to it leaves it."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class _Dialect:
    """How an endpoint wants to be asked; newer models refuse the older names."""

    limit: str = "max_tokens"
    sends_temperature: bool = True

    def mended(self, complaint: str) -> "_Dialect | None":
        """Return the dialect that a complaint asks for, or None when it complains of something else."""
        if self.limit == "max_tokens" and "max_completion_tokens" in complaint:
            return replace(self, limit="max_completion_tokens")
        if self.sends_temperature and "temperature" in complaint:
            return replace(self, sends_temperature=False)
        return None


class Teacher:
    """An open connection to a teacher; use it as an async context manager."""

    def __init__(self, name: str, table: TeacherTable) -> None:
        """Prepare the client; nothing is sent yet.

        Raises OperatorError when the key's environment variable is not set.
        """
        import openai

        self._name = name
        self._table = table
        key = "none"
        if table.api_key_variable:
            key = secret(table.api_key_variable, f"the teacher {name!r} at {table.base_url} needs it")
        here = is_on_this_machine(table.base_url)
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=table.base_url,
            timeout=table.timeout_seconds,
            max_retries=0,
            # A proxy of the environment knows no way back to this machine.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not here),
        )
        self._dialect = _Dialect()

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask_once(self, request: TeacherRequest) -> RawReply:
        """Send a request once and return the reply as it came.

        Raises TryAgain, RequestRejected, or OperatorError for what only the operator can mend (key, credit, model, address).
        """
        import openai

        dialect = self._dialect
        options: dict[str, Json] = {dialect.limit: request.max_tokens}
        if dialect.sends_temperature:
            options["temperature"] = request.temperature
        started = time.monotonic()
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=request.model,
                messages=[message.as_openai() for message in request.messages],  # type: ignore[misc]
                extra_body=options,
            )
            return RawReply(raw.text, round((time.monotonic() - started) * 1000, 3))
        except openai.APITimeoutError:
            detail = f"no reply from {self._table.base_url} within {self._table.timeout_seconds:g} s"
            raise TryAgain("timeout", detail, perhaps_paid=True) from None
        except openai.APIConnectionError as error:
            raise TryAgain("unreachable", f"{self._table.base_url}: {error.__cause__ or error}") from None
        except openai.APIStatusError as error:
            raise self._meaning(error, dialect) from None

    def _meaning(self, error: "APIStatusError", dialect: _Dialect) -> Exception:
        """Return what an HTTP error means for the caller."""
        status, complaint = error.status_code, _complaint(error)
        where = f"the teacher {self._name!r} at {self._table.base_url}"
        table = f"[teachers.{self._name}]"
        if status == 401:
            key = self._table.api_key_variable
            told = f"the key in {key}" if key else "a request without a key"
            mend = f"put a valid key into {key}" if key else f"name the key's environment variable in {table} api_key_variable"
            return OperatorError(f"{where} refuses {told} (HTTP 401); expected a key that it knows; {mend} and run again")
        if status == 402 or "insufficient_quota" in complaint:
            return OperatorError(
                f"{where} wants to be paid (HTTP {status}): {complaint[:200]}; add credit there and run again: "
                "no answer that has come is asked for twice"
            )
        if status == 403:
            return OperatorError(f"{where} forbids this (HTTP 403): {complaint[:200]}; mend the key's rights or {table} model")
        if status == 404:
            return OperatorError(
                f"{where} knows no model {self._table.model!r} (HTTP 404): {complaint[:200]}; mend {table} model or base_url"
            )
        if status in (408, 409, 429) or status >= 500:
            reason = "rate_limited" if status == 429 else "server_error"
            return TryAgain(reason, f"{where}: HTTP {status}", wait_seconds=wait_asked_for(error.response.headers))
        mended = dialect.mended(complaint) if status == 400 else None
        if mended is not None:
            log.warning("%s: %s; asking with %s", where, complaint[:200], mended)
            self._dialect = mended
            return TryAgain("other_dialect", f"{where}: HTTP 400", wait_seconds=0)
        return RequestRejected(f"HTTP {status}: {complaint[:200]}")


def wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply's Retry-After asks to wait, given as a number or a date (RFC 9110, 10.2.3)."""
    asked = headers.get("retry-after", "").strip()
    if not asked:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _complaint(error: "APIStatusError") -> str:
    """Return the message of an error's body, or the body."""
    body = error.body
    return json.dumps(body, ensure_ascii=False) if isinstance(body, dict) else str(body or error.message)
