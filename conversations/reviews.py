"""Reviews: what operators say of an answer that somebody gave.

In: an operator's verdict on an answer, with a note. Out: the newest word on each answer, which every rule gives way to. A change of
mind is the next review; none is ever changed or lost. Knows no page.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from conversations import audit
from conversations.errors import OperatorError
from conversations.messages import check_storable, new_name, utc_now
from conversations.store import Record, Row


class ReviewVerdict(StrEnum):
    """What an operator says of an answer."""

    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Review:
    """One word of an operator on one answer."""

    review_id: str
    answer_id: str
    verdict: ReviewVerdict
    reviewed_by: str
    note: str
    reviewed_at_utc: str


def review(record: Record, answer_id: str, verdict: ReviewVerdict, *, reviewed_by: str, note: str = "") -> Review:
    """Enter an operator's word on an answer and return it; it stands above the earlier ones.

    Raises OperatorError for an answer that is not there, and for a note that cannot be stored.
    """
    check_storable(note)
    review_id = new_name("review")
    with record.write() as transaction:
        if not transaction.query("SELECT 1 FROM answers WHERE answer_id = ?", [answer_id]):
            raise OperatorError(f"no answer {answer_id!r} in {record.path}; the console's tab Compare shows the answers")
        transaction.insert(
            "answer_reviews",
            {
                "review_id": review_id,
                "answer_id": answer_id,
                "verdict": verdict,
                "reviewed_by": reviewed_by,
                "note": note,
                "reviewed_at_utc": utc_now(),
            },
        )
        # An erasure takes the note, which may tell of a customer, and cannot take it out of the audit.
        audit.note(transaction, reviewed_by, f"answer {verdict}", answer_id, {"review_id": review_id})
        return _review_of(transaction.query("SELECT * FROM answer_reviews WHERE review_id = ?", [review_id])[0])


def newest(record: Record, decision_id: str | None = None) -> Mapping[str, Review]:
    """Return the newest review of each answer that has one, by answer_id: of one decision, or of the whole record."""
    where = "WHERE r.answer_id IN (SELECT answer_id FROM answers WHERE decision_id = ?)" if decision_id else ""
    rows = record.query(
        f"SELECT r.* FROM answer_reviews r {where} ORDER BY r.review_id", [decision_id] if decision_id else []
    )
    # Names sort by the order of their making: the last of an answer wins.
    return {str(row["answer_id"]): _review_of(row) for row in rows}


def approved_answers(record: Record) -> set[str]:
    """Return the answers that operators approved, by the newest word on each."""
    return {name for name, each in newest(record).items() if each.verdict is ReviewVerdict.APPROVED}


def _review_of(row: Row) -> Review:
    return Review(
        review_id=str(row["review_id"]),
        answer_id=str(row["answer_id"]),
        verdict=ReviewVerdict(str(row["verdict"])),
        reviewed_by=str(row["reviewed_by"]),
        note=str(row["note"]),
        reviewed_at_utc=str(row["reviewed_at_utc"]),
    )
