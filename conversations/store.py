"""The store: one SQLite file that many processes read and write, and the promises about it.

In and out: frozen values. Writers take short immediate transactions, one at a time in each process; readers borrow a
connection of their own for each query. Nobody outside this package sees an SQLite object, so that another database can stand
behind the same promises later.
"""

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import psutil

from conversations.errors import OperatorError, OutsideError
from conversations.schema import migrate

Cell: TypeAlias = str | int | float | None
Row: TypeAlias = Mapping[str, Cell]
_WAIT_SECONDS = 15


class Transaction:
    """Statements inside one open immediate transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Cell] | Mapping[str, Cell] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def insert(self, table: str, row: Mapping[str, Cell]) -> int:
        """Insert a row and return its integer key."""
        columns = ", ".join(row)
        marks = ", ".join(f":{column}" for column in row)
        cursor = self._connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", dict(row))
        return int(cursor.lastrowid or 0)

    def query(self, sql: str, parameters: Sequence[Cell] | Mapping[str, Cell] = ()) -> list[Row]:
        """Return the rows of a query as this transaction sees them."""
        return [dict(row) for row in self._connection.execute(sql, parameters)]


class Record:
    """An open record. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a record, making or migrating the file where needed.

        Raises OperatorError when the path cannot hold a record, OutsideError when the disk refuses.
        """
        self.path = path
        self._write_lock = threading.RLock()
        # As many as were ever at work at once: a connection for each thread would stay open behind every thread that ended.
        self._idle_readers: deque[sqlite3.Connection] = deque()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            _switch_to_wal(self._writer)
            migrate(self._writer)
        except sqlite3.DatabaseError as error:
            raise OperatorError(
                f"{path}: cannot be opened as a record: {error}; expected an SQLite file of this product or a new path"
            ) from None
        except OSError as error:
            raise OutsideError(f"{path}: {error.strerror or error}; give a folder that can be written to") from None

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        with self._connections_lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open one immediate transaction: committed at the end, rolled back on any exception.

        Raises OutsideError when another process holds the file for longer than the waiting time.
        """
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise OutsideError(f"{self.path}: {error}; another process holds the record; try again") from None
            try:
                yield Transaction(self._writer)
            except BaseException:
                self._writer.rollback()
                raise
            self._writer.commit()

    def query(self, sql: str, parameters: Sequence[Cell] | Mapping[str, Cell] = ()) -> list[Row]:
        """Return the rows of a query as last committed."""
        try:
            reader = self._idle_readers.pop()
        except IndexError:
            reader = self._connect()
            reader.execute("PRAGMA query_only = ON")
        try:
            return [dict(row) for row in reader.execute(sql, parameters)]
        finally:
            self._idle_readers.append(reader)

    def one(self, sql: str, parameters: Sequence[Cell] | Mapping[str, Cell] = ()) -> Row | None:
        """Return the first row of a query, or None."""
        rows = self.query(sql, parameters)
        return rows[0] if rows else None

    def compact(self) -> None:
        """Give back the space of deleted rows, so that their bytes leave the disk.

        Raises OutsideError, with the bytes still there, when another process holds the file for longer than the wait.
        """
        with self._write_lock:
            try:
                self._writer.execute("INSERT INTO turn_search(turn_search) VALUES ('optimize')")
                self._writer.execute("VACUUM")
                is_busy = bool(self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
            except sqlite3.OperationalError as error:
                raise OutsideError(
                    f"{self.path}: {error}; deleted bytes are still in the file; run the same again"
                ) from None
        if is_busy:
            raise OutsideError(
                f"{self.path}: another process is reading; deleted bytes are still in the file beside it; run the same again"
            )

    def search_index_fault(self) -> str | None:
        """Return what SQLite's own check finds wrong between the search index and the turns, or None."""
        with self._write_lock:
            try:
                self._writer.execute("INSERT INTO turn_search(turn_search, rank) VALUES ('integrity-check', 1)")
            except sqlite3.DatabaseError as error:
                return str(error)
        return None

    def fact(self, name: str) -> str:
        """Return a fact that the record holds about itself, such as the salt of its splits."""
        row = self.one("SELECT value FROM record_facts WHERE name = ?", [name])
        if row is None:
            raise KeyError(name)
        return str(row["value"])

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=_WAIT_SECONDS, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        with self._connections_lock:
            self._connections.append(connection)
        return connection


def open_existing(path: Path) -> Record:
    """Open a record that is there; a mistyped path makes none.

    Raises OperatorError when there is no such file.
    """
    if not path.is_file():
        raise OperatorError(
            f"{path}: there is no record; expected one that `conversations import` or `support-bot serve` has made; mend the path"
        )
    return Record(path)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL; SQLite does not wait here by itself while another process does the same."""
    give_up = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def process_token() -> str:
    """Return a name of this process that a later one with the same number does not share."""
    return f"{os.uname().nodename}:{os.getpid()}:{psutil.Process().create_time():.3f}"


def is_alive(token: str) -> bool:
    """Tell whether the process of a token still runs; one on another machine is taken to be alive.

    A process that ended and was not yet waited for counts as dead. Start times are compared to two seconds, because they are
    counted from the time of the machine's start, which moves when its clock is set.
    """
    node, pid, started = token.rsplit(":", 2)
    if node != os.uname().nodename:
        return True
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(started)) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
