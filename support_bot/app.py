"""The chat process: the customers' page and the operators' console, each on its own port, in one event loop.

In: settings, and the console's password from the environment. Out: two web servers until a signal ends them. Answers on
their way are closed as interrupted before the process goes, and those of a process that was killed when the next one starts.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from conversations import turns
from conversations.errors import OperatorError
from conversations.settings import secret
from conversations.store import Record
from support_bot.access import Operators
from support_bot.session import Session
from support_bot.settings import SupportBotSettings
from support_bot.watch import watch_canary

PASSWORD_VARIABLE = "SUPPORT_BOT_CONSOLE_PASSWORD"
SECONDS_TO_FINISH = 2

_log = logging.getLogger(__name__)


def serve(settings: SupportBotSettings) -> None:
    """Serve both pages until SIGINT or SIGTERM.

    Raises OperatorError for a missing password or a port that is in use.
    """
    password = secret(PASSWORD_VARIABLE, "it is the password of the operators' console")
    table = settings.serve
    with (
        _listening(table.host, table.chat_port, "chat_port") as chat_socket,
        _listening(table.host, table.console_port, "console_port") as console_socket,
        Record(settings.record.path) as record,
    ):
        asyncio.run(_serve(settings, record, password, chat_socket, console_socket))


async def _serve(
    settings: SupportBotSettings,
    record: Record,
    password: str,
    chat_socket: socket.socket,
    console_socket: socket.socket,
) -> None:
    # Gradio reads these when it is imported; customers' pages report to nobody.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    from support_bot.console.page import console_application
    from support_bot.customer.page import chat_application

    interrupted = await asyncio.to_thread(turns.interrupt_orphans, record)
    if interrupted:
        _log.warning("%d answers of a process that died are now marked as interrupted", interrupted)
    session = Session(record, settings)
    operators = Operators.with_password(settings.serve.console_user, password)
    servers = [
        (_Server(chat_application(session)), chat_socket),
        (_Server(console_application(session, operators)), console_socket),
    ]

    def end() -> None:
        for server, _ in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    host = settings.serve.host
    lines = Console(emoji=False, stderr=True, soft_wrap=True)
    lines.print(f"chat:    http://{host}:{settings.serve.chat_port}", markup=False)
    lines.print(f"console: http://{host}:{settings.serve.console_port} (user {operators.operator})", markup=False)
    watching = asyncio.create_task(watch_canary(session.stored), name="watch over the canary")
    try:
        await asyncio.gather(*(server.serve(sockets=[listening]) for server, listening in servers))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await session.close()


class _Server(uvicorn.Server):
    """A web server that leaves signals to the process, because two of them share it."""

    def __init__(self, application: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=SECONDS_TO_FINISH,
                server_header=False,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


@contextmanager
def _listening(host: str, port: int, key: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(128)
        except OSError as error:
            raise OperatorError(
                f"{host}:{port} cannot be listened on: {error.strerror}; expected a free port; "
                f"stop the other program or set [serve] {key} to another one"
            ) from None
        yield listening
