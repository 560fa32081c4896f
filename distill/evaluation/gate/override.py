"""An operator's word against the gate's: a candidate that was refused, or of which the gate could not tell, goes into service.

In: a run whose gate has spoken, who overrides it and why. Out: the release in service, an entry in the audit with the gate's numbers,
and a report that says so. Never a release whose weights are gone, nor one that nobody loads.
"""

from pathlib import Path

from conversations import releases, rollouts, runs
from conversations.errors import OperatorError
from conversations.gate_word import gate_word, held_back, note_override, was_in_service
from conversations.releases import ReleaseState
from conversations.rollouts import Rollout
from conversations.store import Record
from distill.evaluation.answering.generation import wait_until_loaded
from distill.evaluation.gate.verdict import GateOutcome
from distill.evaluation.report import REPORT_FILE, Report, finished_run, gate_of, read_report, renew_report
from distill.run import Run, Stage
from distill.settings import DistillSettings


def override(run: Run, *, by: str, reason: str) -> Report:
    """Put a run's candidate into service against the gate, and return the report that says so.

    Raises OperatorError where the gate has not spoken, has promoted the candidate, or its weights are gone, and OutsideError where no
    healthy server loads it in time; then nothing has changed.
    """
    if not reason.strip():
        raise OperatorError(
            "the reason is empty; expected why the gate is overridden, for the audit: --override 'the reason'"
        )
    run.manifest(Stage.PROMOTE)
    report = read_report(run.folder)
    gate = report.get("gate")
    assert isinstance(gate, dict), "a finished gate leaves its word"
    release = releases.release(run.record, str(report["release_id"]))
    if release.state is not ReleaseState.IN_SERVICE:
        _check(run, release)
        releases.want(run.record, release.release_id, wanted_by=by)
        wait_until_loaded(run.record, release.release_id, run.settings.evaluate.load_timeout_seconds)
        with run.record.write() as transaction:
            releases.promote_in(transaction, release.release_id, actor=by, reason=f"the gate was overridden: {reason}")
            note_override(transaction, release.release_id, gate, actor=by, reason=reason)
    elif gate["outcome"] == GateOutcome.PROMOTE or "overridden" in gate:
        raise OperatorError(f"the release {release.release_id!r} is in service already; nothing to override")
    elif "overridden" not in gate_of(run):
        # Something else than the gate has put it into service; now somebody answers for it.
        with run.record.write() as transaction:
            note_override(transaction, release.release_id, gate, actor=by, reason=reason)
    # One that was cut off here is in service, and its report does not say so yet.
    return renew_report(run)


def override_canary(record: Record, settings: DistillSettings, canary: Rollout, *, by: str, reason: str) -> None:
    """Put a canary into service that the gate holds back; the audit says so, and its run's report where there is one.

    Raises OperatorError where the gate lets it through, and where no server has it loaded.
    """
    if not held_back(record, canary.release_id):
        raise OperatorError(
            f"the gate does not hold {canary.release_id!r} back; nothing to override: `distill canary --promote` puts it into service"
        )
    gate = gate_word(record, canary.release_id)
    acted = rollouts.promote(record, canary.rollout_id, actor=by, reason=reason, against_gate=True)
    run_id = releases.release(record, canary.release_id).run_id
    if acted and gate and run_id is not None:
        known = runs.run(record, run_id)
        if (Path(known.path) / REPORT_FILE).is_file():
            renew_report(finished_run(record, settings, known))


def _check(run: Run, release: releases.Release) -> None:
    """Raise OperatorError where another command does it, or there is nothing to serve.

    A release that the gate let through and whose canary was taken back may be overridden too: nothing else puts it into service.
    """
    name, weights = release.release_id, Path(release.weights_path)
    canary = rollouts.running(run.record, rollouts.RolloutKind.CANARY)
    if canary is not None and canary.release_id == name:
        raise OperatorError(
            f"the release {name!r} is a canary; `distill canary --promote` puts it into service, "
            "with --override REASON where the gate holds it back"
        )
    if was_in_service(run.record, name):
        raise OperatorError(
            f"the release {name!r} was in service before and is {release.state.value.replace('_', ' ')} now; "
            f"`distill rollback --to {name}` restores it"
        )
    if not any(weights.glob("*.safetensors")):
        raise OperatorError(
            f"the weights of {name!r} are gone: {weights} holds no *.safetensors; a release without them cannot be served; train anew"
        )
