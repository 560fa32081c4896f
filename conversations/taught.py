"""What was taught before: decisions in the training sets of earlier runs, and whether what they were taught still stands.

In: the record. Out: names of decisions. Only a complete run has taught. What people have said since, and what the handbook has
changed since, takes back what was taught: such a decision is to be taught again.
"""

import json
from collections.abc import Collection

from conversations.passages import replayable
from conversations.store import Record, Row

_TAUGHT = (
    "SELECT d.decision_id, MAX(r.started_at_utc) AS began, MAX(r.finished_at_utc) AS ended "
    "FROM run_decisions d JOIN runs r USING (run_id) WHERE d.used_as = 'train' AND r.state = 'complete' "
    "AND r.run_id <> :run_id AND (:only IS NULL OR r.run_id IN (SELECT value FROM json_each(:only))) GROUP BY d.decision_id"
)


def taught_before(record: Record, run_id: str, *, by_runs: Collection[str] | None = None) -> set[str]:
    """Return the decisions in the training sets of complete runs other than `run_id`; `by_runs` limits which runs count."""
    return {str(row["decision_id"]) for row in record.query(_TAUGHT, _asked(run_id, by_runs))}


def still_stands(
    record: Record, run_id: str, present: Collection[str], *, by_runs: Collection[str] | None = None
) -> set[str]:
    """Return those that were taught before and need not be again.

    An answer of theirs that may be learnt now was there already when they were taught last, and no operator has answered or
    reviewed them since. `present` are the hashes of the passages that the handbook holds now.
    """
    oldest: dict[str, str] = {}
    for answer in replayable(record, present):
        oldest[answer.decision_id] = min(oldest.get(answer.decision_id, answer.answered_at_utc), answer.answered_at_utc)
    rows: list[Row] = record.query(
        f"SELECT t.* FROM ({_TAUGHT}) t WHERE NOT EXISTS (SELECT 1 FROM answers a WHERE a.decision_id = t.decision_id "
        "AND a.author_kind = 'operator' AND a.answered_at_utc > t.began) AND NOT EXISTS (SELECT 1 FROM answers a "
        "JOIN answer_reviews w USING (answer_id) WHERE a.decision_id = t.decision_id AND w.reviewed_at_utc > t.began)",
        _asked(run_id, by_runs),
    )
    return {name for row in rows if (name := str(row["decision_id"])) in oldest and oldest[name] <= str(row["ended"] or "")}


def passages_taught(record: Record, run_id: str, *, by_runs: Collection[str] | None = None) -> set[str]:
    """Return the handbook passages that the training sets of complete runs other than `run_id` rest on, by their hashes."""
    rows = record.query(
        "SELECT DISTINCT p.passage_hash FROM run_passages p JOIN runs r USING (run_id) WHERE r.state = 'complete' "
        "AND r.run_id <> :run_id AND (:only IS NULL OR r.run_id IN (SELECT value FROM json_each(:only)))",
        _asked(run_id, by_runs),
    )
    return {str(row["passage_hash"]) for row in rows}


def _asked(run_id: str, by_runs: Collection[str] | None) -> dict[str, str | None]:
    return {"run_id": run_id, "only": None if by_runs is None else json.dumps(sorted(by_runs))}
