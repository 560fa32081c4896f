"""What a cycle promises before it spends anything, and after it has ended."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, conversation, small_run
from tiny_student import tiny_student
from typer.testing import CliRunner

from conversations import runs
from conversations.errors import OperatorError, OutsideError, Refused
from conversations.settings import read_settings
from distill import cycle
from distill.cli import app
from distill.dataset.teaching import pace
from distill.evaluation.scoring.metric import quality_metrics_of
from distill.rows import Task
from distill.run import Stage, new_run, open_run
from distill.settings import DistillSettings


def silent(stage: Stage, share: float, note: str) -> None:
    pass


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('base = "no-student"', 'base = "gone"', r"\[student\] base: there is no model in .*gone"),
        ("[evaluate]", "[train]\nrank = 64\n[evaluate]", r"takes adapters up to \[student\] max_lora_rank = 16"),
        ("[evaluate]", '[evaluate]\nquality_metric = "acuracy"', "expected one of fact_accuracy"),
        (
            "[evaluate]",
            '[evaluate]\nquality_metric = "teacher_bleu"',
            "no quality that answers of the task 'conversation' have",
        ),
        ("[evaluate]", '[evaluate]\nquality_metric = "token_f1"', "no quality that answers of the task 'conversation' have"),
        ("[evaluate]", '[evaluate]\nquality_metric = "judge_grade"', "nobody judges; expected a table"),
        ("[teachers.big]", '[teachers.big]\napi_key_variable = "NO_SUCH_KEY"', "NO_SUCH_KEY"),
        ('teacher = "big"', 'teacher = "bgi"', "'bgi' is not in"),
    ],
)
def test_what_would_stop_a_cycle_late_stops_it_before_anybody_is_asked(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        text = small.settings_file.read_text(encoding="utf-8")
        assert old in text
        small.settings_file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(OperatorError, match=told):
            cycle.run_cycle(small.record, small.settings, silent)
        assert teacher.seen == [] and runs.runs(small.record) == []


def test_a_dry_run_looks_first_for_what_would_stop_the_cycle(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        text = small.settings_file.read_text(encoding="utf-8").replace(
            "[evaluate]", '[evaluate]\nquality_metric = "acuracy"'
        )
        small.settings_file.write_text(text, encoding="utf-8")
        with pytest.raises(OperatorError, match="expected one of fact_accuracy"):
            CliRunner().invoke(app, ["cycle", "--dry-run", "--settings", str(small.settings_file)], catch_exceptions=False)


def test_a_dry_run_on_files_needs_no_record_and_makes_none(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        tiny_student(tmp_path / "tiny")
        for name, count in (("train", 12), ("validation", 4)):
            lines = [{"question": f"What does the {name} lamp {place} do?", "answer": "It glows."} for place in range(count)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        text = (
            small.settings_file.read_text(encoding="utf-8")
            .replace('"no-student"', '"tiny"')
            .replace('"record.db"', '"fresh.db"')
        )
        text = text.replace("[evaluate]", '[evaluate]\nquality_metric = "token_f1"')
        files = '[datasets]\ntask = "qa"\ntrain = "train.jsonl"\nvalidation = "validation.jsonl"\n'
        small.settings_file.write_text(text + files, encoding="utf-8")
        before = sorted(each.name for each in tmp_path.iterdir())
        told = CliRunner().invoke(
            app, ["cycle", "--dry-run", "--settings", str(small.settings_file)], catch_exceptions=False
        )
        assert "big: " in told.stdout and "nobody was called" in told.stdout
        assert sorted(each.name for each in tmp_path.iterdir()) == before and teacher.seen == []


def test_a_run_begun_with_other_settings_names_the_keys_that_differ_and_is_taken_up_once_they_are_back(
    tmp_path: Path,
) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        with new_run(small.record, small.settings) as run:
            pass
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace("max_calls = ", "max_calls = 9"), encoding="utf-8")
        named = r"\[teach\] max_calls = 9\d+, the run has \d+; set them back"
        with pytest.raises(OperatorError, match=named), open_run(small.record, small.settings, run.run_id):
            pass
        copied = read_settings(DistillSettings, run.folder / "settings.toml")
        with pytest.raises(OperatorError, match="relative paths lead elsewhere"), open_run(small.record, copied, run.run_id):
            pass
        small.settings_file.write_text(text, encoding="utf-8")
        with open_run(small.record, small.settings, run.run_id) as again:
            assert again.run_id == run.run_id


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ("rank = 64", r"takes adapters up to \[student\] max_lora_rank = 16"),
        ('kind = "full"\nmerged = true', "only an adapter can be merged"),
    ],
)
def test_stage_that_teaches_asks_nobody_for_a_training_that_cannot_be(tmp_path: Path, train: str, told: str) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace("[evaluate]", f"[train]\n{train}\n[evaluate]"), encoding="utf-8")
        with pytest.raises(OperatorError, match=told):
            small.perform(Stage.CHOOSE, Stage.TEACH)
        assert teacher.seen == []


@pytest.mark.slow
def test_a_cycle_that_its_data_refused_is_over_and_the_next_one_sees_new_conversations(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.")) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        with pytest.raises(Refused, match="no answer is left"):
            cycle.run_cycle(small.record, small.settings, silent)
        assert not list(cycle.unfinished_runs(small.record, small.settings))
        asked = len(teacher.seen)
        small.import_conversations([conversation(20, "Is there anything you can tell me about the weather at sea?")])
        with pytest.raises(Refused, match="no answer is left"):
            cycle.run_cycle(small.record, small.settings, silent)
        assert asked == len(QUESTIONS) and len(teacher.seen) == asked + 1


def test_conversations_are_new_to_a_run_by_when_they_came_in_and_not_by_their_date(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        assert runs.new_conversations(small.record, None) == len(QUESTIONS)
        run, _ = small.perform(Stage.CHOOSE)
        assert runs.new_conversations(small.record, run.run_id) == 0
        small.import_conversations([conversation(20, "Is there anything you can tell me about the weather at sea?")])
        assert runs.new_conversations(small.record, run.run_id) == 1


def test_a_record_without_consent_says_what_to_do(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        with small.record.write() as transaction:
            transaction.execute("UPDATE conversations SET consent = 'unknown'")
        with pytest.raises(Refused, match=r"left out: 8 no_consent.*learn_from_unknown_consent"):
            small.perform(Stage.CHOOSE)


def test_a_finished_run_that_is_opened_again_keeps_its_outcome(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        run, _ = small.perform(Stage.CHOOSE)
        runs.finish_run(small.record, run.run_id, state=runs.RunState.COMPLETE, outcome="promote")
        small.perform(Stage.CHOOSE, run_id=run.run_id)
        assert runs.run(small.record, run.run_id).outcome == "promote"


@pytest.mark.parametrize(
    "raised", [KeyboardInterrupt(), OutsideError("nobody loads it"), Refused("no"), ValueError("a fault")]
)
def test_a_finished_run_keeps_its_outcome_whatever_ends_a_second_look_at_it(tmp_path: Path, raised: BaseException) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        run, _ = small.perform(Stage.CHOOSE)
        runs.finish_run(small.record, run.run_id, state=runs.RunState.COMPLETE, outcome="promote")
        with pytest.raises(type(raised)), open_run(small.record, small.settings, run.run_id):
            raise raised
        found = runs.run(small.record, run.run_id)
        assert (found.state, found.outcome) == (runs.RunState.COMPLETE, "promote")


def test_a_run_whose_folder_was_removed_is_not_in_the_way_of_the_next_cycle(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        older, _ = small.perform(Stage.CHOOSE)
        newer, _ = small.perform(Stage.CHOOSE)
        shutil.rmtree(newer.folder)
        assert [each.run_id for each in cycle.unfinished_runs(small.record, small.settings)] == [older.run_id]
        shutil.rmtree(older.folder)
        with pytest.raises(OutsideError, match="cannot be reached"):
            cycle.run_cycle(small.record, small.settings, silent)
        assert len(runs.runs(small.record)) == 3


def test_a_teacher_that_is_away_leaves_a_run_that_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pace, "FIRST_PAUSE_SECONDS", 0.02)
    with (
        ScriptedTeacher(lambda question, before: Act(status=503)) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        with pytest.raises(OutsideError, match="has stopped answering"):
            cycle.run_cycle(small.record, small.settings, silent)
        assert list(cycle.unfinished_runs(small.record, small.settings))


@pytest.mark.parametrize("settings_file", sorted(Path("deploy").rglob("*settings*.*")), ids=str)
def test_no_settings_file_that_is_shipped_asks_for_what_nobody_measures(settings_file: Path) -> None:
    text = settings_file.read_text(encoding="utf-8")
    if settings_file.suffix == ".yaml":
        text = yaml.safe_load(text)["data"]["settings.toml"]
    tables = tomllib.loads(text)
    task = Task(tables.get("datasets", {}).get("task", "conversation"))
    assert tables["evaluate"]["quality_metric"] in quality_metrics_of(task)
    # Examples with a data set of their own show what stays inconclusive; what is meant to be copied must be able to promote.
    if "examples" not in settings_file.parts and "handbook" not in tables:
        assert tables["promote"]["max_wrong_fact_rate"] == 1.0
