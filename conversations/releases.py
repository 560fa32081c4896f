"""Releases: the immutable versions of the student, which one is in service, and which server has loaded what.

In: what the gate decided, what an operator asked for, what a supervisor saw. Out: one answer to "which student answers this
conversation". A release never changes and its name is never used again; what happens to it is an event behind it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from conversations import audit
from conversations.errors import OperatorError
from conversations.messages import Json, utc_now, utc_text
from conversations.store import Record, Row, Transaction

SERVER_SILENCE = timedelta(seconds=20)
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


class ServerState(StrEnum):
    """What a student server said of itself last."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"


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


@dataclass(frozen=True)
class StudentServer:
    """A vLLM server as its supervisor last saw it. `is_fresh` is false when the supervisor has fallen silent.

    `release_id` is the one whole release that it serves, None where it serves the base with adapters. Memory is that of the
    server's processes, where its supervisor can see them.
    """

    server_id: str
    base_url: str
    base: str
    state: ServerState
    process_id: int | None
    detail: str
    heartbeat_at_utc: str
    is_fresh: bool
    release_id: str | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class Load:
    """Whether a server has a release in memory."""

    server_id: str
    release_id: str
    loaded: bool
    detail: str


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


def in_service(record: Record) -> str | None:
    """Return the release that new conversations get, or None before the first student."""
    row = record.one(
        "SELECT release_id FROM release_events WHERE event IN ('promoted', 'restored') "
        "ORDER BY release_event_id DESC LIMIT 1"
    )
    return str(row["release_id"]) if row else None


def may_go_on(record: Record, release_id: str) -> bool:
    """Tell whether a release may go on with the conversations that hold it: not once it was rolled back or refused."""
    return _last_event(record, release_id) not in (None, "rolled_back", "refused")


def promote(record: Record, release_id: str, *, actor: str, reason: str) -> None:
    """Put a release into service for new conversations."""
    _known(record, release_id)
    with record.write() as transaction:
        promote_in(transaction, release_id, actor=actor, reason=reason)


def promote_in(transaction: Transaction, release_id: str, *, actor: str, reason: str) -> None:
    """Put a release into service, inside an open transaction."""
    want_in(transaction, release_id, actor)
    _event(transaction, release_id, "promoted", actor, reason)


def take_back_in(transaction: Transaction, release_id: str, *, actor: str, reason: str) -> None:
    """Note that a release that was on trial is rolled back, inside an open transaction; the one in service stays."""
    _event(transaction, release_id, "rolled_back", actor, reason)


def refuse(record: Record, release_id: str, *, actor: str, reason: str) -> None:
    """Note that the gate did not let a release into service, and let the servers drop it."""
    _known(record, release_id)
    with record.write() as transaction:
        _event(transaction, release_id, "refused", actor, reason)
        transaction.execute("DELETE FROM wanted_loads WHERE release_id = ?", [release_id])


def set_aside(record: Record, release_id: str, *, actor: str, reason: str) -> None:
    """Note that the gate could not tell; the release stays a candidate and the servers drop it."""
    _known(record, release_id)
    with record.write() as transaction:
        transaction.execute("DELETE FROM wanted_loads WHERE release_id = ?", [release_id])
        audit.note(transaction, actor, "release set aside", release_id, {"reason": reason})


def roll_back(record: Record, *, to: str | None = None, actor: str, reason: str) -> str:
    """Take the release in service out of it and restore another; return the restored one's name.

    Without `to`, the one that was in service before. Raises OperatorError when there is none.
    """
    with record.write() as transaction:
        served = transaction.query(
            "SELECT release_id FROM release_events WHERE event IN ('promoted', 'restored') ORDER BY release_event_id"
        )
        current = str(served[-1]["release_id"]) if served else None
        target = to or _previous(transaction, [str(row["release_id"]) for row in served])
        if target is None or current is None:
            raise OperatorError("no earlier release to roll back to; `distill releases` lists what there is")
        if target == current:
            raise OperatorError(f"the release {target!r} is in service already; nothing to roll back")
        if not transaction.query("SELECT 1 FROM releases WHERE release_id = ?", [target]):
            raise OperatorError(f"no release {target!r}; `distill releases` lists what there is")
        if target not in {row["release_id"] for row in served}:
            raise OperatorError(f"the release {target!r} was never in service; only the gate puts a release there first")
        _event(transaction, current, "rolled_back", actor, reason)
        want_in(transaction, target, actor)
        _event(transaction, target, "restored", actor, reason)
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


def announce_server(
    record: Record,
    *,
    server_id: str,
    base_url: str,
    base: str,
    state: ServerState,
    process_id: int | None = None,
    detail: str = "",
    release_id: str | None = None,
    memory_bytes: int | None = None,
    gpu_memory_bytes: int | None = None,
) -> None:
    """Write what a supervisor knows of its server now; a server that is not ready has nothing loaded."""
    with record.write() as transaction:
        transaction.execute(
            "INSERT INTO student_servers (server_id, base_url, base, state, process_id, detail, heartbeat_at_utc, release_id, "
            "memory_bytes, gpu_memory_bytes) VALUES (:server_id, :base_url, :base, :state, :process_id, :detail, :now, "
            ":release_id, :memory_bytes, :gpu_memory_bytes) "
            "ON CONFLICT (server_id) DO UPDATE SET base_url = excluded.base_url, base = excluded.base, "
            "state = excluded.state, process_id = excluded.process_id, detail = excluded.detail, "
            "heartbeat_at_utc = excluded.heartbeat_at_utc, release_id = excluded.release_id, "
            "memory_bytes = excluded.memory_bytes, gpu_memory_bytes = excluded.gpu_memory_bytes",
            {
                "server_id": server_id,
                "base_url": base_url,
                "base": base,
                "state": state,
                "process_id": process_id,
                "detail": detail,
                "now": utc_now(),
                "release_id": release_id,
                "memory_bytes": memory_bytes,
                "gpu_memory_bytes": gpu_memory_bytes,
            },
        )
        if state is not ServerState.READY:
            transaction.execute("DELETE FROM loads WHERE server_id = ?", [server_id])


def servers(record: Record) -> list[StudentServer]:
    """Return every known server."""
    oldest = utc_text(datetime.now(UTC) - SERVER_SILENCE)
    return [
        StudentServer(
            server_id=str(row["server_id"]),
            base_url=str(row["base_url"]),
            base=str(row["base"]),
            state=ServerState(str(row["state"])),
            process_id=None if row["process_id"] is None else int(row["process_id"]),
            detail=str(row["detail"]),
            heartbeat_at_utc=str(row["heartbeat_at_utc"]),
            is_fresh=str(row["heartbeat_at_utc"]) >= oldest,
            release_id=None if row["release_id"] is None else str(row["release_id"]),
            memory_bytes=None if row["memory_bytes"] is None else int(row["memory_bytes"]),
            gpu_memory_bytes=None if row["gpu_memory_bytes"] is None else int(row["gpu_memory_bytes"]),
        )
        for row in record.query("SELECT * FROM student_servers ORDER BY server_id")
    ]


def note_load(record: Record, load: Load) -> None:
    """Write that a server has loaded a release, or that it could not."""
    with record.write() as transaction:
        transaction.execute(
            "INSERT INTO loads VALUES (?, ?, ?, ?, ?) ON CONFLICT (server_id, release_id) "
            "DO UPDATE SET state = excluded.state, detail = excluded.detail, happened_at_utc = excluded.happened_at_utc",
            [load.server_id, load.release_id, "loaded" if load.loaded else "failed", load.detail, utc_now()],
        )


def forget_load(record: Record, server_id: str, release_id: str) -> None:
    """Write that a server no longer has a release in memory."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM loads WHERE server_id = ? AND release_id = ?", [server_id, release_id])


def loads(record: Record) -> list[Load]:
    """Return what each server has in memory, and what it could not load."""
    return [
        Load(str(row["server_id"]), str(row["release_id"]), row["state"] == "loaded", str(row["detail"]))
        for row in record.query("SELECT * FROM loads ORDER BY server_id, release_id")
    ]


def servers_with(record: Record, release_id: str) -> list[StudentServer]:
    """Return the ready servers that have a release in memory."""
    holding = {load.server_id for load in loads(record) if load.release_id == release_id and load.loaded}
    return [
        server
        for server in servers(record)
        if server.server_id in holding and server.state is ServerState.READY and server.is_fresh
    ]


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


def want_in(transaction: Transaction, release_id: str, wanted_by: str) -> None:
    """Ask the servers to load a release, inside an open transaction."""
    transaction.execute("INSERT OR IGNORE INTO wanted_loads VALUES (?, ?, ?)", [release_id, wanted_by, utc_now()])


def _previous(transaction: Transaction, served: list[str]) -> str | None:
    """Return the newest release before the present one that was in service and was not rolled back since."""
    for release_id in reversed(served[:-1]):
        last = transaction.query(
            "SELECT event FROM release_events WHERE release_id = ? ORDER BY release_event_id DESC LIMIT 1", [release_id]
        )
        if release_id != served[-1] and last[0]["event"] != "rolled_back":
            return release_id
    return None


def _last_event(record: Record, release_id: str) -> str | None:
    row = record.one(
        "SELECT event FROM release_events WHERE release_id = ? ORDER BY release_event_id DESC LIMIT 1", [release_id]
    )
    return str(row["event"]) if row else None


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
