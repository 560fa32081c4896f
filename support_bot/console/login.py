"""The console's login: one plain page, before which nothing of the console can be seen.

In: a name and a password, typed into a form. Out: a session cookie, or the same page with one sentence. Logins and failed
ones are written into the audit; passwords are written nowhere.
"""

import asyncio
import html
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from conversations import audit
from conversations.async_record import AsyncRecord
from support_bot.access import OPERATOR_COOKIE, SESSION_SECONDS, Operators, TooManyTries, cookie_header

_WRONG = "That name and password do not fit together."
_TOO_MANY = "Too many tries. Please wait a minute."
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Log in · {brand} console</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
:root {{ --ink: #16302e; --soft: #5b6b72; --line: #c9d5d8; --paper: #fff;
  --ground: #f2f6f6; --accent: #0f766e; --on: #fff; --bad: #8a3b12 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e7efee; --soft: #a7b7ba; --line: #3d5059; --paper: #17232a;
  --ground: #0f191e; --accent: #2aa596; --on: #05201d; --bad: #f3b48d }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 16px;
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground) }}
form {{ width: min(360px, 100%); padding: 28px;
  border: 1px solid var(--line); border-radius: 18px; background: var(--paper) }}
h1 {{ margin: 0 0 18px; font-size: 1.2rem }} h1 span {{ display: block; color: var(--accent); font-size: .82rem }}
label {{ display: block; margin: 0 0 14px; font-size: .9rem; font-weight: 600 }}
input {{ display: block; width: 100%; height: 44px; margin-top: 4px; padding: 0 12px; font: inherit; color: inherit;
  border: 1px solid var(--line); border-radius: 11px; background: var(--ground) }}
button {{ width: 100%; height: 44px; margin-top: 6px; font: inherit; font-weight: 650; border: 0; border-radius: 11px;
  color: var(--on); background: var(--accent); cursor: pointer }}
:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px }}
p {{ margin: 0 0 14px; color: var(--bad); font-weight: 550 }}
</style></head><body><main><form method="post" action="/login">
<h1><span>{brand}</span>Operators' console</h1>{problem}
<label>Name<input name="operator" autocomplete="username" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button></form></main></body></html>"""


def add_login(application: FastAPI, operators: Operators, record: AsyncRecord, brand: str) -> None:
    """Give an application its login page and the ways in and out."""

    async def show(request: Request) -> Response:
        return _page(brand, "", 200)

    async def log_in(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
        operator, password = form.get("operator", [""])[0], form.get("password", [""])[0]
        address = request.client.host if request.client else ""
        try:
            token = await asyncio.to_thread(lambda: operators.log_in(operator, password, address=address))
        except TooManyTries:
            return _page(brand, _TOO_MANY, 429)
        await record.write(
            audit.note_alone, operators.operator, "logged in" if token else "login refused", "console", {"address": address}
        )
        if token is None:
            return _page(brand, _WRONG, 401)
        response = RedirectResponse("/", status_code=303)
        _set_cookie(response, request, token, SESSION_SECONDS)
        return response

    async def log_out(request: Request) -> Response:
        operators.log_out(request.cookies)
        response = RedirectResponse("/login", status_code=303)
        _set_cookie(response, request, "", 0)
        return response

    ways: tuple[tuple[str, str, Callable[[Request], Awaitable[Response]]], ...] = (
        ("/login", "GET", show),
        ("/login", "POST", log_in),
        ("/logout", "POST", log_out),
    )
    for path, method, handler in ways:
        application.add_api_route(path, handler, methods=[method], response_model=None)


def _page(brand: str, problem: str, status: int) -> HTMLResponse:
    sentence = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return HTMLResponse(_PAGE.format(brand=html.escape(brand), problem=sentence), status_code=status)


def _set_cookie(response: Response, request: Request, token: str, seconds: int) -> None:
    cookie = cookie_header(OPERATOR_COOKIE, token, request.scope, same_site="Strict", max_age_seconds=seconds)
    response.headers.append("Set-Cookie", cookie)
