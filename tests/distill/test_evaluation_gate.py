"""What the gate promises: a student that is no better does not get through, a worse one is refused, too little is no answer."""

import numpy as np
import pytest

from conversations.messages import Json
from distill.evaluation.figures.intervals import Estimate, Score, difference_of_means, mean, ratio_of_means
from distill.evaluation.promote import GateOutcome, judge
from distill.settings import PromoteTable

GATE = PromoteTable(min_retained=0.9, max_wrong_fact_rate=0.2, max_loss_to_released=0.05, min_decisions=50)


def report(retained: Json, wrong: Json, *, with_released: bool = False) -> dict[str, Json]:
    quality: dict[str, Json] = {"wrong_fact_rate": wrong}
    models: dict[str, Json] = {"candidate": {"quality": quality, "latency_ms": {"p50": 900.0, "p95": 2000.0}}}
    if with_released:
        models["released"] = {}
    return {"retained": retained, "models": models}


def estimate(value: float, low: float, high: float, n: int = 100) -> dict[str, Json]:
    return Estimate(value, low, high, n).as_json()


def test_a_student_above_every_bound_is_promoted_with_the_numbers_named() -> None:
    verdict = judge(report(estimate(0.97, 0.94, 1.0), estimate(0.1, 0.05, 0.15)), GATE, None)
    assert verdict.outcome is GateOutcome.PROMOTE
    assert "97.0%" in verdict.reasons[0]
    assert "90%" in verdict.reasons[0]


def test_a_student_clearly_below_the_floor_is_refused() -> None:
    verdict = judge(report(estimate(0.6, 0.5, 0.7), estimate(0.1, 0.05, 0.15)), GATE, None)
    assert verdict.outcome is GateOutcome.REFUSE


def test_an_interval_over_the_floor_is_inconclusive() -> None:
    verdict = judge(report(estimate(0.95, 0.85, 1.0), estimate(0.1, 0.05, 0.15)), GATE, None)
    assert verdict.outcome is GateOutcome.INCONCLUSIVE


@pytest.mark.parametrize("retained", [None, {"value": 0.99, "low": None, "high": None, "n": 100}])
def test_what_is_missing_is_never_a_yes(retained: Json) -> None:
    assert judge(report(retained, estimate(0.1, 0, 0.2)), GATE, None).outcome is GateOutcome.INCONCLUSIVE
    assert judge(report(estimate(0.97, 0.94, 1.0), None), GATE, None).outcome is GateOutcome.INCONCLUSIVE


def test_too_few_decisions_are_inconclusive_however_good() -> None:
    verdict = judge(report(estimate(1.0, 1.0, 1.0, n=10), estimate(0.0, 0.0, 0.0)), GATE, None)
    assert verdict.outcome is GateOutcome.INCONCLUSIVE
    assert "50 decisions are needed" in verdict.reasons[0]


def test_many_wrong_facts_are_refused_even_with_high_accuracy() -> None:
    assert judge(report(estimate(0.97, 0.94, 1.0), estimate(0.3, 0.2, 0.4)), GATE, None).outcome is GateOutcome.REFUSE


def test_a_latency_above_its_ceiling_is_refused() -> None:
    gate = GATE.model_copy(update={"max_latency_p95_ms": 1000.0})
    assert judge(report(estimate(0.97, 0.94, 1.0), estimate(0.1, 0, 0.2)), gate, None).outcome is GateOutcome.REFUSE


def _drawn(rng: np.random.Generator, share: float, conversations: int = 60) -> list[Score]:
    return [Score(f"d{c}-{d}", f"c{c}", float(rng.random() < share)) for c in range(conversations) for d in range(2)]


def test_a_student_ten_points_below_the_released_one_hardly_ever_passes() -> None:
    rng = np.random.default_rng(7)
    passed = 0
    for _ in range(100):
        difference = difference_of_means(_drawn(rng, 0.75), _drawn(rng, 0.85), 300)
        verdict = judge(
            report(estimate(0.97, 0.94, 1.0), estimate(0.1, 0, 0.2), with_released=True),
            GATE.model_copy(update={"max_loss_to_released": 0.02}),
            difference,
        )
        passed += verdict.outcome is GateOutcome.PROMOTE
    assert passed <= 5


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(200):
        found = mean(_drawn(rng, 0.8), 300)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 0.8 <= found.high
    assert covered >= 175


def test_nothing_in_common_is_no_estimate() -> None:
    assert ratio_of_means([Score("a", "c", 1.0)], [Score("b", "c", 1.0)], 100) is None
    assert mean([], 100) is None
