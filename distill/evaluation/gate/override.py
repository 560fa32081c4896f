"""An operator's word against the gate's: a candidate that was refused, or of which the gate could not tell, goes into service.

In: a run whose gate has spoken, who overrides it and why. Out: the release in service, an entry in the audit with the gate's numbers,
and a report that says so. Never a release whose weights are gone, nor one that nobody loads.
"""

from collections.abc import Mapping
from pathlib import Path

from conversations import audit, releases, rollouts
from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.releases import ReleaseState
from distill.evaluation.answering.generation import wait_until_loaded
from distill.evaluation.gate.verdict import GateOutcome
from distill.evaluation.report import OVERRIDDEN, Report, gate_of, read_report, renew_report
from distill.run import Run, Stage


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
    told: dict[str, Json] = {"reason": reason, "run_id": run.run_id, **_told(gate)}
    if release.state is not ReleaseState.IN_SERVICE:
        _check(run, release, gate)
        releases.want(run.record, release.release_id, wanted_by=by)
        wait_until_loaded(run.record, release.release_id, run.settings.evaluate.load_timeout_seconds)
        with run.record.write() as transaction:
            releases.promote_in(transaction, release.release_id, actor=by, reason=f"the gate was overridden: {reason}")
            audit.note(transaction, by, OVERRIDDEN, release.release_id, told)
    elif gate["outcome"] == GateOutcome.PROMOTE or "overridden" in gate:
        raise OperatorError(f"the release {release.release_id!r} is in service already; nothing to override")
    elif "overridden" not in gate_of(run):
        # Something else than the gate has put it into service; now somebody answers for it.
        audit.note_alone(run.record, by, OVERRIDDEN, release.release_id, told)
    # One that was cut off here is in service, and its report does not say so yet.
    return renew_report(run)


def _check(run: Run, release: releases.Release, gate: Mapping[str, Json]) -> None:
    """Raise OperatorError where there is nothing to override, or nothing to serve."""
    name, weights = release.release_id, Path(release.weights_path)
    canary = rollouts.running(run.record, rollouts.RolloutKind.CANARY)
    if canary is not None and canary.release_id == name:
        raise OperatorError(f"the release {name!r} is a canary; `distill canary --promote` puts it into service")
    if gate["outcome"] == GateOutcome.PROMOTE or release.state in (ReleaseState.RETIRED, ReleaseState.ROLLED_BACK):
        raise OperatorError(
            f"the release {name!r} was let through before and is {release.state.value.replace('_', ' ')} now; expected one that the "
            f"gate refused or could not tell of; `distill rollback --to {name}` restores one that was in service"
        )
    if not any(weights.glob("*.safetensors")):
        raise OperatorError(
            f"the weights of {name!r} are gone: {weights} holds no *.safetensors; a release without them cannot be served; train anew"
        )


def _told(gate: Mapping[str, Json]) -> dict[str, Json]:
    """Return what the audit keeps of the gate: its word, its reasons and the numbers of the checks that did not pass."""
    checks = gate.get("checks")
    return {
        "outcome": gate.get("outcome"),
        "reasons": gate.get("reasons"),
        "checks": [
            {name: check.get(name) for name in ("name", "outcome", "value", "bound")}
            for check in (checks if isinstance(checks, list) else [])
            if isinstance(check, dict) and check.get("outcome") != "passed"
        ],
    }
