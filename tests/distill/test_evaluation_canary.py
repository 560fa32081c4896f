"""What a canary promises on the teaching side: it begins loaded, ends by its rules, and the commands say how it stands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_run import BASE, OLD, candidate_of, let_through, load, measured_run, scored
from typer.testing import CliRunner

from conversations import audit, releases, rollouts, runs, turns
from conversations.errors import Failure, OperatorError, OutsideError, Refused
from conversations.messages import Author, Role, TurnStatus
from conversations.releases import ReleaseState
from conversations.rollouts import Rollout, RolloutKind, RolloutState
from conversations.store import Record
from conversations.turns import ReplyMeasures
from distill.cli import app
from distill.cycle import perform_stage
from distill.evaluation.gate.canary import begin_canary, finish_canary
from distill.evaluation.report import read_report
from distill.rows import EvaluationRow
from distill.run import Run, Stage

RULES = "[canary]\nmin_turns = 4\nhours = 1.0\nmax_error_rate = 0.2"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with measured_run(tmp_path, promote="canary_share = 0.5", more=RULES) as opened:
        load(opened.record, let_through(opened), OLD)
        yield opened


def begun(run: Run) -> Rollout:
    return begin_canary(run.record, run.settings, candidate_of(run), actor="test", reason="test")


def answered(
    record: Record,
    release_id: str,
    count: int,
    status: TurnStatus = TurnStatus.COMPLETE,
    failure_code: str | None = None,
) -> None:
    for _ in range(count):
        talk = turns.create_conversation(record, customer_id="anna", channel="test").conversation_id
        question = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "Why is the light red?")
        reply = turns.begin_reply(
            record, talk, question_turn_id=question.turn_id, release_id=release_id, prompt_version="1", decoding={}
        )
        measures = ReplyMeasures(first_token_ms=10.0, latency_ms=100.0)
        turns.finish_reply(
            record, reply.turn_id, status=status, content="so it is", measures=measures, failure_code=failure_code
        )
        turns.hold_release(record, talk, release_id)


def hours_pass(record: Record, hours: float) -> None:
    """The canary began so much earlier."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE rollouts SET started_at_utc = strftime('%Y-%m-%dT%H:%M:%fZ', started_at_utc, ?)",
            [f"-{hours * 60:.0f} minutes"],
        )


def test_a_canary_that_had_its_hours_and_turns_without_a_broken_rule_is_put_into_service(run: Run) -> None:
    canary = begun(run)
    answered(run.record, canary.release_id, 5)
    assert finish_canary(run.record, run.settings) == ""
    hours_pass(run.record, 1.5)
    assert f"{canary.release_id} is in service" in finish_canary(run.record, run.settings)
    assert releases.in_service(run.record) == canary.release_id
    assert rollouts.rollout(run.record, canary.rollout_id).state is RolloutState.PROMOTED
    assert finish_canary(run.record, run.settings) == ""


def test_hours_without_turns_are_no_trial(run: Run) -> None:
    canary = begun(run)
    answered(run.record, canary.release_id, 3)
    # What found no server tells nothing of the release, good or bad.
    answered(run.record, canary.release_id, 5, TurnStatus.FAILED, "no_server")
    hours_pass(run.record, 30)
    assert finish_canary(run.record, run.settings) == "" and releases.in_service(run.record) == OLD


def test_a_canary_that_breaks_a_rule_is_rolled_back_and_says_with_which_number(run: Run) -> None:
    canary = begun(run)
    answered(run.record, canary.release_id, 2)
    answered(run.record, canary.release_id, 6, TurnStatus.FAILED)
    told = finish_canary(run.record, run.settings)
    assert "is rolled back: the error rate is 75.0%" in told
    assert releases.in_service(run.record) == OLD
    assert releases.release(run.record, canary.release_id).state is ReleaseState.ROLLED_BACK
    assert not releases.may_go_on(run.record, canary.release_id)


def test_a_canary_that_has_passed_waits_while_nobody_has_it_loaded(run: Run) -> None:
    canary = begun(run)
    answered(run.record, canary.release_id, 5)
    hours_pass(run.record, 1.5)
    releases.forget_load(run.record, "s1", canary.release_id)
    assert "no student server has it loaded" in finish_canary(run.record, run.settings)
    assert releases.in_service(run.record) == OLD
    load(run.record, canary.release_id)
    assert "is in service" in finish_canary(run.record, run.settings)


def command(run: Run, *words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*words, "--json", "--settings", str(run.settings.settings_file)])
    if done.exception is not None:
        raise done.exception
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def spoken(run: Run, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--settings", str(run.settings.settings_file)])
    assert done.exit_code == 0, done.exception
    return done.stdout


def test_a_canary_against_the_gate_ends_by_an_override_alone_and_leaves_its_traces(tmp_path: Path) -> None:
    def change(row: EvaluationRow) -> EvaluationRow:
        return scored(row, format_fault_rate=2.0) if row.model == "candidate" and row.decision_id == "decision_3" else row

    with measured_run(tmp_path, change=change, more=RULES) as run:
        name = candidate_of(run)
        load(run.record, name)
        assert perform_stage(run, Stage.PROMOTE).details["outcome"] == "inconclusive"
    with Record(run.settings.record.path) as record:
        load(record, name)
        with pytest.raises(OperatorError, match="the gate said inconclusive"):
            command(run, "canary", name, "--share", "0.5")
        assert rollouts.rollouts(record) == []
        canary = command(run, "canary", name, "--share", "0.5", "--override", "we know the form")["canary"]
        answered(record, name, 5)
        hours_pass(record, 1.5)
        assert "has passed its hours, but the gate said inconclusive" in finish_canary(record, run.settings)
        with pytest.raises(OperatorError, match="--promote --override REASON"):
            command(run, "canary", "--promote")
        assert releases.in_service(record) == OLD and rollouts.rollout(record, canary["rollout_id"]).ended_at_utc is None
        assert command(run, "canary", "--promote", "--override", "no complaints")["in_service"] == name
        told = [json.loads(each.detail_json) for each in audit.newest(record, 30) if each.action == "gate overridden"]
        assert [each["reason"] for each in told] == ["no complaints", "we know the form"]
        assert {each["outcome"] for each in told} == {"inconclusive"} and told[0]["checks"][0]["name"] == "format_fault_rate"
        gate = read_report(run.folder)["gate"]
        assert isinstance(gate, dict) and isinstance(gate["overridden"], dict)
        assert gate["overridden"]["reason"] == "no complaints"
        with pytest.raises(Refused, match=rf"{name} is in service all the same; `distill rollback` undoes that"):
            command(run, "promote", "--run", run.run_id)
        assert releases.in_service(record) == name


def test_a_canary_that_was_stopped_can_still_go_into_service_by_an_override(tmp_path: Path) -> None:
    with measured_run(tmp_path, promote="canary_share = 0.5", load_seconds=5) as run:
        load(run.record, candidate_of(run))
        perform_stage(run, Stage.PROMOTE)
    command(run, "canary", "--stop")
    told = f"{candidate_of(run)} is rolled back now; {OLD} stays in service; `distill promote --run {run.run_id} --override"
    with pytest.raises(Refused, match=told):
        command(run, "promote", "--run", run.run_id)
    command(run, "promote", "--run", run.run_id, "--override", "it was stopped by mistake")
    assert command(run, "releases")["in_service"] == candidate_of(run)


def test_the_command_begins_shows_and_stops_a_canary_and_its_open_conversations_move(run: Run) -> None:
    assert command(run, "canary")["canary"] is None
    name = candidate_of(run)
    begun_one = command(run, "canary", name, "--share", "0.1", "--reason", "we want to see")
    assert (begun_one["canary"]["release_id"], begun_one["canary"]["share"]) == (name, 0.1)
    answered(run.record, name, 3)
    answered(run.record, OLD, 2)
    shown = command(run, "canary")
    assert shown["figures"][name]["turns"] == 3 and shown["figures"][OLD]["turns"] == 2 and shown["violated"] == ""
    (held,) = {each.release_id for each in turns.conversations_of(run.record, "anna")} - {OLD}
    talk = next(each for each in turns.conversations_of(run.record, "anna") if each.release_id == held)
    assert rollouts.release_for(run.record, talk.conversation_id, held) == name
    stopped = command(run, "canary", "--stop", "--reason", "seen enough")
    assert stopped["canary"]["state"] == "rolled_back" and stopped["in_service"] == OLD
    assert rollouts.release_for(run.record, talk.conversation_id, held) == OLD
    told = [each for each in audit.newest(run.record, 20) if each.action == "canary rolled back"]
    assert "seen enough" in told[0].detail_json and told[0].actor.startswith("distill canary (")


def test_the_command_puts_a_canary_into_service_now(run: Run) -> None:
    begun(run)
    assert command(run, "canary", "--promote")["in_service"] == candidate_of(run)
    assert releases.in_service(run.record) == candidate_of(run)


def test_rollback_undoes_a_canary_first_and_then_the_release_in_service(run: Run) -> None:
    begun(run)
    assert command(run, "rollback") == {"in_service": OLD, "rolled_back": candidate_of(run), "loaded_on": ["s1"]}
    told = spoken(run, "rollback")
    assert f"{BASE} is in service again" in told and f"no student server has {BASE} loaded" in told
    assert command(run, "rollback", "--to", OLD)["loaded_on"] == ["s1"]


def test_a_shadow_is_begun_shown_listed_and_stopped(run: Run) -> None:
    name = candidate_of(run)
    assert command(run, "shadow", name, "--share", "0.05")["shadow"]["share"] == 0.05
    assert command(run, "releases")["shadow"]["release_id"] == name
    assert command(run, "shadow")["figures"]["answers"] == 0
    stopped = command(run, "shadow", "--stop")
    assert stopped["shadow"]["state"] == "stopped" and stopped["in_service"] == OLD
    assert rollouts.running(run.record, RolloutKind.SHADOW) is None


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["canary", "--stop"], OperatorError, "no canary goes on"),
        (["canary", "--promote"], OperatorError, "no canary goes on"),
        (["canary", "--stop", "--promote"], OperatorError, "one thing at a time"),
        (["canary", "--share", "0.1"], OperatorError, "one thing at a time"),
        (["canary", "nobody", "--share", "0.1"], OperatorError, "no release 'nobody'"),
        (["canary", OLD, "--share", "0.1"], OperatorError, "is in service"),
        (["canary", BASE, "--share", "0.1"], OutsideError, "nobody loaded the release"),
        (["canary", "CANDIDATE", "--share", "1.5"], OperatorError, "a share of 1.5"),
        (["canary", BASE, "--share", "nan"], OperatorError, "a share of nan"),
        (["canary", BASE, "--share", "0"], OperatorError, "a canary needs a share"),
        (["canary", BASE, "--share", "0.1", "--reason", " "], OperatorError, "the reason is empty"),
        (["canary", "--stop", "--override", "because"], OperatorError, "nothing to override"),
        (
            ["shadow", BASE, "--share", "0.1"],
            OutsideError,
            r"nobody loaded .* within 0\.6 s .*s1 ready.*; it goes on loading",
        ),
        (["shadow", "--stop"], OperatorError, "no shadow goes on"),
        (["shadow", "CANDIDATE"], OperatorError, "needs a share of turns"),
    ],
)
def test_what_cannot_be_tried_is_said_and_changes_nothing(
    run: Run, words: list[str], error: type[Failure], told: str
) -> None:
    with pytest.raises(error, match=told):
        command(run, *[candidate_of(run) if word == "CANDIDATE" else word for word in words])
    assert rollouts.rollouts(run.record) == [] and releases.in_service(run.record) == OLD


def test_nothing_that_is_not_there_is_shown(run: Run) -> None:
    canary = begun(run)
    shown = spoken(run, "canary")
    assert "no answer of it" in shown and "errors" not in shown and "it breaks no rule" in shown
    assert "it breaks" not in spoken(run, "canary", "--stop")
    spoken(run, "shadow", canary.release_id, "--share", "0.1")
    assert "whole answer p50 / p95 (ms): not measured\n" in spoken(run, "shadow")


def test_releases_shows_what_the_newest_run_measured_of_every_student(run: Run) -> None:
    quality = {"fact_accuracy": {"value": 0.25}}
    report = {"models": {"base": {"release_id": BASE, "quality": quality}}, "quality_metric": "fact_accuracy"}
    runs.note_report(run.record, run.run_id, report)
    assert "fact_accuracy 25.0%" in spoken(run, "releases")
    metrics = {each["release_id"]: each["metrics"] for each in command(run, "releases")["releases"]}
    assert metrics[BASE]["quality"] == quality and metrics[OLD] == {}


def test_the_tables_for_people_name_release_state_figures_and_servers(run: Run) -> None:
    canary = begun(run)
    answered(run.record, canary.release_id, 3)
    settings = ["--settings", str(run.settings.settings_file)]
    shown = CliRunner().invoke(app, ["canary", *settings]).stdout
    assert f"canary of {canary.release_id}: running; 50% of new conversations" in shown
    assert "0.0% (0.0% to" in shown and "it breaks no rule" in shown and "10 / 10" in shown
    listed = CliRunner().invoke(app, ["releases", *settings]).stdout
    assert "candidate, canary 50%" in listed and "in_service" in listed and "s1" in listed and "nowhere" in listed
    assert "none goes on" not in listed
