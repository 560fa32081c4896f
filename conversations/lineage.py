"""Lineage: what runs learned from, and which releases learned from which runs, also through the release that they started from.

In: names of runs, releases, decisions and passages. Out: the same, along the line. A release that learned on knows what the older
one knew, so whoever asks who learned something asks here.
"""

import json
from collections.abc import Collection, Iterable, Mapping

from conversations.messages import Split
from conversations.releases import ReleaseKind, in_service, release
from conversations.store import Record


def releases_that_learned(record: Record, run_ids: Collection[str]) -> list[str]:
    """Return the releases that came out of these runs, and those that learned on from one of them; the oldest first."""
    rows = record.query(
        "WITH RECURSIVE learned (release_id) AS ("
        "SELECT release_id FROM releases WHERE run_id IN (SELECT value FROM json_each(?)) "
        "UNION SELECT r.release_id FROM releases r JOIN learned l ON r.started_from = l.release_id) "
        "SELECT release_id FROM releases JOIN learned USING (release_id) ORDER BY created_at_utc, release_id",
        [json.dumps(sorted(run_ids))],
    )
    return [str(row["release_id"]) for row in rows]


def runs_behind(record: Record, release_id: str) -> list[str]:
    """Return the runs whose training sets a release has learned, its own and those of every release before it in its line."""
    rows = record.query(
        "WITH RECURSIVE line (release_id) AS (VALUES (?) UNION "
        "SELECT r.started_from FROM releases r JOIN line USING (release_id) WHERE r.started_from IS NOT NULL) "
        "SELECT run_id FROM releases JOIN line USING (release_id) WHERE run_id IS NOT NULL ORDER BY run_id",
        [release_id],
    )
    return [str(row["run_id"]) for row in rows]


def trained_in_service(record: Record) -> str | None:
    """Return the release in service, or None where that is the base student itself, or none is."""
    current = in_service(record)
    return None if current is None or release(record, current).kind is ReleaseKind.BASE else current


def note_use(record: Record, run_id: str, used: Mapping[str, Split]) -> None:
    """Enter which decisions a run uses, and as what, so that an erase knows who learnt from whom."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM run_decisions WHERE run_id = ?", [run_id])
        transaction.insert_many(
            "run_decisions",
            [{"run_id": run_id, "decision_id": decision_id, "used_as": split} for decision_id, split in used.items()],
        )


def settle_use(record: Record, run_id: str, *, unused: Iterable[str], passages: Iterable[str]) -> None:
    """Enter what became of decisions that a run might have used: those it did not, and the passages that the others rest on."""
    with record.write() as transaction:
        for decision_id in unused:
            transaction.execute(
                "DELETE FROM run_decisions WHERE run_id = ? AND decision_id = ? AND used_as = 'train'", [run_id, decision_id]
            )
        for passage in sorted(set(passages)):
            transaction.execute("INSERT OR IGNORE INTO run_passages VALUES (?, ?)", [run_id, passage])


def note_passages(record: Record, run_id: str, passages: Iterable[str]) -> None:
    """Enter which handbook passages a run's training set rests on, so that a changed handbook finds who learnt the old words."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM run_passages WHERE run_id = ?", [run_id])
        transaction.insert_many("run_passages", [{"run_id": run_id, "passage_hash": each} for each in sorted(set(passages))])
