"""The gate's ceilings on how a candidate behaves: wrong facts, leaks, faults of form, questions declined, answers not given.

In: the evidence. Out: one check each. A rate passes only where its upper bound lies below its ceiling, but where nothing at all may
be seen: no number of answers shows that there is none. A ceiling of 1 bounds nothing, and its rate need not be measured.
"""

from distill.evaluation.gate.careful import rate_interval
from distill.evaluation.gate.evidence import Evidence
from distill.evaluation.gate.verdict import Check, failed, no_score, passed, unclear
from distill.evaluation.scoring.metric import Metric
from distill.rows import Task

FAILED_ANSWERS = "failed_answers"
_DEFAULT_MAX_DECLINED_RATE = 0.25


def check_conduct(evidence: Evidence) -> list[Check]:
    """Return the checks of every ceiling that is set."""
    bounds = evidence.bounds
    declined = bounds.max_declined_rate
    if declined is None and evidence.has_handbook:
        declined = _DEFAULT_MAX_DECLINED_RATE
    # Wrong facts are looked for in what customers are told; a data set's questions have a right answer instead.
    tells_customers = any(row.task is Task.CONVERSATION for row in evidence.rows) or not evidence.rows
    ceilings = (
        (Metric.WRONG_FACT_RATE, "states a wrong fact in", bounds.max_wrong_fact_rate if tells_customers else None),
        (Metric.LEAK_RATE, "gives away what is not its customer's in", bounds.max_leak_rate),
        (Metric.FORMAT_FAULT_RATE, "has a fault of form in", bounds.max_format_fault_rate),
        (Metric.DECLINED_RATE, "declines what the handbook answers in", declined),
    )
    checks = [
        _check_rate(evidence, metric, told, ceiling) for metric, told, ceiling in ceilings if ceiling not in (None, 1.0)
    ]
    return [*checks, check_failed_answers(evidence)]


def check_failed_answers(evidence: Evidence) -> Check:
    """Hold how many decisions the candidate did not answer at all against its ceiling."""
    count, n = evidence.failed_answers()
    ceiling = evidence.bounds.max_failed_rate
    if n == 0:
        return unclear(FAILED_ANSWERS, "no answer was asked for")
    told = f"gave no answer to {count} of {n} decisions ({count / n:.1%}); the ceiling is {ceiling:.0%}"
    return (passed if count / n <= ceiling else failed)(FAILED_ANSWERS, told, count / n, ceiling)


def _check_rate(evidence: Evidence, metric: Metric, does: str, ceiling: float | None) -> Check:
    assert ceiling is not None
    scores, unscored = evidence.candidate_scores(metric)
    found = rate_interval(scores)
    if found is None or found.low is None or found.high is None or unscored:
        missing = no_score(unscored) if found is not None and unscored else "it could not be measured"
        return unclear(metric, f"{metric}: {missing}; the ceiling is {ceiling:.0%}", bound=ceiling)
    told = f"{does} {found.value:.1%} of answers ({found.low:.1%} to {found.high:.1%}, n={found.n}); "
    told += "none may be seen" if ceiling == 0 else f"the ceiling for the upper bound is {ceiling:.0%}"
    # What none may be seen of is as bad in the tenth answer as in the hundredth.
    if ceiling == 0 and found.value > 0:
        return failed(metric, told, found.value, ceiling)
    is_enough = found.n >= evidence.bounds.min_decisions
    if not is_enough and (ceiling == 0 or found.value > ceiling):
        return unclear(metric, f"{told}; {evidence.bounds.min_decisions} decisions are needed", found.value, ceiling)
    if found.value > ceiling:
        return failed(metric, told, found.value, ceiling)
    return (passed if ceiling == 0 or found.high <= ceiling else unclear)(metric, told, found.value, ceiling)
