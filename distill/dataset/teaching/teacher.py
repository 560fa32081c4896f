"""A teacher: any OpenAI-compatible endpoint, sent one request once.

In: a request, byte for byte. Out: the raw reply, or what went wrong and whether it may have cost money. It repeats nothing, reads
nothing and never logs a key or a customer's words.
"""

import errno
import importlib.util
import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from conversations.errors import OperatorError, OutsideError
from conversations.settings import secret
from distill.dataset.teaching.pace import asked_seconds
from distill.dataset.teaching.replies import Fault, error_of
from distill.dataset.teaching.requests import Request
from distill.settings import TeacherTable

if TYPE_CHECKING:
    import openai

_NOBODY = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)
_MAY_PASS = (408, 409, 425, 429)
# What providers answer with 429 when the account is empty, which no waiting mends.
_UNPAID_CODES = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")

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
        # The client on aiohttp takes half the time of the usual one for each request.
        has_aiohttp = importlib.util.find_spec("aiohttp") is not None
        self.client = openai.AsyncOpenAI(
            base_url=table.base_url,
            api_key=key_of(name, table),
            max_retries=0,
            timeout=table.timeout_seconds,
            http_client=openai.DefaultAioHttpClient(timeout=table.timeout_seconds) if has_aiohttp else None,
        )

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
        import openai

        began = time.monotonic()
        try:
            # What was logged is sent as it was logged: the client's own types would leave out what they do not know.
            text = await self.client.post("/chat/completions", cast_to=str, content=request.body.encode("utf-8", "replace"))
        except openai.APIStatusError as error:
            return self._wait_or_raise(request, error)
        except openai.APIConnectionError as error:
            if _nobody_listens(error):
                raise self._nobody_there(error) from None
            # The client also calls some lost connections a timeout.
            has_waited = time.monotonic() - began >= 0.9 * self._table.timeout_seconds
            fault = Fault.TIMEOUT if has_waited else Fault.CONNECTION_LOST
            log.warning("%s: %s after %.1f s", self._name, fault.replace("_", " "), time.monotonic() - began)
            return Delay(fault, 0.0, may_be_billed=True)
        return RawReply(text, (time.monotonic() - began) * 1000)

    def _wait_or_raise(self, request: Request, error: "openai.APIStatusError") -> Delay:
        status, told = error.status_code, error_of(error.response.text)
        where = f"the teacher {self._name!r} at {self._table.base_url}"
        if status in (401, 403):
            variable = self._table.api_key_variable
            key = f"the key in the environment variable {variable}" if variable else "a request without a key"
            what = "set api_key_variable in its table" if not variable else f"export a valid {variable}"
            raise OperatorError(f"{where} refuses {key} (HTTP {status}); {what} and run again: what was answered is kept")
        if status == 402 or (status == 429 and {str(told.get("code")), str(told.get("type"))} & {*_UNPAID_CODES}):
            raise OperatorError(
                f"{where} asks for payment (HTTP {status}); top the account up and run again: what was answered is kept"
            )
        if status == 404:
            raise OperatorError(
                f"{where} does not know the model {self._table.model!r} or this address (HTTP 404); mend model or base_url"
            )
        if status in _MAY_PASS or status >= 500:
            asked = asked_seconds(error.response.headers.get("retry-after", ""))
            log.warning("%s: HTTP %d%s", self._name, status, f", asks to wait {asked:g} s" if asked else "")
            return Delay(Fault.RATE_LIMITED if status == 429 else Fault.SERVER_ERROR, asked, may_be_billed=False)
        log.warning("%s: refuses the request of %s (HTTP %d)", self._name, request.decision_id, status)
        raise RequestRefused(f"HTTP {status}: {str(told.get('message', ''))[:200]}")

    def _nobody_there(self, error: Exception) -> OutsideError:
        what = "start it with `distill teacher`" if self._table.kind == "handbook" else "start it, or mend base_url"
        return OutsideError(
            f"the teacher {self._name!r} at {self._table.base_url} cannot be reached ({error.__cause__ or error}); "
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


def _nobody_listens(error: Exception) -> bool:
    """Tell whether the machine there refused the connection, or is unknown; told by names, for each of the client's libraries.

    One of them calls a refused connection a timeout, with the refusal beneath.
    """
    cause = error.__cause__
    if cause is None or type(cause).__name__ not in ("ConnectError", "ConnectTimeout"):
        return False
    while cause is not None:
        # Resolvers count their failures below zero.
        if isinstance(cause, OSError) and cause.errno is not None and (cause.errno < 0 or cause.errno in _NOBODY):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
