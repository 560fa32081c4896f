"""Handbook passages as the record knows them: which accepted answers and which runs' training sets rest on them.

In: the hashes of the passages that the handbook holds now. Out: what rests on others, and answers set aside for it. Knows no
handbook; a passage is the hash of its words.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from conversations.decisions import Answer, answer_of
from conversations.store import Record


@dataclass(frozen=True)
class Resting:
    """What rests on one passage: accepted answers, and runs that learned it."""

    passage_hash: str
    answer_ids: tuple[str, ...]
    run_ids: tuple[str, ...]


def resting_on_others(record: Record, present: Collection[str]) -> list[Resting]:
    """Return what rests on passages that are not `present`, by passage."""
    held = json.dumps(sorted(present))
    answers: dict[str, list[str]] = {}
    for row in record.query(
        "SELECT passage.value AS passage_hash, a.answer_id FROM answers a, json_each(a.passages_json) passage "
        "WHERE a.verdict = 'accepted' AND passage.value NOT IN (SELECT value FROM json_each(?)) ORDER BY a.answer_id",
        [held],
    ):
        answers.setdefault(str(row["passage_hash"]), []).append(str(row["answer_id"]))
    runs: dict[str, list[str]] = {}
    for row in record.query(
        "SELECT passage_hash, run_id FROM run_passages WHERE passage_hash NOT IN (SELECT value FROM json_each(?)) ORDER BY run_id",
        [held],
    ):
        runs.setdefault(str(row["passage_hash"]), []).append(str(row["run_id"]))
    return [Resting(name, tuple(answers.get(name, ())), tuple(runs.get(name, ()))) for name in sorted({*answers, *runs})]


def retire(record: Record, present: Collection[str], reason: str) -> int:
    """Reject, for this reason, every accepted answer that rests on a passage that is not `present`; return how many."""
    names = sorted({name for each in resting_on_others(record, present) for name in each.answer_ids})
    with record.write() as transaction:
        for name in names:
            transaction.execute(
                "UPDATE answers SET verdict = 'rejected', verdict_reason = ? WHERE answer_id = ?", [reason, name]
            )
    return len(names)


def replayable(record: Record, present: Collection[str]) -> list[Answer]:
    """Return the accepted answers that may be learnt again: none rests on a passage that is gone, or was rejected by an operator."""
    gone = {name for each in resting_on_others(record, present) for name in each.answer_ids}
    rows = record.query(
        "SELECT a.* FROM answers a WHERE a.verdict = 'accepted' AND COALESCE((SELECT r.verdict FROM answer_reviews r "
        "WHERE r.answer_id = a.answer_id ORDER BY r.review_id DESC LIMIT 1), 'approved') = 'approved' ORDER BY a.answer_id"
    )
    return [answer_of(row) for row in rows if row["answer_id"] not in gone]


def passages_by_run(record: Record) -> Mapping[str, frozenset[str]]:
    """Return which passages the training set of each run rests on, the newest run first."""
    found: dict[str, set[str]] = {}
    for row in record.query(
        "SELECT p.run_id, p.passage_hash FROM run_passages p JOIN runs r USING (run_id) ORDER BY r.rowid DESC"
    ):
        found.setdefault(str(row["run_id"]), set()).add(str(row["passage_hash"]))
    return {name: frozenset(hashes) for name, hashes in found.items()}
