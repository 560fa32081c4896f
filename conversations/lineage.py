"""Lineage: which releases learned from which runs, by themselves or through the release that they started from.

In: names of runs and releases. Out: the same, along the line. A release that learned on knows what the older one knew, so
whoever asks who learned something asks here.
"""

import json
from collections.abc import Collection

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
