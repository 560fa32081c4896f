"""Which student servers there are, how each is, and which releases it has in memory.

In: what a supervisor saw. Out: the servers that can answer with a release now. A supervisor that falls silent has no server.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from conversations.messages import utc_now, utc_text
from conversations.store import Record

SERVER_SILENCE = timedelta(seconds=20)


class ServerState(StrEnum):
    """What a student server said of itself last."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"


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
    """Write what a supervisor knows of its server now; a server that is not ready has nothing loaded.

    What it could not load stays written until it starts again.
    """
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
        match state:
            case ServerState.STARTING:
                transaction.execute("DELETE FROM loads WHERE server_id = ?", [server_id])
            case ServerState.DOWN:
                transaction.execute("DELETE FROM loads WHERE server_id = ? AND state = 'loaded'", [server_id])


def forget_server(record: Record, server_id: str) -> None:
    """Write that a server is no longer looked after and will not come back."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM loads WHERE server_id = ?", [server_id])
        transaction.execute("DELETE FROM student_servers WHERE server_id = ?", [server_id])


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
