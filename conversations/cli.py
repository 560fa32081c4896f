"""The command `conversations`: read, fill, check and forget, with nothing else configured than where the record is."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from conversations import checks, erasure, exports, imports, search, turns
from conversations.errors import OperatorError, run_command
from conversations.messages import Json, TurnStatus, Vote
from conversations.redaction import RedactionRules
from conversations.settings import RecordSettings, read_settings, settings_path
from conversations.store import Record, open_existing

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RecordOption = Annotated[Path | None, typer.Option("--record", help="The record's file; overrides the settings.")]
SettingsOption = Annotated[Path | None, typer.Option("--settings", help="The settings file (TOML).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def main() -> None:
    """Run the command; known failures become one message and an exit code."""
    run_command(app)


@app.command("import")
def import_command(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines files: OpenAI chat messages or ShareGPT.")],
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring conversations in. Bad lines are reported and the rest goes in; importing twice adds nothing."""
    with _open(record, settings, may_be_new=True) as opened:
        counts = imports.import_files(opened, files)
    if as_json:
        _print_json(dataclasses.asdict(counts))
        return
    errors = Console(emoji=False, stderr=True, soft_wrap=True, highlight=False)
    for problem in counts.problems:
        if problem.verdict != "repair":
            errors.print(f"{problem.file}:{problem.line}: {problem.verdict}: {problem.reason}", markup=False)
    if counts.problems_left_out:
        errors.print(f"and {counts.problems_left_out} more that are counted and not listed")
    _say(
        f"{counts.lines} lines of {counts.files} files: "
        f"{counts.conversations} conversations and {counts.turns} turns added, "
        f"{counts.already_present} already present, {counts.repaired} repaired, {counts.flagged} flagged, "
        f"{counts.rejected} rejected"
    )


@app.command("export")
def export_command(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    export_format: Annotated[
        exports.ExportFormat, typer.Option("--format", help="chat is the whole record; the others are for other programs.")
    ] = exports.ExportFormat.CHAT,
    redacted: Annotated[bool, typer.Option("--redacted", help="With placeholders for personal data.")] = False,
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the record into a file, unredacted unless asked, with a manifest beside it."""
    rules = _redaction_rules(record, settings) if redacted else None
    with _open(record, settings) as opened:
        exported = exports.export_file(opened, out, export_format, redaction=rules)
    if as_json:
        _print_json({**dataclasses.asdict(exported), "path": str(exported.path)})
        return
    _say(f"{exported.path}: {exported.conversations} conversations, {exported.turns} turns, {exported.digest}")
    for reason, count in exported.left_out.items():
        _say(f"  left out, {reason}: {count}")


@app.command("stats")
def stats_command(record: RecordOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Count what the record holds."""
    with _open(record, settings) as opened:
        found = checks.statistics(opened)
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    _say(f"{found.conversations} conversations, {found.turns} turns, {found.bytes / 1e6:.1f} MB")
    for title, counts in (("status", found.by_status), ("release", found.by_release)):
        for name, count in counts.items():
            _say(f"  {title} {name}: {count}")


@app.command("search")
def search_command(
    query: Annotated[str, typer.Argument(help="Words that must all be said; may be empty.")] = "",
    status: Annotated[TurnStatus | None, typer.Option(help="Only with a turn of this status.")] = None,
    release: Annotated[str | None, typer.Option(help="Only with a turn of this release.")] = None,
    vote: Annotated[Vote | None, typer.Option(help="Only with this thumb.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find conversations, the latest changed first."""
    with _open(record, settings) as opened:
        found = search.find(opened, query, search.Filters(status, release, vote), limit=limit)
    if as_json:
        _print_json({"found": [dataclasses.asdict(each) for each in found]})
        return
    table = Table(Column("conversation", no_wrap=True), "customer", "turns", "changed", "begins with")
    for each in found:
        table.add_row(
            each.conversation_id, each.customer_id, str(each.turns), each.updated_at_utc, _plain(each.snippet[:60])
        )
    Console(emoji=False).print(table if found else "nothing found")


@app.command("show")
def show_command(
    conversation_id: Annotated[str, typer.Argument(help="A conversation, as `search` lists it.")],
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a conversation with who said what, when, and which student it was."""
    with _open(record, settings) as opened:
        head = turns.conversation(opened, conversation_id)
        every = turns.all_turns(opened, conversation_id)
    if as_json:
        _print_json({**dataclasses.asdict(head), "turns": [dataclasses.asdict(turn) for turn in every]})
        return
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    console.print(f"{head.conversation_id} of {head.customer_id}, {head.channel}, {head.state}, consent {head.consent}")
    for turn in every:
        by = f"{turn.author.value}{' ' + turn.release_id if turn.release_id else ''}"
        vote = f", thumb {turn.vote.value}" if turn.vote else ""
        console.print(f"\n[{turn.created_at_utc}] {by} ({turn.status}{vote})", style="bold", markup=False)
        console.print(_plain(turn.content), markup=False)


@app.command("verify")
def verify_command(record: RecordOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Check every hash, reference, search row and audit entry of the record. Exits with 2 where one disagrees."""
    with _open(record, settings) as opened:
        result = checks.verify(opened)
    if as_json:
        _print_json({"ok": not result.problems, "checked": dict(result.checked), "problems": list(result.problems)})
    else:
        _say("checked " + ", ".join(f"{count} {kind}" for kind, count in result.checked.items()))
    if result.problems:
        raise OperatorError(f"the record disagrees with itself: {'; '.join(result.problems[:5])}; restore it from a backup")


@app.command("erase")
def erase_command(
    customer: Annotated[str, typer.Option("--customer", help="The customer to forget.")],
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a person from the record, the answers, the data sets and the files of runs. There is no way back."""
    with _open(record, settings) as opened:
        erased = erasure.erase_customer(opened, customer, actor="conversations erase")
    if as_json:
        _print_json({**dataclasses.asdict(erased), "releases": list(erased.releases)})
        return
    _say(
        f"removed {erased.conversations} conversations, {erased.turns} turns, {erased.answers} answers; "
        f"{erased.files} files changed"
    )
    if erased.releases:
        _say(f"these releases learned from the person: {', '.join(erased.releases)}; retrain and promote to replace them")


def _open(record: Path | None, settings: Path | None, *, may_be_new: bool = False) -> Record:
    path = record if record is not None else read_settings(RecordSettings, settings).record.path
    return Record(path) if may_be_new else open_existing(path)


def _redaction_rules(record: Path | None, settings: Path | None) -> RedactionRules:
    """Return the rules of the settings; the built-in ones for a record that is used with no settings at all."""
    if record is not None and settings is None and not settings_path(None).is_file():
        return RedactionRules()
    return read_settings(RecordSettings, settings).redaction.rules


def _print_json(value: dict[str, Json]) -> None:
    sys.stdout.buffer.write((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    sys.stdout.flush()


def _say(text: str) -> None:
    Console(emoji=False, highlight=False, soft_wrap=True).print(text, markup=False)


def _plain(text: str) -> str:
    """Return text that cannot steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in text
    )
