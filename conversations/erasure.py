"""Forgetting: a person, or conversations that are too old, out of the record, the search index and every file that holds them.

In: a customer's name, or an age. Out: what was removed, and the runs and releases that learned from it. Leaves tombstones,
hashes that later imports and data sets honour. The rows go first, in one transaction; then the files, of one erasure at a time; then
the freed bytes. An erasure that was killed in between is finished by the next one, and `verify` tells of it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from conversations import artefacts, audit
from conversations.erased_files import forget_in_files
from conversations.erased_rows import Removed, end_note, leave_to_do, names_of, remove, strike_out, unfinished
from conversations.errors import OperatorError
from conversations.lineage import releases_that_learned
from conversations.messages import check_storable, utc_text
from conversations.store import Record
from conversations.tombstones import bury, name_hash

_EXPIRED_AT_ONCE = 500


@dataclass(frozen=True)
class Erased:
    """What an erasure removed.

    `releases` and `runs` learned from it and still know what they learned, releases also through the one that they started
    from; `unreached` are exports and backups that were moved away, exports that somebody changed, and backups that cannot be
    opened: they may still hold it.
    """

    conversations: int
    turns: int
    answers: int
    files: int
    runs: tuple[str, ...]
    releases: tuple[str, ...]
    unreached: tuple[str, ...]


def erase_customer(record: Record, customer_id: str, *, actor: str) -> Erased:
    """Remove a customer everywhere. One who is not there is remembered all the same, so that no import brings them in.

    Raises OperatorError for a name that is none, and OutsideError, with the rows gone and some bytes still on the disk, when
    another process holds the record.
    """
    if not customer_id:
        raise OperatorError("no customer was named; `conversations search` and the console show their names")
    check_storable(customer_id)
    with record.write() as transaction:
        removed = remove(
            transaction,
            names_of(transaction, "SELECT conversation_id FROM conversations WHERE customer_id = ?", customer_id),
        )
        transaction.execute("DELETE FROM feedback WHERE customer_id = ?", [customer_id])
        transaction.execute("DELETE FROM customers WHERE customer_id = ?", [customer_id])
        bury(transaction, "customer", customer_id)
        # The audit tells that somebody was erased, never who.
        audit.note(transaction, actor, "customer erased", name_hash("customer", customer_id), {"turns": removed.turns})
        leave_to_do(transaction, removed)
    return _finish(record, removed)


def expire(record: Record, older_than: timedelta, *, actor: str, dry_run: bool = False) -> Erased:
    """Remove the conversations in which nothing was said for so long, and the customers of whom nothing is left.

    With `dry_run` counts what would go and changes nothing.
    """
    before = utc_text(datetime.now(UTC) - older_than)
    if dry_run:
        row = record.one(
            "SELECT COUNT(*) AS n, COALESCE(SUM(turn_count), 0) AS turns, (SELECT COUNT(*) FROM answers JOIN decisions "
            "USING (decision_id) JOIN conversations USING (conversation_id) WHERE updated_at_utc < :before) AS answers "
            "FROM conversations WHERE updated_at_utc < :before",
            {"before": before},
        )
        counted = {name: int((row or {}).get(name) or 0) for name in ("n", "turns", "answers")}
        return _told(record, Removed(counted["n"], counted["turns"], counted["answers"]), files=0)
    removed = Removed()
    while True:
        # A piece at a time, so that customers who chat meanwhile wait for one piece and not for all.
        with record.write() as transaction:
            sql = f"SELECT conversation_id FROM conversations WHERE updated_at_utc < ? LIMIT {_EXPIRED_AT_ONCE}"
            piece = remove(transaction, names_of(transaction, sql, before))
            if not piece.conversations:
                break
            audit.note(transaction, actor, "conversations expired", before, {"conversations": piece.conversations})
            leave_to_do(transaction, piece)
        removed.add(piece)
    with record.write() as transaction:
        transaction.execute(
            "DELETE FROM customers WHERE created_at_utc < ? AND NOT EXISTS "
            "(SELECT 1 FROM conversations c WHERE c.customer_id = customers.customer_id) "
            "AND NOT EXISTS (SELECT 1 FROM feedback f WHERE f.customer_id = customers.customer_id)",
            [before],
        )
    return _finish(record, removed)


def _finish(record: Record, removed: Removed) -> Erased:
    """Take the names out of the files, then give back the freed space. Until both are done `verify` tells of it.

    One erasure at a time. Another one's rows may go meanwhile; its names stay noted until it comes to the files itself.
    """
    with artefacts.alone(record):
        with record.write() as transaction:
            names, sources = unfinished(transaction)
        # Whoever was at the files before has perhaps done it; what was learned from it is told all the same.
        names, sources = names | removed.names, sources | removed.sources
        files = forget_in_files(record, names, sources)
        told = _told(record, removed, names=names, files=len(files.changed), unreached=files.unreached)
        # Nothing is left to do but to free the bytes: the names must go before that, and the note that it is to be done after.
        with record.write() as transaction:
            strike_out(transaction, names, sources)
        record.compact()
        with record.write() as transaction:
            end_note(transaction)
    return told


def _told(
    record: Record, removed: Removed, *, files: int, names: Iterable[str] = (), unreached: Iterable[Path] = ()
) -> Erased:
    wanted = json.dumps(sorted(names))
    used = record.query(
        "SELECT DISTINCT run_id FROM run_decisions WHERE used_as <> 'test' "
        "AND decision_id IN (SELECT value FROM json_each(?)) ORDER BY run_id",
        [wanted],
    )
    runs = [str(row["run_id"]) for row in used]
    return Erased(
        conversations=removed.conversations,
        turns=removed.turns,
        answers=removed.answers,
        files=files,
        runs=tuple(runs),
        releases=tuple(releases_that_learned(record, runs)),
        unreached=tuple(str(path) for path in unreached),
    )
