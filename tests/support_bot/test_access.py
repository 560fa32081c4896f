import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from chat_world import ChatWorld
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from conversations.errors import OperatorError
from support_bot.access import (
    CUSTOMER_COOKIE,
    MAX_BODY_BYTES,
    OPERATOR_COOKIE,
    TRIES_PER_MINUTE,
    CustomerDoor,
    Door,
    OperatorDoor,
    Operators,
    TooManyTries,
)
from support_bot.app import PASSWORD_VARIABLE, serve
from support_bot.customer.safe_text import plain, reduced


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())}")


def ask(middleware, method: str, path: str, **more) -> httpx.Response:
    application = Starlette(routes=[Route("/{path:path}", _echo, methods=["GET", "POST"])])

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=middleware(application))
        async with httpx.AsyncClient(transport=transport, base_url="http://chat.example") as client:
            return await client.request(method, path, **more)

    return asyncio.run(run())


def test_new_browser_gets_a_token_that_no_script_can_read():
    cookie = ask(CustomerDoor, "GET", "/").headers["set-cookie"]
    assert cookie.startswith(f"{CUSTOMER_COOKIE}=")
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    token = cookie.split(";")[0].split("=")[1]
    again = ask(CustomerDoor, "GET", "/", headers={"cookie": f"{CUSTOMER_COOKIE}={token}"})
    assert "set-cookie" not in again.headers


FOREIGN_COOKIES = ['prefs={"a":1}', "x=a b", "näme=ä", "=odd", 'quoted="never closed']


@pytest.mark.parametrize("foreign", FOREIGN_COOKIES)
def test_foreign_cookie_takes_neither_a_customer_s_nor_an_operator_s_with_it(foreign):
    operators = Operators.with_password("operator", "open sesame")
    token = operators.log_in("operator", "open sesame", address="here")
    cookies = f"{foreign}; {CUSTOMER_COOKIE}={'a' * 32}; {OPERATOR_COOKIE}={token}".encode()
    assert "set-cookie" not in ask(CustomerDoor, "GET", "/", headers={b"cookie": cookies}).headers

    def door(application):
        return OperatorDoor(application, operators=operators)

    assert ask(door, "GET", "/", headers={b"cookie": cookies}).status_code == 200


def test_every_answer_carries_the_browser_s_protections():
    headers = ask(Door, "GET", "/anything").headers
    assert "img-src 'self' data:" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/upload/", "/a/upload"])
def test_uploads_are_closed(path):
    assert ask(Door, "POST", path, content=b"x").status_code == 404


def test_post_from_another_site_is_refused():
    assert ask(Door, "POST", "/x", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert ask(Door, "POST", "/x", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_long_body_is_refused_with_and_without_its_length_announced():
    async def pieces():
        for _ in range(10):
            yield b"x" * (MAX_BODY_BYTES // 8)

    assert ask(Door, "POST", "/x", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert ask(Door, "POST", "/x", content=pieces()).status_code == 413
    assert ask(Door, "POST", "/x", content=b"x" * MAX_BODY_BYTES).text == str(MAX_BODY_BYTES)


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/join", "/gradio_api/heartbeat/x", "/cancel", "/login/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_path_of_the_console_answers_without_a_login(path, method):
    operators = Operators.with_password("operator", "open sesame")

    def door(application):
        return OperatorDoor(application, operators=operators)

    assert ask(door, method, path).status_code == 401
    assert ask(door, "GET", path, headers={"accept": "text/html"}).headers["location"] == "/login"
    assert ask(door, method, path, headers={"cookie": f"{OPERATOR_COOKIE}=guessed"}).status_code == 401
    token = operators.log_in("operator", "open sesame", address="here")
    cookies = {OPERATOR_COOKIE: token}
    assert ask(door, method, path, headers={"cookie": f"{OPERATOR_COOKIE}={token}"}).status_code == 200
    operators.log_out(cookies)
    assert ask(door, method, path, headers={"cookie": f"{OPERATOR_COOKIE}={token}"}).status_code == 401


def test_wrong_passwords_are_throttled_by_address():
    operators = Operators.with_password("operator", "open sesame")
    for _ in range(5):
        assert operators.log_in("operator", "guess", address="there") is None
    with pytest.raises(TooManyTries):
        operators.log_in("operator", "open sesame", address="there")
    assert operators.log_in("nobody", "open sesame", address="here") is None
    assert operators.log_in("operator", "open sesame", address="here") is not None


def test_wrong_passwords_that_come_at_once_are_throttled_as_one_after_another():
    operators = Operators.with_password("operator", "open sesame")

    def guess(number: int) -> str | None:
        try:
            return operators.log_in("operator", f"guess {number}", address="there")
        except TooManyTries:
            return "refused"

    with ThreadPoolExecutor(20) as threads:
        told = list(threads.map(guess, range(20)))
    assert told.count(None) == TRIES_PER_MINUTE and told.count("refused") == 20 - TRIES_PER_MINUTE


def test_passwords_that_are_right_use_up_no_tries():
    operators = Operators.with_password("operator", "open sesame")
    for _ in range(TRIES_PER_MINUTE + 1):
        assert operators.log_in("operator", "open sesame", address="here") is not None


def test_serving_without_a_console_password_says_what_to_set(tmp_path: Path, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    world = ChatWorld(tmp_path)
    with pytest.raises(OperatorError, match=PASSWORD_VARIABLE):
        serve(world.settings)
    world.close()


def test_port_in_use_is_named_with_its_setting(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        world = ChatWorld(tmp_path, serve=f"chat_port = {taken.getsockname()[1]}\n")
        with pytest.raises(OperatorError, match=r"\[serve\] chat_port"):
            serve(world.settings)
        world.close()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("**bold** and `a < b`", "**bold** and `a < b`"),
        ("![x](http://evil.example/a.png)", "x"),
        ("[here](http://a.example/x)", "here (http://a.example/x)"),
        ("<b>x</b>", "<\u200bb>x<\u200b/b>"),
        ("[a][1]\n\n[1]: http://evil.example", "[a]\u200b[1]\n\n[1]\u200b: http://evil.example"),
        ("4 < 5", "4 < 5"),
    ],
)
def test_answer_keeps_its_emphasis_and_loses_pictures_html_and_hidden_links(written, shown):
    assert reduced(written) == shown


def test_customer_s_words_mean_nothing_to_markdown():
    assert plain("*a* <b> &lt;") == "&#42;a&#42; &#60;b&#62; &#38;lt;"
    assert plain("1. one\n# two\n- three") == "1&#46; one\n&#35; two\n&#45; three"
    assert plain("An ordinary sentence, isn't it? Yes: 3.5 (about).") == "An ordinary sentence, isn't it? Yes: 3.5 (about)."
