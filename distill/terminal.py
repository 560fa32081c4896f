"""What the `distill` commands share: options that all take, progress on standard error, results on standard output.

In: values. Out: text for people, or one JSON object for programs. Decides nothing.
"""

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.run import Manifest

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="The settings file (else SUPPORT_BOT_SETTINGS, or settings.toml here)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
RunName = Annotated[
    str, typer.Option("--run", metavar="ID", help="The run; `distill choose` and `distill cycle` begin one.")
]


def _given(reason: str | None) -> str | None:
    """Return a reason that is one. Raises OperatorError for an empty one: the audit would keep nothing."""
    if reason is not None and not reason.strip():
        raise OperatorError("the reason is empty; expected why, for the audit, such as --reason 'complaints'; give one")
    return reason


Reason = Annotated[str, typer.Option(help="Why; kept in the audit.", callback=_given)]
Override = Annotated[
    str | None,
    typer.Option("--override", metavar="REASON", help="Act against the gate, and why; kept in the audit.", callback=_given),
]


@contextmanager
def progress() -> Iterator[Callable[[str, float, str], None]]:
    """Draw one bar a stage, or a trial, on standard error."""
    columns = (TextColumn("{task.fields[name]:>9}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    bars: dict[str, TaskID] = {}
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=Console(emoji=False, stderr=True)
    ) as drawn:

        def announce(name: str, share: float, note: str) -> None:
            if name not in bars or (share == 0.0 and drawn.tasks[bars[name]].finished):
                bars[name] = drawn.add_task("", total=1.0, name=name, note="")
            drawn.update(bars[name], completed=share, note=note[:60])

        yield announce


def print_manifest(manifest: Manifest, as_json: bool) -> None:
    """Print what a stage left behind."""
    if as_json:
        print_json(json.loads(manifest.model_dump_json(by_alias=True)))
        return
    counts = manifest.counts
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.rejected_by_reason.items())
    say(
        f"{manifest.stage}: {counts.taken_in} in = {counts.accepted} accepted + {counts.rejected} rejected "
        f"+ {counts.unscored} unscored{f' ({reasons})' if reasons else ''}, {manifest.seconds:.1f} s"
    )
    covered = manifest.details.get("soft_label_coverage")
    if covered:
        say(f"{manifest.stage}: soft labels at {covered:.1%} of the scored tokens")


def print_json(value: Mapping[str, Json]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(dict(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line of a result."""
    Console(emoji=False, highlight=False, soft_wrap=True).print(text, markup=False)


def say_table(table: Table) -> None:
    """Print a table as wide as it is: a terminal may break its lines, and nothing in it is cut."""
    console = Console(emoji=False)
    width = console.measure(table, options=console.options.update(width=10_000)).maximum
    Console(emoji=False, width=max(console.width, width)).print(table)


def note(text: str) -> None:
    """Print a line that is no result, on standard error."""
    Console(emoji=False, stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def operator_name(command: str) -> str:
    """Return who runs a command, for the audit: the command, and the user of this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that no user has.
        user = str(os.getuid())
    return f"{command} ({user})"


def print_report(found: dict[str, Json], as_json: bool) -> None:
    """Print a run's report."""
    if as_json:
        print_json(found)
        return
    from distill.evaluation.page.terminal import printed

    Console(emoji=False, width=max(Console(emoji=False).width, 100)).print(printed(found))
