"""Every bound of the gate, asked in turn.

In: the evidence. Out: the verdict. This is the one place that says what a candidate is held against.
"""

from distill.evaluation.gate.conduct import check_conduct
from distill.evaluation.gate.evidence import Evidence
from distill.evaluation.gate.limits import check_judge, check_latency, check_memory
from distill.evaluation.gate.quality import check_released, check_retained, check_topics
from distill.evaluation.gate.verdict import Verdict, verdict_of


def judge(evidence: Evidence) -> Verdict:
    """Hold a candidate against the bounds."""
    checks = [
        check_retained(evidence),
        check_released(evidence),
        check_topics(evidence),
        *check_conduct(evidence),
        check_latency(evidence),
        check_memory(evidence),
        check_judge(evidence),
    ]
    return verdict_of([check for check in checks if check is not None])
