"""The gate fails closed: whatever is taken away from what it decides on, it never says yes; and its intervals keep their word."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_run import METRIC, OLD, rows, scored

from conversations.messages import Json
from distill.evaluation.figures.intervals import Score, difference_of_means
from distill.evaluation.gate.bounds import judge
from distill.evaluation.gate.careful import difference_interval, rate_interval, share_interval
from distill.evaluation.gate.evidence import Evidence, Judged
from distill.evaluation.gate.verdict import GateOutcome
from distill.rows import EvaluationRow
from distill.settings import PromoteTable

BOUNDS = PromoteTable(
    min_retained=0.9, max_wrong_fact_rate=0.1, max_loss_to_released=0.05, max_latency_p95_ms=1000.0, max_memory_gb=4.0
)
PART: dict[str, Json] = {"latency_ms": {"p50": 700.0, "p95": 900.0}, "timed_answers": 20, "memory_bytes": 3_000_000_000}
WHOLE = Evidence(
    rows(change=lambda row: scored(row, judge_grade=0.8)),
    PART,
    "student-new",
    METRIC,
    BOUNDS,
    OLD,
    True,
    Judged("", decisions=200),
)
METRICS = (METRIC, "wrong_fact_rate", "declined_rate", "leak_rate", "format_fault_rate", "judge_grade")
Change = Callable[[EvaluationRow], EvaluationRow]
NO_NUMBERS: tuple[float | None, ...] = (None, float("nan"), float("inf"), -1.0, 2.0)


def without_rows(*models: str) -> Evidence:
    return replace(WHOLE, rows=[row for row in WHOLE.rows if row.model not in models])


def with_candidate(change: Change) -> Evidence:
    return replace(WHOLE, rows=[change(row) if row.model == "candidate" else row for row in WHOLE.rows])


def without_score(metric: str, value: float | None, model: str = "candidate") -> Evidence:
    return replace(WHOLE, rows=[scored(row, **{metric: value}) if row.model == model else row for row in WHOLE.rows])


MISSING: dict[str, Evidence] = {
    "everything": replace(WHOLE, rows=[], candidate={}),
    "the candidate's rows": without_rows("candidate"),
    "the released student's rows": without_rows("released"),
    "the teacher's rows": without_rows("teacher"),
    "every answer": with_candidate(lambda row: row.model_copy(update={"failure": "down", "scores": {}})),
    "the teacher's score": without_score(METRIC, None, "teacher"),
    "the released student's score": without_score(METRIC, None, "released"),
    "the timed answers": replace(WHOLE, candidate={**PART, "timed_answers": 0}),
    "enough timed answers": replace(WHOLE, candidate={**PART, "timed_answers": 19}),
    "the judge": replace(WHOLE, judged=Judged("connection refused")),
    "the quality metric": replace(WHOLE, quality_metric="no such metric"),
    **{f"the part's {name}": replace(WHOLE, candidate={key: PART[key] for key in PART if key != name}) for name in PART},
    **{f"{metric} ({value})": without_score(metric, value) for metric in METRICS for value in NO_NUMBERS},
    **{f"p95 ({value})": replace(WHOLE, candidate={**PART, "latency_ms": {"p95": value}}) for value in NO_NUMBERS[:3]},
    **{f"memory ({value})": replace(WHOLE, candidate={**PART, "memory_bytes": value}) for value in NO_NUMBERS[:4]},
}


def test_the_whole_evidence_is_a_yes() -> None:
    assert judge(WHOLE).outcome is GateOutcome.PROMOTE


@pytest.mark.parametrize("name", MISSING)
def test_whatever_is_missing_is_never_a_yes(name: str) -> None:
    assert judge(MISSING[name]).outcome is not GateOutcome.PROMOTE


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METRICS[:-1]),
    st.integers(0, 199),
    st.sampled_from(NO_NUMBERS),
)
def test_a_single_score_that_is_missing_where_others_have_one_is_never_a_yes(
    metric: str, place: int, value: float | None
) -> None:
    def change(row: EvaluationRow) -> EvaluationRow:
        return scored(row, **{metric: value}) if row.decision_id == f"decision_{place}" else row

    # The others must have the score, or it does not apply to the decision.
    assert judge(with_candidate(change)).outcome is not GateOutcome.PROMOTE


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(sorted(MISSING)), min_size=1, max_size=3), st.integers(1, 49))
def test_what_is_taken_away_together_and_too_few_decisions_are_never_a_yes(names: set[str], few: int) -> None:
    kept = {f"decision_{place}" for place in range(few)}
    for name in names:
        assert judge(
            replace(MISSING[name], rows=[row for row in MISSING[name].rows if row.decision_id in kept])
        ).outcome is not (GateOutcome.PROMOTE)
    assert (
        judge(replace(WHOLE, rows=[row for row in WHOLE.rows if row.decision_id in kept])).outcome
        is GateOutcome.INCONCLUSIVE
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([0, 1 / 3, 2 / 3, 1]), st.sampled_from([0, 1 / 3, 2 / 3, 1])),
        min_size=2,
    )
)
def test_intervals_of_the_gate_hold_their_value_and_turn_with_the_comparison(drawn: list[tuple[int, float, float]]) -> None:
    pairs = [
        (Score(f"d{place}", f"c{conversation}", one), Score(f"d{place}", f"c{conversation}", other))
        for place, (conversation, one, other) in enumerate(drawn)
    ]
    there, back = difference_interval(pairs), difference_interval([(other, one) for one, other in pairs])
    assert there is not None and back is not None
    assert there.value == pytest.approx(sum(one.value - other.value for one, other in pairs) / len(pairs))
    if there.low is not None and there.high is not None and back.low is not None and back.high is not None:
        assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
        assert there.low < there.high
    share = share_interval(pairs)
    if share is not None and share.low is not None and share.high is not None:
        assert share.low <= share.value + 1e-9 and share.value <= share.high + 1e-9


def test_the_share_agrees_with_a_difference_at_its_own_bound() -> None:
    rng = np.random.default_rng(5)
    pairs = [
        (Score(f"d{place}", f"c{place // 2}", float(rng.random() < 0.8)), Score(f"d{place}", f"c{place // 2}", 1.0))
        for place in range(120)
    ]
    share = share_interval(pairs)
    assert share is not None and share.low is not None
    # Fieller: at the lower bound f the mean of first - f second has an interval that ends at nought. By hand, over conversations.
    sums = np.array(
        [sum(one.value - share.low * other.value for one, other in pairs[place : place + 2]) for place in range(0, 120, 2)]
    )
    sums, counts = np.append(sums, [2.0, -2.0]), np.full(62, 2.0)
    mean = sums.sum() / counts.sum()
    error = np.sqrt(62 / 61 * ((sums - mean * counts) ** 2).sum()) / counts.sum()
    assert mean / error == pytest.approx(1.9996, abs=1e-3)  # Student's t, 61 degrees of freedom, 97.5 %


def test_no_loss_seen_is_no_proof_of_none_where_a_bootstrap_takes_it_for_one() -> None:
    pairs = [(Score(f"d{place}", f"c{place}", 1.0), Score(f"d{place}", f"c{place}", 1.0)) for place in range(40)]
    bootstrap = difference_of_means([one for one, _ in pairs], [other for _, other in pairs], 500)
    careful = difference_interval(pairs)
    assert bootstrap is not None and careful is not None and careful.low is not None
    assert bootstrap.low == 0.0 and careful.low < -0.05
    rate = rate_interval([Score(f"d{place}", f"c{place}", 0.0) for place in range(40)])
    assert rate is not None and rate.high is not None and 0.05 < rate.high < 0.1


def test_one_conversation_has_no_interval() -> None:
    pair = (Score("d1", "c1", 1.0), Score("d1", "c1", 1.0))
    for found in (difference_interval([pair]), rate_interval([pair[0]]), share_interval([pair])):
        assert found is not None and found.low is None and found.high is None
    assert difference_interval([]) is None and rate_interval([]) is None and share_interval([]) is None
