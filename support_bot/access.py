"""Who may see what: the customer's cookie, the operators' login, and the door that every request of a page goes through.

In: requests. Out: a customer's name from a token that only their browser holds, an operator's name from a session, or a
refusal. Nothing else that a browser sends is trusted. Knows nothing of Gradio; keeps operators' sessions in memory, so a
restart logs everybody out.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conversations import turns
from conversations.errors import OperatorError
from conversations.store import Record
from conversations.turns import Conversation

CUSTOMER_COOKIE = "support_customer"
OPERATOR_COOKIE = "support_operator"
SESSION_SECONDS = 8 * 3600
TRIES_PER_MINUTE = 5
MAX_BODY_BYTES = 64 * 1024
_YEAR_SECONDS = 365 * 24 * 3600
_OPEN_TO_ALL = ("/login",)

CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio's page is built by scripts in the page itself and compiles templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "frame-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


def customer_of(cookies: Mapping[str, str]) -> str | None:
    """Return the customer whose browser holds these cookies; the record knows a hash of the token only."""
    token = cookies.get(CUSTOMER_COOKIE, "")
    if not 20 <= len(token) <= 64:
        return None
    return f"web_{hashlib.sha256(token.encode('utf-8', 'replace')).hexdigest()[:24]}"


def own_conversation(record: Record, conversation_id: str, customer_id: str | None) -> Conversation | None:
    """Return a conversation if it is this customer's, else None, whether or not it exists."""
    if not conversation_id or customer_id is None:
        return None
    try:
        found = turns.conversation(record, conversation_id)
    except OperatorError:
        return None
    return found if found.customer_id == customer_id else None


@dataclass(frozen=True)
class _Login:
    operator: str
    ends_at: float


@dataclass
class Operators:
    """The operators' logins of one process: one name and one password, throttled tries, sessions that end."""

    operator: str
    _salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    _password_hash: bytes = b""
    _logins: dict[str, _Login] = field(default_factory=dict)
    _tries: dict[str, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def with_password(cls, operator: str, password: str) -> "Operators":
        """Return operators who log in with this name and password; the password itself is not kept."""
        operators = cls(operator)
        operators._password_hash = operators._hash(password)
        return operators

    def log_in(self, operator: str, password: str, *, address: str) -> str | None:
        """Return a session's token, or None for a wrong name or password. May be called by many threads at once.

        Raises TooManyTries after five failures from one address within a minute; a try counts as failed until it has succeeded.
        """
        tried_at = self._count_try(address)
        is_password = hmac.compare_digest(self._hash(password), self._password_hash)
        is_operator = hmac.compare_digest(operator.encode("utf-8", "replace"), self.operator.encode())
        if not (is_password and is_operator):
            return None
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._tries[address] = [at for at in self._tries.get(address, []) if at != tried_at]
            self._logins = {key: login for key, login in self._logins.items() if login.ends_at > tried_at}
            self._logins[_fingerprint(token)] = _Login(self.operator, tried_at + SESSION_SECONDS)
        return token

    def who(self, cookies: Mapping[str, str]) -> str | None:
        """Return the operator whose session these cookies carry."""
        login = self._logins.get(_fingerprint(cookies.get(OPERATOR_COOKIE, "")))
        return login.operator if login is not None and login.ends_at > time.monotonic() else None

    def log_out(self, cookies: Mapping[str, str]) -> None:
        """End the session that these cookies carry."""
        with self._lock:
            self._logins.pop(_fingerprint(cookies.get(OPERATOR_COOKIE, "")), None)

    def _count_try(self, address: str) -> float:
        # Before the password is hashed, which takes long enough for many others to come.
        with self._lock:
            now = time.monotonic()
            recent = [at for at in self._tries.get(address, []) if now - at < 60]
            if len(recent) >= TRIES_PER_MINUTE:
                raise TooManyTries
            self._tries[address] = [*recent, now]
            if len(self._tries) > 10_000:
                self._tries = {address: self._tries[address]}
        return now

    def _hash(self, password: str) -> bytes:
        # Costs as in RFC 7914's interactive example: about 50 ms and 16 MB for each try.
        return hashlib.scrypt(password.encode("utf-8", "replace"), salt=self._salt, n=2**14, r=8, p=1)


class TooManyTries(Exception):
    """Too many wrong passwords from one address; a minute's pause is due."""


class Door:
    """Middleware around a whole page: limits what comes in and puts the browser's protections on what goes out.

    Uploads are closed, bodies are short, and no other site may make a browser post here.
    """

    def __init__(self, app: ASGIApp, *, policy: str = CONTENT_POLICY) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)
        counted = _CountedBody(receive)
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if counted.is_too_long and not has_started:
                # The application's own word about the broken body; the visitor gets ours.
                return
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
            await send(message)

        try:
            await (refusal or self._app)(scope, counted.receive, send_with_headers)
        except BodyTooLong:
            counted.is_too_long = False
            if not has_started:
                await _too_long()(scope, receive, send_with_headers)


class CustomerDoor:
    """Middleware that gives a new browser its token: HttpOnly, so that no script reads it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the page itself brings the cookie when there is none yet."""
        is_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in ("", "/")
        if not is_page or customer_of(cookies_of(scope)) is not None:
            await self._app(scope, receive, send)
            return
        cookie = cookie_header(
            CUSTOMER_COOKIE, secrets.token_urlsafe(24), scope, same_site="Lax", max_age_seconds=_YEAR_SECONDS
        )

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("Set-Cookie", cookie)
            await send(message)

        await self._app(scope, receive, send_with_cookie)


class OperatorDoor:
    """Middleware that lets nobody without a session past, on any path but the login itself."""

    def __init__(self, app: ASGIApp, *, operators: Operators) -> None:
        self._app = app
        self._operators = operators

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of an operator; send a visitor's page to the login and refuse the rest."""
        is_http = scope["type"] == "http"
        if scope["type"] == "lifespan" or scope["path"] in _OPEN_TO_ALL or (is_http and self._knows(scope)):
            await self._app(scope, receive, send)
        elif is_http:
            is_page = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
            refusal: Response = (
                RedirectResponse("/login", status_code=303)
                if is_page
                else PlainTextResponse("Please log in.\n", status_code=401)
            )
            await refusal(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        return self._operators.who(cookies_of(scope)) is not None


def cookies_of(scope: Scope) -> dict[str, str]:
    """Return the cookies of a request, as the pages' handlers read them: one that is odd takes no other with it."""
    return HTTPConnection(scope).cookies


def cookie_header(name: str, value: str, scope: Scope, *, same_site: str, max_age_seconds: int) -> str:
    """Return a Set-Cookie header that no script can read; Secure where the page came over TLS."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{name}={value}; Path=/; HttpOnly; SameSite={same_site}; Max-Age={max_age_seconds}{secure}"


class BodyTooLong(Exception):
    """A request's body is longer than any honest one."""


class _CountedBody:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0
        self.is_too_long = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MAX_BODY_BYTES:
            self.is_too_long = True
            raise BodyTooLong
        return message


def _refusal(scope: Scope) -> Response | None:
    headers = Headers(scope=scope)
    if scope["path"].rstrip("/").endswith("/upload"):
        return PlainTextResponse("There are no uploads here.\n", status_code=404)
    # Browsers say where a request comes from; a form or script on another site has no business here.
    if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return PlainTextResponse("Requests from other sites are refused.\n", status_code=403)
    length = headers.get("content-length", "0")
    return _too_long() if length.isdigit() and int(length) > MAX_BODY_BYTES else None


def _too_long() -> Response:
    return PlainTextResponse(f"At most {MAX_BODY_BYTES} bytes are taken.\n", status_code=413)


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
