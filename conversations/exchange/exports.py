"""The record into files: as the record was at one moment, in a fixed order, in constant memory.

In: an open record and a path. Out: the file, and a manifest beside it with counts and digest. A file is whole or not there.
Every file is noted in the record before its first byte is written, so that an erasure finds it, and `forget` takes a person
out of it.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from conversations import artefacts
from conversations.artefacts import Artefact, ArtefactKind
from conversations.errors import OperatorError, OutsideError
from conversations.exchange.exported_files import CSV_START, Gone, csv_text, forget, index_line, index_path, write_manifest
from conversations.exchange.formats import is_empty
from conversations.exchange.lines_out import (
    CSV_COLUMNS,
    LeftOut,
    WrittenConversation,
    WrittenTurn,
    chat_line,
    csv_rows,
    example_of,
    fine_tuning_line,
    redacted,
    sharegpt_line,
)
from conversations.messages import OPEN_STATUSES, Author, ChatMessage, Consent, Json, Role, TurnStatus, Vote
from conversations.redaction import RedactionRules
from conversations.schema import SQLITE_START
from conversations.store import Cell, Record, Row, Snapshot

__all__ = ["ExportFormat", "Exported", "Gone", "export_file", "forget"]


class ExportFormat(StrEnum):
    """How an export is written."""

    CHAT = "chat"
    SHAREGPT = "sharegpt"
    FINE_TUNING = "fine-tuning"
    CSV = "csv"


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it left out, by reason."""

    path: Path
    format: ExportFormat
    redacted: bool
    conversations: int
    turns: int
    bytes: int
    digest: str
    left_out: dict[str, int]


@dataclass
class _Writing:
    """A file on its way: what was written so far."""

    out: BinaryIO
    index: BinaryIO | None
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size: int = 0
    conversations: int = 0
    turns: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def write(self, content: bytes) -> None:
        self.out.write(content)
        self.digest.update(content)
        self.size += len(content)


def export_file(
    record: Record,
    path: Path,
    export_format: ExportFormat = ExportFormat.CHAT,
    *,
    redaction: RedactionRules | None = None,
) -> Exported:
    """Write the record as JSON Lines or CSV, with a manifest beside it; redacted where rules are given.

    Raises OperatorError for a folder, OutsideError where nothing can be written; then no part is left behind.
    """
    if path.is_dir():
        raise OperatorError(f"{path}: is a folder; expected the name of a file to write; add one")
    path = path.absolute()
    _refuse_a_record(record, path)
    half, half_index = (artefacts.half_written(each) for each in (path, index_path(path)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None
    artefacts.note(record, [artefacts.announced(path, ArtefactKind.EXPORT)])
    try:
        with half.open("wb") as out, half_index.open("wb") as index:
            os.fchmod(out.fileno(), 0o600)
            writing = _Writing(out, index if export_format is ExportFormat.FINE_TUNING else None)
            with record.snapshot() as snapshot:
                _write_all(snapshot, writing, export_format, redaction)
        digest = "sha256:" + writing.digest.hexdigest()
        counts = (writing.conversations, writing.turns, writing.size, digest, dict(sorted(writing.left_out.items())))
        exported = Exported(path, export_format, redaction is not None, *counts)
        artefacts.note(record, [Artefact(path, ArtefactKind.EXPORT, True, digest, exported.bytes)])
        # The index first: an example without a fitting index is given up by an erasure, never kept.
        if writing.index:
            os.replace(half_index, index_path(path))
        else:
            index_path(path).unlink(missing_ok=True)
        os.replace(half, path)
        write_manifest(path, _manifest(exported))
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        half.unlink(missing_ok=True)
        half_index.unlink(missing_ok=True)
        if not path.exists():
            with record.write() as transaction:
                transaction.execute("DELETE FROM artefacts WHERE path = ? AND kind = 'export'", [str(path)])
    return exported


def _refuse_a_record(record: Record, path: Path) -> None:
    """Raise OperatorError where the export would overwrite a record, a backup, or what stands beside one."""
    beside = {record.path.absolute().with_name(record.path.name + suffix) for suffix in ("", "-wal", "-shm")}
    is_database = False
    if path.is_file():
        with path.open("rb") as file:
            is_database = file.read(len(SQLITE_START)) == SQLITE_START
    if is_database or path in beside:
        raise OperatorError(f"{path}: is a record or a backup of one, and an export would overwrite it; give another name")


def _unwritable(path: Path, error: OSError) -> OutsideError:
    return OutsideError(f"{path}: {error.strerror or error}; give a place that can be written to")


def _manifest(exported: Exported) -> dict[str, Json]:
    return {
        "format": exported.format.value,
        "redacted": exported.redacted,
        "conversations": exported.conversations,
        "turns": exported.turns,
        "left_out": dict(exported.left_out),
        "bytes": exported.bytes,
        "digest": exported.digest,
    }


def _write_all(snapshot: Snapshot, writing: _Writing, export_format: ExportFormat, redaction: RedactionRules | None) -> None:
    salt = str(next(snapshot.rows("SELECT value FROM record_facts WHERE name = 'split_salt'"))["value"])
    if export_format is ExportFormat.CSV:
        writing.write(CSV_START + csv_text([list(CSV_COLUMNS)]))
    # Versions under one id follow each other as they came, so that an import names them the same.
    for head in snapshot.rows("SELECT * FROM conversations ORDER BY created_at_utc, conversation_seq"):
        told = _conversation(snapshot, head, writing.left_out)
        if not told.turns:
            writing.left_out["conversations without a message"] += 1
            continue
        if redaction is not None:
            alias = "customer-" + hashlib.sha256(f"{salt} {told.customer_id}".encode("utf-8", "replace")).hexdigest()[:16]
            told = redacted(told, redaction, alias)
        try:
            line, turn_count = _line(told, export_format)
        except LeftOut as reason:
            writing.left_out[f"conversations: {reason}"] += 1
            continue
        writing.write(line)
        if writing.index:
            writing.index.write(index_line(told.conversation_id, line))
        writing.conversations += 1
        writing.turns += turn_count


def _line(told: WrittenConversation, export_format: ExportFormat) -> tuple[bytes, int]:
    """Return a conversation in a format, and how many messages it has there. Raises LeftOut."""
    match export_format:
        case ExportFormat.CHAT:
            return chat_line(told).encode("utf-8", "replace"), len(told.turns)
        case ExportFormat.SHAREGPT:
            line, turn_count = sharegpt_line(told)
            return line.encode("utf-8", "replace"), turn_count
        case ExportFormat.FINE_TUNING:
            example = example_of(told)
            return fine_tuning_line(example).encode("utf-8", "replace"), len(example.turns)
        case ExportFormat.CSV:
            return csv_text(csv_rows(told)), len(told.turns)


_TURNS = """SELECT t.turn_id, t.parent_turn_id, t.role, t.author, t.status, t.content, t.extra_json, t.release_id, t.created_at_utc,
    (SELECT vote FROM feedback f WHERE f.turn_id = t.turn_id ORDER BY customer_id LIMIT 1) AS vote,
    (SELECT reason FROM feedback f WHERE f.turn_id = t.turn_id ORDER BY customer_id LIMIT 1) AS vote_reason
FROM turns t WHERE t.conversation_id = ? ORDER BY t.turn_seq"""


def _conversation(snapshot: Snapshot, head: Row, left_out: Counter[str]) -> WrittenConversation:
    key: list[Cell] = [head["conversation_id"]]
    tags = snapshot.rows("SELECT tag FROM conversation_tags WHERE conversation_id = ? ORDER BY tag", key)
    return WrittenConversation(
        conversation_id=str(head["conversation_id"]),
        source_id=str(head["source_id"] or head["conversation_id"]),
        customer_id=str(head["customer_id"]),
        created_at_utc=str(head["created_at_utc"]),
        consent=Consent(str(head["consent"])),
        language=str(head["language"]),
        tags=tuple(str(row["tag"]) for row in tags),
        labels_json=str(head["labels_json"]),
        tools_json=str(head["tools_json"]),
        extra_json=str(head["extra_json"]),
        turns=tuple(_said(list(snapshot.rows(_TURNS, key)), left_out)),
    )


def _said(rows: list[Row], left_out: Counter[str]) -> Iterator[WrittenTurn]:
    """Yield the turns of the visible thread in which something was said, and count the others."""
    by_id = {str(row["turn_id"]): row for row in rows}
    branch: list[Row] = []
    tip: Row | None = rows[-1] if rows else None
    # The record lets no turn follow itself; `verify` names one that was made to.
    while tip is not None and len(branch) < len(rows):
        branch.append(tip)
        tip = by_id[str(tip["parent_turn_id"])] if tip["parent_turn_id"] else None
    if len(branch) < len(rows):
        left_out["turns on branches beside the visible thread"] += len(rows) - len(branch)
    for row in reversed(branch):
        status = TurnStatus(str(row["status"]))
        message = ChatMessage(Role(str(row["role"])), str(row["content"]), str(row["extra_json"]))
        if status in OPEN_STATUSES:
            left_out["turns still open"] += 1
        elif status is TurnStatus.FAILED:
            left_out["turns that failed"] += 1
        elif is_empty(message):
            left_out["turns without a text"] += 1
        else:
            yield WrittenTurn(
                message,
                Author(str(row["author"])),
                status,
                str(row["created_at_utc"]),
                str(row["release_id"]) if row["release_id"] else None,
                Vote(str(row["vote"])) if row["vote"] else None,
                str(row["vote_reason"] or ""),
            )
