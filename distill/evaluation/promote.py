"""The stage `promote`: the gate between a candidate and the customers.

In: the measured rows. Out: promotion, refusal or "inconclusive", each with the bounds and the numbers. It fails closed: what is
missing or too little to tell is never a yes. The pointer to the release in service moves last, in one transaction, only to a
release that a healthy server has in memory, and only from the release that the candidate was held against.
"""

from conversations import releases, rollouts, runs
from conversations.errors import OutsideError
from conversations.messages import Json
from conversations.store import Record, Transaction
from distill.evaluation.answering.generation import wait_until_loaded
from distill.evaluation.evaluate import JUDGE, ROWS
from distill.evaluation.gate.bounds import judge
from distill.evaluation.gate.canary import begin_canary
from distill.evaluation.gate.evidence import Evidence, Judged
from distill.evaluation.gate.verdict import GateOutcome, Verdict
from distill.evaluation.report import Report, build_report, write_report
from distill.rows import EvaluationRow, read_rows
from distill.run import Counts, Outcome, Run, Stage, read_json


def promote(run: Run) -> Outcome:
    """Put the candidate into service, or on trial first, if every bound lets it; write the report either way.

    Raises OutsideError, and leaves the release in service, where no healthy server loads the candidate in time, and where another
    release came into service meanwhile.
    """
    report = build_report(run)
    release_id = str(report["release_id"])
    evidence = collect_evidence(run, report)
    verdict = judge(evidence)
    gate = verdict.as_json()
    _publish(run, {**report, "gate": gate})
    if not has_served(run, release_id):
        trial = _act(run, evidence, verdict)
        if trial is not None:
            gate = {**gate, "canary": {"rollout_id": trial.rollout_id, "share": trial.share}}
            _publish(run, {**report, "gate": gate})
    return Outcome(
        Counts(
            taken_in=1,
            accepted=int(verdict.outcome is GateOutcome.PROMOTE),
            rejected=int(verdict.outcome is GateOutcome.REFUSE),
            unscored=int(verdict.outcome is GateOutcome.INCONCLUSIVE),
            rejected_by_reason={"gate": 1} if verdict.outcome is GateOutcome.REFUSE else {},
        ),
        {**gate, "release_id": release_id, "started_from": report["started_from"]},
    )


def collect_evidence(run: Run, report: Report) -> Evidence:
    """Return what the gate decides on."""
    models = report["models"]
    candidate = models.get("candidate") if isinstance(models, dict) else None
    return Evidence(
        rows=list(read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow)),
        candidate=candidate if isinstance(candidate, dict) else {},
        release_id=str(report["release_id"]),
        quality_metric=str(run.settings.evaluate.quality_metric),
        bounds=run.settings.promote,
        in_service=releases.in_service(run.record),
        has_handbook=run.settings.handbook is not None,
        judged=_judged(run),
    )


def has_served(run: Run, release_id: str) -> bool:
    """Tell whether the candidate was put into service or on trial before: a stage that was cut off there must not do it again.

    What has happened to it since, such as a rollback, stays.
    """
    state = releases.release(run.record, release_id).state
    return state is not releases.ReleaseState.CANDIDATE or any(
        trial.release_id == release_id and trial.kind is rollouts.RolloutKind.CANARY
        for trial in rollouts.rollouts(run.record, limit=1000)
    )


def _act(run: Run, evidence: Evidence, verdict: Verdict) -> rollouts.Rollout | None:
    """Do what the gate says; return the trial where one begins."""
    release_id, actor, reason = evidence.release_id, f"distill promote {run.run_id}", "; ".join(verdict.reasons)
    match verdict.outcome:
        case GateOutcome.PROMOTE:
            load(run, release_id, actor)
            if run.settings.promote.canary_share and evidence.in_service is not None:
                _check_in_service(run.record, evidence)
                return begin_canary(run.record, run.settings, release_id, actor=actor, reason=reason)
            with run.record.write() as transaction:
                _check_in_service(transaction, evidence)
                releases.promote_in(transaction, release_id, actor=actor, reason=reason)
        case GateOutcome.REFUSE:
            releases.refuse(run.record, release_id, actor=actor, reason=reason)
        case GateOutcome.INCONCLUSIVE:
            releases.set_aside(run.record, release_id, actor=actor, reason=reason)
    return None


def load(run: Run, release_id: str, actor: str) -> None:
    """Have a release loaded, and wait until a healthy server has it in memory.

    Raises OutsideError where nobody does.
    """
    releases.want(run.record, release_id, wanted_by=actor)
    try:
        wait_until_loaded(run.record, release_id, run.settings.evaluate.load_timeout_seconds)
    except OutsideError as error:
        raise OutsideError(f"{error}; the release in service stays") from None


def _check_in_service(source: Record | Transaction, evidence: Evidence) -> None:
    """Raise OutsideError where the candidate was held against another release than the one in service: loading may take minutes."""
    current = releases.in_service(source)
    if current != evidence.in_service:
        raise OutsideError(
            f"{current!r} came into service while {evidence.release_id!r} was loaded, which the gate held against "
            f"{evidence.in_service!r}; {current!r} stays; run the same command again: the gate asks anew"
        )


def _publish(run: Run, report: Report) -> None:
    """Write the report where people look: the run's folder, and the record for the console."""
    write_report(run, report)
    runs.note_report(run.record, run.run_id, report)


def _judged(run: Run) -> Judged | None:
    """Return what became of the judge, or None where the settings ask for none or no decision was one for a judge."""
    if run.settings.judge is None or not run.settings.evaluate.judged_decisions:
        return None
    path = run.folder / Stage.EVALUATE / JUDGE
    if not path.is_file():
        return Judged(down=f"there is no {path.name} of this run")
    told: dict[str, Json] = read_json(path)
    down, flags, decisions = told.get("down"), told.get("flags"), told.get("decisions")
    if decisions == 0:
        return None
    return Judged(
        down=str(down or ""),
        flags=tuple(map(str, flags)) if isinstance(flags, list) else (),
        decisions=decisions if isinstance(decisions, int) else 0,
    )
