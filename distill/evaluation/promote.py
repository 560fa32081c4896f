"""The stage `promote`: the gate between a candidate and the customers.

In: the measured rows. Out: promotion, refusal or "inconclusive", each with the gates and the numbers. It fails closed: what
is missing or too little to tell is never a yes.
"""

from dataclasses import dataclass
from enum import StrEnum

from conversations import releases
from conversations.messages import Json
from distill.evaluation.figures.intervals import Estimate
from distill.evaluation.report import Report, build_report, estimate_difference, write_report
from distill.evaluation.scoring.metric import Metric
from distill.run import Counts, Outcome, Run
from distill.settings import PromoteTable


class GateOutcome(StrEnum):
    """What the gate says."""

    PROMOTE = "promote"
    REFUSE = "refuse"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Verdict:
    """The gate's word and its reasons, the number in each."""

    outcome: GateOutcome
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Json]:
        """Return the verdict as reports hold it."""
        return {"outcome": self.outcome.value, "reasons": list(self.reasons)}


def promote(run: Run) -> Outcome:
    """Put the candidate into service if every gate lets it; write the report either way."""
    report = build_report(run)
    verdict = judge(report, run.settings.promote, estimate_difference(run))
    release_id = str(report["release_id"])
    write_report(run, {**report, "gate": verdict.as_json()})
    reason = "; ".join(verdict.reasons)
    actor = f"distill promote {run.run_id}"
    match verdict.outcome:
        case GateOutcome.PROMOTE:
            releases.promote(run.record, release_id, actor=actor, reason=reason)
        case GateOutcome.REFUSE:
            releases.refuse(run.record, release_id, actor=actor, reason=reason)
        case GateOutcome.INCONCLUSIVE:
            releases.set_aside(run.record, release_id, actor=actor, reason=reason)
    return Outcome(
        Counts(
            taken_in=1,
            accepted=int(verdict.outcome is GateOutcome.PROMOTE),
            rejected=int(verdict.outcome is GateOutcome.REFUSE),
            unscored=int(verdict.outcome is GateOutcome.INCONCLUSIVE),
            rejected_by_reason={"gate": 1} if verdict.outcome is GateOutcome.REFUSE else {},
        ),
        {**verdict.as_json(), "release_id": release_id, "started_from": report["started_from"]},
    )


def judge(report: Report, gate: PromoteTable, against_released: Estimate | None) -> Verdict:
    """Hold a report against the gate's bounds."""
    models = report["models"]
    assert isinstance(models, dict)
    candidate = models["candidate"]
    assert isinstance(candidate, dict)
    passed: list[str] = []
    failed: list[str] = []
    unclear: list[str] = []
    _check_retained(report["retained"], gate, passed, failed, unclear)
    _check_wrong_facts(candidate["quality"], gate, passed, failed, unclear)
    if "released" in models:
        _check_released(against_released, gate, passed, failed, unclear)
    if gate.max_latency_p95_ms is not None:
        _check_latency(candidate["latency_ms"], gate.max_latency_p95_ms, passed, failed, unclear)
    if failed:
        return Verdict(GateOutcome.REFUSE, tuple(failed))
    if unclear:
        return Verdict(GateOutcome.INCONCLUSIVE, tuple(unclear))
    return Verdict(GateOutcome.PROMOTE, tuple(passed))


def _check_retained(value: Json, gate: PromoteTable, passed: list[str], failed: list[str], unclear: list[str]) -> None:
    retained = _estimate(value)
    if retained is None or retained.low is None or retained.high is None:
        unclear.append("the share of the teacher's quality that is kept could not be measured")
        return
    told = (
        f"keeps {retained.value:.1%} of the teacher's quality ({retained.low:.1%} to {retained.high:.1%}, n={retained.n}); "
        f"the floor for the lower bound is {gate.min_retained:.0%}"
    )
    if retained.n < gate.min_decisions:
        unclear.append(f"{told}; {gate.min_decisions} decisions are needed")
    elif retained.low >= gate.min_retained:
        passed.append(told)
    elif retained.high < gate.min_retained:
        failed.append(told)
    else:
        (failed if retained.value < gate.min_retained else unclear).append(told)


def _check_wrong_facts(value: Json, gate: PromoteTable, passed: list[str], failed: list[str], unclear: list[str]) -> None:
    quality = value if isinstance(value, dict) else {}
    rate = _estimate(quality.get(Metric.WRONG_FACT_RATE))
    if rate is None:
        unclear.append("the rate of wrong facts could not be measured")
        return
    told = f"states a wrong fact in {rate.value:.1%} of answers (n={rate.n}); the ceiling is {gate.max_wrong_fact_rate:.0%}"
    (passed if rate.value <= gate.max_wrong_fact_rate else failed).append(told)


def _check_released(
    difference: Estimate | None, gate: PromoteTable, passed: list[str], failed: list[str], unclear: list[str]
) -> None:
    if difference is None or difference.low is None or difference.high is None:
        unclear.append("the difference to the release in service could not be measured")
        return
    told = (
        f"differs from the release in service by {difference.value:+.1%} "
        f"({difference.low:+.1%} to {difference.high:+.1%}, n={difference.n}); "
        f"the lower bound may be {-gate.max_loss_to_released:+.1%} at least"
    )
    if difference.low >= -gate.max_loss_to_released:
        passed.append(told)
    else:
        (failed if difference.value < -gate.max_loss_to_released else unclear).append(told)


def _check_latency(value: Json, ceiling_ms: float, passed: list[str], failed: list[str], unclear: list[str]) -> None:
    p95 = value.get("p95") if isinstance(value, dict) else None
    if not isinstance(p95, int | float):
        unclear.append("the latency could not be measured")
        return
    told = f"answers within {p95:.0f} ms in 95 % of cases; the ceiling is {ceiling_ms:.0f} ms"
    (passed if p95 <= ceiling_ms else failed).append(told)


def _estimate(value: Json) -> Estimate | None:
    """Read an estimate back from a report."""
    if not isinstance(value, dict) or not isinstance(value.get("value"), int | float):
        return None
    number, low, high, n = value["value"], value.get("low"), value.get("high"), value.get("n")
    assert isinstance(number, int | float) and isinstance(n, int)
    return Estimate(
        float(number),
        float(low) if isinstance(low, int | float) else None,
        float(high) if isinstance(high, int | float) else None,
        n,
    )
