"""What becomes of a candidate: the pointer moves to what is loaded, once, and an operator's word against the gate leaves a trace."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_run import BASE, OLD, candidate_of, load, measured_run, scored, write_settings
from typer.testing import CliRunner

from conversations import audit, releases, rollouts, runs
from conversations.errors import OperatorError, OutsideError, Refused
from conversations.messages import Json
from conversations.releases import ReleaseState
from conversations.rollouts import RolloutKind
from conversations.settings import read_settings
from conversations.store import Record
from distill.cli import app
from distill.cycle import perform_stage
from distill.evaluation.gate.override import override
from distill.evaluation.report import check_report, read_report, renew_report, write_report
from distill.rows import EvaluationRow
from distill.run import Run, Stage
from distill.settings import DistillSettings


def leaking(row: EvaluationRow) -> EvaluationRow:
    return scored(row, leak_rate=1.0) if row.model == "candidate" and row.decision_id == "decision_3" else row


def unsure(row: EvaluationRow) -> EvaluationRow:
    return scored(row, format_fault_rate=None) if row.model == "candidate" and row.decision_id == "decision_3" else row


def gate_of(run: Run) -> dict[str, Json]:
    gate = read_report(run.folder)["gate"]
    assert isinstance(gate, dict)
    return gate


def audited(record: Record, action: str) -> list[audit.AuditEntry]:
    return [each for each in audit.newest(record, 100) if each.action == action]


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Run]:
    with measured_run(tmp_path, change=leaking) as run:
        perform_stage(run, Stage.PROMOTE)
        yield run


def test_a_candidate_that_passes_is_put_into_service_once_it_is_loaded(tmp_path: Path) -> None:
    with measured_run(tmp_path) as run:
        load(run.record, candidate_of(run))
        manifest = perform_stage(run, Stage.PROMOTE)
        assert releases.in_service(run.record) == candidate_of(run)
        assert manifest.details["outcome"] == "promote"
        assert gate_of(run)["outcome"] == "promote"
        assert runs.run(run.record, run.run_id).report == read_report(run.folder)
        assert "keeps 100.0%" in releases.events(run.record)[0].reason


def test_nobody_who_loads_it_leaves_the_old_release_and_the_same_command_goes_on_later(tmp_path: Path) -> None:
    with measured_run(tmp_path) as run:
        with pytest.raises(OutsideError, match=r"nobody loaded the release .* the release in service stays"):
            perform_stage(run, Stage.PROMOTE)
        assert releases.in_service(run.record) == OLD
        assert not run.is_complete(Stage.PROMOTE)
        assert candidate_of(run) in {each.release_id for each in releases.wanted(run.record)}
        load(run.record, candidate_of(run))
        perform_stage(run, Stage.PROMOTE)
        assert releases.in_service(run.record) == candidate_of(run)


def test_the_gates_word_against_one_release_moves_the_pointer_from_no_other(tmp_path: Path) -> None:
    with measured_run(tmp_path, load_seconds=30) as run:

        def another_comes() -> None:
            """Put another release into service while the candidate is waited for."""
            while candidate_of(run) not in {each.release_id for each in releases.wanted(run.record)}:
                time.sleep(0.02)
            releases.promote(run.record, BASE, actor="olga", reason="better")
            load(run.record, candidate_of(run))

        olga = threading.Thread(target=another_comes)
        olga.start()
        with pytest.raises(OutsideError, match=r"'base-1' came into service while .* run the same command again"):
            perform_stage(run, Stage.PROMOTE)
        olga.join()
        assert releases.in_service(run.record) == BASE and not run.is_complete(Stage.PROMOTE)
        # Asked anew, the gate knows no answers of what is in service now.
        assert perform_stage(run, Stage.PROMOTE).details["outcome"] == "inconclusive"
        assert releases.in_service(run.record) == BASE


@pytest.mark.parametrize(
    ("change", "outcome", "state"), [(leaking, "refuse", "refused"), (unsure, "inconclusive", "candidate")]
)
def test_what_the_gate_does_not_let_through_serves_nobody(tmp_path: Path, change, outcome: str, state: str) -> None:
    with measured_run(tmp_path, change=change) as run:
        load(run.record, candidate_of(run))
        manifest = perform_stage(run, Stage.PROMOTE)
        assert manifest.details["outcome"] == outcome
        assert releases.in_service(run.record) == OLD
        assert releases.release(run.record, candidate_of(run)).state.value == state
        assert candidate_of(run) not in {each.release_id for each in releases.wanted(run.record)}


def test_a_judge_that_left_nothing_closes_the_gate(tmp_path: Path) -> None:
    with measured_run(tmp_path, more='[judge]\nteacher = "big"') as run:
        load(run.record, candidate_of(run))
        assert perform_stage(run, Stage.PROMOTE).details["outcome"] == "inconclusive"
        assert "judge.json" in str(gate_of(run)["reasons"])


def test_a_stage_that_was_cut_off_after_its_promotion_does_not_undo_a_rollback(tmp_path: Path) -> None:
    with measured_run(tmp_path) as run:
        load(run.record, candidate_of(run))
        perform_stage(run, Stage.PROMOTE)
        (run.folder / Stage.PROMOTE / "manifest.json").unlink()
        rollouts.roll_back(run.record, actor="test", reason="no good")
        perform_stage(run, Stage.PROMOTE)
        assert releases.in_service(run.record) == OLD
        assert [each.event for each in releases.events(run.record) if each.release_id == candidate_of(run)].count(
            "promoted"
        ) == 1


def test_a_passed_candidate_goes_on_trial_first_where_the_settings_say_so(tmp_path: Path) -> None:
    with measured_run(tmp_path, promote="canary_share = 0.2", more="[canary]\nmin_turns = 7\nhours = 2.0") as run:
        load(run.record, candidate_of(run))
        perform_stage(run, Stage.PROMOTE)
        assert releases.in_service(run.record) == OLD
        canary = rollouts.running(run.record, RolloutKind.CANARY)
        assert canary is not None and canary.release_id == candidate_of(run)
        assert (canary.share, canary.rules.min_turns, canary.rules.hours) == (0.2, 7, 2.0)
        assert gate_of(run)["canary"] == {"rollout_id": canary.rollout_id, "share": 0.2}
        # Cut off behind it, the stage begins no second one.
        (run.folder / Stage.PROMOTE / "manifest.json").unlink()
        rollouts.take_back(run.record, canary.rollout_id, actor="test", reason="no good")
        perform_stage(run, Stage.PROMOTE)
        assert rollouts.running(run.record, RolloutKind.CANARY) is None and releases.in_service(run.record) == OLD


def test_a_second_canary_waits_for_the_first(tmp_path: Path) -> None:
    with measured_run(tmp_path, promote="canary_share = 0.2") as run:
        load(run.record, candidate_of(run), BASE)
        rollouts.start(run.record, RolloutKind.CANARY, BASE, share=0.1, actor="test", reason="test")
        with pytest.raises(OutsideError, match="a canary of 'base-1' goes on"):
            perform_stage(run, Stage.PROMOTE)
        assert releases.in_service(run.record) == OLD and not run.is_complete(Stage.PROMOTE)


def test_an_override_puts_a_refused_release_into_service_and_leaves_who_why_and_the_numbers(refused: Run) -> None:
    load(refused.record, candidate_of(refused))
    override(refused, by="ada", reason="the leak is a test address")
    assert releases.in_service(refused.record) == candidate_of(refused)
    assert releases.may_go_on(refused.record, candidate_of(refused))
    (entry,) = audited(refused.record, "gate overridden")
    told = json.loads(entry.detail_json)
    assert (entry.actor, entry.target, told["reason"]) == ("ada", candidate_of(refused), "the leak is a test address")
    assert told["outcome"] == "refuse" and told["checks"] == [
        {"name": "leak_rate", "outcome": "failed", "value": 0.005, "bound": 0.0}
    ]
    gate = gate_of(refused)
    assert gate["outcome"] == "refuse"
    overridden = gate["overridden"]
    assert isinstance(overridden, dict) and (overridden["by"], overridden["reason"]) == ("ada", "the leak is a test address")
    stored = runs.run(refused.record, refused.run_id).report
    assert stored is not None and stored["gate"] == gate
    # The report says of the override what the audit says.
    assert check_report(refused)
    report = read_report(refused.folder)
    write_report(refused, {**report, "gate": {**gate, "overridden": {**overridden, "by": "nobody"}}})
    with pytest.raises(OperatorError, match=r"gate.overridden.by: 'nobody', the rows say 'ada'"):
        check_report(refused)
    assert renew_report(refused)["gate"] == gate
    with pytest.raises(OperatorError, match="in service already"):
        override(refused, by="ada", reason="again")
    rollouts.roll_back(refused.record, actor="test", reason="it was none")
    assert releases.in_service(refused.record) == OLD


def test_an_override_that_was_cut_off_before_its_report_writes_it_when_asked_again(refused: Run) -> None:
    load(refused.record, candidate_of(refused))
    releases.promote(refused.record, candidate_of(refused), actor="ada", reason="cut off here")
    override(refused, by="ada", reason="the leak is a test address")
    assert "overridden" in gate_of(refused) and len(audited(refused.record, "gate overridden")) == 1
    assert [each.event for each in releases.events(refused.record)].count("promoted") == 3


@pytest.mark.parametrize(
    ("reason", "told"),
    [("", "the reason is empty"), ("   ", "the reason is empty"), ("because", "nobody loaded the release")],
)
def test_an_override_needs_a_reason_and_somebody_who_serves(refused: Run, reason: str, told: str) -> None:
    with pytest.raises((OperatorError, OutsideError), match=told):
        override(refused, by="ada", reason=reason)
    assert releases.in_service(refused.record) == OLD
    assert releases.release(refused.record, candidate_of(refused)).state is ReleaseState.REFUSED
    assert audited(refused.record, "gate overridden") == [] and "overridden" not in gate_of(refused)


def test_an_override_never_serves_a_release_whose_weights_are_gone(refused: Run) -> None:
    load(refused.record, candidate_of(refused))
    (refused.folder / "train" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(OperatorError, match=r"the weights of .* are gone"):
        override(refused, by="ada", reason="because")
    assert releases.in_service(refused.record) == OLD


def test_there_is_nothing_to_override_before_the_gate_has_spoken_nor_where_it_said_yes(tmp_path: Path) -> None:
    with measured_run(tmp_path) as run:
        with pytest.raises(OperatorError, match="no finished stage 'promote'"):
            override(run, by="ada", reason="because")
        load(run.record, candidate_of(run))
        perform_stage(run, Stage.PROMOTE)
        with pytest.raises(OperatorError, match="in service already"):
            override(run, by="ada", reason="because")
        rollouts.roll_back(run.record, actor="test", reason="no good")
        with pytest.raises(OperatorError, match="distill rollback --to"):
            override(run, by="ada", reason="because")


def test_the_command_says_what_the_gate_said_and_exits_as_a_refusal(tmp_path: Path) -> None:
    with measured_run(tmp_path, change=leaking) as run:
        load(run.record, candidate_of(run))
        name = candidate_of(run)
    ask = ["promote", "--run", run.run_id, "--settings", str(tmp_path / "settings.toml")]
    asked = CliRunner().invoke(app, ask)
    assert isinstance(asked.exception, Refused) and "none may be seen" in str(asked.exception)
    with Record(tmp_path / "record.db") as record:
        assert runs.run(record, run.run_id).state is runs.RunState.COMPLETE
        load(record, name)
    overridden = CliRunner().invoke(app, [*ask, "--override", "the leak is a test address", "--json"])
    assert overridden.exit_code == 0, overridden.output
    assert json.loads(overridden.stdout)["gate"]["overridden"]["reason"] == "the leak is a test address"
    listed = CliRunner().invoke(app, ["releases", "--json", "--settings", str(tmp_path / "settings.toml")])
    first = json.loads(listed.stdout)["releases"][0]
    assert (first["release_id"], first["state"], first["loaded_on"]) == (name, "in_service", ["s1"])
    assert first["metrics"]["quality"]["fact_accuracy"]["value"] == 1.0
    assert first["metrics"]["gate"] == "refuse"


def test_the_command_says_of_a_release_that_was_rolled_back_since_that_nobody_gets_it(tmp_path: Path) -> None:
    with measured_run(tmp_path) as run:
        load(run.record, candidate_of(run))
    ask = ["promote", "--run", run.run_id, "--settings", str(tmp_path / "settings.toml")]
    asked = CliRunner().invoke(app, ask)
    assert asked.exit_code == 0 and "the gate says promote:\n  keeps 100.0%" in asked.stdout, asked.exception
    with Record(tmp_path / "record.db") as record:
        releases.roll_back(record, to=BASE, actor="test", reason="complaints")
    again = CliRunner().invoke(app, ask)
    assert isinstance(again.exception, Refused)
    told = f"{candidate_of(run)} is rolled back now; {BASE} stays in service; `distill rollback --to {candidate_of(run)}`"
    assert told in str(again.exception)


@pytest.mark.parametrize(
    ("table", "value"),
    [
        *(
            ("promote", f"{name} = inf")
            for name in ("min_retained", "max_loss_to_released", "max_topic_loss", "max_memory_gb")
        ),
        ("promote", "max_latency_p95_ms = inf"),
        *(("evaluate", f"{name} = inf") for name in ("load_seconds", "load_timeout_seconds", "server_usd_per_hour")),
        *(("evaluate", value) for value in ("bootstrap_samples = 100000000", "load_levels = []", "load_levels = [0, 4]")),
        *(("canary", "hours = inf"), ("schedule", "every_hours = inf"), ("schedule", "cron_minutes = nan")),
    ],
)
def test_a_number_without_an_end_bounds_nothing_and_is_refused(tmp_path: Path, table: str, value: str) -> None:
    write_settings(tmp_path, "", "[canary]\n[schedule]", 0.6)
    written = (tmp_path / "settings.toml").read_text(encoding="utf-8").splitlines()
    name = value.split(" ")[0]
    kept = [line for line in written if not line.startswith(f"{name} ")]
    kept.insert(kept.index(f"[{table}]") + 1, value)
    (tmp_path / "settings.toml").write_text("\n".join(kept), encoding="utf-8")
    with pytest.raises(OperatorError, match=rf"\[{table}\]: {name}"):
        read_settings(DistillSettings, tmp_path / "settings.toml")


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False])
def test_killed_between_load_and_pointer_the_old_release_goes_on(tmp_path: Path, kill: bool) -> None:
    with measured_run(tmp_path, load_seconds=60) as run:
        name, run_id = candidate_of(run), run.run_id
    settings_file = str(tmp_path / "settings.toml")
    command = [
        sys.executable,
        "-c",
        "from distill.cli import main; main()",
        "promote",
        "--run",
        run_id,
        "--settings",
        settings_file,
    ]
    root = str(Path(__file__).parents[2])
    with Record(tmp_path / "record.db") as record:
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            wanting = time.monotonic() + 60
            while name not in {each.release_id for each in releases.wanted(record)}:
                assert time.monotonic() < wanting and process.poll() is None
                time.sleep(0.05)
            # The stage waits for a server. It is held still while the server comes and the record's writer is taken from it, so that
            # it sees the release loaded and cannot move the pointer.
            os.kill(process.pid, signal.SIGSTOP)
            load(record, name)
            with record.write():
                os.kill(process.pid, signal.SIGCONT)
                time.sleep(2)
                assert process.poll() is None
                if kill:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait(timeout=10)
            process.wait(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert releases.in_service(record) == (OLD if kill else name)
        assert (process.returncode == 0) is not kill
        if kill:
            load(record, name)
            again = CliRunner().invoke(app, command[3:])
            assert again.exit_code == 0, again.output
            assert releases.in_service(record) == name
