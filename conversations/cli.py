"""The command `conversations`: read, fill, check and forget, with nothing else configured than where the record is."""

import dataclasses
import json
import re
import shlex
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from conversations import audit, backup, checks, erasure, search, tags, turns
from conversations.errors import OperatorError, run_command
from conversations.exchange import exports, imports
from conversations.messages import ConversationState, Json, TurnStatus, Vote
from conversations.redaction import RedactionRules
from conversations.settings import RecordSettings, read_settings, settings_path
from conversations.store import Record, open_existing

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RecordOption = Annotated[Path | None, typer.Option("--record", help="The record's file; overrides the settings.")]
SettingsOption = Annotated[Path | None, typer.Option("--settings", help="The settings file (TOML).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def main() -> None:
    """Run the command; known failures become one message and an exit code."""
    run_command(_run)


def _run() -> None:
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise OperatorError(f"the argument {argument!r} is not UTF-8; write it in UTF-8") from None
    app()


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
        audit.note_alone(
            opened,
            "conversations export",
            "record exported",
            str(exported.path),
            {"format": export_format, "redacted": redacted, "conversations": exported.conversations},
        )
    if as_json:
        _print_json({**dataclasses.asdict(exported), "path": str(exported.path)})
        return
    _say(f"{exported.path}: {exported.conversations} conversations, {exported.turns} turns, {exported.digest}")
    for reason, count in exported.left_out.items():
        _say(f"  left out, {reason}: {count}")


@app.command("stats")
def stats_command(record: RecordOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Count what the record holds."""
    with _open(record, settings, to_read=True) as opened:
        found = checks.statistics(opened)
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    _say(f"{found.conversations} conversations, {found.turns} turns, {found.bytes / 1e6:.1f} MB")
    for title, counts in (("status", found.by_status), ("release", found.by_release), ("language", found.by_language)):
        for name, count in counts.items():
            _say(f"  {title} {name}: {count}")


@app.command("search")
def search_command(
    query: Annotated[str, typer.Argument(help="Words that one message must say; may be empty.")] = "",
    status: Annotated[TurnStatus | None, typer.Option(help="Only with a turn of this status.")] = None,
    release: Annotated[str | None, typer.Option(help="Only with a turn of this release.")] = None,
    vote: Annotated[Vote | None, typer.Option(help="Only with this thumb.")] = None,
    channel: Annotated[str | None, typer.Option(help="Only from this channel, such as `chat` or `import`.")] = None,
    state: Annotated[ConversationState | None, typer.Option(help="Only where this one answers.")] = None,
    language: Annotated[str | None, typer.Option(help="Only where the customer writes this language (ISO 639-1).")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Begun on this day (UTC) or later.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Begun on this day (UTC) or before.")] = None,
    disagreement: Annotated[
        bool, typer.Option("--disagreement", help="Only where answers given for one decision differ.")
    ] = False,
    flagged: Annotated[bool, typer.Option("--flagged", help="Only what an import flagged.")] = False,
    after: Annotated[str, typer.Option(help="The `cursor` of the last one shown, for what follows.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find conversations: with words the newest first, without words the latest changed. All filters combine."""
    filters = search.Filters(
        status,
        release,
        vote,
        channel,
        state,
        language,
        tag,
        since.date() if since else None,
        until.date() if until else None,
        disagreement,
        flagged,
    )
    with _open(record, settings, to_read=True) as opened:
        found = search.find(opened, query, filters, after=after, limit=limit)
    if as_json:
        _print_json({"found": [dataclasses.asdict(each) for each in found]})
        return
    for each in found:
        _say(
            _plain(
                f"{each.conversation_id}  {each.customer_id}, {each.channel}, {each.turns} turns, "
                f"{each.language or 'language unknown'}, changed {each.updated_at_utc[:16].replace('T', ' ')}"
            )
        )
        _say(f"    {_plain(' '.join(each.snippet.split()))}")
    if not found:
        _say("nothing found")
    if len(found) == limit:
        _say(f"more may follow: --after {shlex.quote(found[-1].cursor)}")


@app.command("tag")
def tag_command(
    conversation_id: Annotated[str, typer.Argument(help="A conversation, as `search` lists it.")],
    tag: Annotated[list[str] | None, typer.Argument(help="Tags to give it.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag to take from it; may be given again.")] = None,
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a conversation tags, or take them from it, to find it again with `search --tag`."""
    with _open(record, settings) as opened:
        tags.tag(opened, conversation_id, tag or [], tagged_by="conversations tag")
        tags.untag(opened, conversation_id, remove or [])
        now = tags.tags_of(opened, conversation_id)
    if as_json:
        _print_json({"conversation_id": conversation_id, "tags": list(now)})
        return
    _say(f"{conversation_id}: {', '.join(now) or 'no tags'}")


@app.command("show")
def show_command(
    conversation_id: Annotated[str, typer.Argument(help="A conversation, as `search` lists it.")],
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a conversation with who said what, when, and which student it was."""
    with _open(record, settings, to_read=True) as opened:
        head = turns.conversation(opened, conversation_id)
        every = turns.all_turns(opened, conversation_id)
        called = tags.tags_of(opened, conversation_id)
    if as_json:
        _print_json(
            {**dataclasses.asdict(head), "tags": list(called), "turns": [dataclasses.asdict(turn) for turn in every]}
        )
        return
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    console.print(
        _plain(
            f"{head.conversation_id} of {head.customer_id}, {head.channel}, {head.state}, consent {head.consent}, "
            f"language {head.language or 'unknown'}, {', '.join(called) or 'no tags'}"
        ),
        markup=False,
    )
    if head.flagged_reason:
        console.print(_plain(f"flagged by the import: {head.flagged_reason}"), markup=False)
    for turn in every:
        by = f"{turn.author.value}{' ' + turn.release_id if turn.release_id else ''}"
        vote = f", thumb {turn.vote.value}" if turn.vote else ""
        console.print(f"\n[{turn.created_at_utc}] {by} ({turn.status}{vote})", style="bold", markup=False)
        console.print(_plain(turn.content), markup=False)


@app.command("verify")
def verify_command(record: RecordOption = None, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """Check every hash, reference, search row and audit entry of the record. Exits with 2 where one disagrees."""
    try:
        with _open(record, settings, to_read=True) as opened:
            result = checks.verify(opened)
    except OperatorError as error:
        if not as_json:
            raise
        result = checks.Checked({}, [str(error)])
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
    """Remove a person from the record, answers, data sets, runs' files, exports and backups. There is no way back."""
    with _open(record, settings) as opened:
        erased = erasure.erase_customer(opened, customer, actor="conversations erase")
    _tell_erased(erased, "removed", as_json)
    if not erased.conversations and not as_json:
        _say(
            f"{_plain(customer)} has no conversation here; the name is remembered all the same, so that no import brings it in"
        )


@app.command("expire")
def expire_command(
    older_than: Annotated[str, typer.Option("--older-than", help="The age, such as 400d, 18w or 2y, of the last word.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and change nothing.")] = False,
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the conversations in which nothing was said for so long, as `erase` removes a person."""
    age = _age(older_than)
    with _open(record, settings) as opened:
        erased = erasure.expire(opened, age, actor="conversations expire", dry_run=dry_run)
    _tell_erased(erased, "would remove" if dry_run else "removed", as_json)


@app.command("backup")
def backup_command(
    path: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    record: RecordOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a consistent copy of the record while it is in use. To restore it, stop every process and put it in its place."""
    with _open(record, settings) as opened:
        done = backup.back_up(opened, path)
        audit.note_alone(opened, "conversations backup", "record backed up", str(done.path), {"turns": done.turns})
    if as_json:
        _print_json({**dataclasses.asdict(done), "path": str(done.path)})
        return
    _say(f"{done.path}: {done.conversations} conversations, {done.turns} turns, {done.bytes / 1e6:.1f} MB, {done.digest}")


def _tell_erased(erased: erasure.Erased, verb: str, as_json: bool) -> None:
    if as_json:
        _print_json(
            {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(erased).items()}
        )
        return
    _say(
        f"{verb} {erased.conversations} conversations, {erased.turns} turns, {erased.answers} answers; "
        f"{erased.files} files changed"
    )
    if erased.releases:
        _say(f"these releases learned from it: {', '.join(erased.releases)}; retrain and promote to replace them")
    if erased.runs:
        _say(f"these runs used it: {', '.join(erased.runs)}")
    for path in erased.unreached:
        _say(
            f"{path} is not where it was written, was changed since or cannot be opened, and was left alone: it may still hold it. "
            "A backup forgets by the same command with --record on it; one that cannot be opened and an export are yours to delete"
        )


_AGE = re.compile(r"(\d{1,6})([dwy])")
_DAYS = {"d": 1, "w": 7, "y": 365}


def _age(text: str) -> timedelta:
    found = _AGE.fullmatch(text.strip())
    days = int(found.group(1)) * _DAYS[found.group(2)] if found else 0
    # Before the year 1 there is no date to compare with.
    if not 1 <= days <= 700_000:
        raise OperatorError(f"--older-than {text!r}: expected a number of days, weeks or years, such as 400d, 18w or 2y")
    return timedelta(days=days)


def _open(record: Path | None, settings: Path | None, *, may_be_new: bool = False, to_read: bool = False) -> Record:
    path = record if record is not None else read_settings(RecordSettings, settings).record.path
    return Record(path) if may_be_new else open_existing(path, to_read=to_read)


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
