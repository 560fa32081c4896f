"""The files that exports wrote, taken up again: their manifests, and a person taken out of them.

In: the path of an exported file, and names of conversations. Out: the same file without their lines, or no file where its
lines cannot be told apart. Knows no record; the caller notes the new digest there.
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from conversations.artefacts import file_digest, half_written
from conversations.exchange.lines_out import CSV_COLUMNS
from conversations.exchange.raw_json import Member, Refused, members
from conversations.messages import MAX_MESSAGE_CHARACTERS, Json
from conversations.tombstones import name_hash

# So that spreadsheets read the file as UTF-8.
CSV_START = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Gone:
    """Whose lines go: who is erased now, and who was erased while a file was away from its place.

    `sources` are the ids that the conversations had where they came from, each with its customer. `graves` are the tombstones of
    all that ever went; `is_there` tells whether the record still has a conversation under an id and a customer.
    """

    conversation_ids: Set[str]
    sources: Set[tuple[str, str]]
    graves: Set[str]
    is_there: Callable[[str, str], bool]

    def has(self, name: str, customer_id: str | None = None) -> bool:
        """Tell whether what is called so goes. Two customers may share an id: where no customer is told, all of the id goes."""
        if name in self.conversation_ids or (name, customer_id) in self.sources:
            return True
        is_buried = name_hash("conversation", name) in self.graves
        return is_buried and (customer_id is None or not self.is_there(name, customer_id))


class _CannotTell(Exception):
    """Whose line it is cannot be told."""


def manifest_path(path: Path) -> Path:
    """Return where the counts and the digest of an export are."""
    return path.with_name(path.name + ".manifest.json")


def index_path(path: Path) -> Path:
    """Return where the hashed names of the conversations of a fine-tuning file are: its lines may hold no name."""
    return path.with_name(path.name + ".index")


def index_line(conversation_id: str, line: bytes) -> bytes:
    """Return the line of the index for an example: the conversation's name as a tombstone would say it, and the example's hash."""
    return f"{name_hash('conversation', conversation_id)} {_hash(line)}\n".encode()


def csv_text(rows: Iterable[list[str]]) -> bytes:
    """Return rows as they stand in a spreadsheet's file."""
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue().encode("utf-8", "replace")


def write_manifest(path: Path, manifest: Mapping[str, Json]) -> None:
    """Write the manifest of an export, whole or not at all."""
    _replace_with(manifest_path(path), (json.dumps(dict(manifest), indent=2, ensure_ascii=False) + "\n").encode())


def forget(path: Path, gone: Gone) -> bool:
    """Take conversations out of an exported file; tell whether it changed.

    The file is removed where it cannot be told whose its lines are, and so is what a killed export left half written beside it.
    Raises OSError where the disk refuses.
    """
    # A file on its way holds nobody whom earlier erasures removed: it may go on where none is removed now.
    found_half = bool(gone.conversation_ids) and half_written(path).exists()
    if found_half:
        for each in (path, index_path(path)):
            half_written(each).unlink(missing_ok=True)
    if not path.is_file():
        return found_half
    half = path.with_name(f".{path.name}.forget.half")
    half_index = index_path(path).with_name(f".{path.name}.index.half")
    try:
        with path.open("rb") as file, half.open("wb") as out, half_index.open("wb") as index:
            os.fchmod(out.fileno(), 0o600)
            removed = _copy(path, file, out, index, gone)
        if not removed:
            return found_half
        if index_path(path).exists():
            os.replace(half_index, index_path(path))
        os.replace(half, path)
        _renew_manifest(path, removed)
    except _CannotTell:
        for each in (path, index_path(path), manifest_path(path)):
            each.unlink(missing_ok=True)
    finally:
        half.unlink(missing_ok=True)
        half_index.unlink(missing_ok=True)
    return True


def _copy(path: Path, file: BinaryIO, out: BinaryIO, index: BinaryIO, gone: Gone) -> list[int]:
    """Copy the lines of other people; return how many messages each removed conversation had."""
    # A redacted export says no customer.
    told_apart = not _is_redacted(path)
    start = file.read(len(CSV_START))
    file.seek(0)
    if start == CSV_START:
        return _copy_csv(file, out, gone)
    if index_path(path).exists():
        return _copy_indexed(path, file, out, index, gone)
    removed: list[int] = []
    for line in file:
        told = _members_of(line)
        if "id" not in told or not isinstance(told["id"].value, str):
            raise _CannotTell
        name = told["id"].value
        customer_id = str(told["customer_id"].value) if told_apart and "customer_id" in told else None
        if gone.has(name, customer_id):
            removed.append(_message_count(told))
        else:
            out.write(line)
    return removed


def _members_of(line: bytes) -> dict[str, Member]:
    try:
        return members(line.decode("utf-8"))[0] if line.startswith(b"{") else {}
    except (Refused, UnicodeDecodeError):
        raise _CannotTell from None


def _message_count(told: Mapping[str, Member]) -> int:
    lists = [told[key].value for key in ("messages", "conversations") if key in told]
    return sum(len(each) for each in lists[:1] if isinstance(each, list)) + ("system" in told and "messages" not in told)


def _copy_indexed(path: Path, file: BinaryIO, out: BinaryIO, index: BinaryIO, gone: Gone) -> list[int]:
    # The first versions wrote other hashes, which say nothing of earlier erasures.
    hashes = gone.graves | {_hash(name.encode("utf-8", "replace")) for name in gone.conversation_ids}
    removed: list[int] = []
    with index_path(path).open("rb") as entries:
        for line in file:
            entry = entries.readline()
            name, _, line_hash = entry.decode("ascii", "replace").strip().partition(" ")
            if line_hash != _hash(line):
                raise _CannotTell
            if name in hashes:
                removed.append(_message_count(_members_of(line)))
            else:
                out.write(line)
                index.write(entry)
    return removed


def _copy_csv(file: BinaryIO, out: BinaryIO, gone: Gone) -> list[int]:
    csv.field_size_limit(MAX_MESSAGE_CHARACTERS * 8)
    removed: Counter[str] = Counter()
    out.write(CSV_START)
    for number, row in enumerate(_csv_rows(file)):
        if number == 0 and tuple(row) != CSV_COLUMNS:
            raise _CannotTell
        if len(row) < 2:
            raise _CannotTell
        if number and (gone.has(row[0]) or gone.has(row[0].removeprefix("'"))):
            removed[row[0]] += 1
        else:
            out.write(csv_text([row]))
    return list(removed.values())


def _csv_rows(file: BinaryIO) -> Iterator[list[str]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        # The reader puts a cell together again that was split at the line ends in it.
        yield from csv.reader(text, strict=True)
    except (csv.Error, UnicodeDecodeError):
        raise _CannotTell from None
    finally:
        # The file is its owner's to close.
        text.detach()


def _is_redacted(path: Path) -> bool:
    try:
        return bool(json.loads(manifest_path(path).read_text(encoding="utf-8"))["redacted"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _renew_manifest(path: Path, removed: list[int]) -> None:
    try:
        manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    manifest |= {
        "conversations": manifest.get("conversations", 0) - len(removed),
        "turns": manifest.get("turns", 0) - sum(removed),
        "bytes": path.stat().st_size,
        "digest": file_digest(path),
        "forgotten": manifest.get("forgotten", 0) + len(removed),
    }
    write_manifest(path, manifest)


def _replace_with(path: Path, content: bytes) -> None:
    half = half_written(path)
    half.write_bytes(content)
    os.replace(half, path)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
