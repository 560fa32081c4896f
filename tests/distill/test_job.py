"""Distillations as jobs: what scripts submit, look at, stop, take up again and read figures of."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_teacher import Act, ScriptedTeacher

from conversations import runs
from conversations.errors import OperatorError
from conversations.processes import is_alive
from conversations.store import Record
from distill.evaluation.scoring.metric import Metric
from distill.job import DistillationJob, Hyperparameters, JobFailed, JobStatus, TeacherTable
from distill.job.processes import end_of, process_of
from distill.job.tables import ACCURACY_OF

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "distillation_job.py"


def until(what: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def job_in(beside: Path, base_url: str = "http://127.0.0.1:9/v1", **more: Any) -> DistillationJob:
    """A job with ten questions and a student that is none."""
    student = beside / "no-student"
    student.mkdir(exist_ok=True)
    (student / "config.json").write_text("{}", encoding="utf-8")
    rows = [{"question": f"box{n} what{n} now{n} please{n} help{n}?", "answer": f"word{n} and more"} for n in range(10)]
    (beside / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {
        "teacher": TeacherTable(base_url=base_url, model="big-1", licence_allows_training="yes", concurrency=1),
        "student": student,
        "training_data": beside / "lines.jsonl",
        "folder": beside / "job",
        "task_type": "qa",
        **more,
    }
    return DistillationJob(**given)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"hyperparameters": {"learning_rte": 1e-4}}, "unknown name 'learning_rte'; did you mean 'learning_rate'"),
        ({"hyperparameters": {"epoch": 2}}, "did you mean 'num_epochs'"),
        ({"hyperparameters": {"banana": 2}}, "expected some of learning_rate, batch_size, num_epochs, temperature"),
        ({"task_type": "poetry"}, "expected one of conversation, qa, summarization, nli, math"),
        ({"training_data": "gone.jsonl"}, "train data: there is no file gone.jsonl"),
        ({"test_data": "gone.jsonl"}, "test data: there is no file gone.jsonl"),
        ({"hyperparameters": {"lr": 1}}, "temperature. Other keys of [train]"),
        ({"hyperparameters": 5}, "hyperparameters is 5; expected Hyperparameters"),
        ({"teacher": "gpt-4"}, "teacher is 'gpt-4'; expected a TeacherTable"),
        ({"teacher": None}, "teacher is None; expected a TeacherTable"),
        ({"settings": "x"}, "settings is 'x'; expected tables by name"),
        ({"settings": {"train": 5}}, "settings is {'train': 5}; expected tables by name"),
        ({"settings": {"train": {"seed": None}}}, "settings [train]: "),
        ({"settings": {"record": {"path": "other.db"}}}, "leave [record] out"),
        ({"student": "/nope"}, "student: there is no model in /nope"),
        ({"student_servers": "http://127.0.0.1:9"}, "expected a tuple of addresses; write ('http://127.0.0.1:9',)"),
    ],
)
def test_a_job_that_cannot_be_is_refused_when_it_is_described(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(OperatorError) as error:
        job_in(tmp_path, **more)
    assert told in str(error.value) and not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"hyperparameters": {"learning_rate": -1}}, r"\[train\]: learning_rate = -1"),
        ({"hyperparameters": Hyperparameters(batch_size=0)}, r"\[train\]: rows_per_step = 0"),
        ({"settings": {"evaluate": {"timed_decision": 3}}}, r"unknown key 'timed_decision'; did you mean 'timed_decisions'"),
        ({"settings": {"evaluat": {}}}, r"unknown table \[evaluat\]; did you mean \[evaluate\]"),
        ({"teacher": {"model": "big", "licence_allows_training": "yes"}}, "base_url and model are missing"),
        (
            {"teacher": {"base_url": "http://127.0.0.1:9/v1", "model": "big"}},
            "'licence_allows_training|licence_allows_training' is missing",
        ),
        ({"student_servers": ("foo",)}, r"\[student\]: servers = \['foo'\]: 'foo' is not the address of a server"),
        ({"max_cost_usd": float("inf")}, r"\[teach\]: max_cost_usd = inf: input should be a finite number"),
        ({"settings": {"evaluate": {"quality_metric": "foo"}}}, r"\[evaluate\] quality_metric = 'foo'"),
        (
            {
                "teacher": TeacherTable(
                    base_url="http://a/v1", model="m", api_key_variable="NO_KEY", licence_allows_training="yes"
                )
            },
            "NO_KEY is not set",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    job = job_in(tmp_path, **more)
    with pytest.raises(OperatorError, match=told):
        job.submit()
    assert job.status is JobStatus.NOT_STARTED and process_of(job.folder) is None
    with pytest.raises(OperatorError, match="no job was submitted here"):
        DistillationJob.attach(job.folder)


@pytest.mark.parametrize("place", ["lines.jsonl", "/proc/job"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, place: str) -> None:
    with pytest.raises(OperatorError, match=r"no job can be kept here: .*; name another folder"):
        job_in(tmp_path, **{"folder": tmp_path / place}).submit()


def test_hyperparameters_and_settings_stand_in_the_settings_file_under_their_own_names(tmp_path: Path) -> None:
    job = job_in(
        tmp_path,
        hyperparameters=Hyperparameters(learning_rate=0.002, batch_size=4, num_epochs=3, temperature=2.0),
        settings={"train": {"rank": 8}, "evaluate": {"quality_metric": "exact_match"}},
        student_servers=("http://127.0.0.1:9",),
    )
    from conversations.settings import read_settings
    from distill.job.tables import write_settings
    from distill.settings import DistillSettings

    assert job._tables is not None
    (tmp_path / "job").mkdir()
    write_settings(tmp_path / "job" / "settings.toml", job._tables)
    first = read_settings(DistillSettings, tmp_path / "job" / "settings.toml")
    write_settings(tmp_path / "job" / "settings.toml", job._tables)
    read = read_settings(DistillSettings, tmp_path / "job" / "settings.toml")
    train = read.train
    assert (train.learning_rate, train.rows_per_step, train.epochs, train.temperature, train.rank) == (0.002, 4, 3, 2.0, 8)
    assert read.evaluate.quality_metric == "exact_match" and read.datasets is not None and read.datasets.task == "qa"
    assert read.student.servers == ("http://127.0.0.1:9",) and read.student.port == first.student.port


def test_what_counts_as_accuracy_is_a_figure_that_is_measured(tmp_path: Path) -> None:
    assert {*ACCURACY_OF.values()} <= set(Metric)
    tables = job_in(tmp_path, task_type="conversation", settings={"handbook": {"path": "handbook"}})._tables
    assert tables is not None and tables["evaluate"]["quality_metric"] == "fact_accuracy"


def test_a_job_that_was_never_submitted_has_nothing_to_tell(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    assert job.status is JobStatus.NOT_STARTED and job.progress is None and job.gate is None and job.run_id is None
    job.cancel()
    with pytest.raises(OperatorError, match="was not submitted"):
        job.wait()
    with pytest.raises(OperatorError, match="has no report yet"):
        job.metrics()
    with pytest.raises(OperatorError, match="no job was submitted here"):
        DistillationJob.attach(tmp_path / "job")


@pytest.mark.slow
def test_a_cancelled_job_goes_on_where_it_stopped_in_whichever_process(tmp_path: Path) -> None:
    with ScriptedTeacher(lambda question, before: Act("a word and more", seconds=0.8)) as teacher:
        job = job_in(tmp_path, teacher.base_url)
        job.submit()
        with pytest.raises(TimeoutError, match="it goes on: wait again"):
            job.wait(timeout=0.1)
        with pytest.raises(OperatorError, match="wait for it or cancel it"):
            job.submit()
        until(lambda: len(teacher.seen) >= 2)
        assert job.status is JobStatus.RUNNING
        until(lambda: job.progress and job.progress.stage == "teach")
        token = process_of(job.folder)
        assert token is not None
        family = psutil.Process(int(token.rsplit(":", 2)[1])).children(recursive=True)
        run_id = job.run_id
        attached = DistillationJob.attach(job.folder)
        attached.cancel()
        assert job.wait(timeout=1) is JobStatus.CANCELLED and attached.status is JobStatus.CANCELLED
        ended = end_of(job.folder)
        assert ended is not None and ended.said.startswith("cancelled, and what it had done is kept")
        assert not living(family)
        before = len(teacher.seen)
        assert before < 10
        attached.submit()
        # The student is none, so that the training cannot begin: the sentence is the training's own.
        with pytest.raises(JobFailed, match=r"no-student") as error:
            attached.wait(timeout=180)
        assert error.value.exit_code == 2 and job.status is JobStatus.FAILED
        assert attached.run_id == run_id and len(teacher.seen) <= 11
        with Record(job.folder / "record.db") as record:
            events = [event.stage for event in runs.run_events(record, run_id or "") if event.event == "finished"]
        assert events == ["choose", "teach", "verify", "assemble"]


@pytest.mark.slow
def test_a_job_whose_process_was_killed_says_so_and_goes_on(tmp_path: Path) -> None:
    with ScriptedTeacher(lambda question, before: Act("a word and more", seconds=0.8)) as teacher:
        job = job_in(tmp_path, teacher.base_url)
        job.submit()
        until(lambda: len(teacher.seen) >= 2)
        token = process_of(job.folder)
        assert token is not None
        supervisor = psutil.Process(int(token.rsplit(":", 2)[1]))
        family = supervisor.children(recursive=True)
        (cycle,) = (each for each in living(family) if "cycle" in each.cmdline())
        cycle.suspend()
        supervisor.kill()
        until(lambda: not is_alive(token))
        assert job.status is JobStatus.RUNNING
        with pytest.raises(TimeoutError, match="has not stopped"):
            job.cancel(timeout=0.1)
        cycle.resume()
        # It hears of the end of the process that started it.
        job.cancel(timeout=60)
        until(lambda: not living(family))
        with Record(job.folder / "record.db") as record:
            assert runs.runs(record)[0].state is runs.RunState.INTERRUPTED
        with pytest.raises(JobFailed, match=r"process was killed.*submit it again"):
            job.wait(timeout=1)
        run_id = job.run_id
        job.submit()
        with pytest.raises(JobFailed, match="no-student"):
            job.wait(timeout=180)
        assert job.run_id == run_id and len(teacher.seen) <= 12


@pytest.mark.loop
@pytest.mark.slow
def test_the_example_distils_measures_and_prints_what_the_job_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--folder", str(tmp_path), "--training-lines", "16", "--test-lines", "6", "--epochs", "1"],
        env={**os.environ, "PYTHONPATH": str(EXAMPLE.parents[2])}, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    logs = [path.read_text(encoding="utf-8")[-600:] for path in sorted((tmp_path / "job").glob("*.log"))]
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    job = DistillationJob.attach(tmp_path / "job")
    assert job.status is JobStatus.COMPLETED and job.gate is not None
    metrics = job.metrics()
    assert metrics.accuracy_metric == "token_f1"
    for figures in (metrics.distilled, metrics.baseline):
        assert figures.accuracy is not None and 0 <= figures.accuracy <= 1
        assert figures.inference_time is not None and figures.inference_time > 0
    assert metrics.improvement.inference_time == pytest.approx(
        (metrics.baseline.inference_time or 0) - (metrics.distilled.inference_time or 0)
    )
    assert f"{metrics.distilled.inference_time:.3f}" in done.stdout and f"'{job.gate.outcome}'" in done.stdout
    with pytest.raises(OperatorError, match="the job is completed"):
        job.submit()
