"""Money, tokens and calls: reserved in the record before a request leaves, settled when its reply is in.

In: what a request costs at most, and in the end. Out: a reservation, or none where a cap of its run would be passed. What is
reserved counts until it is settled, so that the caps hold whatever the concurrency, and after a kill as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from conversations.messages import new_name, utc_now
from conversations.store import Record, Transaction


@dataclass(frozen=True)
class Caps:
    """What one run may spend at most; `tokens` of None is no cap."""

    usd: float
    calls: int
    tokens: int | None = None


@dataclass(frozen=True)
class Spent:
    """What requests take: in dollars, in calls, in prompt and completion tokens together."""

    usd: float
    calls: int
    tokens: int


def reserve(
    record: Record, run_id: str, teacher: str, wanted: Sequence[tuple[float, int]], caps: Caps
) -> tuple[str | None, ...]:
    """Reserve dollars and tokens for requests, one after the other, in one transaction.

    Returns the name of each reservation, or None for a request with which a cap would be passed.
    """
    with record.write() as transaction:
        return tuple(reserve_one(transaction, run_id, teacher, usd, tokens, caps) for usd, tokens in wanted)


def reserve_one(transaction: Transaction, run_id: str, teacher: str, usd: float, tokens: int, caps: Caps) -> str | None:
    """Reserve one request inside an open transaction; None where a cap would be passed."""
    rows = transaction.query("SELECT calls, usd, tokens FROM run_spending WHERE run_id = ?", [run_id])
    calls, so_far, used = (
        (int(rows[0]["calls"] or 0), float(rows[0]["usd"] or 0), int(rows[0]["tokens"] or 0)) if rows else (0, 0.0, 0)
    )
    if calls + 1 > caps.calls or so_far + usd > caps.usd or (caps.tokens is not None and used + tokens > caps.tokens):
        return None
    spending_id = new_name("spending")
    transaction.insert(
        "spending",
        {
            "spending_id": spending_id,
            "run_id": run_id,
            "teacher": teacher,
            "reserved_usd": usd,
            "reserved_tokens": tokens,
            "reserved_at_utc": utc_now(),
        },
    )
    return spending_id


def settle(record: Record, spending_id: str, usd: float, tokens: int) -> None:
    """Write what a reserved request took in the end."""
    with record.write() as transaction:
        settle_one(transaction, spending_id, usd, tokens)


def settle_one(transaction: Transaction, spending_id: str, usd: float, tokens: int) -> None:
    """Settle a reservation inside an open transaction."""
    transaction.execute(
        "UPDATE spending SET settled_usd = ?, settled_tokens = ?, settled_at_utc = ? WHERE spending_id = ?",
        [usd, tokens, utc_now(), spending_id],
    )


def settle_as_reserved(transaction: Transaction, spending_id: str) -> None:
    """Settle a request inside an open transaction that may have cost all that was reserved for it."""
    transaction.execute(
        "UPDATE spending SET settled_usd = reserved_usd, settled_tokens = reserved_tokens, settled_at_utc = ? "
        "WHERE spending_id = ?",
        [utc_now(), spending_id],
    )


def take_back(record: Record, spending_id: str) -> None:
    """Take back the reservation of a request that never left."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM spending WHERE spending_id = ? AND settled_usd IS NULL", [spending_id])


def spent(record: Record, run_id: str) -> Spent:
    """Return what a run has spent and reserved so far, failed requests included."""
    row = record.one("SELECT calls, usd, tokens FROM run_spending WHERE run_id = ?", [run_id])
    found = row or {}
    return Spent(float(found.get("usd") or 0), int(found.get("calls") or 0), int(found.get("tokens") or 0))


def spent_by_teacher(record: Record, run_id: str) -> dict[str, Spent]:
    """Return the same by teacher, the judge among them."""
    rows = record.query(
        "SELECT teacher, COUNT(*) AS calls, SUM(COALESCE(settled_usd, reserved_usd)) AS usd, "
        "SUM(COALESCE(settled_tokens, reserved_tokens)) AS tokens FROM spending WHERE run_id = ? GROUP BY teacher "
        "ORDER BY teacher",
        [run_id],
    )
    return {
        str(row["teacher"]): Spent(float(row["usd"] or 0), int(row["calls"] or 0), int(row["tokens"] or 0)) for row in rows
    }
