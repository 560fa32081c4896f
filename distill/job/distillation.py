"""One distillation as a job, for people who script it: submit, look, wait, cancel, and read the figures.

In: a teacher, a student, data in files, and hyperparameters. Out: a folder with the settings, the record and the run, which any
process can attach to. It does nothing that `distill cycle` and `support-bot student` with the same settings would not do.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from conversations import runs
from conversations.errors import Failure, OperatorError, Refused
from conversations.messages import Json
from conversations.processes import is_alive
from conversations.settings import read_settings
from conversations.store import Record, open_existing
from distill.cycle import check_before
from distill.job.processes import SETTINGS, STARTED, Ended, end_of, process_of, start_job_process
from distill.job.tables import Hyperparameters, Tables, TaskType, hyperparameters_of, tables_of, write_settings
from distill.settings import DistillSettings, TeacherTable

_BLEU = ("reference_bleu", "teacher_bleu")
_SECONDS_BETWEEN_LOOKS = 0.3
_STOPPED = 130


class JobStatus(StrEnum):
    """How a job stands. A job whose student the gate did not let into service is completed: see `gate`."""

    NOT_STARTED = "not_started"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobFailed(Failure):
    """A job's cycle ended early; the message is the command's own sentence, and the exit code its own too."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class JobProgress:
    """The stage that a job is in, and the share of it that is done, 0 to 1."""

    stage: str
    share: float


@dataclass(frozen=True)
class StudentFigures:
    """What was measured of one student: accuracy and BLEU from 0 to 1, and the median time of an answer in ms; None: not measured."""

    accuracy: float | None
    bleu_score: float | None
    inference_time: float | None


@dataclass(frozen=True)
class JobMetrics:
    """The distilled student beside the baseline, the untuned one. An improvement is positive where the distilled one is better."""

    accuracy_metric: str
    distilled: StudentFigures
    baseline: StudentFigures
    improvement: StudentFigures


@dataclass(frozen=True)
class GateWord:
    """What the gate said of the distilled student: promote, refuse or inconclusive, and why."""

    outcome: str
    reasons: tuple[str, ...]


class DistillationJob:
    """A distillation in a folder of its own. It goes on when this process ends; `attach` finds it again."""

    def __init__(
        self,
        *,
        teacher: TeacherTable | Mapping[str, Json],
        student: Path | str,
        training_data: Path | str,
        folder: Path | str,
        validation_data: Path | str | None = None,
        test_data: Path | str | None = None,
        task_type: TaskType = "conversation",
        hyperparameters: Hyperparameters | Mapping[str, float] | None = None,
        system_prompt: str = "You are a helpful assistant.",
        max_cost_usd: float = 0.0,
        student_servers: tuple[str, ...] = (),
        settings: Tables | None = None,
    ) -> None:
        """Describe a job; nothing is written or started before `submit`.

        `student` is the folder of a base checkpoint; data are JSON Lines files (docs/datasets.md). `max_cost_usd` is the most that
        the teacher may cost. With `student_servers`, addresses of running vLLM servers, none is started. `settings` holds further
        tables of the settings file, and wins: `{"evaluate": {"timed_decisions": 20}}`; a relative path in them is one in `folder`.
        Raises OperatorError for an unknown hyperparameter or task, for a file or a student that is not there, and for what no
        settings file can hold.
        """
        self.folder = Path(folder).absolute()
        self._tables: dict[str, dict[str, Json]] | None = tables_of(
            teacher=teacher,
            student=Path(student),
            data={"train": training_data, "validation": validation_data, "test": test_data},
            task_type=task_type,
            hyperparameters=hyperparameters_of(hyperparameters),
            system_prompt=system_prompt,
            max_cost_usd=max_cost_usd,
            student_servers=student_servers,
            more=settings or {},
        )

    @classmethod
    def attach(cls, folder: Path | str) -> "DistillationJob":
        """Return the job of a folder that was submitted before, by whichever process.

        Raises OperatorError where there is none.
        """
        found = cls.__new__(cls)
        found.folder, found._tables = Path(folder).absolute(), None
        if process_of(found.folder) is None:
            raise OperatorError(
                f"{found.folder}: no job was submitted here; expected a folder with {STARTED}; name that of a job"
            )
        return found

    def submit(self) -> None:
        """Start the job and return at once; one that failed or was cancelled goes on where it stopped.

        Raises OperatorError for settings that cannot be, a folder that cannot be written, a job that runs already or has completed.
        """
        status = self.status
        if status not in (JobStatus.NOT_STARTED, JobStatus.FAILED, JobStatus.CANCELLED):
            raise OperatorError(f"{self.folder}: the job is {status}; wait for it or cancel it, or name another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._tables is not None:
                write_settings(self.folder / SETTINGS, self._tables)
        except OSError as error:
            raise OperatorError(f"{self.folder}: no job can be kept here: {error.strerror}; name another folder") from None
        settings = read_settings(DistillSettings, self.folder / SETTINGS)
        check_before(settings)
        # Whoever looks at the job finds a whole record.
        Record(settings.record.path).close()
        start_job_process(self.folder)

    @property
    def status(self) -> JobStatus:
        """How the job stands, as its folder says, whichever process started it."""
        token = process_of(self.folder)
        if token is None:
            return JobStatus.NOT_STARTED
        if is_alive(token):
            return JobStatus.RUNNING if self._run() else JobStatus.QUEUED
        run = self._run()
        if run and run.state is runs.RunState.RUNNING:
            # The process that looked after it was killed, and the cycle, which ends with it, is ending a step.
            return JobStatus.RUNNING
        end = self._end()
        if end.exit_code in (0, Refused.exit_code) and self._report() is not None:
            return JobStatus.COMPLETED
        return JobStatus.CANCELLED if end.exit_code == _STOPPED else JobStatus.FAILED

    @property
    def progress(self) -> JobProgress | None:
        """The stage that the job is in, and how far; None before the first."""
        run = self._run()
        return JobProgress(run.stage, run.progress) if run and run.stage else None

    @property
    def run_id(self) -> str | None:
        """The run in the job's record, for the `distill` commands; None before it has begun."""
        run = self._run()
        return run.run_id if run else None

    @property
    def gate(self) -> GateWord | None:
        """What the gate said; None before the job has completed."""
        found = (self._report() or {}).get("gate")
        if not isinstance(found, dict):
            return None
        reasons = found.get("reasons")
        return GateWord(str(found["outcome"]), tuple(map(str, reasons if isinstance(reasons, list) else ())))

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait until the job has completed or was cancelled, for `timeout` seconds at most, and return how it stands.

        Raises JobFailed with the sentence that the command ended with, and TimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.status) in (JobStatus.QUEUED, JobStatus.RUNNING):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.folder}: the job is still {status} after {timeout:g} s; it goes on: wait again")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if status is JobStatus.NOT_STARTED:
            raise OperatorError(f"{self.folder}: the job was not submitted; there is nothing to wait for")
        if status is JobStatus.FAILED:
            end = self._end()
            raise JobFailed(end.said, end.exit_code)
        return status

    def cancel(self, timeout: float = 300.0) -> None:
        """Stop the job and wait until it has stopped; what it has done stays, and `submit` goes on from there.

        Nothing happens to a job that does not run. Raises TimeoutError where it has not stopped in time.
        """
        token = process_of(self.folder)
        if token is not None and is_alive(token):
            os.kill(int(token.rsplit(":", 2)[1]), signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while self.status in (JobStatus.QUEUED, JobStatus.RUNNING):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{self.folder}: the job has not stopped within {timeout:g} s")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def metrics(self) -> JobMetrics:
        """Return what was measured of the distilled student and of the baseline.

        Raises OperatorError before the job has completed.
        """
        report = self._report()
        if report is None:
            raise OperatorError(f"{self.folder}: the job is {self.status} and has no report yet; wait for it first")
        metric = str(report["quality_metric"])
        models = _object(report["models"])
        distilled, baseline = (_figures(_object(models.get(name)), metric) for name in ("candidate", "base"))
        return JobMetrics(
            accuracy_metric=metric,
            distilled=distilled,
            baseline=baseline,
            improvement=StudentFigures(
                accuracy=_difference(distilled.accuracy, baseline.accuracy),
                bleu_score=_difference(distilled.bleu_score, baseline.bleu_score),
                inference_time=_difference(baseline.inference_time, distilled.inference_time),
            ),
        )

    def _run(self) -> runs.Run | None:
        """Return the newest run of the job's record, which has no other runs than the job's."""
        path = self.folder / "record.db"
        if not path.is_file():
            return None
        with open_existing(path) as record:
            return next(iter(runs.runs(record, limit=1)), None)

    def _report(self) -> Mapping[str, Json] | None:
        run = self._run()
        return run.report if run and run.state is runs.RunState.COMPLETE else None

    def _end(self) -> Ended:
        return end_of(self.folder) or Ended(
            1, "the job's process was killed, and what it had done is kept; submit it again, and it goes on", ""
        )


def _figures(model: Mapping[str, Json], metric: str) -> StudentFigures:
    quality = _object(model.get("quality"))
    bleu = (_number(_object(quality.get(name)).get("value")) for name in _BLEU)
    return StudentFigures(
        accuracy=_number(_object(quality.get(metric)).get("value")),
        bleu_score=next((value for value in bleu if value is not None), None),
        inference_time=_number(_object(model.get("latency_ms")).get("p50")),
    )


def _difference(better: float | None, worse: float | None) -> float | None:
    return None if better is None or worse is None else better - worse


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}
