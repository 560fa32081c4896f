"""What the gate promises, bound by bound: what holds passes, what does not is refused, and what cannot be told is neither."""

from collections.abc import Callable

import pytest
from made_up_run import METRIC, OLD, rows, scored

from conversations.messages import Json
from distill.evaluation.gate.bounds import judge
from distill.evaluation.gate.evidence import Evidence, Judged
from distill.evaluation.gate.verdict import Check, CheckOutcome, GateOutcome
from distill.rows import EvaluationRow, Task
from distill.settings import PromoteTable

BOUNDS = PromoteTable(min_retained=0.9, max_wrong_fact_rate=0.1, max_loss_to_released=0.05)
PART: dict[str, Json] = {
    "latency_ms": {"p50": 700.0, "p95": 900.0}, "timed_answers": 20, "memory_bytes": 3_000_000_000, "gpu_memory_bytes": None,
}  # fmt: skip
PASSED, FAILED, UNCLEAR = CheckOutcome.PASSED, CheckOutcome.FAILED, CheckOutcome.UNCLEAR


def evidence(
    measured: list[EvaluationRow],
    *,
    in_service: str | None = OLD,
    part: dict[str, Json] = PART,
    judged: Judged | None = None,
    metric: str = METRIC,
    **bounds: float | int,
) -> Evidence:
    return Evidence(
        measured, part, "student-new", metric, BOUNDS.model_copy(update=bounds), in_service, has_handbook=True, judged=judged
    )


def changed(model: str, where: Callable[[int], bool], **scores: float | None) -> list[EvaluationRow]:
    """200 decisions, two a conversation; where a decision's number fits, a model has other scores."""

    def change(row: EvaluationRow) -> EvaluationRow:
        return scored(row, **scores) if row.model == model and where(number(row)) else row

    return rows(change=change)


def failing(model: str, count: int) -> list[EvaluationRow]:
    """The first decisions were not answered."""

    def change(row: EvaluationRow) -> EvaluationRow:
        gone = row.model == model and number(row) < count
        return row.model_copy(update={"scores": {}, "text": "", "failure": "APITimeoutError"}) if gone else row

    return rows(change=change)


def number(row: EvaluationRow) -> int:
    return int(row.decision_id.partition("_")[2])


def check(name: str, found: Evidence) -> Check:
    return next(each for each in judge(found).checks if each.name == name)


def test_a_student_that_holds_every_bound_is_promoted_and_every_bound_is_named_with_its_number() -> None:
    verdict = judge(evidence(rows(), max_latency_p95_ms=1000.0, max_memory_gb=4.0))
    assert verdict.outcome is GateOutcome.PROMOTE, verdict.reasons
    told = "\n".join(verdict.reasons)
    for each in (
        "keeps 100.0% of the teacher's fact_accuracy", "n=200", "the floor for the lower bound is 90%",
        "differs from the release in service by +0.0%", "the lower bound may be -5.0% at least", "of 3 topics",
        "states a wrong fact in 0.0% of answers", "the ceiling for the upper bound is 10%", "none may be seen",
        "gave no answer to 0 of 200 decisions", "within 900 ms", "3.00 GB",
    ):  # fmt: skip
        assert each in told
    assert [each.name for each in verdict.checks] == [
        "retained", "loss_to_released", "topics", "wrong_fact_rate", "leak_rate", "format_fault_rate", "declined_rate",
        "failed_answers", "latency_p95_ms", "memory_gb",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("every", "outcome"),
    [(60, PASSED), (24, UNCLEAR), (5, FAILED)],
)
def test_share_of_the_teacher_is_held_against_its_floor_by_its_lower_bound(every: int, outcome: CheckOutcome) -> None:
    found = check(
        "retained", evidence(changed("candidate", lambda place: place % every == 0, fact_accuracy=0.0), min_retained=0.92)
    )
    assert found.outcome is outcome, found.told
    assert found.bound == 0.92


@pytest.mark.parametrize(("every", "outcome"), [(1000, PASSED), (40, UNCLEAR), (8, FAILED)])
def test_student_in_service_is_not_lost_to_by_more_than_the_margin(every: int, outcome: CheckOutcome) -> None:
    lost = changed("candidate", lambda place: place % every == every - 1, fact_accuracy=0.0)
    found = check("loss_to_released", evidence(lost))
    assert found.outcome is outcome, found.told
    assert "n=200" in found.told and "-5.0% at least" in found.told


def test_a_student_no_decision_apart_is_not_promoted_by_too_few_conversations_to_show_it() -> None:
    # No loss was seen in 30 conversations, and none need be where one in fifty is lost.
    verdict = judge(evidence(rows(conversations=30), max_loss_to_released=0.02))
    assert verdict.outcome is GateOutcome.INCONCLUSIVE
    assert judge(evidence(rows(conversations=300), max_loss_to_released=0.02)).outcome is GateOutcome.PROMOTE


def test_untuned_student_in_service_is_a_release_to_be_measured_beside_too() -> None:
    measured = [
        row.model_copy(update={"model": "base", "release_id": "base-1"}) if row.model == "released" else row
        for row in rows()
    ]
    assert check("loss_to_released", evidence(measured, in_service="base-1")).outcome is PASSED


def test_candidate_that_was_not_measured_beside_what_is_in_service_now_is_inconclusive() -> None:
    verdict = judge(evidence(rows(), in_service="student-put-back"))
    assert verdict.outcome is GateOutcome.INCONCLUSIVE
    assert "'student-put-back' now" in verdict.reasons[0]
    assert judge(evidence(rows(), in_service=None)).outcome is GateOutcome.PROMOTE


def test_candidate_whose_promotion_was_cut_off_is_measured_beside_what_was_in_service_before() -> None:
    assert check("loss_to_released", evidence(rows(), in_service="student-new")).outcome is PASSED


@pytest.mark.parametrize(("lost", "outcome"), [(0, PASSED), (2, PASSED), (22, UNCLEAR), (36, FAILED)])
def test_a_topic_that_is_much_worse_stops_a_student_that_is_good_on_the_whole(lost: int, outcome: CheckOutcome) -> None:
    places = [place for place in range(200) if place // 2 % 3 == 1][:lost]
    measured = changed("candidate", lambda place: place in places, fact_accuracy=0.0)
    found = check("topics", evidence(measured, max_topic_loss=0.3))
    assert found.outcome is outcome, found.told
    assert lost < 3 or "lights by -" in found.told


def test_topics_too_small_to_be_looked_at_are_counted_and_alone_leave_the_gate_unsure() -> None:
    def change(row: EvaluationRow) -> EvaluationRow:
        return row.model_copy(update={"topic": f"rare {number(row) // 4}"}) if number(row) < 12 else row

    found = check("topics", evidence(rows(change=change)))
    assert (found.outcome, "3 topics have too few decisions" in found.told) == (PASSED, True)
    alone = rows(change=lambda row: row.model_copy(update={"topic": row.conversation_id}))
    assert check("topics", evidence(alone)).outcome is UNCLEAR


@pytest.mark.parametrize(
    ("metric", "bound", "few", "more", "many"),
    [
        ("wrong_fact_rate", "max_wrong_fact_rate", 2, 16, 30),
        ("format_fault_rate", "max_format_fault_rate", 2, 16, 30),
        ("declined_rate", "max_declined_rate", 2, 16, 30),
    ],
)
def test_a_rate_is_held_against_its_ceiling_by_its_upper_bound(
    metric: str, bound: str, few: int, more: int, many: int
) -> None:
    for count, outcome in ((few, PASSED), (more, UNCLEAR), (many, FAILED)):
        measured = changed("candidate", lambda place, count=count: place < count, **{metric: 1.0})  # type: ignore[misc]
        found = check(metric, evidence(measured, **{bound: 0.1}))
        assert found.outcome is outcome, found.told


def test_one_leak_is_one_too_many_and_a_ceiling_for_leaks_is_a_ceiling() -> None:
    one = changed("candidate", lambda place: place == 7, leak_rate=1.0)
    assert judge(evidence(one)).outcome is GateOutcome.REFUSE
    assert "0.5% of answers" in judge(evidence(one)).reasons[0]
    assert check("leak_rate", evidence(one, max_leak_rate=0.1)).outcome is PASSED


def test_a_leak_among_too_few_decisions_is_still_refused_and_none_seen_among_them_is_no_yes() -> None:
    assert (
        judge(evidence(rows(conversations=5, change=lambda row: scored(row, leak_rate=1.0)))).outcome is GateOutcome.REFUSE
    )
    assert check("leak_rate", evidence(rows(conversations=5))).outcome is UNCLEAR


def test_a_ceiling_that_bounds_nothing_asks_for_no_figure() -> None:
    measured = rows(change=lambda row: row.model_copy(update={"scores": {METRIC: 1.0}}))
    open_wide = dict.fromkeys(("max_wrong_fact_rate", "max_leak_rate", "max_format_fault_rate", "max_declined_rate"), 1.0)
    assert judge(evidence(measured, **open_wide)).outcome is GateOutcome.PROMOTE
    assert judge(evidence(measured, **open_wide | {"max_format_fault_rate": 0.99})).outcome is GateOutcome.INCONCLUSIVE


def test_declining_is_bounded_by_itself_only_where_a_handbook_says_what_can_be_answered() -> None:
    names = [each.name for each in judge(evidence(rows())).checks]
    without = Evidence(rows(), PART, "student-new", METRIC, BOUNDS, OLD, has_handbook=False, judged=None)
    assert "declined_rate" in names and "declined_rate" not in [each.name for each in judge(without).checks]


def test_an_answer_that_was_not_given_counts_as_nought_and_gains_nothing() -> None:
    found = evidence(failing("candidate", 20), max_failed_rate=1.0)
    share = check("retained", found)
    assert share.value == pytest.approx(0.9) and "of which 20 gave no answer and count as 0" in share.told
    assert check("loss_to_released", found).value == pytest.approx(-0.1)
    assert judge(found).outcome is GateOutcome.REFUSE


def test_rows_that_are_missing_count_as_answers_that_were_not_given() -> None:
    measured = [row for row in rows() if row.model != "candidate" or number(row) >= 20]
    assert check("retained", evidence(measured)).value == pytest.approx(0.9)
    assert check("failed_answers", evidence(measured)).outcome is FAILED


def test_failures_of_the_student_in_service_give_the_candidate_no_lead() -> None:
    def change(row: EvaluationRow) -> EvaluationRow:
        if row.model == "released" and number(row) < 30:
            return row.model_copy(update={"scores": {}, "failure": "APITimeoutError"})
        return scored(row, fact_accuracy=0.0) if row.model == "candidate" and number(row) >= 180 else row

    found = check("loss_to_released", evidence(rows(change=change)))
    assert found.value == pytest.approx(-20 / 170)


@pytest.mark.parametrize(("count", "outcome"), [(4, PASSED), (5, FAILED)])
def test_answers_that_were_not_given_have_a_ceiling(count: int, outcome: CheckOutcome) -> None:
    assert check("failed_answers", evidence(failing("candidate", count))).outcome is outcome


def test_what_leaves_two_checks_unclear_is_told_once_and_counts_in_words() -> None:
    verdict = judge(evidence(changed("candidate", lambda place: place == 3, fact_accuracy=2.0)))
    told = "the difference to the release in service: of the candidate's, 1 answer has no score from 0 to 1"
    assert [each for each in verdict.reasons if "difference" in each] == [told]
    assert any(each.endswith("is kept: 1 answer has no score from 0 to 1") for each in verdict.reasons)


def test_no_interval_reaches_beyond_what_can_be_and_nought_has_no_sign() -> None:
    worst = judge(evidence(changed("candidate", lambda place: True, fact_accuracy=0.0), max_loss_to_released=0.0))
    told = " ".join(check.told for check in worst.checks)
    assert "differs from the release in service by -100.0% (-100.0% to" in told and "keeps 0.0%" in told
    assert "(0.0% to" in next(check.told for check in worst.checks if check.name == "retained")
    assert "-0.0%" not in told and "may be +0.0% at least" in told


def test_a_ceiling_of_latency_is_not_held_by_a_handful_of_timed_answers() -> None:
    for p95 in (900.0, 1100.0):
        part: dict[str, Json] = {**PART, "timed_answers": 19, "latency_ms": {"p50": 1.0, "p95": p95}}
        found = check("latency_p95_ms", evidence(rows(), part=part, max_latency_p95_ms=1000.0))
        assert found.outcome is UNCLEAR and "raise [evaluate] timed_decisions" in found.told


@pytest.mark.parametrize(("p95", "outcome"), [(999.0, PASSED), (1001.0, FAILED), (None, UNCLEAR), (float("nan"), UNCLEAR)])
def test_latency_is_held_against_its_ceiling(p95: float | None, outcome: CheckOutcome) -> None:
    part = {**PART, "latency_ms": {"p50": 1.0, "p95": p95}}
    assert check("latency_p95_ms", evidence(rows(), part=part, max_latency_p95_ms=1000.0)).outcome is outcome


@pytest.mark.parametrize(
    ("memory", "gpu", "outcome"),
    [
        (3e9, None, PASSED),
        (3e9, 5e9, FAILED),
        (5e9, None, FAILED),
        (None, 3e9, PASSED),
        (None, None, UNCLEAR),
        (0, 0, UNCLEAR),
    ],
)
def test_memory_of_machine_and_gpu_is_held_against_its_ceiling(
    memory: float | None, gpu: float | None, outcome: CheckOutcome
) -> None:
    part = {**PART, "memory_bytes": memory, "gpu_memory_bytes": gpu}
    assert check("memory_gb", evidence(rows(), part=part, max_memory_gb=4.0)).outcome is outcome


def test_limits_that_are_not_set_are_not_asked_for() -> None:
    assert judge(evidence(rows(), part={})).outcome is GateOutcome.PROMOTE


GRADED = rows(change=lambda row: scored(row, judge_grade=0.8))


@pytest.mark.parametrize(
    ("measured", "judged", "outcome"),
    [
        (GRADED, Judged("", decisions=200), PASSED),
        (GRADED, Judged("", ("likes the longer answer",), 200), PASSED),
        (GRADED, Judged("connection refused", decisions=200), UNCLEAR),
        (rows(), Judged("", decisions=200), UNCLEAR),
        (
            rows(change=lambda row: scored(row, judge_grade=0.8 if number(row) < 99 else None)),
            Judged("", decisions=200),
            UNCLEAR,
        ),
    ],
)
def test_a_judge_that_is_down_or_has_not_graded_closes_the_gate(
    measured: list[EvaluationRow], judged: Judged, outcome: CheckOutcome
) -> None:
    found = evidence(measured, judged=judged)
    assert check("judge", found).outcome is outcome
    assert (judge(found).outcome is GateOutcome.PROMOTE) is (outcome is PASSED)


def test_a_judge_that_cannot_be_relied_on_measures_no_quality() -> None:
    found = evidence(GRADED, judged=Judged("", ("likes the first answer",), 200), metric="judge_grade")
    assert check("judge", found).outcome is UNCLEAR


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_ten_decisions_are_inconclusive_however_good_or_bad(share: float) -> None:
    measured = rows(
        conversations=5,
        change=lambda row: scored(row, fact_accuracy=float(number(row) >= 10 * share)) if row.model == "candidate" else row,
    )
    assert judge(evidence(measured)).outcome is GateOutcome.INCONCLUSIVE
    assert "50 decisions are needed" in judge(evidence(measured)).reasons[0]


def test_a_data_set_without_conversations_is_not_asked_for_wrong_facts() -> None:
    answers = [row.model_copy(update={"task": Task.QA, "scores": {**row.scores, "wrong_fact_rate": None}}) for row in rows()]
    assert "wrong_fact_rate" not in {each.name for each in judge(evidence(answers)).checks}
    conversations = [row.model_copy(update={"task": Task.CONVERSATION}) for row in answers]
    assert check("wrong_fact_rate", evidence(conversations)).outcome is UNCLEAR
