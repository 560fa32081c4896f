"""What `distill evaluate --load` promises: the same prompts at rising concurrency, figures that add up, and no run disturbed."""

import asyncio
import json
from pathlib import Path

import pytest
from trained_run import measured_run
from typer.testing import CliRunner

from conversations import releases, runs
from conversations.errors import OperatorError, OutsideError
from conversations.messages import ChatMessage, Role
from conversations.prompt import Renderer
from conversations.store import open_existing
from distill.cli import app
from distill.evaluation.answering.generation import Generated, Question, Student
from distill.evaluation.answering.load import measure_load, row_of, under_load
from distill.run import Stage, read_json

# The models that redact and embed take seconds to load.
pytestmark = pytest.mark.slow
EVALUATE = "load_levels = [1, 4]\nload_seconds = 0.4\n"


def generated(latency_ms: float, tokens: int = 10, failure: str = "") -> Generated:
    return Generated("d", "" if failure else "text", latency_ms / 2, latency_ms, 5, tokens, failure)


def test_the_figures_of_a_level_are_those_worked_out_by_hand() -> None:
    answers = [generated(latency) for latency in (100, 200, 300, 400)] + [generated(9, failure="HTTP 500")]
    row = row_of("candidate", "r", 4, answers, 2.0)
    assert (row.requests, row.failed, row.requests_per_hour, row.tokens_per_second) == (5, 1, 4 / 2 * 3600, 40 / 2)
    assert (row.latency_ms.p50, row.latency_ms.p95, row.first_token_ms.p50) == (250, 385, 125)
    nothing = row_of("base", "b", 1, [generated(9, failure="HTTP 500")], 2.0)
    assert (nothing.requests_per_hour, nothing.tokens_per_second, nothing.latency_ms.p50) == (None, None, None)


def test_so_many_requests_are_under_way_as_the_level_says_and_a_slow_server_gives_as_many_more(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        measured.student.seconds_before_first = 0.1
        renderer, settings = Renderer.load(tmp_path / "tiny"), measured.small.settings
        questions = [Question("d", (ChatMessage(Role.USER, "Why?"),))]
        found = {}
        for level in (1, 4):
            student = Student(measured.student.base_url, measured.candidate, renderer, settings.prompt, 16, max_retries=0)
            answers, seconds = asyncio.run(under_load(student, questions, level, 1.0))
            assert seconds >= 1.0 and not [each for each in answers if each.failure]
            found[level] = len(answers) / seconds
        # Each answer takes a tenth of a second and a bit: one customer has ten in a second at most, four have forty.
        assert 3 < found[1] <= 10 and 2 < found[4] / found[1] < 5


def test_the_command_measures_every_loaded_student_of_a_finished_run_and_writes_its_report_anew(tmp_path: Path) -> None:
    with measured_run(tmp_path, evaluate=EVALUATE) as measured:
        measured.evaluate()
        measured.load()
        small, folder = measured.small, measured.run.folder
        small.perform(Stage.PROMOTE, run_id=measured.run.run_id)
        runs.finish_run(small.record, measured.run.run_id, state=runs.RunState.COMPLETE, outcome="inconclusive")
        before = read_json(folder / "report.json")
        assert before["load"] is None
        measured.load(measured.candidate, measured.base)
        command = ["evaluate", "--load", "--run", measured.run.run_id, "--settings", str(small.settings_file)]
        told = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
        rows = json.loads(told.stdout)["rows"]
        assert [(row["model"], row["concurrency"]) for row in rows] == [
            ("base", 1),
            ("base", 4),
            ("candidate", 1),
            ("candidate", 4),
        ]
        assert all(row["requests"] > 0 and row["failed"] == 0 and row["requests_per_hour"] > 0 for row in rows)
        assert read_json(folder / "evaluate" / "load.json")["rows"] == rows
        after = read_json(folder / "report.json")
        assert after["load"] == rows and after["gate"] == before["gate"]
        # The run stays what it was, and nothing of anybody stands in the file.
        with open_existing(tmp_path / "record.db") as record:
            assert runs.run(record, measured.run.run_id).state is runs.RunState.COMPLETE
        assert "decision_" not in (folder / "evaluate" / "load.json").read_text(encoding="utf-8")
        shown = CliRunner().invoke(app, command, catch_exceptions=False).stdout
        assert "Under load" in shown and "new student" in shown and "candidate" not in shown and "an hour" in shown


def test_students_that_nobody_has_loaded_are_left_out_and_said_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        run, record = measured.run, measured.small.record
        with pytest.raises(OperatorError, match="no finished stage 'evaluate'"):
            measure_load(run, (1,), 0.1, lambda name, share, note: None)
        measured.evaluate()
        releases.forget_load(record, "scripted", measured.candidate)
        found = measure_load(run, (1,), 0.1, lambda name, share, note: None)
        assert ({row.model for row in found.rows}, found.not_loaded) == ({"base"}, (measured.candidate,))
        kept = (run.folder / "evaluate" / "load.json").read_bytes()
        for levels in ((), (0, 1)):
            with pytest.raises(OperatorError, match=r"load_levels = .*nothing to measure"):
                measure_load(run, levels, 0.1, lambda name, share, note: None)
        assert (run.folder / "evaluate" / "load.json").read_bytes() == kept
        releases.forget_load(record, "scripted", measured.base)
        with pytest.raises(OutsideError, match="no student server has loaded"):
            measure_load(run, (1,), 0.1, lambda name, share, note: None)


def test_a_server_that_refuses_under_load_is_counted_and_not_asked_as_fast_as_it_refuses(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        measured.evaluate()
        measured.student.refuses_with = 503
        found = measure_load(measured.run, (2,), 0.5, lambda name, share, note: None)
        assert all(row.failed == row.requests and 0 < row.requests < 40 for row in found.rows)
