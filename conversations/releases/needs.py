"""What each wanted release is still needed for: the servers keep no more than that, and the wish for the rest is forgotten.

In: the wishes, the releases' events, the rollouts, the conversations. Out: the releases to have in memory, the neediest first, and
whether a conversation's release is among them. Knows no server's size: where not all fit, the first ones do.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from conversations.messages import utc_text
from conversations.processes import is_alive
from conversations.releases import lifecycle, student_servers
from conversations.releases.lifecycle import Release, ReleaseKind
from conversations.store import Record, Row, Transaction
from conversations.turns import ANSWER_HOURS

# A candidate whose run was killed leaves a wish behind that nobody takes back.
CANDIDATE_HOURS = 48.0


class Need(IntEnum):
    """What a release is kept for; the lowest goes first where there is little room."""

    IN_SERVICE = 0
    BASE = 1
    ON_TRIAL = 2
    CONVERSATIONS = 3
    CANDIDATE = 4
    BEFORE = 5


@dataclass(frozen=True)
class Needed:
    """A release that the servers should have in memory, what for, and since when."""

    release: Release
    need: Need
    wanted_at_utc: str


def needed(record: Record, *, keep_hours: float) -> list[Needed]:
    """Return the wanted releases that are needed, the neediest first, and of those alike the longest wanted.

    These are the base student, the release in service and the one before it (so that a rollback takes effect at once), releases on
    trial, what conversations of the last `keep_hours` hold, what is answering now, and candidates: what somebody asked for lately
    that was neither promoted nor taken back since.
    """
    needs = _needs(record, keep_hours)
    rows = record.query("SELECT release_id, wanted_at_utc FROM wanted_loads ORDER BY wanted_at_utc, release_id")
    found = [
        Needed(lifecycle.release(record, name), needs[name], str(row["wanted_at_utc"]))
        for row in rows
        if (name := str(row["release_id"])) in needs
    ]
    return sorted(found, key=lambda each: each.need)


def settle(record: Record, *, keep_hours: float) -> list[str]:
    """Forget the wishes for releases that nothing needs any more, and return their names."""
    if not _unneeded(record, keep_hours):
        return []
    with record.write() as transaction:
        gone = _unneeded(transaction, keep_hours)
        for release_id in gone:
            transaction.execute("DELETE FROM wanted_loads WHERE release_id = ?", [release_id])
    return gone


def is_kept(record: Record, release_id: str) -> bool:
    """Tell whether a server has a release in memory, or will have it: it is wanted, and no server failed to load it.

    A conversation that rested longer than servers keep its release for it goes on with the release in service.
    """
    tried = [load.loaded for load in student_servers.loads(record) if load.release_id == release_id]
    if tried:
        return any(tried)
    return record.one("SELECT 1 FROM wanted_loads WHERE release_id = ?", [release_id]) is not None


def answers_under_way(record: Record, release_id: str) -> int:
    """Return how many answers of a release have begun and not ended; those of a process that died are over."""
    return _answering(record).count(release_id)


def _unneeded(source: Record | Transaction, keep_hours: float) -> list[str]:
    needs = _needs(source, keep_hours)
    rows = source.query("SELECT release_id FROM wanted_loads ORDER BY release_id")
    return [str(row["release_id"]) for row in rows if row["release_id"] not in needs]


def _needs(source: Record | Transaction, keep_hours: float) -> dict[str, Need]:
    """Return what each wanted release is needed for most; one that is needed for nothing is left out."""
    rows = source.query(
        "SELECT w.release_id, w.wanted_at_utc, r.kind, e.event AS last_event, e.happened_at_utc FROM wanted_loads w "
        "JOIN releases r USING (release_id) JOIN release_events e USING (release_id) WHERE e.release_event_id = (SELECT "
        "MAX(release_event_id) FROM release_events l WHERE l.release_id = w.release_id) ORDER BY w.wanted_at_utc"
    )
    wishes = {str(row["release_id"]): row for row in rows}
    is_gone = {name for name, row in wishes.items() if row["last_event"] in ("rolled_back", "refused")}
    held = _names(
        source,
        "SELECT DISTINCT release_id FROM conversations WHERE release_id IS NOT NULL AND updated_at_utc >= ?",
        _ago(keep_hours),
    )
    fresh = {
        name
        for name, row in wishes.items()
        if str(row["wanted_at_utc"]) >= _ago(CANDIDATE_HOURS)
        and (row["last_event"] == "registered" or _was_wished_after(row["last_event"] == "refused", row))
    }
    bases = [name for name, row in wishes.items() if row["kind"] == ReleaseKind.BASE]
    served, before = lifecycle.served_and_before(source)
    needed_for: dict[Need, set[str]] = {
        Need.IN_SERVICE: {served} if served else set(),
        Need.BASE: set(bases[-1:]),
        Need.ON_TRIAL: _names(source, "SELECT release_id FROM rollouts WHERE state = 'running'"),
        Need.CONVERSATIONS: set(_answering(source)) | (held - is_gone),
        Need.CANDIDATE: fresh - set(bases),
        Need.BEFORE: {before} if before else set(),
    }
    return {
        name: min(need for need, names in needed_for.items() if name in names)
        for name in wishes
        if any(name in names for names in needed_for.values())
    }


def _answering(source: Record | Transaction) -> list[str]:
    """Return the release of each answer that is on its way in a process that lives."""
    rows = source.query(
        "SELECT release_id, process_token FROM turns WHERE status IN ('pending', 'streaming') AND release_id IS NOT NULL "
        "AND created_at_utc >= ?",
        [_ago(ANSWER_HOURS)],
    )
    return [str(row["release_id"]) for row in rows if is_alive(str(row["process_token"]))]


def _was_wished_after(may_be_at_once: bool, row: Row) -> bool:
    """Tell whether a release was wished for after what happened to it last. A promotion wishes at once; a refusal never does."""
    wished, happened = str(row["wanted_at_utc"]), str(row["happened_at_utc"])
    return wished >= happened if may_be_at_once else wished > happened


def _names(source: Record | Transaction, sql: str, *parameters: str) -> set[str]:
    return {str(row["release_id"]) for row in source.query(sql, parameters)}


def _ago(hours: float) -> str:
    return utc_text(datetime.now(UTC) - timedelta(hours=hours))
