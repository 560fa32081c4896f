"""How good each model is, by metric, by topic and by how deep in the conversation the question came.

In: the rows of an evaluation. Out: estimates with intervals, as reports hold them. Holds no name of a decision or a customer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from conversations.messages import Json
from distill.evaluation.figures.intervals import Score, mean, ratio_of_means
from distill.evaluation.scoring.metric import Metric, score_of
from distill.evaluation.scoring.row import MODELS
from distill.rows import EvaluationRow

# Questions this deep or deeper are counted together: there are few of them.
DEEPEST = 6
Groups: TypeAlias = dict[str, Json]


def scores_of(rows: Iterable[EvaluationRow], model: str, metric: str) -> list[Score]:
    """Return a model's scores by one metric, those that apply and can be."""
    return [
        Score(row.decision_id, row.conversation_id, value)
        for row in rows
        if row.model == model and (value := score_of(row, metric)) is not None
    ]


def qualities(rows: Sequence[EvaluationRow], model: str, samples: int) -> dict[str, Json]:
    """Return a model's mean by every metric that any of its answers has, in the order of the metrics."""
    found = ((metric.value, mean(scores_of(rows, model, metric), samples)) for metric in Metric)
    return {name: estimate.as_json() for name, estimate in found if estimate is not None}


def retained(rows: Sequence[EvaluationRow], metric: str, samples: int) -> Json:
    """Return the share of the teacher's quality that the candidate keeps; None where it cannot be told.

    An answer that the candidate did not give counts as 0, as the gate counts it, so that nobody gains by failing; `failed` says how
    many.
    """
    teacher = scores_of(rows, "teacher", metric)
    scored = {score.decision_id for score in teacher}
    failed = [
        Score(row.decision_id, row.conversation_id, 0.0)
        for row in rows
        if row.model == "candidate" and row.failure and row.decision_id in scored
    ]
    found = ratio_of_means([*scores_of(rows, "candidate", metric), *failed], teacher, samples)
    return None if found is None else {**found.as_json(), "failed": len(failed)}


def by_topic(rows: Sequence[EvaluationRow], metric: str, samples: int) -> Groups:
    """Return each model's quality by topic, the topic with most scored decisions first."""
    found = _qualities_of(_grouped(rows, lambda row: row.topic or "(none)"), metric, samples)
    return dict(sorted(found.items(), key=lambda group: (-_most(group[1]), group[0])))


def by_depth(rows: Sequence[EvaluationRow], metric: str, samples: int) -> Groups:
    """Return each model's quality by how many messages the customer had written, the question among them."""
    groups = _grouped(rows, lambda row: f"{DEEPEST}+" if row.turn_depth >= DEEPEST else str(row.turn_depth))
    return _qualities_of(dict(sorted(groups.items())), metric, samples)


def _grouped(rows: Iterable[EvaluationRow], name_of: Callable[[EvaluationRow], str]) -> Mapping[str, list[EvaluationRow]]:
    groups: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    return groups


def _qualities_of(groups: Mapping[str, Sequence[EvaluationRow]], metric: str, samples: int) -> Groups:
    """Return each group's estimates by model; a group in which the metric applies to nothing is left out."""
    found: Groups = {}
    for name, rows in groups.items():
        estimates = ((model, mean(scores_of(rows, model, metric), samples)) for model in MODELS)
        of_group: dict[str, Json] = {model: estimate.as_json() for model, estimate in estimates if estimate is not None}
        if of_group:
            found[name] = of_group
    return found


def _most(of_group: Json) -> int:
    """Return how many decisions of a group the model with most of them has."""
    counts = [found.get("n") for found in of_group.values() if isinstance(found, dict)] if isinstance(of_group, dict) else []
    return max((count for count in counts if isinstance(count, int)), default=0)
