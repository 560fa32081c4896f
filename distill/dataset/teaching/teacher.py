"""A teacher: any OpenAI-compatible endpoint, sent one request once.

In: a request, byte for byte. Out: the raw reply, or what went wrong and whether it may have cost money. It repeats nothing, reads
nothing and never logs a key or a customer's words.
"""

import asyncio
import errno
import importlib.util
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from conversations.errors import OperatorError, OutsideError
from conversations.messages import Json
from conversations.settings import secret
from distill.dataset.teaching.pace import asked_seconds
from distill.dataset.teaching.replies import Fault, error_of
from distill.dataset.teaching.requests import Request
from distill.settings import TeacherTable

if TYPE_CHECKING:
    import httpx2

_NOBODY = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)
_MAY_PASS = (408, 409, 425, 429)
# What providers answer with 429 when the account is empty, which no waiting mends.
_UNPAID_CODES = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")
# A refusal of this very question, and not of who asks it.
_FLAGGED = re.compile(r"moderation|flagged|content_|safety|policy", re.IGNORECASE)
_BYTES_PER_TOKEN = 64
_BYTES_PER_LOGPROB = 256
_LEAST_LIMIT_BYTES = 8_000_000
_QUOTED_CHARACTERS = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawReply:
    """A reply as it came, before anybody reads it."""

    body: str
    latency_ms: float


@dataclass(frozen=True)
class Delay:
    """A failure that may pass: the seconds that the teacher asks to wait (0: it does not say), and whether it may cost."""

    fault: Fault
    asked_seconds: float
    may_be_billed: bool


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
        import openai

        self._name, self._table = name, table
        self._has_answered = False
        self._url = table.base_url.rstrip("/") + "/chat/completions"
        # On aiohttp a request takes half the time of the usual transport. No redirect is followed: it could lead customers' words
        # to anybody.
        has_aiohttp = importlib.util.find_spec("aiohttp") is not None
        kind = openai.DefaultAioHttpClient if has_aiohttp else openai.DefaultAsyncHttpxClient
        self._http: httpx2.AsyncClient = kind(timeout=table.timeout_seconds, follow_redirects=False)
        self.client = openai.AsyncOpenAI(
            base_url=table.base_url,
            api_key=key_of(name, table),
            max_retries=0,
            timeout=table.timeout_seconds,
            http_client=self._http,
        )
        self._headers = {key: value for key, value in self.client.default_headers.items() if isinstance(value, str)}

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.client.close()

    async def ask_once(self, request: Request) -> RawReply | Delay:
        """Send a request once: the raw reply, or the delay when a failure may pass.

        Raises OperatorError for a refused key, an unpaid account or an unknown model or address, OutsideError when nobody
        listens, RequestRefused when this very request is the trouble.
        """
        import httpx2

        began = time.monotonic()
        try:
            # However slowly it drips, a reply has this long in all.
            async with asyncio.timeout(self._table.timeout_seconds):
                got = await self._got(request)
        except (httpx2.TransportError, TimeoutError) as error:
            if _nobody_listens(error):
                raise self._nobody_there(error) from None
            # The client also calls some lost connections a timeout.
            has_waited = time.monotonic() - began >= 0.9 * self._table.timeout_seconds
            fault = Fault.TIMEOUT if has_waited else Fault.CONNECTION_LOST
            log.warning("%s: %s after %.1f s", self._name, fault.replace("_", " "), time.monotonic() - began)
            return Delay(fault, 0.0, may_be_billed=True)
        except httpx2.DecodingError:
            return Delay(Fault.OTHER_SHAPE, 0.0, may_be_billed=True)
        if got is None:
            log.warning("%s: the reply for %s is larger than any answer can be", self._name, request.decision_id)
            return Delay(Fault.TOO_LARGE, 0.0, may_be_billed=True)
        status, headers, body = got
        if status != 200:
            return self._wait_or_raise(request, status, headers, body)
        self._has_answered = True
        return RawReply(body, (time.monotonic() - began) * 1000)

    async def _got(self, request: Request) -> "tuple[int, httpx2.Headers, str] | None":
        """Return status, headers and body of the reply; None for one that is larger than any answer can be."""
        most = _most_bytes(self._table, request)
        content = request.body.encode("utf-8", "replace")
        async with self._http.stream("POST", self._url, content=content, headers=self._headers) as response:
            if int(response.headers.get("content-length", "0")) > most:
                return None
            body = bytearray()
            # What was logged is sent as it was logged, and what comes is kept as it comes.
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > most:
                    return None
            return response.status_code, response.headers, body.decode("utf-8", "replace")

    def _wait_or_raise(self, request: Request, status: int, headers: "httpx2.Headers", body: str) -> Delay:
        told = error_of(body)
        quoted = _quoted(body, told).replace(self.client.api_key, "[key]")
        where = f"the teacher {self._name!r} at {self._table.base_url}"
        if 300 <= status < 400:
            to = urlsplit(headers.get("location", "")).hostname or "nowhere"
            raise OperatorError(
                f"{where} sends us to another address (HTTP {status}, to {to!r}), which is not followed with customers' words; mend "
                "base_url"
            )
        if status == 403 and (self._has_answered or _FLAGGED.search(f"{told.get('code')} {told.get('type')}")):
            return self._refuses(request, status, quoted)
        if status in (401, 403):
            variable = self._table.api_key_variable
            key = f"the key in the environment variable {variable}" if variable else "a request without a key"
            what = "set api_key_variable in its table" if not variable else f"export a valid {variable}"
            raise OperatorError(
                f"{where} refuses {key} (HTTP {status}){quoted}; {what} and run again: what was answered is kept"
            )
        if status == 402 or (status == 429 and {str(told.get("code")), str(told.get("type"))} & {*_UNPAID_CODES}):
            raise OperatorError(
                f"{where} asks for payment (HTTP {status}){quoted}; top the account up and run again: what was answered is kept"
            )
        if status == 404:
            raise OperatorError(
                f"{where} does not know the model {self._table.model!r} or this address (HTTP 404){quoted}; mend model or base_url"
            )
        if status in _MAY_PASS or status >= 500:
            asked = asked_seconds(headers.get("retry-after", ""))
            log.warning("%s: HTTP %d%s", self._name, status, f", asks to wait {asked:g} s" if asked else "")
            return Delay(Fault.RATE_LIMITED if status == 429 else Fault.SERVER_ERROR, asked, may_be_billed=False)
        return self._refuses(request, status, quoted)

    def _refuses(self, request: Request, status: int, quoted: str) -> NoReturn:
        log.warning("%s: refuses the request of %s (HTTP %d)", self._name, request.decision_id, status)
        raise RequestRefused(f"HTTP {status}{quoted}")

    def _nobody_there(self, error: Exception) -> OutsideError:
        what = "start it with `distill teacher`" if self._table.kind == "handbook" else "start it, or mend base_url"
        return OutsideError(
            f"the teacher {self._name!r} at {self._table.base_url} cannot be reached ({error}); "
            f"{what}, and run again: what was answered is kept"
        )


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


def _most_bytes(table: TeacherTable, request: Request) -> int:
    """Return more bytes than the reply to a request can have."""
    of_token = _BYTES_PER_TOKEN + (_BYTES_PER_LOGPROB * (table.top_logprobs + 1) if table.top_logprobs else 0)
    return max(_LEAST_LIMIT_BYTES, request.max_tokens * of_token + 1_000_000)


def _quoted(body: str, told: Mapping[str, Json]) -> str:
    """Return the provider's own words about a failure, shortened; empty where it says nothing."""
    text = " ".join(str(told.get("message") or "" if told else body[: 2 * _QUOTED_CHARACTERS]).split())[:_QUOTED_CHARACTERS]
    return f": it says {text!r}" if text else ""


def _nobody_listens(error: Exception) -> bool:
    """Tell whether the machine there refused the connection, or is unknown; told by names, for each of the client's libraries.

    One of them calls a refused connection a timeout, with the refusal beneath.
    """
    if type(error).__name__ not in ("ConnectError", "ConnectTimeout"):
        return False
    cause: BaseException | None = error
    while cause is not None:
        # Resolvers count their failures below zero.
        if isinstance(cause, OSError) and cause.errno is not None and (cause.errno < 0 or cause.errno in _NOBODY):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
