"""The commands of `distill` that try a release on customers: canary and shadow.

In: options and the record. Out: a trial that begins or ends, or how it stands, in figures with intervals.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from conversations import online, releases, rollouts, shadows
from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.online import OnlineFigures, Rate
from conversations.rollouts import Rollout, RolloutKind, RolloutState
from conversations.settings import read_settings
from conversations.store import open_existing
from distill.settings import DistillSettings
from distill.terminal import AsJson, Override, Reason, SettingsFile, operator_name, print_json, say, say_table

Share = Annotated[
    float | None, typer.Option("--share", help="Of new conversations (canary) or of turns (shadow), such as 0.1.")
]
Stop = Annotated[bool, typer.Option("--stop", help="End the one that goes on.")]
Tried = Annotated[
    str | None, typer.Argument(metavar="RELEASE", help="The release to try (else show how the present one stands).")
]


def add_trials(app: typer.Typer) -> None:
    """Add the commands that try a release."""
    app.command()(canary)
    app.command()(shadow)


def canary(
    release: Tried = None,
    share: Share = None,
    stop: Stop = False,
    promote: Annotated[bool, typer.Option("--promote", help="Put the canary into service now.")] = False,
    override: Override = None,
    reason: Reason = "asked for by the operator",
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a release a share of new conversations first; or show, stop or promote the one that goes on."""
    read = read_settings(DistillSettings, settings)
    _check_wishes("canary", release, share, stop, promote)
    if override is not None and release is None and not promote:
        raise OperatorError("nothing to override; --override REASON goes with a RELEASE, or with --promote")
    actor = operator_name("distill canary")
    with open_existing(read.record.path) as record:
        if release is not None:
            from distill.evaluation.gate.canary import begin_canary, load_for_trial

            wanted = read.promote.canary_share if share is None else share
            if not wanted:
                raise OperatorError(
                    "a canary needs a share of new conversations; expected more than 0, with --share 0.1 or [promote] canary_share"
                )
            against = override is not None
            load_for_trial(record, read, RolloutKind.CANARY, release, share=wanted, actor=actor, against_gate=against)
            begin_canary(record, read, release, actor=actor, reason=override or reason, share=wanted, against_gate=against)
        going = rollouts.running(record, RolloutKind.CANARY)
        if stop or promote:
            going = _needed(going, RolloutKind.CANARY)
            if override is not None:
                from distill.evaluation.gate.override import override_canary

                override_canary(record, read, going, by=actor, reason=override)
            else:
                act = rollouts.promote if promote else rollouts.take_back
                act(record, going.rollout_id, actor=actor, reason=reason)
            going = rollouts.rollout(record, going.rollout_id)
        current = releases.in_service(record)
        met = online.figures(record, since_utc=going.started_at_utc) if going else {}
        broken = online.violated(going, met[going.release_id]) if going and going.release_id in met else ""
    if as_json:
        print_json(
            {
                "in_service": current,
                "canary": rollout_json(going),
                "violated": broken,
                "figures": {name: asdict(each) for name, each in met.items()},
            }
        )
        return
    _say_rollout(going, RolloutKind.CANARY, current)
    if going is not None:
        _say_figures(met, going, current)
        if going.state is RolloutState.RUNNING:
            say(f"it breaks a rule: {broken}" if broken else "it breaks no rule")


def shadow(
    release: Tried = None,
    share: Share = None,
    stop: Stop = False,
    reason: Reason = "asked for by the operator",
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a release answer a share of live turns out of the customers' sight; or show or stop the one that goes on."""
    read = read_settings(DistillSettings, settings)
    _check_wishes("shadow", release, share, stop, False)
    actor = operator_name("distill shadow")
    with open_existing(read.record.path) as record:
        if release is not None:
            if share is None:
                raise OperatorError("`distill shadow RELEASE` needs a share of turns: --share 0.05")
            from distill.evaluation.gate.canary import load_for_trial

            load_for_trial(record, read, RolloutKind.SHADOW, release, share=share, actor=actor)
            rollouts.start(record, RolloutKind.SHADOW, release, share=share, actor=actor, reason=reason)
        going = rollouts.running(record, RolloutKind.SHADOW)
        if stop:
            going = _needed(going, RolloutKind.SHADOW)
            rollouts.end(record, going.rollout_id, RolloutState.STOPPED, actor=actor, reason=reason)
            going = rollouts.rollout(record, going.rollout_id)
        met = shadows.figures(record, going.rollout_id) if going else None
        current = releases.in_service(record)
    if as_json:
        print_json({"in_service": current, "shadow": rollout_json(going), "figures": asdict(met) if met else None})
        return
    _say_rollout(going, RolloutKind.SHADOW, current)
    if met is not None:
        ratio = "not measured" if met.mean_length_ratio is None else f"{met.mean_length_ratio:.2f}"
        say(
            f"{met.answers} answers; failed: {_told(met.failures)}; the same words as the customer got: {_told(met.same)}; "
            f"length beside those: {ratio}; whole answer p50 / p95 (ms): {_pair(met.latency_p50_ms, met.latency_p95_ms)}"
        )


def rollout_json(rollout: Rollout | None) -> dict[str, Json] | None:
    """Return a trial as one JSON object; None where there is none."""
    return None if rollout is None else {**asdict(rollout), "kind": rollout.kind.value, "state": rollout.state.value}


def _check_wishes(command: str, release: str | None, share: float | None, stop: bool, promote: bool) -> None:
    if sum((release is not None, stop, promote)) > 1 or (share is not None and release is None):
        raise OperatorError(
            f"`distill {command}` does one thing at a time; expected a RELEASE with its --share, --stop, "
            f"{'--promote, ' if command == 'canary' else ''}or nothing, which shows how it stands"
        )


def _needed(going: Rollout | None, kind: RolloutKind) -> Rollout:
    if going is None:
        raise OperatorError(
            f"no {kind} goes on; `distill {kind} RELEASE --share 0.1` begins one, and `distill releases` lists names"
        )
    return going


def _say_rollout(rollout: Rollout | None, kind: RolloutKind, current: str | None) -> None:
    if rollout is None:
        say(f"no {kind} goes on; {current or 'nothing'} is in service")
        return
    of_what = "new conversations" if kind is RolloutKind.CANARY else "turns"
    ended = f", {rollout.ended_at_utc}: {rollout.ended_because}" if rollout.ended_at_utc else ""
    say(
        f"{kind} of {rollout.release_id}: {rollout.state.value.replace('_', ' ')}{ended}; {rollout.share:.0%} of {of_what} since "
        f"{rollout.started_at_utc}; {current or 'nothing'} is in service"
    )


def _say_figures(met: Mapping[str, OnlineFigures], going: Rollout, current: str | None) -> None:
    names = [name for name in dict.fromkeys((going.release_id, current)) if name in met]
    if not names:
        say("no answer of it, nor of the release in service, since it began")
        return
    table = Table(title="Since it began, with 95 % intervals", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(str(name), justify="right", no_wrap=True)
    shown = [met[str(name)] for name in names]
    table.add_row("turns", *(str(each.turns) for each in shown))
    table.add_row("conversations", *(str(each.conversations) for each in shown))
    table.add_row("no server (no fault of the release)", *(str(each.no_server) for each in shown))
    table.add_row("errors", *(_told(each.errors) for each in shown))
    table.add_row("thumbs down", *(_told(each.thumbs_down) for each in shown))
    table.add_row("handed to a person", *(_told(each.handoffs) for each in shown))
    table.add_row("first token p50 / p95 (ms)", *(_pair(each.first_token_p50_ms, each.first_token_p95_ms) for each in shown))
    table.add_row("whole answer p50 / p95 (ms)", *(_pair(each.latency_p50_ms, each.latency_p95_ms) for each in shown))
    say_table(table)


def _told(rate: Rate) -> str:
    if rate.value is None or rate.low is None or rate.high is None:
        return "none yet"
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}, n={rate.n})"


def _pair(p50: float | None, p95: float | None) -> str:
    return "not measured" if p50 is None or p95 is None else f"{p50:,.0f} / {p95:,.0f}"
