"""What the gate decides on: the stored rows, what was measured beside them, and what is in service now.

In: a run's rows and report. Out: scores in pairs. An answer that a candidate did not give counts as nought, so that it gains nothing
by failing; one that the other did not give is left out of the pairs. A score that is missing or no number is counted, never guessed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from conversations.messages import Json
from distill.evaluation.figures.intervals import Score
from distill.evaluation.scoring.metric import score_of
from distill.rows import EvaluationRow
from distill.settings import PromoteTable

Pair = tuple[Score, Score]


@dataclass(frozen=True)
class Judged:
    """What became of the judge: why it was down, what speaks against it, and how many decisions were drawn for it."""

    down: str
    flags: tuple[str, ...] = ()
    decisions: int = 0


@dataclass(frozen=True)
class Pairs:
    """The candidate's scores beside another model's. `failed` of the candidate's are noughts; `unscored` decisions have no score."""

    pairs: tuple[Pair, ...]
    failed: int
    unscored: int


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict rests on. `candidate` is its part of the report; `in_service` is None before the first student.

    `judged` is None where the settings ask for no judge, or the edition has no decision for one; one that should have been there and
    left nothing is down.
    """

    rows: Sequence[EvaluationRow]
    candidate: Mapping[str, Json]
    release_id: str
    quality_metric: str
    bounds: PromoteTable
    in_service: str | None
    has_handbook: bool
    judged: Judged | None

    @cached_property
    def by_decision(self) -> Mapping[str, Mapping[str, EvaluationRow]]:
        """Return every model's row of each decision."""
        found: dict[str, dict[str, EvaluationRow]] = defaultdict(dict)
        for row in self.rows:
            found[row.decision_id][row.model] = row
        return found

    def pairs_with(self, other: str, metric: str) -> Pairs:
        """Return the candidate's and another model's scores by one metric, where the other has one."""
        pairs: list[Pair] = []
        failed = unscored = 0
        for models in self.by_decision.values():
            held = models.get(other)
            theirs = score_of(held, metric)
            if held is None or theirs is None:
                continue
            ours = models.get("candidate")
            value = 0.0 if ours is None or ours.failure else score_of(ours, metric)
            failed += ours is None or bool(ours.failure)
            if value is None:
                unscored += 1
                continue
            decision_id, conversation_id = held.decision_id, held.conversation_id
            pairs.append((Score(decision_id, conversation_id, value), Score(decision_id, conversation_id, theirs)))
        return Pairs(tuple(pairs), failed, unscored)

    def candidate_scores(self, metric: str) -> tuple[list[Score], int]:
        """Return the candidate's scores by one metric, and how many of its answers lack one that another model's have."""
        scores: list[Score] = []
        unscored = 0
        for models in self.by_decision.values():
            ours = models.get("candidate")
            if ours is None or ours.failure:
                continue
            value = score_of(ours, metric)
            if value is not None:
                scores.append(Score(ours.decision_id, ours.conversation_id, value))
            elif any(score_of(row, metric) is not None for row in models.values()):
                unscored += 1
        return scores, unscored

    def failed_answers(self) -> tuple[int, int]:
        """Return how many decisions the candidate did not answer, and how many there are."""
        rows = [models.get("candidate") for models in self.by_decision.values()]
        return sum(row is None or bool(row.failure) for row in rows), len(rows)

    def released_model(self) -> str | None:
        """Return under which name the rows hold the release in service, or None where it is one that was not measured.

        A candidate that is in service already was cut off after its promotion: what was in service before counts.
        """
        known = {row.model: row.release_id for row in self.rows if row.model in ("base", "released")}
        if self.in_service == self.release_id:
            return "released" if "released" in known else "base" if "base" in known else None
        return next((model for model in ("released", "base") if known.get(model) == self.in_service), None)


def number_in(part: Mapping[str, Json], *keys: str) -> float | None:
    """Return a finite number at a place of a report, or None."""
    value: Json = dict(part)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) else None
