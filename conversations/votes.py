"""Blind votes: which of two answers an operator likes better, chosen without knowing whose they are.

In: an operator's choice between two answers to one decision. Out: the same, for whoever asks how well a judge agrees with people.
A vote never changes; voting again is the next vote, and the newest of an operator on a pair counts.
"""

from dataclasses import dataclass
from enum import StrEnum

from conversations import audit
from conversations.errors import OperatorError
from conversations.messages import new_name, utc_now
from conversations.store import Record


class Choice(StrEnum):
    """Which of the two answers is better."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"


@dataclass(frozen=True)
class BlindVote:
    """One operator's choice between two answers to a decision."""

    vote_id: str
    decision_id: str
    left_answer_id: str
    right_answer_id: str
    choice: Choice
    voted_by: str
    voted_at_utc: str


def vote(
    record: Record, *, decision_id: str, left_answer_id: str, right_answer_id: str, choice: Choice, voted_by: str
) -> BlindVote:
    """Enter a vote and return it.

    Raises OperatorError where the two are one, or are no answers to the decision.
    """
    if left_answer_id == right_answer_id:
        raise OperatorError(f"the answer {left_answer_id!r} cannot be compared with itself; choose two answers")
    made = BlindVote(new_name("vote"), decision_id, left_answer_id, right_answer_id, choice, voted_by, utc_now())
    with record.write() as transaction:
        known = transaction.query(
            "SELECT answer_id FROM answers WHERE decision_id = ? AND answer_id IN (?, ?)",
            [decision_id, left_answer_id, right_answer_id],
        )
        if len(known) != 2:
            raise OperatorError(f"the decision {decision_id!r} has not both answers any more; choose another decision")
        transaction.insert("blind_votes", vars(made))
        audit.note(transaction, voted_by, "blind vote", decision_id, {"choice": choice.value})
    return made


def votes(record: Record, *, limit: int = 100_000) -> list[BlindVote]:
    """Return votes, the newest first; of an operator's votes on one pair of answers the newest alone."""
    rows = record.query("SELECT * FROM blind_votes ORDER BY voted_at_utc DESC, vote_id DESC LIMIT ?", [limit])
    newest: dict[tuple[str, frozenset[str]], BlindVote] = {}
    for row in rows:
        each = BlindVote(
            vote_id=str(row["vote_id"]),
            decision_id=str(row["decision_id"]),
            left_answer_id=str(row["left_answer_id"]),
            right_answer_id=str(row["right_answer_id"]),
            choice=Choice(str(row["choice"])),
            voted_by=str(row["voted_by"]),
            voted_at_utc=str(row["voted_at_utc"]),
        )
        newest.setdefault((each.voted_by, frozenset((each.left_answer_id, each.right_answer_id))), each)
    return list(newest.values())
