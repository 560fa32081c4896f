"""Distillation runs as the record knows them: who asked, what is running, how far it is, what it wrote.

In: requests from the console, progress from `distill`. Out: values that the console shows and `distill schedule` acts on.
The run's own folder holds the rows; this holds the thread that leads there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from conversations import audit
from conversations.errors import OperatorError, OutsideError
from conversations.messages import Json, new_name, utc_now
from conversations.processes import is_alive, process_token
from conversations.store import Record, Row


class RunState(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class RunRequest:
    """An operator's wish for a run."""

    request_id: str
    requested_by: str
    requested_at_utc: str
    state: str
    run_id: str | None
    outcome: str | None


@dataclass(frozen=True)
class Begun:
    """Who takes a run up, and for whose wish; a schedule goes on by itself with what a schedule left, and with nothing else."""

    by: str = ""
    request_id: str | None = None


@dataclass(frozen=True)
class Run:
    """A distillation run. `progress` is the share of the present stage that is done, 0 to 1."""

    run_id: str
    state: RunState
    path: str
    settings_digest: str
    stage: str
    progress: float
    outcome: str | None
    report: Mapping[str, Json] | None
    started_at_utc: str
    heartbeat_at_utc: str
    finished_at_utc: str | None


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run."""

    run_id: str
    stage: str
    event: str
    detail: Mapping[str, Json]
    happened_at_utc: str


def request_run(record: Record, *, requested_by: str) -> RunRequest:
    """Ask for a run; while one request waits, a second asks for the same one and gets it back."""
    with record.write() as transaction:
        waiting = transaction.query("SELECT * FROM run_requests WHERE state = 'waiting'")
        if waiting:
            return _request_of(waiting[0])
        request_id = new_name("request")
        transaction.insert(
            "run_requests",
            {
                "request_id": request_id,
                "requested_by": requested_by,
                "requested_at_utc": utc_now(),
                "state": "waiting",
            },
        )
        audit.note(transaction, requested_by, "run requested", request_id, {})
        return _request_of(transaction.query("SELECT * FROM run_requests WHERE request_id = ?", [request_id])[0])


def waiting_request(record: Record) -> RunRequest | None:
    """Return the request that no runner has taken yet."""
    row = record.one("SELECT * FROM run_requests WHERE state = 'waiting'")
    return _request_of(row) if row else None


def take_request(record: Record, taken_by: str) -> RunRequest | None:
    """Take the request that waits, or return None where none does; of several who try at once, one gets it."""
    with record.write() as transaction:
        found = transaction.query("SELECT request_id FROM run_requests WHERE state = 'waiting' LIMIT 1")
        if not found:
            return None
        request_id = found[0]["request_id"]
        transaction.execute(
            "UPDATE run_requests SET state = 'taken', taken_by = ? WHERE request_id = ?", [taken_by, request_id]
        )
        return _request_of(transaction.query("SELECT * FROM run_requests WHERE request_id = ?", [request_id])[0])


def settle_request(record: Record, request_id: str, *, state: str, run_id: str | None, outcome: str | None) -> None:
    """Move a request on: taken by a run, done with an outcome, or cancelled."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE run_requests SET state = ?, run_id = COALESCE(?, run_id), outcome = ? WHERE request_id = ?",
            [state, run_id, outcome, request_id],
        )


def request(record: Record, request_id: str) -> RunRequest:
    """Return a request that exists."""
    return _request_of(record.query("SELECT * FROM run_requests WHERE request_id = ?", [request_id])[0])


def requests(record: Record, limit: int = 20) -> list[RunRequest]:
    """Return the newest requests, the latest first."""
    rows = record.query("SELECT * FROM run_requests ORDER BY requested_at_utc DESC LIMIT ?", [limit])
    return [_request_of(row) for row in rows]


def begin_run(record: Record, *, run_id: str, path: str, settings_digest: str, begun: Begun | None = None) -> Run:
    """Enter a run as running, or take up one that was interrupted or failed; the request that it serves learns its name.

    A run whose process has ended, or was not heard of for long, is interrupted by this.
    Raises OutsideError while another run is going on: one at a time, across processes.
    """
    with record.write() as transaction:
        for row in transaction.query("SELECT * FROM runs WHERE state = 'running'"):
            if _goes_on(row):
                raise OutsideError(
                    f"the run {row['run_id']!r} is going on since {row['started_at_utc']} ({row['stage'] or 'starting'}); "
                    "one runs at a time: wait for it, or stop its process"
                )
            transaction.execute("UPDATE runs SET state = 'interrupted' WHERE run_id = ?", [row["run_id"]])
        now = utc_now()
        transaction.execute(
            "INSERT INTO runs (run_id, state, path, settings_digest, process_token, started_at_utc, heartbeat_at_utc) "
            "VALUES (:run_id, 'running', :path, :digest, :token, :now, :now) ON CONFLICT (run_id) DO UPDATE SET "
            "state = 'running', process_token = excluded.process_token, heartbeat_at_utc = excluded.heartbeat_at_utc, "
            "finished_at_utc = NULL, outcome = NULL",
            {"run_id": run_id, "path": path, "digest": settings_digest, "token": process_token(), "now": now},
        )
        # What comes into the record later is new to the next run.
        by = begun or Begun()
        transaction.execute(
            "INSERT INTO run_events (run_id, stage, event, detail_json, happened_at_utc) "
            "SELECT ?, '', 'begun', json_object('newest', value, 'by', ?), ? FROM counters WHERE name = 'conversation_seq'",
            [run_id, by.by, now],
        )
        transaction.execute("UPDATE run_requests SET run_id = ? WHERE request_id = ?", [run_id, by.request_id])
    return run(record, run_id)


def beat(record: Record, run_id: str) -> bool:
    """Write a sign of life of a run; False where it is this process's no more, because another one took it to be dead."""
    with record.write() as transaction:
        changed = transaction.execute(
            "UPDATE runs SET heartbeat_at_utc = ? WHERE run_id = ? AND process_token = ? AND state <> 'interrupted'",
            [utc_now(), run_id, process_token()],
        )
    return changed == 1


def show_progress(record: Record, run_id: str, *, stage: str, progress: float) -> None:
    """Write how far this process's run is; the console reads it."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE runs SET stage = ?, progress = ?, heartbeat_at_utc = ? WHERE run_id = ? AND process_token = ?",
            [stage, progress, utc_now(), run_id, process_token()],
        )


def add_event(record: Record, run_id: str, *, stage: str, event: str, detail: Mapping[str, Json]) -> None:
    """Append an event to a run's history."""
    with record.write() as transaction:
        transaction.insert(
            "run_events",
            {
                "run_id": run_id,
                "stage": stage,
                "event": event,
                "detail_json": json.dumps(dict(detail), sort_keys=True, ensure_ascii=False),
                "happened_at_utc": utc_now(),
            },
        )


def finish_run(
    record: Record, run_id: str, *, state: RunState, outcome: str, report: Mapping[str, Json] | None = None
) -> None:
    """Close this process's run with its outcome in one sentence; one that another process took up meanwhile stays as it is.

    A failure is an event of the run too, so that those in a row can be counted.
    """
    with record.write() as transaction:
        changed = transaction.execute(
            "UPDATE runs SET state = ?, outcome = ?, report_json = COALESCE(?, report_json), finished_at_utc = ?, "
            "heartbeat_at_utc = ? WHERE run_id = ? AND process_token = ?",
            [
                state,
                outcome,
                json.dumps(dict(report), sort_keys=True, ensure_ascii=False) if report is not None else None,
                utc_now(),
                utc_now(),
                run_id,
                process_token(),
            ],
        )
        if changed and state is RunState.FAILED:
            transaction.insert(
                "run_events", {"run_id": run_id, "stage": "", "event": "failed", "happened_at_utc": utc_now()}
            )


def note_report(record: Record, run_id: str, report: Mapping[str, Json]) -> None:
    """Keep a run's report as it is now; how the run stands does not change."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE runs SET report_json = ? WHERE run_id = ?",
            [json.dumps(dict(report), sort_keys=True, ensure_ascii=False), run_id],
        )


def run(record: Record, run_id: str) -> Run:
    """Return a run.

    Raises OperatorError when there is none of that name.
    """
    row = record.one("SELECT * FROM runs WHERE run_id = ?", [run_id])
    if row is None:
        known = ", ".join(each.run_id for each in runs(record, limit=3)) or "none yet"
        raise OperatorError(f"no run {run_id!r} in {record.path}; the newest are: {known}")
    return _run_of(row)


def runs(record: Record, limit: int = 50) -> list[Run]:
    """Return runs, the newest first: in the order in which they were entered, which no clock that is set back changes."""
    return [_run_of(row) for row in record.query("SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", [limit])]


def run_events(record: Record, run_id: str) -> list[RunEvent]:
    """Return what happened in a run, in order."""
    return [
        _event_of(row) for row in record.query("SELECT * FROM run_events WHERE run_id = ? ORDER BY run_event_id", [run_id])
    ]


def latest_event(record: Record, run_id: str, *, stage: str, event: str) -> RunEvent | None:
    """Return the newest event of a kind in a run's stage, or None where there is none yet."""
    row = record.one(
        "SELECT * FROM run_events WHERE run_id = ? AND stage = ? AND event = ? ORDER BY run_event_id DESC LIMIT 1",
        [run_id, stage, event],
    )
    return _event_of(row) if row else None


def begun_by(record: Record, run_id: str) -> str:
    """Return who began a run or took it up last, as `Begun.by` says."""
    begun = latest_event(record, run_id, stage="", event="begun")
    return str(begun.detail.get("by", "")) if begun else ""


def failures_in_a_row(record: Record, run_id: str) -> int:
    """Return how often a run has failed since it last finished a stage."""
    row = record.one(
        "SELECT COUNT(*) AS n FROM run_events WHERE run_id = :run_id AND event = 'failed' AND run_event_id > COALESCE("
        "(SELECT MAX(run_event_id) FROM run_events WHERE run_id = :run_id AND event = 'finished'), 0)",
        {"run_id": run_id},
    )
    return int((row or {}).get("n") or 0)


def new_conversations(record: Record, run_id: str | None) -> int:
    """Return how many conversations have come into the record since a run began; all of them without a run.

    An imported conversation is as old as its log says, and yet new to the record.
    """
    row = record.one(
        "SELECT COUNT(*) AS n FROM conversations WHERE conversation_seq > COALESCE("
        "(SELECT MIN(json_extract(detail_json, '$.newest')) FROM run_events WHERE run_id = ? AND event = 'begun'), 0)",
        [run_id],
    )
    return int((row or {}).get("n") or 0)


def _event_of(row: Row) -> RunEvent:
    return RunEvent(
        str(row["run_id"]),
        str(row["stage"]),
        str(row["event"]),
        json.loads(str(row["detail_json"])),
        str(row["happened_at_utc"]),
    )


def _request_of(row: Row) -> RunRequest:
    return RunRequest(
        request_id=str(row["request_id"]),
        requested_by=str(row["requested_by"]),
        requested_at_utc=str(row["requested_at_utc"]),
        state=str(row["state"]),
        run_id=None if row["run_id"] is None else str(row["run_id"]),
        outcome=None if row["outcome"] is None else str(row["outcome"]),
    )


def _goes_on(row: Row) -> bool:
    return is_alive(str(row["process_token"]), heard_at_utc=str(row["heartbeat_at_utc"]))


def _run_of(row: Row) -> Run:
    alive = row["state"] != "running" or _goes_on(row)
    return Run(
        run_id=str(row["run_id"]),
        state=RunState(str(row["state"])) if alive else RunState.INTERRUPTED,
        path=str(row["path"]),
        settings_digest=str(row["settings_digest"]),
        stage=str(row["stage"]),
        progress=float(row["progress"] or 0),
        outcome=None if row["outcome"] is None else str(row["outcome"]),
        report=json.loads(str(row["report_json"])) if row["report_json"] else None,
        started_at_utc=str(row["started_at_utc"]),
        heartbeat_at_utc=str(row["heartbeat_at_utc"]),
        finished_at_utc=None if row["finished_at_utc"] is None else str(row["finished_at_utc"]),
    )
