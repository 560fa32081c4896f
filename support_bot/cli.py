"""The command `support-bot`: the chat and the console, the student's servers, and the demo.

In: options, which all follow the subcommand. Out: progress on standard error, with `--json` one object on standard output,
and the exit codes of the command contract. The parts that need large libraries are imported by the command that runs them.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from conversations.errors import run_command
from conversations.messages import Json
from support_bot.settings import read_support_bot_settings

_commands = typer.Typer(
    name="support-bot",
    help="The customers' chat, the operators' console, and the student model behind them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="The settings file (else SUPPORT_BOT_SETTINGS, or settings.toml here)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output when the command ends.")]


@_commands.command()
def serve(settings_file: SettingsFile = None, as_json: AsJson = False) -> None:
    """Serve the customers' chat and the operators' console."""
    settings = read_support_bot_settings(settings_file)
    from support_bot.app import serve as serve_pages

    serve_pages(settings)
    table = settings.serve
    if as_json:
        _print_answer(
            {
                "chat_url": f"http://{table.host}:{table.chat_port}",
                "console_url": f"http://{table.host}:{table.console_port}",
            }
        )


@_commands.command()
def student(
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
    parent_pid: Annotated[
        int | None, typer.Option(metavar="PID", help="Stop, with every process started here, when this process ends.")
    ] = None,
) -> None:
    """Start vLLM for the student, or attach to running servers, and keep the wanted releases loaded."""
    settings = read_support_bot_settings(settings_file)
    from support_bot.student import look_after_students

    console = Console(emoji=False, stderr=True, soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC {line}", markup=False)

    summary = look_after_students(settings, parent_pid=parent_pid, say=say)
    if as_json:
        _print_answer(summary)


@_commands.command()
def demo(
    settings_file: SettingsFile = None,
    as_json: AsJson = False,
    exit_after: Annotated[bool, typer.Option("--exit", help="Stop after the report.")] = False,
) -> None:
    """Run the whole product here: student, teacher, seeded record, one cycle, and the pages."""
    settings = read_support_bot_settings(settings_file)
    from support_bot.demo import run_demo

    answer = run_demo(settings, exit_after=exit_after)
    if as_json:
        _print_answer(answer)


def main() -> NoReturn:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run_command(_commands)


def _print_answer(answer: Mapping[str, Json]) -> None:
    typer.echo(json.dumps(answer, ensure_ascii=False))
