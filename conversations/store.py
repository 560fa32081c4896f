"""The store: one SQLite file that many processes read and write, and the promises about it.

In and out: frozen values. Writers take short immediate transactions, one at a time in each process and in the order they came;
readers borrow a connection of their own for each query. Nobody outside this package sees an SQLite object, so that another
database can stand behind the same promises later.
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

from conversations.database_errors import CANNOT_WRITE, explained, failure_of
from conversations.errors import OperatorError, OutsideError
from conversations.schema import WAIT_SECONDS, begin_immediate, is_current, migrate, refuse_what_is_not_ours, unknown_steps
from conversations.searchable import search_words

Cell: TypeAlias = str | int | float | None
Row: TypeAlias = Mapping[str, Cell]
Parameters: TypeAlias = Sequence[Cell] | Mapping[str, Cell]


class Transaction:
    """Statements inside one open immediate transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def insert(self, table: str, row: Mapping[str, Cell]) -> None:
        """Insert a row."""
        columns = ", ".join(row)
        marks = ", ".join(f":{column}" for column in row)
        self._connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", dict(row))

    def insert_many(self, table: str, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Insert rows that all have the same columns."""
        if rows:
            columns = ", ".join(rows[0])
            marks = ", ".join(f":{column}" for column in rows[0])
            self._connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return the rows of a query as this transaction sees them."""
        return [dict(row) for row in self._connection.execute(sql, parameters)]


class Snapshot:
    """The record as it was at one moment, however much is written meanwhile."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def rows(self, sql: str, parameters: Parameters = ()) -> Iterator[Row]:
        """Yield the rows of a query one at a time, so that any number of them takes the same memory."""
        with explained(self._path):
            for row in self._connection.execute(sql, parameters):
                yield dict(row)

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(next(self.rows(f"SELECT COUNT(*) AS n FROM {table}"))["n"] or 0)


class _Turnstile:
    """Lets one thread through at a time, in the order they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._inside: int | None = None

    def enter(self) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._inside is None:
                self._inside = me
                return
            if self._inside == me:
                raise RuntimeError("a transaction inside a transaction: pass the open one on")
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:
            with self._lock:
                still_waits = gate in self._waiting
                if still_waits:
                    self._waiting.remove(gate)
            if not still_waits:
                self.leave()
            raise
        self._inside = me

    def leave(self) -> None:
        with self._lock:
            self._inside = None
            if self._waiting:
                # Nobody slips in before the next one: it counts as inside from now on.
                self._inside = 0
                self._waiting.popleft().release()


class Record:
    """An open record. Close it, or use it as a context manager."""

    def __init__(self, path: Path, *, to_read: bool = False) -> None:
        """Open a record, making or migrating the file where needed.

        With `to_read` a file that cannot be written to is opened all the same, and refuses every change.
        Raises OperatorError when the path cannot hold a record, OutsideError when the disk refuses.
        """
        self.path = path
        self._turnstile = _Turnstile()
        # As many as were ever at work at once: a connection for each thread would stay open behind every thread that ended.
        self._idle_readers: deque[sqlite3.Connection] = deque()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        self._uri_options = ""
        try:
            try:
                self._writer: sqlite3.Connection | None = self._open_to_write()
            except sqlite3.OperationalError as error:
                self.close()
                if not to_read or not path.is_file() or error.sqlite_errorcode & 0xFF not in CANNOT_WRITE:
                    raise
                self._writer = None
                self._open_to_read()
        except sqlite3.DatabaseError as error:
            self.close()
            raise failure_of(path, error) or OperatorError(
                f"{path}: cannot be opened as a record: {error}; expected an SQLite file of this product or a new path"
            ) from None
        except OperatorError as error:
            self.close()
            raise OperatorError(f"{path}: {error}") from None
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
            self._idle_readers.clear()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open one immediate transaction: committed at the end, rolled back on any exception.

        Raises OutsideError when the disk refuses or another process holds the file for longer than the waiting time, and
        OperatorError for a record that is damaged or cannot be written to. Nothing of the transaction is kept then.
        """
        with self._alone() as writer:
            begin_immediate(writer)
            try:
                yield Transaction(writer)
                writer.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back already.
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return the rows of a query as last committed."""
        reader = self._reader()
        try:
            with explained(self.path):
                return [dict(row) for row in reader.execute(sql, parameters)]
        finally:
            self._idle_readers.append(reader)

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Return the first row of a query, or None."""
        rows = self.query(sql, parameters)
        return rows[0] if rows else None

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Open the record as it is now, to read much of it. The file beside it grows while this is open, so not for long."""
        reader = self._reader()
        reader.execute("BEGIN")
        try:
            yield Snapshot(reader, self.path)
        finally:
            reader.execute("ROLLBACK")
            self._idle_readers.append(reader)

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy without free space to a new file, while others read and write.

        Raises OutsideError where it cannot be written.
        """
        reader = self._connect_reader()
        try:
            with explained(self.path):
                reader.execute("PRAGMA query_only = OFF")
                reader.execute("VACUUM INTO ?", [str(path)])
        finally:
            self._close_one(reader)

    def compact(self) -> None:
        """Give back the space of deleted rows, so that their bytes leave the disk.

        Raises OutsideError, with the bytes still there, when another process holds the file for longer than the wait.
        """
        try:
            with self._alone() as writer:
                writer.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
                writer.execute("INSERT INTO turn_search(turn_search) VALUES ('optimize')")
                writer.execute("VACUUM")
                is_busy = bool(writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
                writer.execute("PRAGMA busy_timeout = 0")
        except OutsideError as error:
            raise OutsideError(f"{error}; deleted bytes are still in the file") from None
        if is_busy:
            raise OutsideError(
                f"{self.path}: another process is reading; deleted bytes are still in the file beside it; run the same again"
            )

    def search_index_fault(self) -> str | None:
        """Return what SQLite's own check finds wrong between the search index and the turns, or None."""
        if self._writer is None:
            return None
        with self._alone() as writer:
            try:
                writer.execute("INSERT INTO turn_search(turn_search, rank) VALUES ('integrity-check', 1)")
            except sqlite3.DatabaseError as error:
                return str(error)
        return None

    def first_wrong_search_row(self) -> str | None:
        """Return the first turn of which the search index holds other words than it says. Builds the index anew: slow."""
        with self._alone() as writer:
            writer.execute("DROP TABLE IF EXISTS temp.words_again")
            writer.execute(
                "CREATE VIRTUAL TABLE temp.words_again USING fts5(words, tokenize='unicode61 remove_diacritics 2')"
            )
            writer.execute("INSERT INTO temp.words_again(rowid, words) SELECT turn_seq, words FROM turn_words")
            for name, source in (("there", "'main', 'turn_search'"), ("derived", "'temp', 'words_again'")):
                writer.execute(f"DROP TABLE IF EXISTS temp.{name}")
                writer.execute(f"CREATE VIRTUAL TABLE temp.{name} USING fts5vocab({source}, 'instance')")
            both = ["SELECT doc, term, offset FROM temp.there", "SELECT doc, term, offset FROM temp.derived"]
            lacks, extra = f"{both[0]} EXCEPT {both[1]}", f"{both[1]} EXCEPT {both[0]}"
            row = writer.execute(
                f"SELECT t.turn_id, d.doc FROM (SELECT MIN(doc) AS doc FROM (SELECT * FROM ({lacks}) UNION ALL "
                f"SELECT * FROM ({extra}))) d LEFT JOIN turns t ON t.turn_seq = d.doc WHERE d.doc IS NOT NULL"
            ).fetchone()
            for name in ("there", "derived", "words_again"):
                writer.execute(f"DROP TABLE temp.{name}")
        return None if row is None else f"turn {row['turn_id'] or row['doc']}: the index holds other words than it says"

    def fact(self, name: str) -> str:
        """Return a fact that the record holds about itself, such as the salt of its splits."""
        row = self.one("SELECT value FROM record_facts WHERE name = ?", [name])
        if row is None:
            raise KeyError(name)
        return str(row["value"])

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """Hold the one writing connection of this process."""
        if self._writer is None:
            raise OperatorError(f"{self.path}: the file or its folder cannot be written to; mend their permissions")
        self._turnstile.enter()
        try:
            with explained(self.path):
                yield self._writer
        finally:
            self._turnstile.leave()

    def _open_to_write(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            # Conversations are nobody's business but the owner's.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        writer = self._connect()
        refuse_what_is_not_ours(writer)
        _switch_to_wal(writer)
        migrate(writer)
        # The indexes of a large record outgrow the 2 MB that are usual.
        writer.execute("PRAGMA cache_size = -32768")
        # From here on `begin_immediate` does the waiting.
        writer.execute("PRAGMA busy_timeout = 0")
        return writer

    def _open_to_read(self) -> None:
        # Where not even the files beside it can be made, the record is read as a file that nobody writes to.
        beside = self.path.with_name(self.path.name + "-wal")
        for options in ("mode=ro", *([] if beside.exists() else ["mode=ro&immutable=1"])):
            self._uri_options = options
            try:
                reader = self._connect_reader()
                newer, current = unknown_steps(reader), is_current(reader)
            except sqlite3.OperationalError:
                continue
            if newer or not current:
                raise OperatorError(
                    "cannot be written to, and was written by another version of this program; open it once where it can be"
                )
            self._idle_readers.append(reader)
            return
        raise OperatorError("cannot be read; mend its permissions")

    def _connect(self) -> sqlite3.Connection:
        name = f"{self.path.absolute().as_uri()}?{self._uri_options}" if self._uri_options else str(self.path)
        connection = sqlite3.connect(
            name, uri=bool(self._uri_options), isolation_level=None, timeout=WAIT_SECONDS, check_same_thread=False
        )
        with self._connections_lock:
            self._connections.append(connection)
        connection.row_factory = sqlite3.Row
        connection.create_function("search_words", 1, search_words, deterministic=True)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        reader = self._connect()
        reader.execute("PRAGMA query_only = ON")
        return reader

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._idle_readers.pop()
        except IndexError:
            return self._connect_reader()

    def _close_one(self, connection: sqlite3.Connection) -> None:
        with self._connections_lock:
            if connection in self._connections:
                self._connections.remove(connection)
        connection.close()


def open_existing(path: Path, *, to_read: bool = False) -> Record:
    """Open a record that is there; a mistyped path makes none.

    Raises OperatorError when there is no such file.
    """
    if not path.is_file():
        raise OperatorError(
            f"{path}: there is no record; expected one that `conversations import`, `support-bot serve` or `distill cycle` has made; "
            "mend the path"
        )
    if path.stat().st_size == 0:
        raise OperatorError(f"{path}: is empty, and no record; mend the path, or restore it from a backup")
    return Record(path, to_read=to_read)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL; SQLite does not wait here by itself while another process does the same."""
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
