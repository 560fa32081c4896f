"""Backups: a consistent copy of the record in one file, made while customers chat.

In: a path. Out: a record that opens like any other. A backup is noted before its first byte is written, so that every later
erasure takes the person out of it too, and out of what a killed backup has left.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from conversations import artefacts
from conversations.artefacts import ArtefactKind
from conversations.checks import statistics
from conversations.errors import OperatorError, OutsideError
from conversations.store import Record


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds."""

    path: Path
    conversations: int
    turns: int
    bytes: int
    digest: str


def back_up(record: Record, path: Path) -> BackedUp:
    """Write a backup to a new file, whole or not at all. It waits for an erasure that is at work on the files, and that for it.

    Raises OperatorError for a file that is there already or is the record itself, OutsideError where nothing can be written.
    """
    with artefacts.alone(record):
        if path.exists():
            raise OperatorError(f"{path}: is there already, and a backup overwrites nothing; give a new name")
        artefacts.note(record, [artefacts.announced(path, ArtefactKind.BACKUP)])
        try:
            _write(record, path)
        except OSError as error:
            raise OutsideError(f"{path}: {error.strerror or error}; give a place that can be written to") from None
        finally:
            with record.write() as transaction:
                artefacts.drop_unwritten(transaction, path.absolute())
        # Opening the copy changes its first bytes: it is described as it is after that.
        with Record(path, to_read=True) as copy:
            counted = statistics(copy)
        artefact = artefacts.described(path, ArtefactKind.BACKUP)
        artefacts.note(record, [artefact])
    return BackedUp(path, counted.conversations, counted.turns, artefact.bytes, artefact.digest)


def _write(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        artefacts.discard_half(path)
        half = artefacts.half_written(path)
        os.close(os.open(half, os.O_CREAT | os.O_WRONLY, 0o600))
        record.copy_to(half)
        with half.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(half, path)
    finally:
        artefacts.discard_half(path)
