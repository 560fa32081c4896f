"""Files that hold what the record says: what runs wrote, exports, backups.

In: paths. Out: an entry for each, so that an erasure finds every copy of a person's words and `verify` sees what was changed.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

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


def note(record: Record, artefacts: Iterable[Artefact]) -> None:
    """Enter files; a file that was written anew is described anew."""
    with record.write() as transaction:
        for each in artefacts:
            transaction.execute(
                "INSERT INTO artefacts VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
                "kind = excluded.kind, run_id = excluded.run_id, stage = excluded.stage, holds_text = excluded.holds_text, "
                "digest = excluded.digest, bytes = excluded.bytes, written_at_utc = excluded.written_at_utc",
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
