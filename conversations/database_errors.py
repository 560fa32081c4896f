"""What an error of SQLite means for the person who must act.

In: an error and the file it is about. Out: a failure in one sentence, or nothing where the bug is ours.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversations.errors import Failure, OperatorError, OutsideError

CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


def failure_of(path: Path, error: sqlite3.Error) -> Failure | None:
    """Return what an error of SQLite means for the person who must act, or None where it is a bug of ours."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return OutsideError(f"{path}: another process holds the record ({error}); run the same again")
        case sqlite3.SQLITE_FULL:
            return OutsideError(
                f"{path}: the disk is full; nothing of this change was kept; free space and run the same again"
            )
        case sqlite3.SQLITE_IOERR:
            return OutsideError(f"{path}: the disk failed ({error}); nothing of this change was kept; look after the disk")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return OperatorError(
                f"{path}: the file or its folder cannot be written to ({error}); nothing was changed; mend their permissions"
            )
        case sqlite3.SQLITE_NOTADB:
            return OperatorError(
                f"{path}: cannot be opened as a record: {error}; expected an SQLite file of this product or a new path"
            )
        case sqlite3.SQLITE_CORRUPT:
            return OperatorError(f"{path}: the record is damaged ({error}); restore it from a backup")
    return None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into failures that name who must act."""
    try:
        yield
    except sqlite3.Error as error:
        failure = failure_of(path, error)
        if failure is None:
            raise
        raise failure from None
