"""The tables of the record and the numbered steps that lead to them.

In: an open SQLite connection in WAL mode. Out: the same file at the newest version. Every step and the note that it was
made stand in one immediate transaction, so several processes may start at once and a killed one leaves nothing half made.
"""

import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from conversations.errors import OperatorError
from conversations.messages import content_hash
from conversations.searchable import search_words

record_migrations = Migrations("record")
# "SBOT", so that other programs can tell what the file is.
APPLICATION_ID = 0x53424F54
WAIT_SECONDS = 30
# How every SQLite file begins.
SQLITE_START = b"SQLite format 3\x00"
_SHORTEST_PAUSE_SECONDS = 0.0002
_LONGEST_PAUSE_SECONDS = 0.005


def statements(script: str) -> list[str]:
    """Split a script into its statements, keeping each trigger whole.

    sqlite3's own `executescript` commits first, which would let a half-made step stand.
    """
    found: list[str] = []
    pending = ""
    for line in script.splitlines():
        if line.strip().startswith("--"):
            continue
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            found.append(pending.strip())
            pending = ""
    if pending.strip():
        raise ValueError(f"the script ends inside a statement: {pending!r}")
    return [statement for statement in found if statement]


@record_migrations()
def m001_the_record(db: Database) -> None:
    """Lay every table that the rooms share."""
    _run_script(db, "001_the_record.sql")


@record_migrations()
def m002_findable_and_forgettable(db: Database) -> None:
    """Number conversations, count their turns and votes, tag them, search every script, and hold what was said as it was."""
    _run_script(db, "002_findable_and_forgettable.sql")
    for (edition,) in db.conn.execute("SELECT edition FROM editions").fetchall():
        rows = db.conn.execute(
            "SELECT decision_id, row_json FROM edition_decisions WHERE edition = ? ORDER BY decision_id", [edition]
        )
        rows_hash = content_hash([list(row) for row in rows.fetchall()])
        db.conn.execute("UPDATE editions SET rows_hash = ? WHERE edition = ?", [rows_hash, edition])


@record_migrations()
def m003_paid_judged_and_reviewed(db: Database) -> None:
    """Cap tokens too, keep batches, operators' reviews, what a run rests on, and the embeddings of questions."""
    _run_script(db, "003_paid_judged_and_reviewed.sql")


@record_migrations()
def m004_lineage_of_releases(db: Database) -> None:
    """Know which release a release started from."""
    _run_script(db, "004_lineage_of_releases.sql")


@record_migrations()
def m005_on_trial_and_scheduled(db: Database) -> None:
    """Try releases on some customers, vote blindly, serve whole releases, and let one scheduler act at a time."""
    _run_script(db, "005_on_trial_and_scheduled.sql")


def _run_script(db: Database, name: str) -> None:
    for statement in statements(files("conversations").joinpath("migrations", name).read_text(encoding="utf-8")):
        db.conn.execute(statement)


def migrate(connection: sqlite3.Connection) -> list[str]:
    """Bring a record to the newest version and return the names of the steps that were made.

    The connection must know the function `search_words`. Raises OperatorError, with nothing changed, for a record of a newer
    version and for a database of something else.
    """
    if is_current(connection):
        return []
    db = Database(connection)
    begin_immediate(connection)
    try:
        refuse_what_is_not_ours(connection)
        made = [step.name for step in record_migrations.pending(db)]
        record_migrations.apply(db)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
    return made


def begin_immediate(connection: sqlite3.Connection) -> None:
    """Begin a writing transaction, waiting for those of other processes.

    SQLite's own waiting sleeps up to 100 ms at a time, while most transactions here are done in a tenth of one: with eight
    writers the file would mostly lie idle. Raises sqlite3.OperationalError when the wait is over.
    """
    give_up = time.monotonic() + WAIT_SECONDS
    pause = _SHORTEST_PAUSE_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
        # Chance keeps two writers from asking at the same moments for ever.
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 1.3, _LONGEST_PAUSE_SECONDS)


def unknown_steps(connection: sqlite3.Connection) -> list[str]:
    """Return the steps that were made by a newer version of this program."""
    return sorted(_steps_made(connection) - _known_steps())


def is_current(connection: sqlite3.Connection) -> bool:
    """Tell whether every step was made, which a record that cannot be written to needs."""
    return _steps_made(connection) == _known_steps()


@cache
def _known_steps() -> frozenset[str]:
    return frozenset(step.name for step in record_migrations.pending(Database(memory=True)))


def _steps_made(connection: sqlite3.Connection) -> set[str]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone():
        return set()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'record'")
    return {str(row[0]) for row in rows}


def refuse_what_is_not_ours(connection: sqlite3.Connection) -> None:
    """Raise OperatorError for a record of a newer version and for a database of something else."""
    newer = unknown_steps(connection)
    if newer:
        raise OperatorError(f"was written by a newer version (it made the steps {', '.join(newer)}); install that version")
    tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if tables and not _steps_made(connection):
        raise OperatorError("is an SQLite database of something else; give the path of a record, or a new one")


def differences_from_made(there: Mapping[str, str]) -> Iterator[str]:
    """Yield what a record's tables, indexes, views and triggers, as their texts by name, lack or have beside a new record's."""
    blank = sqlite3.connect(":memory:")
    blank.create_function("search_words", 1, search_words, deterministic=True)
    migrate(blank)
    made = dict(blank.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    blank.close()
    for name in sorted({*made, *there}):
        if name.startswith(("_sqlite_", "sqlite_")) or there.get(name) == made.get(name):
            continue
        yield f"schema: {name!r} " + (
            "is missing" if name not in there else "is not ours" if name not in made else "was changed"
        )
