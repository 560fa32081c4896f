"""The gate's limits on what a candidate takes, and whether its judge was there.

In: the evidence. Out: one check each, of the limits that are set. What was not measured is unclear.
"""

from distill.evaluation.gate.evidence import Evidence, number_in
from distill.evaluation.gate.verdict import Check, failed, passed, unclear
from distill.evaluation.scoring.metric import Metric

LATENCY, MEMORY, JUDGE = "latency_p95_ms", "memory_gb", "judge"
_BYTES_PER_GB = 1e9
# The 95th percentile of fewer is little more than their slowest.
_MIN_TIMED_ANSWERS = 20
_JUDGES_METRICS = (Metric.JUDGE_GRADE, Metric.JUDGE_WINS_TEACHER, Metric.JUDGE_WINS_RELEASED)


def check_latency(evidence: Evidence) -> Check | None:
    """Hold the time within which 95 % of the answers were whole against its ceiling."""
    ceiling = evidence.bounds.max_latency_p95_ms
    if ceiling is None:
        return None
    p95, timed = number_in(evidence.candidate, "latency_ms", "p95"), number_in(evidence.candidate, "timed_answers")
    if p95 is None or not timed:
        return unclear(LATENCY, f"the latency could not be measured; the ceiling is {ceiling:,.0f} ms", bound=ceiling)
    told = f"answers within {p95:,.0f} ms in 95 % of cases (n={timed:.0f}); the ceiling is {ceiling:,.0f} ms"
    if timed < _MIN_TIMED_ANSWERS:
        needed = f"{_MIN_TIMED_ANSWERS} timed answers are needed: raise [evaluate] timed_decisions, and measure in a new run"
        return unclear(LATENCY, f"{told}; {needed}", p95, ceiling)
    return (passed if p95 <= ceiling else failed)(LATENCY, told, p95, ceiling)


def check_memory(evidence: Evidence) -> Check | None:
    """Hold the memory of the process that serves the candidate, the machine's or the GPU's, whichever is more, against its ceiling."""
    ceiling = evidence.bounds.max_memory_gb
    if ceiling is None:
        return None
    sizes = [number_in(evidence.candidate, name) for name in ("memory_bytes", "gpu_memory_bytes")]
    known = [size / _BYTES_PER_GB for size in sizes if size is not None and size > 0]
    if not known:
        return unclear(MEMORY, f"the memory could not be measured; the ceiling is {ceiling:g} GB", bound=ceiling)
    taken = max(known)
    told = f"takes {taken:.2f} GB of memory to serve; the ceiling is {ceiling:g} GB"
    return (passed if taken <= ceiling else failed)(MEMORY, told, taken, ceiling)


def check_judge(evidence: Evidence) -> Check | None:
    """Make sure that the judge was there, where the settings ask for one: what it did not see, nobody has judged."""
    if evidence.judged is None:
        return None
    if evidence.judged.down:
        return unclear(JUDGE, f"the judge did not answer: {evidence.judged.down}")
    grades, _ = evidence.candidate_scores(Metric.JUDGE_GRADE)
    if not grades or 2 * len(grades) < evidence.judged.decisions:
        return unclear(
            JUDGE,
            f"the judge graded {len(grades)} of the candidate's answers, and {evidence.judged.decisions} were drawn for it",
        )
    flags = "; ".join(evidence.judged.flags)
    if flags and evidence.quality_metric in _JUDGES_METRICS:
        return unclear(JUDGE, f"{evidence.quality_metric} is measured by a judge that cannot be relied on: {flags}")
    mean = sum(grade.value for grade in grades) / len(grades)
    return passed(
        JUDGE, f"the judge graded {len(grades)} answers, {mean:.2f} of 1 on average{f' ({flags})' if flags else ''}", mean
    )
