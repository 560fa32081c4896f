"""Batches of requests that wait at a provider, so that a run that was killed finds them again and pays nothing twice.

In: requests with their reservations, prepared together. Out: what still waits, and where. A batch is prepared here before
anything of it leaves; it is collected here in the transaction that saves its replies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations.messages import new_name, utc_now
from conversations.replies import TeacherReply, put_reply
from conversations.spending import Caps, reserve_one, settle_as_reserved, settle_one
from conversations.store import Record, Row


class BatchState(StrEnum):
    """How far a batch has come."""

    PREPARED = "prepared"
    SUBMITTED = "submitted"
    COLLECTED = "collected"
    FAILED = "failed"


@dataclass(frozen=True)
class Wanted:
    """A request for a batch, and what it costs there at most."""

    request_hash: str
    decision_id: str
    usd: float
    tokens: int


@dataclass(frozen=True)
class Waiting:
    """A batch that was prepared and is not collected."""

    batch_id: str
    state: BatchState
    input_file_id: str | None
    provider_batch_id: str | None
    spending: dict[str, str]
    """The reservation of each request, by its hash."""
    decisions: dict[str, str]
    """What each request is about, by its hash."""


@dataclass(frozen=True)
class Paid:
    """A request of a batch with what it cost in the end (None: what was reserved), and its reply where it has one."""

    request_hash: str
    usd: float | None
    tokens: int
    reply: TeacherReply | None


def prepare(record: Record, run_id: str, teacher: str, wanted: Sequence[Wanted], caps: Caps) -> Waiting | None:
    """Reserve what a batch costs and note its requests; those with which a cap would be passed stay out.

    Returns None where none is left.
    """
    with record.write() as transaction:
        reserved: dict[str, str] = {}
        for each in wanted:
            spending_id = reserve_one(transaction, run_id, teacher, each.usd, each.tokens, caps)
            if spending_id is not None:
                reserved[each.request_hash] = spending_id
        if not reserved:
            return None
        batch_id, now = new_name("batch"), utc_now()
        transaction.insert(
            "teacher_batches",
            {
                "batch_id": batch_id,
                "run_id": run_id,
                "teacher": teacher,
                "state": BatchState.PREPARED,
                "made_at_utc": now,
                "changed_at_utc": now,
            },
        )
        transaction.insert_many(
            "teacher_batch_requests",
            [
                {
                    "batch_id": batch_id,
                    "request_hash": each.request_hash,
                    "decision_id": each.decision_id,
                    "spending_id": reserved[each.request_hash],
                }
                for each in wanted
                if each.request_hash in reserved
            ],
        )
    about = {each.request_hash: each.decision_id for each in wanted if each.request_hash in reserved}
    return Waiting(batch_id, BatchState.PREPARED, None, None, reserved, about)


def submitted(record: Record, batch_id: str, *, input_file_id: str, provider_batch_id: str | None) -> None:
    """Note under which names a provider has a batch; without a batch of its own it has the input file alone."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE teacher_batches SET input_file_id = ?, provider_batch_id = ?, state = ?, changed_at_utc = ? WHERE batch_id = ?",
            [
                input_file_id,
                provider_batch_id,
                BatchState.SUBMITTED if provider_batch_id else BatchState.PREPARED,
                utc_now(),
                batch_id,
            ],
        )


def settle(record: Record, waiting: Waiting, paid: Iterable[Paid], *, state: BatchState, detail: str = "") -> None:
    """Save a batch's replies and settle its reservations in one step; a request without an outcome has cost nothing."""
    with record.write() as transaction:
        # An erasure may have taken requests out meanwhile.
        still_there = {
            str(row["request_hash"])
            for row in transaction.query(
                "SELECT request_hash FROM teacher_batch_requests WHERE batch_id = ?", [waiting.batch_id]
            )
        }
        open_ones = dict(waiting.spending)
        for each in paid:
            if each.reply is not None and each.request_hash in still_there:
                put_reply(transaction, each.reply)
            spending_id = open_ones.pop(each.request_hash)
            if each.usd is None:
                settle_as_reserved(transaction, spending_id)
            else:
                settle_one(transaction, spending_id, each.usd, each.tokens)
        for spending_id in open_ones.values():
            settle_one(transaction, spending_id, 0.0, 0)
        transaction.execute(
            "UPDATE teacher_batches SET state = ?, detail = ?, changed_at_utc = ? WHERE batch_id = ?",
            [state, detail, utc_now(), waiting.batch_id],
        )


def waiting(record: Record, teacher: str) -> list[Waiting]:
    """Return the batches of a teacher that are not collected, of whichever run, the oldest first."""
    rows = record.query(
        "SELECT * FROM teacher_batches WHERE teacher = ? AND state IN ('prepared', 'submitted') ORDER BY batch_id", [teacher]
    )
    return [_waiting_of(record, row) for row in rows]


def _waiting_of(record: Record, row: Row) -> Waiting:
    batch_id = str(row["batch_id"])
    requests = record.query(
        "SELECT request_hash, decision_id, spending_id FROM teacher_batch_requests WHERE batch_id = ? ORDER BY request_hash",
        [batch_id],
    )
    return Waiting(
        batch_id=batch_id,
        state=BatchState(str(row["state"])),
        input_file_id=None if row["input_file_id"] is None else str(row["input_file_id"]),
        provider_batch_id=None if row["provider_batch_id"] is None else str(row["provider_batch_id"]),
        spending={str(each["request_hash"]): str(each["spending_id"]) for each in requests},
        decisions={str(each["request_hash"]): str(each["decision_id"]) for each in requests},
    )
