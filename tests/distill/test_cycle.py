"""What a cycle promises before it spends anything, and after it has ended."""

from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, conversation, small_run

from conversations import runs
from conversations.errors import OperatorError, OutsideError, Refused
from distill import cycle
from distill.dataset.teaching import pace
from distill.run import Stage


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
        assert cycle.unfinished_run(small.record, small.settings) is None
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


def test_a_teacher_that_is_away_leaves_a_run_that_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pace, "FIRST_PAUSE_SECONDS", 0.02)
    with (
        ScriptedTeacher(lambda question, before: Act(status=503)) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        with pytest.raises(OutsideError, match="has stopped answering"):
            cycle.run_cycle(small.record, small.settings, silent)
        assert cycle.unfinished_run(small.record, small.settings) is not None
