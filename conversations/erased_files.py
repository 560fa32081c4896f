"""Files out of which an erasure takes a person: what runs wrote, exports and backups.

In: a record whose rows are gone, the files that it noted, and the names to look for. Out: which files changed, and which could not
be reached. Only one at a time is at work here: `artefacts.alone`.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from conversations import artefacts
from conversations.artefacts import ArtefactKind
from conversations.erased_rows import UNFINISHED, remove
from conversations.errors import OperatorError, OutsideError
from conversations.exchange.exports import Gone, forget
from conversations.store import Record, Transaction, open_existing
from conversations.tombstones import bury_again, name_hash

_log = logging.getLogger(__name__)

# As conversations and decisions are named; a long list of names is looked for by one pass over a file.
_OUR_NAME = re.compile(rb"(?:conversation|decision)_[0-9a-f]{24}")
# Numbers only: no word of a customer can be read out of these.
_WITHOUT_TEXT = (".safetensors", ".bin", ".pt", ".npy", ".npz", ".gguf")


@dataclass
class Files:
    """Files that an erasure went through."""

    changed: list[Path] = field(default_factory=list)
    unreached: list[Path] = field(default_factory=list)


def forget_in_files(record: Record, names: set[str], sources: set[tuple[str, str]]) -> Files:
    """Take the names, and the source ids with their customers, out of every file that the record knows of.

    Raises OutsideError where the disk refuses.
    """
    with record.write() as transaction:
        run_files = _run_files(transaction)
        exports = artefacts.of_kind(transaction, ArtefactKind.EXPORT)
        backups = artefacts.of_kind(transaction, ArtefactKind.BACKUP)
    files = Files()
    try:
        files.changed += [path for path in run_files if names and _erase_lines(path, names)]
        with record.write() as transaction:
            for path in files.changed:
                artefacts.renew(transaction, path)
        _forget_in_exports(record, exports, Gone(names, sources, _graves(record), partial(_is_there, record)), files)
        _forget_in_backups(record, backups, names, files)
    except OSError as error:
        what = f"{error.filename}: {error.strerror or error}"
        raise OutsideError(f"{what}; the record has forgotten, files have not; mend that and run the same again") from None
    return files


def _graves(record: Record) -> set[str]:
    return {str(row["name_hash"]) for row in record.query("SELECT name_hash FROM tombstones")}


def _is_there(record: Record, name: str, customer_id: str) -> bool:
    sql = "SELECT 1 FROM conversations WHERE customer_id = ? AND (source_id = ? OR conversation_id = ?)"
    return bool(record.query(sql, [customer_id, name, name]))


def _run_files(transaction: Transaction) -> list[Path]:
    """Return the files that may hold customers' words: what runs noted, what a killed stage left, and token ids beside the runs."""
    noted = {path for path, _ in artefacts.of_kind(transaction, ArtefactKind.RUN)}
    of_runs = {Path(str(row["path"])) for row in transaction.query("SELECT path FROM runs")}
    folders = of_runs | {folder.parent / artefacts.TOKEN_CACHE_FOLDER for folder in of_runs}
    found = {
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*")
        if path.suffix not in _WITHOUT_TEXT and path.name != "manifest.json"
    }
    return sorted(path for path in noted | found if path.is_file())


def _erase_lines(path: Path, names: set[str]) -> bool:
    """Rewrite a file without the lines that name one of the decisions or conversations; tell whether it changed.

    A report page shows single cases and cannot be cut by the line: it is removed when it names one of them.
    """
    wanted = {name.encode("utf-8", "replace") for name in names}
    unusual = [name for name in wanted if not _OUR_NAME.fullmatch(name)]

    def speaks_of_them(text: bytes) -> bool:
        found = _OUR_NAME.findall(text)
        return not wanted.isdisjoint(found) or any(name in text for name in unusual)

    content = path.read_bytes()
    if not speaks_of_them(content):
        return False
    if path.suffix != ".jsonl":
        path.unlink()
        return True
    # By the byte of the line end alone: a message may hold other characters that text functions take for one.
    kept = [line for line in content.split(b"\n") if not speaks_of_them(line)]
    half = artefacts.half_written(path)
    half.write_bytes(b"\n".join(kept))
    os.replace(half, path)
    return True


def _forget_in_exports(record: Record, exports: Sequence[tuple[Path, str]], gone: Gone, files: Files) -> None:
    """Take conversations out of the exports that are where they were written and as they were.

    One that comes back to its place is rid of what was erased meanwhile. What a killed export has left is without a digest.
    """
    for path, digest in exports:
        was_there = path.is_file()
        if was_there and digest and artefacts.file_digest(path) != digest:
            files.unreached.append(path)
            continue
        has_changed = forget(path, gone)
        if has_changed:
            files.changed.append(path)
        if digest and not was_there:
            files.unreached.append(path)
        elif has_changed:
            with record.write() as transaction:
                artefacts.renew(transaction, path)


def _forget_in_backups(record: Record, backups: Sequence[tuple[Path, str]], names: set[str], files: Files) -> None:
    """Take conversations out of every backup that can be opened, and remove what killed backups have left."""
    for path, digest in backups:
        # No backup is being written now, so that a half one is nobody's.
        has_changed = artefacts.discard_half(path)
        is_there = path.is_file()
        # A backup knows of itself, and may be the record that is erased from.
        if is_there and not path.samefile(record.path):
            try:
                has_changed |= _forget_in_backup(record, path, names)
            except OperatorError as error:
                _log.warning("the backup %s; it was left alone", error)
                files.unreached.append(path)
        elif digest and not is_there:
            files.unreached.append(path)
        if has_changed:
            files.changed.append(path)
        if not digest or (has_changed and is_there):
            with record.write() as transaction:
                artefacts.renew(transaction, path)


def _forget_in_backup(record: Record, path: Path, names: set[str]) -> bool:
    """Take conversations out of a backup and give it every tombstone, so that whoever restores it does not undo an erasure."""
    graves = record.query("SELECT * FROM tombstones")
    files = record.query("SELECT path, digest, bytes FROM artefacts")
    try:
        with open_existing(path) as backup:
            with backup.write() as transaction:
                buried = {str(row["name_hash"]) for row in graves}
                there = [
                    str(row["conversation_id"]) for row in transaction.query("SELECT conversation_id FROM conversations")
                ]
                # Also what was erased while the backup was out of reach.
                gone = [each for each in there if each in names or name_hash("conversation", each) in buried]
                removed = remove(transaction, gone)
                customers = _remove_buried_customers(transaction, buried)
                bury_again(transaction, graves)
                artefacts.agree(transaction, files)
                # Names of others whose erasure was at work when the backup was made.
                noted = transaction.execute("DELETE FROM record_facts WHERE name = ?", [UNFINISHED])
            if removed.conversations or customers or noted:
                backup.compact()
    except OutsideError as error:
        raise OutsideError(f"the backup {error}") from None
    return bool(removed.conversations or customers or noted)


def _remove_buried_customers(transaction: Transaction, graves: set[str]) -> int:
    """Remove erased customers of whom nothing is left. One who came back since has conversations, and stays."""
    rows = transaction.query(
        "SELECT customer_id FROM customers WHERE NOT EXISTS "
        "(SELECT 1 FROM conversations c WHERE c.customer_id = customers.customer_id)"
    )
    gone = [str(row["customer_id"]) for row in rows if name_hash("customer", str(row["customer_id"])) in graves]
    for customer_id in gone:
        transaction.execute("DELETE FROM feedback WHERE customer_id = ?", [customer_id])
        transaction.execute("DELETE FROM customers WHERE customer_id = ?", [customer_id])
    return len(gone)
