"""Blind votes: which of two answers an operator likes better, chosen without knowing whose they are.

In: an operator's choice between two answers to one decision. Out: the next two to choose between, in an order that chance draws, and
the choices, for whoever asks how well a judge agrees with people.
A vote never changes; voting again is the next vote, and the newest of an operator on a pair counts.
"""

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from conversations import audit
from conversations.decisions import Answer, AnswerAuthor, answers
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


@dataclass(frozen=True)
class Pair:
    """Two answers of different authors to one decision, in the order in which they are shown."""

    decision_id: str
    left: Answer
    right: Answer


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


def next_pair(record: Record, *, voted_by: str, chance: random.Random) -> Pair | None:
    """Return two answers that an operator has not compared yet, or None when there are no more.

    Both are the newest words of a student or a teacher, of different authors and not the same text. Chance draws the decision, the
    two authors and which of them stands on the left.
    """
    rows = record.query(
        "SELECT decision_id FROM answers WHERE author_kind IN ('student', 'teacher') GROUP BY decision_id "
        "HAVING COUNT(DISTINCT content_hash) > 1 AND COUNT(DISTINCT author_kind || ' ' || author_name) > 1 "
        "AND SUM(author_kind = 'student') > 0 ORDER BY decision_id"
    )
    done = {
        frozenset((str(row["left_answer_id"]), str(row["right_answer_id"])))
        for row in record.query("SELECT left_answer_id, right_answer_id FROM blind_votes WHERE voted_by = ?", [voted_by])
    }
    decision_ids = [str(row["decision_id"]) for row in rows]
    chance.shuffle(decision_ids)
    for decision_id in decision_ids:
        newest: dict[tuple[AnswerAuthor, str], Answer] = {}
        for each in answers(record, decision_id):
            if each.author in (AnswerAuthor.STUDENT, AnswerAuthor.TEACHER) and each.content:
                newest.setdefault((each.author, each.author_name), each)
        pairs = [
            [one, other]
            for one, other in combinations(newest.values(), 2)
            if one.content != other.content and frozenset((one.answer_id, other.answer_id)) not in done
        ]
        if pairs:
            left, right = chance.sample(chance.choice(pairs), 2)
            return Pair(decision_id, left, right)
    return None


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
