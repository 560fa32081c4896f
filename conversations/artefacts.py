"""Files that hold what the record says: what runs wrote, exports, backups.

In: paths. Out: an entry for each, so that an erasure finds every copy of a person's words and `verify` sees what was changed.
An entry without a digest is of a file that is being written, or that a killed writer has left.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from conversations.errors import OutsideError
from conversations.messages import utc_now
from conversations.store import Record, Row, Transaction

_PIECE_BYTES = 1 << 20
# Beside the folders of runs: their rows as token ids, which are their text.
TOKEN_CACHE_FOLDER = "token_cache"


class ArtefactKind(StrEnum):
    """Who wrote a file, and so how words are taken out of it."""

    RUN = "run"
    EXPORT = "export"
    BACKUP = "backup"


@dataclass(frozen=True)
class Artefact:
    """A file and what is in it. `run_id` and `stage` are given for the files of runs."""

    path: Path
    kind: ArtefactKind
    holds_text: bool
    digest: str
    bytes: int
    run_id: str | None = None
    stage: str = ""


@contextmanager
def alone(record: Record) -> Iterator[None]:
    """Hold the files of a record against every other erasure and backup, waiting for one that is at work.

    The folder is what is locked, so that nothing is left behind, and a holder that was killed holds it no more. Raises OutsideError
    where it cannot be locked.
    """
    folder = record.path.resolve().parent
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _unlockable(folder, error) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unlockable(folder, error) from None
        yield
    finally:
        os.close(lock)


def _unlockable(folder: Path, error: OSError) -> OutsideError:
    return OutsideError(
        f"{folder}: cannot be locked ({error.strerror or error}); an erasure or a backup needs it; mend that and run the same again"
    )


def half_written(path: Path) -> Path:
    """Return where a file is written until it is whole."""
    return path.with_name(f".{path.name}.half")


def discard_half(path: Path) -> bool:
    """Remove what was written of a file that is not whole, and SQLite's journal beside it; tell whether there was any."""
    half = half_written(path)
    there = half.exists()
    half.unlink(missing_ok=True)
    half.with_name(half.name + "-journal").unlink(missing_ok=True)
    return there


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file with the algorithm in front, reading a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return "sha256:" + digest.hexdigest()


def described(path: Path, kind: ArtefactKind) -> Artefact:
    """Return the entry for a file as it is now, which holds people's words."""
    return Artefact(path.absolute(), kind, True, file_digest(path), path.stat().st_size)


def announced(path: Path, kind: ArtefactKind) -> Artefact:
    """Return the entry for a file whose first byte is still to come."""
    return Artefact(path.absolute(), kind, True, "", 0)


def note(record: Record, artefacts: Iterable[Artefact]) -> None:
    """Enter files; a file that was written anew is described anew, one that is announced as it was until then."""
    with record.write() as transaction:
        for each in artefacts:
            transaction.execute(
                "INSERT INTO artefacts VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
                "kind = excluded.kind, run_id = excluded.run_id, stage = excluded.stage, holds_text = excluded.holds_text, "
                "digest = CASE excluded.digest WHEN '' THEN digest ELSE excluded.digest END, "
                "bytes = CASE excluded.digest WHEN '' THEN bytes ELSE excluded.bytes END, written_at_utc = excluded.written_at_utc",
                [
                    str(each.path),
                    each.kind,
                    each.run_id,
                    each.stage,
                    int(each.holds_text),
                    each.digest,
                    each.bytes,
                    utc_now(),
                ],
            )


def drop_unwritten(transaction: Transaction, path: Path) -> None:
    """Drop the entry of a file that was announced and never came to be."""
    if not path.exists():
        transaction.execute("DELETE FROM artefacts WHERE path = ? AND digest = ''", [str(path)])


def renew(transaction: Transaction, path: Path) -> None:
    """Note a file that an erasure has changed, or drop the entry of one that it has removed."""
    if not path.exists():
        transaction.execute("DELETE FROM artefacts WHERE path = ?", [str(path)])
        return
    transaction.execute(
        "UPDATE artefacts SET digest = ?, bytes = ? WHERE path = ?", [file_digest(path), path.stat().st_size, str(path)]
    )


def agree(transaction: Transaction, files: Sequence[Row]) -> None:
    """Take over what another copy of the record knows of the same files: path, digest, bytes. What it no longer has goes."""
    known = {str(row["path"]): row for row in files}
    for row in transaction.query("SELECT path FROM artefacts"):
        newer = known.get(str(row["path"]))
        if newer is None:
            transaction.execute("DELETE FROM artefacts WHERE path = ?", [row["path"]])
        else:
            transaction.execute(
                "UPDATE artefacts SET digest = ?, bytes = ? WHERE path = ?", [newer["digest"], newer["bytes"], row["path"]]
            )


def of_kind(transaction: Transaction, kind: ArtefactKind) -> list[tuple[Path, str]]:
    """Return the noted files of a kind that hold text, there or not, with their digests."""
    rows = transaction.query("SELECT path, digest FROM artefacts WHERE kind = ? AND holds_text = 1 ORDER BY path", [kind])
    return [(Path(str(row["path"])), str(row["digest"])) for row in rows]
