"""What a blind vote promises: chance draws the sides, no pair comes twice, and a vote never changes."""

import random
import sqlite3
from collections import Counter

import pytest
from conftest import talk_of

from conversations import decisions, runs, turns, votes
from conversations.decisions import AnswerAuthor, Decision
from conversations.errors import OperatorError
from conversations.messages import Split
from conversations.store import Record
from conversations.votes import Choice


def compared(record: Record, name: str, **said: str) -> None:
    """Enter a decision with a teacher's answer and one of each student that is named."""
    if not runs.runs(record):
        runs.begin_run(record, run_id="run", path="/nowhere", settings_digest="d")
    talk = talk_of(record, f"customer of {name}", f"{name}: why is the light red?")
    question = turns.thread(record, talk)[0].turn_id
    decisions.put_decisions(record, [Decision(name, talk, question, None, name, Split.TEST, "t", "h", "run", "coverage")])
    for author_name, content in said.items():
        author = AnswerAuthor.TEACHER if author_name == "teacher" else AnswerAuthor.STUDENT
        decisions.add_answer(record, name, author=author, author_name=author_name, content=content)


def test_chance_draws_which_author_stands_on_the_left(record: Record) -> None:
    compared(record, "d1", teacher="wait 12 minutes", student="wait")
    drawn = [votes.next_pair(record, voted_by="olga", chance=random.Random(seed)) for seed in range(200)]
    left = Counter(each.left.author for each in drawn if each)
    # Of 200 fair draws fewer than 70 fall on one side in one of a hundred thousand trials.
    assert 70 < left[AnswerAuthor.TEACHER] < 130
    assert all({each.left.author_name, each.right.author_name} == {"teacher", "student"} for each in drawn if each)


def test_each_pair_is_shown_until_the_operator_has_voted_on_it_and_not_to_that_one_again(record: Record) -> None:
    compared(record, "d1", teacher="wait 12 minutes", one="wait", two="call us")
    compared(record, "d2", teacher="the same words", one="the same words")
    compared(record, "d3", teacher="nobody measured a student on this")
    seen = set()
    while pair := votes.next_pair(record, voted_by="olga", chance=random.Random(len(seen))):
        seen.add(frozenset((pair.left.author_name, pair.right.author_name)))
        votes.vote(
            record,
            decision_id=pair.decision_id,
            left_answer_id=pair.left.answer_id,
            right_answer_id=pair.right.answer_id,
            choice=Choice.TIE,
            voted_by="olga",
        )
        assert pair.decision_id == "d1" and len(seen) <= 3
    assert len(seen) == len(votes.votes(record)) == 3
    assert votes.next_pair(record, voted_by="bert", chance=random.Random(1)) is not None


def test_the_newest_vote_on_a_pair_counts_whichever_side_it_was_shown_on(record: Record) -> None:
    compared(record, "d1", teacher="wait 12 minutes", student="wait")
    pair = votes.next_pair(record, voted_by="olga", chance=random.Random(1))
    assert pair is not None
    ids = [pair.left.answer_id, pair.right.answer_id]
    for (left, right), choice in ((ids, Choice.LEFT), (ids[::-1], Choice.LEFT)):
        votes.vote(record, decision_id="d1", left_answer_id=left, right_answer_id=right, choice=choice, voted_by="olga")
    (counts,) = votes.votes(record)
    assert (counts.left_answer_id, counts.choice) == (ids[1], Choice.LEFT)
    with pytest.raises(sqlite3.IntegrityError, match="a vote never changes"), record.write() as transaction:
        transaction.execute("UPDATE blind_votes SET choice = 'right'")


def test_a_vote_on_answers_that_are_not_there_is_refused(record: Record) -> None:
    compared(record, "d1", teacher="wait 12 minutes", student="wait")
    pair = votes.next_pair(record, voted_by="olga", chance=random.Random(1))
    assert pair is not None
    for other in (pair.left.answer_id, "answer_of_nobody"):
        with pytest.raises(OperatorError, match=r"cannot be compared with itself|has not both answers"):
            votes.vote(
                record,
                decision_id="d1",
                left_answer_id=pair.left.answer_id,
                right_answer_id=other,
                choice=Choice.LEFT,
                voted_by="olga",
            )
    assert votes.votes(record) == []
