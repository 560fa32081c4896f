"""Forgetting: a person, or conversations that are too old, out of the record, the search index and every file that holds them.

In: a customer's name, or an age. Out: what was removed, and the runs and releases that learned from it. Leaves tombstones,
hashes that later imports and data sets honour. The rows go first, in one transaction; then the files; then the freed bytes. An
erasure that was killed in between is finished by the next one, and `verify` tells of it.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from conversations import artefacts, audit
from conversations.artefacts import ArtefactKind
from conversations.editions import note_edition_rows
from conversations.errors import OperatorError, OutsideError
from conversations.exchange.exports import forget
from conversations.lineage import releases_that_learned
from conversations.messages import check_storable, utc_text
from conversations.store import Record, Transaction, open_existing
from conversations.tombstones import bury, bury_again, name_hash

UNFINISHED = "unfinished_erasure"
_EXPIRED_AT_ONCE = 500
# As conversations and decisions are named; a long list of names is looked for by one pass over a file.
_OUR_NAME = re.compile(rb"(?:conversation|decision)_[0-9a-f]{24}")
# Numbers only: no word of a customer can be read out of these.
_WITHOUT_TEXT = (".safetensors", ".bin", ".pt", ".npy", ".npz", ".gguf")


@dataclass(frozen=True)
class Erased:
    """What an erasure removed.

    `releases` and `runs` learned from it and still know what they learned, releases also through the one that they started
    from; `unreached` are exports and backups that were moved away, or exports that somebody changed: they may still hold it.
    """

    conversations: int
    turns: int
    answers: int
    files: int
    runs: tuple[str, ...]
    releases: tuple[str, ...]
    unreached: tuple[str, ...]


@dataclass
class _Removed:
    """What went out of the rows, and the names under which files may hold it.

    `names` are of our own making, so that a file with one of them surely speaks of it; `sources` are ids and customers as they
    came, which may be as short as "1".
    """

    conversations: int = 0
    turns: int = 0
    answers: int = 0
    names: set[str] = field(default_factory=set)
    sources: set[tuple[str, str]] = field(default_factory=set)


def erase_customer(record: Record, customer_id: str, *, actor: str) -> Erased:
    """Remove a customer everywhere. One who is not there is remembered all the same, so that no import brings them in.

    Raises OperatorError for a name that is none, and OutsideError, with the rows gone and some bytes still on the disk, when
    another process holds the record.
    """
    if not customer_id:
        raise OperatorError("no customer was named; `conversations search` and the console show their names")
    check_storable(customer_id)
    with record.write() as transaction:
        removed = _remove(
            transaction, _names(transaction, "SELECT conversation_id FROM conversations WHERE customer_id = ?", customer_id)
        )
        transaction.execute("DELETE FROM feedback WHERE customer_id = ?", [customer_id])
        transaction.execute("DELETE FROM customers WHERE customer_id = ?", [customer_id])
        bury(transaction, "customer", customer_id)
        # The audit tells that somebody was erased, never who.
        audit.note(transaction, actor, "customer erased", name_hash("customer", customer_id), {"turns": removed.turns})
        _leave_to_do(transaction, removed)
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
        return _told(record, _Removed(counted["n"], counted["turns"], counted["answers"]), files=0)
    removed = _Removed()
    while True:
        # A piece at a time, so that customers who chat meanwhile wait for one piece and not for all.
        with record.write() as transaction:
            sql = f"SELECT conversation_id FROM conversations WHERE updated_at_utc < ? LIMIT {_EXPIRED_AT_ONCE}"
            piece = _remove(transaction, _names(transaction, sql, before))
            if not piece.conversations:
                break
            audit.note(transaction, actor, "conversations expired", before, {"conversations": piece.conversations})
            _leave_to_do(transaction, piece)
        removed = _Removed(
            removed.conversations + piece.conversations, removed.turns + piece.turns, removed.answers + piece.answers
        )
    with record.write() as transaction:
        transaction.execute(
            "DELETE FROM customers WHERE created_at_utc < ? AND NOT EXISTS "
            "(SELECT 1 FROM conversations c WHERE c.customer_id = customers.customer_id) "
            "AND NOT EXISTS (SELECT 1 FROM feedback f WHERE f.customer_id = customers.customer_id)",
            [before],
        )
    return _finish(record, removed)


def _remove(transaction: Transaction, conversation_ids: Sequence[str]) -> _Removed:
    """Remove conversations and all that hangs on them from the rows, children before their parents."""
    removed = _Removed(names=set(conversation_ids))
    editions: dict[int, int] = {}
    for conversation_id in conversation_ids:
        for decision_id in _names(
            transaction, "SELECT decision_id FROM decisions WHERE conversation_id = ?", conversation_id
        ):
            removed.names.add(decision_id)
            for row in transaction.query("SELECT edition FROM edition_decisions WHERE decision_id = ?", [decision_id]):
                editions[int(row["edition"] or 0)] = editions.get(int(row["edition"] or 0), 0) + 1
            transaction.execute("DELETE FROM edition_decisions WHERE decision_id = ?", [decision_id])
            transaction.execute(
                "DELETE FROM answer_reviews WHERE answer_id IN (SELECT answer_id FROM answers WHERE decision_id = ?)",
                [decision_id],
            )
            transaction.execute("DELETE FROM blind_votes WHERE decision_id = ?", [decision_id])
            removed.answers += transaction.execute("DELETE FROM answers WHERE decision_id = ?", [decision_id])
            transaction.execute("DELETE FROM decision_vectors WHERE decision_id = ?", [decision_id])
            transaction.execute("DELETE FROM teacher_batch_requests WHERE decision_id = ?", [decision_id])
            # A reply that was paid for once serves every decision with the same history: it goes on with another one.
            transaction.execute(
                "UPDATE teacher_replies SET decision_id = (SELECT decision_id FROM answers a "
                "WHERE a.request_hash = teacher_replies.request_hash LIMIT 1) WHERE decision_id = ? AND EXISTS "
                "(SELECT 1 FROM answers a WHERE a.request_hash = teacher_replies.request_hash)",
                [decision_id],
            )
            transaction.execute("DELETE FROM teacher_replies WHERE decision_id = ?", [decision_id])
            transaction.execute("DELETE FROM decisions WHERE decision_id = ?", [decision_id])
        removed.turns += _remove_conversation(transaction, conversation_id, removed.sources)
        removed.conversations += 1
    for edition, rows in sorted(editions.items()):
        note_edition_rows(transaction, edition, erased=rows)
    return removed


def _remove_conversation(transaction: Transaction, conversation_id: str, sources: set[tuple[str, str]]) -> int:
    for row in transaction.query(
        "SELECT source_id, customer_id FROM conversations WHERE conversation_id = ?", [conversation_id]
    ):
        if row["source_id"]:
            bury(transaction, "conversation", str(row["source_id"]))
            sources.add((str(row["source_id"]), str(row["customer_id"])))
    bury(transaction, "conversation", conversation_id)
    transaction.execute(
        "DELETE FROM feedback WHERE turn_id IN (SELECT turn_id FROM turns WHERE conversation_id = ?)", [conversation_id]
    )
    transaction.execute(
        "DELETE FROM shadow_answers WHERE question_turn_id IN (SELECT turn_id FROM turns WHERE conversation_id = ?)",
        [conversation_id],
    )
    transaction.execute("DELETE FROM conversation_tags WHERE conversation_id = ?", [conversation_id])
    turn_ids = _names(
        transaction, "SELECT turn_id FROM turns WHERE conversation_id = ? ORDER BY turn_seq DESC", conversation_id
    )
    removed = sum(transaction.execute("DELETE FROM turns WHERE turn_id = ?", [turn_id]) for turn_id in turn_ids)
    transaction.execute("DELETE FROM conversations WHERE conversation_id = ?", [conversation_id])
    return removed


def _leave_to_do(transaction: Transaction, removed: _Removed) -> None:
    """Note what the files still hold, beside what an erasure that was killed has left."""
    names, sources = unfinished(transaction)
    left = {"names": sorted(names | removed.names), "sources": sorted(sources | removed.sources)}
    transaction.execute("INSERT OR REPLACE INTO record_facts VALUES (?, ?)", [UNFINISHED, json.dumps(left)])


def unfinished(transaction: Transaction | Record) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the names, and the source ids with their customers, that an erasure which was killed has left in files."""
    found = transaction.query("SELECT value FROM record_facts WHERE name = ?", [UNFINISHED])
    left = json.loads(str(found[0]["value"])) if found else {"names": [], "sources": []}
    # A list, as the first version wrote it, holds names alone.
    if isinstance(left, list):
        return set(left), set()
    return set(left["names"]), {(source_id, customer_id) for source_id, customer_id in left["sources"]}


def _finish(record: Record, removed: _Removed) -> Erased:
    """Take the names out of the files, then give back the freed space. Until both are done `verify` tells of it."""
    with record.write() as transaction:
        names, sources = unfinished(transaction)
        run_files = _run_files(transaction)
        exports = artefacts.of_kind(transaction, ArtefactKind.EXPORT)
        backups = artefacts.of_kind(transaction, ArtefactKind.BACKUP)
    try:
        changed = [path for path in run_files if names and _erase_lines(path, names)]
        unreached = [path for path, digest in exports if not _is_ours(path, digest)]
        ours = [path for path, _ in exports if path not in unreached]
        changed += [path for path in ours if names and forget(path, names, sources)]
    except OSError as error:
        raise OutsideError(
            f"{error.filename}: {error.strerror or error}; the record has forgotten, files have not; mend that and run the same again"
        ) from None
    with record.write() as transaction:
        for path in {*changed, *(path for path, _ in exports if not path.exists())}:
            artefacts.renew(transaction, path)
    changed += [path for path, _ in backups if path.is_file() and _forget_in_backup(record, path, names)]
    unreached += [path for path, _ in backups if not path.is_file()]
    told = _told(record, removed, names=names, files=len(changed), unreached=unreached)
    with record.write() as transaction:
        for path, _ in backups:
            if path in changed:
                artefacts.renew(transaction, path)
        # Nothing is left to do but to free the bytes: the names must go before that, and the note that it is to be done after.
        transaction.execute("INSERT OR REPLACE INTO record_facts VALUES (?, ?)", [UNFINISHED, json.dumps([])])
    record.compact()
    with record.write() as transaction:
        transaction.execute("DELETE FROM record_facts WHERE name = ?", [UNFINISHED])
    return told


def _is_ours(path: Path, digest: str) -> bool:
    """Tell whether an export is where it was written and as it was; what a killed export has left is without a digest."""
    if not path.is_file():
        return not digest
    return not digest or artefacts.file_digest(path) == digest


def _told(
    record: Record, removed: _Removed, *, files: int, names: Iterable[str] = (), unreached: Iterable[Path] = ()
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


def _names(transaction: Transaction, sql: str, name: str) -> list[str]:
    return [str(cell) for row in transaction.query(sql, [name]) for cell in row.values() if cell is not None]


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
    half = path.with_name(f".{path.name}.half")
    half.write_bytes(b"\n".join(kept))
    os.replace(half, path)
    return True


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
                removed = _remove(transaction, gone)
                customers = _remove_buried_customers(transaction, buried)
                bury_again(transaction, graves)
                artefacts.agree(transaction, files)
            if removed.conversations or customers:
                backup.compact()
    except OutsideError as error:
        raise OutsideError(f"the backup {error}") from None
    return bool(removed.conversations or customers)


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
