"""The commands of `distill` about releases: promote, rollback, and the list of them all; `cli_trials` has canary and shadow.

In: options and the record. Out: what changed, or how things stand. What a release learnt and how it was measured is the run's to say.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.table import Table

from conversations import releases, rollouts, runs
from conversations.errors import Refused
from conversations.gate_word import gate_word, was_in_service
from conversations.messages import Json
from conversations.releases import ReleaseState
from conversations.rollouts import RolloutKind
from conversations.settings import read_settings
from conversations.store import Record, open_existing
from distill.cli_trials import add_trials, rollout_json
from distill.run import Stage, open_run
from distill.settings import DistillSettings
from distill.terminal import (
    AsJson,
    Override,
    Reason,
    RunName,
    SettingsFile,
    operator_name,
    print_json,
    print_manifest,
    progress,
    say,
    say_table,
)


def add_promote(app: typer.Typer) -> None:
    """Add the command of the last stage."""
    app.command("promote", help="Put the candidate into service if the gate lets it, or against the gate with a reason.")(
        promote
    )


def add_releases(app: typer.Typer) -> None:
    """Add the commands about releases."""
    add_trials(app)
    app.command()(rollback)
    app.command("releases")(list_releases)


def promote(
    run: RunName,
    override: Override = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask the gate, or override what it said."""
    read = read_settings(DistillSettings, settings)
    from distill.cycle import perform_stage
    from distill.evaluation.gate.override import override as override_gate

    with Record(read.record.path) as record, progress() as announce, open_run(record, read, run, announce) as opened:
        if override is not None:
            report = override_gate(opened, by=operator_name("distill promote"), reason=override)
        else:
            manifest = perform_stage(opened, Stage.PROMOTE)
            passed = manifest.details["outcome"] == "promote"
            standing = _standing(record, str(manifest.details["release_id"]), run, passed=passed)
    if override is not None:
        if as_json:
            print_json(report)
            return
        say(f"{report['release_id']} is in service, against the gate; the reason is in the audit and in the run's report")
        return
    print_manifest(manifest, as_json)
    reasons = manifest.details["reasons"]
    lines = "".join(f"\n  {reason}" for reason in (reasons if isinstance(reasons, list) else []))
    said = f"the gate says {manifest.details['outcome']}:{lines}"
    if standing:
        raise Refused(f"{said}\n{standing}")
    if not as_json:
        say(said)


def _standing(record: Record, release_id: str, run: str, *, passed: bool) -> str:
    """Return how a release stands and what can be done; "" where it passed the gate and customers get it."""
    state = releases.release(record, release_id).state
    canary = rollouts.running(record, RolloutKind.CANARY)
    on_trial = canary is not None and canary.release_id == release_id
    if on_trial or state is ReleaseState.IN_SERVICE:
        undo = "is a canary all the same; `distill canary --stop` ends it"
        if state is ReleaseState.IN_SERVICE:
            undo = "is in service all the same; `distill rollback` undoes that"
        return "" if passed else f"{release_id} {undo}"
    if was_in_service(record, release_id):
        to_do = f"`distill rollback --to {release_id}` restores it"
    else:
        to_do = f"`distill promote --run {run} --override REASON` puts it into service all the same"
    stays = f"{releases.in_service(record) or 'nothing'} stays in service"
    return f"{release_id} is {state.replace('_', ' ')} now; {stays}; {to_do}"


def rollback(
    settings: SettingsFile = None,
    as_json: AsJson = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="RELEASE", help="The release to restore (else the one before).")
    ] = None,
    reason: Reason = "rolled back by the operator",
) -> None:
    """Undo the newest change: a canary that goes on, else the release in service. Open conversations move at their next turn."""
    read = read_settings(DistillSettings, settings)
    with open_existing(read.record.path) as record:
        before = releases.in_service(record)
        undone = rollouts.roll_back(record, to=to, actor=operator_name("distill rollback"), reason=reason)
        loaded_on: list[Json] = [on.server_id for on in releases.servers_with(record, undone.in_service)]
    if as_json:
        print_json({"in_service": undone.in_service, "rolled_back": undone.release_id, "loaded_on": loaded_on})
        return
    if undone.release_id == before:
        say(f"{undone.in_service} is in service again")
    else:
        say(f"the canary of {undone.release_id} is rolled back; {undone.in_service} stays in service")
    if not loaded_on:
        say(
            f"no student server has {undone.in_service} loaded; until `support-bot student` has loaded it, customers get no answer"
        )


def list_releases(settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """List every release of the student: which is in service or on trial, what it was measured at, and who has it loaded."""
    read = read_settings(DistillSettings, settings)
    with open_existing(read.record.path) as record:
        every = releases.releases(record)
        current = releases.in_service(record)
        trials = {kind: rollouts.running(record, kind) for kind in RolloutKind}
        loaded = {each.release_id: [on.server_id for on in releases.servers_with(record, each.release_id)] for each in every}
        reports = [known.report for known in runs.runs(record, limit=1000) if known.report]
        metrics = {each.release_id: {**each.metrics, **_measured(record, each, reports)} for each in every}
    if as_json:
        rows: list[Json] = [
            {
                "release_id": each.release_id,
                "run_id": each.run_id,
                "state": each.state.value,
                "base": each.base,
                "kind": each.kind.value,
                "started_from": each.start or None,
                "created_at_utc": each.created_at_utc,
                "weights_path": each.weights_path,
                "metrics": metrics[each.release_id],
                "loaded_on": list(loaded[each.release_id]),
            }
            for each in every
        ]
        print_json({"in_service": current, **{kind.value: rollout_json(trials[kind]) for kind in trials}, "releases": rows})
        return
    if not every:
        say("no release yet; `support-bot student` enters the base student")
        return
    table = Table()
    for title in ("release", "state", "quality", "loaded on", "kind", "started from", "run", "made"):
        table.add_column(title, no_wrap=True)
    for each in every:
        on_trial = [
            f"{kind.value} {trial.share:.0%}"
            for kind, trial in trials.items()
            if trial is not None and trial.release_id == each.release_id
        ]
        table.add_row(
            each.release_id,
            ", ".join([each.state.value, *on_trial]),
            _quality(metrics[each.release_id]),
            ", ".join(loaded[each.release_id]) or "nowhere",
            each.kind.value,
            each.start,
            each.run_id or "",
            each.created_at_utc,
        )
    # Other commands need the names, which no terminal may cut.
    say_table(table)


def _measured(record: Record, release: releases.Release, reports: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Return what the newest report that measured a release says of it, as its candidate or beside one, and its own gate's word."""
    found: dict[str, Json] = {}
    for report in reports:
        models = report.get("models")
        parts = models if isinstance(models, dict) else {}
        name, part = next(
            (
                (name, part)
                for name, part in parts.items()
                if isinstance(part, dict) and part.get("release_id") == release.release_id
            ),
            ("", {}),
        )
        if part:
            measured = ("quality", "latency_ms", "first_token_ms", "memory_bytes", "weights_bytes")
            found = {key: part.get(key) for key in measured}
            found |= {key: report.get(key) for key in ("quality_metric", "test_edition")}
            found["retained"] = report.get("retained") if name == "candidate" else None
            break
    said = gate_word(record, release.release_id)
    return {**found, "gate": said.get("outcome")} if found or said else {}


def _quality(metrics: Mapping[str, Json]) -> str:
    quality, metric = metrics.get("quality"), metrics.get("quality_metric")
    found = quality.get(str(metric)) if isinstance(quality, dict) else None
    value = found.get("value") if isinstance(found, dict) else None
    return f"{metric} {value:.1%}" if isinstance(value, int | float) else "not measured"
