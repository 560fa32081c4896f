"""What happens to a release: registered, promoted, refused, set aside, rolled back, restored; and which one is in service.

In: what the gate decided and what an operator asked for. Out: events behind a release, and the pointer that they make. The release
in service changes in one transaction, which also ends the canary of the release that comes into service.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from conversations import audit
from conversations.errors import OperatorError
from conversations.messages import Json, utc_now
from conversations.store import Record, Row, Transaction

# How a training that started from the base student says so, where another names a release.
STARTED_FROM_BASE = "base"


class ReleaseKind(StrEnum):
    """How a release's weights relate to the base student's."""

    BASE = "base"
    LORA = "lora"
    MERGED = "merged"
    FULL = "full"


class ReleaseState(StrEnum):
    """What a release is to customers now."""

    CANDIDATE = "candidate"
    IN_SERVICE = "in_service"
    RETIRED = "retired"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Release:
    """A version of the student. `started_from` is the release that learned on to become this one, None for the base student."""

    release_id: str
    run_id: str | None
    base: str
    kind: ReleaseKind
    weights_path: str
    weights_digest: str
    metrics: Mapping[str, Json]
    created_at_utc: str
    state: ReleaseState
    started_from: str | None = None

    @property
    def start(self) -> str:
        """From what its training started: a release, or "base"; the base student itself was not trained here."""
        if self.kind is ReleaseKind.BASE:
            return ""
        return self.started_from or STARTED_FROM_BASE


@dataclass(frozen=True)
class ReleaseEvent:
    """Something that happened to a release."""

    release_id: str
    event: str
    actor: str
    reason: str
    happened_at_utc: str


def register(record: Record, release: Release, *, actor: str, reason: str) -> None:
    """Enter a new release into the record; it serves nobody yet."""
    with record.write() as transaction:
        if transaction.query("SELECT 1 FROM releases WHERE release_id = ?", [release.release_id]):
            raise OperatorError(f"the release name {release.release_id!r} is taken; a name is never used twice")
        _enter(transaction, release, actor, reason)


def register_base(record: Record, *, base: str, weights_path: str, weights_digest: str) -> str:
    """Make sure that the untuned base student is a release, in service when nothing else is; return its name."""
    actor = "support-bot student"
    release_id = f"base-{weights_digest.removeprefix('sha256:')[:10]}"
    student = Release(
        release_id, None, base, ReleaseKind.BASE, weights_path, weights_digest, {}, utc_now(), ReleaseState.CANDIDATE
    )
    with record.write() as transaction:
        if not transaction.query("SELECT 1 FROM releases WHERE release_id = ?", [release_id]):
            _enter(transaction, student, actor, "the base student as it came")
        if not transaction.query("SELECT 1 FROM release_events WHERE event IN ('promoted', 'restored')"):
            _event(transaction, release_id, "promoted", actor, "nothing else is in service")
        want_in(transaction, release_id, actor)
    return release_id


def in_service(source: Record | Transaction) -> str | None:
    """Return the release that new conversations get, or None before the first student."""
    rows = source.query(
        "SELECT release_id FROM release_events WHERE event IN ('promoted', 'restored') "
        "ORDER BY release_event_id DESC LIMIT 1"
    )
    return str(rows[0]["release_id"]) if rows else None


def may_go_on(record: Record, release_id: str) -> bool:
    """Tell whether a release may go on with the conversations that hold it: not once it was rolled back or refused."""
    return _last_event(record, release_id) not in (None, "rolled_back", "refused")


def promote(record: Record, release_id: str, *, actor: str, reason: str) -> None:
    """Put a release into service for new conversations.

    Raises OperatorError for one whose weights are gone: the next restart of a server could not bring it back.
    """
    _known(record, release_id)
    with record.write() as transaction:
        promote_in(transaction, release_id, actor=actor, reason=reason)


def promote_in(transaction: Transaction, release_id: str, *, actor: str, reason: str) -> None:
    """Put a release into service, inside an open transaction. Raises as `promote`."""
    rows = transaction.query("SELECT weights_path FROM releases WHERE release_id = ?", [release_id])
    weights_path = Path(str(rows[0]["weights_path"]))
    if not weights_path.is_dir():
        raise OperatorError(
            f"the weights of the release {release_id!r} are gone: there is no folder {weights_path}; expected what its run wrote; "
            "restore that folder, or train anew; the release in service goes on"
        )
    _put_into_service(transaction, release_id, "promoted", actor, reason)


def take_back_in(transaction: Transaction, release_id: str, *, actor: str, reason: str) -> None:
    """Note that a release that was on trial is rolled back, inside an open transaction; the one in service stays.

    One that came into service meanwhile leaves it, where there is an earlier one to go back to.
    """
    _event(transaction, release_id, "rolled_back", actor, reason)
    served, before = served_and_before(transaction)
    if release_id == served and before is not None:
        _put_into_service(transaction, before, "restored", actor, reason)


def refuse(record: Record, release_id: str, *, actor: str, reason: str) -> None:
    """Note that the gate did not let a release into service, and let the servers drop it."""
    _known(record, release_id)
    with record.write() as transaction:
        _event(transaction, release_id, "refused", actor, reason)
        _let_go(transaction, release_id)


def set_aside(record: Record, release_id: str, *, actor: str, reason: str) -> None:
    """Note that the gate could not tell; the release stays a candidate and the servers drop it."""
    _known(record, release_id)
    with record.write() as transaction:
        _let_go(transaction, release_id)
        audit.note(transaction, actor, "release set aside", release_id, {"reason": reason})


def roll_back(record: Record, *, to: str | None = None, actor: str, reason: str) -> str:
    """Take the release in service out of it and restore another; return the restored one's name.

    Without `to`, the newest before it in `_line` that was not rolled back, of those that can be served if there are any.
    Raises OperatorError when there is none, and for a `to` whose weights are gone and that no server has in memory.
    """
    with record.write() as transaction:
        served = _served(transaction)
        current = served[-1] if served else None
        target = to or _previous(transaction)
        if target is None or current is None:
            raise OperatorError("no earlier release to roll back to; `distill releases` lists what there is")
        if target == current:
            raise OperatorError(f"the release {target!r} is in service already; nothing to roll back")
        if not transaction.query("SELECT 1 FROM releases WHERE release_id = ?", [target]):
            raise OperatorError(f"no release {target!r}; `distill releases` lists what there is")
        if target not in served:
            raise OperatorError(f"the release {target!r} was never in service; only the gate puts a release there first")
        if to is not None and not _can_be_served(transaction, target):
            raise OperatorError(
                f"the weights of the release {target!r} are gone, and no server has it in memory; expected its folder, which "
                "`distill releases --json` names; restore that, or give another release with --to"
            )
        _event(transaction, current, "rolled_back", actor, reason)
        _put_into_service(transaction, target, "restored", actor, reason)
    return target


def releases(record: Record) -> list[Release]:
    """Return every release, the newest first."""
    current = in_service(record)
    rows = record.query("SELECT * FROM releases ORDER BY created_at_utc DESC, release_id DESC")
    return [_release_of(row, _state(record, str(row["release_id"]), current)) for row in rows]


def release(record: Record, release_id: str) -> Release:
    """Return one release.

    Raises OperatorError when there is none of that name.
    """
    row = _known(record, release_id)
    return _release_of(row, _state(record, release_id, in_service(record)))


def events(record: Record, limit: int = 100) -> list[ReleaseEvent]:
    """Return what happened to releases, the latest first."""
    rows = record.query("SELECT * FROM release_events ORDER BY release_event_id DESC LIMIT ?", [limit])
    return [
        ReleaseEvent(
            str(row["release_id"]),
            str(row["event"]),
            str(row["actor"]),
            str(row["reason"]),
            str(row["happened_at_utc"]),
        )
        for row in rows
    ]


def want(record: Record, release_id: str, *, wanted_by: str) -> None:
    """Ask the servers to load a release."""
    with record.write() as transaction:
        want_in(transaction, release_id, wanted_by)


def wanted(record: Record) -> list[Release]:
    """Return the releases that every server should have in memory, the longest wanted first."""
    names = record.query("SELECT release_id FROM wanted_loads ORDER BY wanted_at_utc, release_id")
    return [release(record, str(row["release_id"])) for row in names]


def _enter(transaction: Transaction, release: Release, actor: str, reason: str) -> None:
    transaction.insert(
        "releases",
        {
            "release_id": release.release_id,
            "run_id": release.run_id,
            "base": release.base,
            "kind": release.kind,
            "weights_path": release.weights_path,
            "weights_digest": release.weights_digest,
            "metrics_json": json.dumps(dict(release.metrics), sort_keys=True),
            "created_at_utc": release.created_at_utc,
            "started_from": release.started_from,
        },
    )
    _event(transaction, release.release_id, "registered", actor, reason)


def _event(transaction: Transaction, release_id: str, event: str, actor: str, reason: str) -> None:
    transaction.insert(
        "release_events",
        {"release_id": release_id, "event": event, "actor": actor, "reason": reason, "happened_at_utc": utc_now()},
    )
    audit.note(transaction, actor, f"release {event}", release_id, {"reason": reason})


def _put_into_service(transaction: Transaction, release_id: str, event: str, actor: str, reason: str) -> None:
    """Make a release the one in service; a canary of it has come to its end with that."""
    canary = transaction.execute(
        "UPDATE rollouts SET state = 'promoted', ended_by = ?, ended_because = ?, ended_at_utc = ? "
        "WHERE kind = 'canary' AND state = 'running' AND release_id = ?",
        [actor, reason, utc_now(), release_id],
    )
    if canary:
        audit.note(transaction, actor, "canary promoted", release_id, {"reason": reason})
    want_in(transaction, release_id, actor)
    _event(transaction, release_id, event, actor, reason)


def want_in(transaction: Transaction, release_id: str, wanted_by: str) -> None:
    """Ask the servers to load a release, inside an open transaction; asking again has them try again what failed."""
    transaction.execute(
        "INSERT INTO wanted_loads VALUES (?, ?, ?) ON CONFLICT (release_id) DO UPDATE SET wanted_by = excluded.wanted_by, "
        "wanted_at_utc = excluded.wanted_at_utc",
        [release_id, wanted_by, utc_now()],
    )
    transaction.execute("DELETE FROM loads WHERE release_id = ? AND state = 'failed'", [release_id])


def served_and_before(source: Record | Transaction) -> tuple[str | None, str | None]:
    """Return the release in service, and the one that a rollback would restore."""
    served = _served(source)
    return (served[-1] if served else None), _previous(source)


def _let_go(transaction: Transaction, release_id: str) -> None:
    """Forget the wish for a release, unless it is answering somebody: `needs.settle` forgets it once it has ended."""
    transaction.execute(
        "DELETE FROM wanted_loads WHERE release_id = ? AND NOT EXISTS (SELECT 1 FROM turns "
        "WHERE status IN ('pending', 'streaming') AND turns.release_id = wanted_loads.release_id)",
        [release_id],
    )


def _served(source: Record | Transaction) -> list[str]:
    """Return the releases that were put into service, in order; the last one is there now."""
    rows = source.query(
        "SELECT release_id FROM release_events WHERE event IN ('promoted', 'restored') ORDER BY release_event_id"
    )
    return [str(row["release_id"]) for row in rows]


def _line(source: Record | Transaction) -> list[str]:
    """Return how the release in service came to be there: what was promoted, without what a rollback went back over."""
    line: list[str] = []
    for row in source.query(
        "SELECT release_id, event FROM release_events WHERE event IN ('promoted', 'restored') ORDER BY release_event_id"
    ):
        release_id = str(row["release_id"])
        if row["event"] == "restored" and release_id in line:
            while line[-1] != release_id:
                line.pop()
        else:
            line.append(release_id)
    return line


def _previous(source: Record | Transaction) -> str | None:
    """Return the newest release before the present one in the line that was not rolled back or refused since.

    One that cannot be served, as it looks from this machine, comes behind all others: an undo must not fail for a folder that is
    mounted elsewhere.
    """
    earlier = []
    line = _line(source)
    for release_id in dict.fromkeys(reversed(line[:-1])):
        if release_id != line[-1] and _last_event(source, release_id) not in ("rolled_back", "refused"):
            earlier.append(release_id)
    return next((name for name in earlier if _can_be_served(source, name)), next(iter(earlier), None))


def _can_be_served(source: Record | Transaction, release_id: str) -> bool:
    """Tell whether a release's weights are there, or at least in a server's memory."""
    rows = source.query("SELECT weights_path FROM releases WHERE release_id = ?", [release_id])
    if Path(str(rows[0]["weights_path"])).is_dir():
        return True
    return bool(source.query("SELECT 1 FROM loads WHERE release_id = ? AND state = 'loaded'", [release_id]))


def _last_event(source: Record | Transaction, release_id: str) -> str | None:
    rows = source.query(
        "SELECT event FROM release_events WHERE release_id = ? ORDER BY release_event_id DESC LIMIT 1", [release_id]
    )
    return str(rows[0]["event"]) if rows else None


def _state(record: Record, release_id: str, current: str | None) -> ReleaseState:
    if release_id == current:
        return ReleaseState.IN_SERVICE
    match _last_event(record, release_id):
        case "refused":
            return ReleaseState.REFUSED
        case "rolled_back":
            return ReleaseState.ROLLED_BACK
        case "promoted" | "restored":
            return ReleaseState.RETIRED
        case _:
            return ReleaseState.CANDIDATE


def _known(record: Record, release_id: str) -> Row:
    row = record.one("SELECT * FROM releases WHERE release_id = ?", [release_id])
    if row is None:
        raise OperatorError(f"no release {release_id!r}; `distill releases` lists what there is")
    return row


def _release_of(row: Row, state: ReleaseState) -> Release:
    return Release(
        release_id=str(row["release_id"]),
        run_id=None if row["run_id"] is None else str(row["run_id"]),
        base=str(row["base"]),
        kind=ReleaseKind(str(row["kind"])),
        weights_path=str(row["weights_path"]),
        weights_digest=str(row["weights_digest"]),
        metrics=json.loads(str(row["metrics_json"])),
        created_at_utc=str(row["created_at_utc"]),
        state=state,
        started_from=None if row["started_from"] is None else str(row["started_from"]),
    )
