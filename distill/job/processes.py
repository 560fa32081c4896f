"""The processes of one job: a cycle, the student's server that it measures with, and this one, which looks after both.

In: the folder of a job, with its settings. Out: `ended.json`, written last, with the exit code of the cycle and its own last words.
Ends at SIGTERM, with both, which end too where this one is killed. It speaks to the chat's room through the command line alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from conversations.messages import utc_now
from conversations.processes import process_token
from distill.background import own_environment
from distill.run import write_whole

SETTINGS, STARTED, ENDED = "settings.toml", "started.json", "ended.json"
CYCLE_LOG, STUDENT_LOG, JOB_LOG = "cycle.log", "student.log", "job.log"
_SECONDS_TO_END = 60


@dataclass(frozen=True)
class Ended:
    """How the cycle of a job ended: its exit code, by the command contract, and what it said last."""

    exit_code: int
    said: str
    ended_at_utc: str


def start_job_process(folder: Path) -> None:
    """Start the process that looks after a job, so that it outlives this one, and note which it is."""
    (folder / ENDED).unlink(missing_ok=True)
    with (folder / JOB_LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from distill.job.processes import main; main(sys.argv[1])", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=own_environment(),
        )
    write_whole(folder / STARTED, json.dumps({"process_token": process_token(process.pid)}) + "\n")
    _reap(process)


def process_of(folder: Path) -> str | None:
    """Return the token of the process that looks after a job, or None where none was ever started."""
    path = folder / STARTED
    return str(json.loads(path.read_text(encoding="utf-8"))["process_token"]) if path.is_file() else None


def end_of(folder: Path) -> Ended | None:
    """Return how a job's cycle ended, or None where it has not, or where its process was killed."""
    path = folder / ENDED
    return Ended(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def main(folder_name: str) -> None:
    """Run a job's cycle with a student's server beside it, and write how it ended."""
    folder = Path(folder_name)
    cycle: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        if cycle is not None and cycle.poll() is None:
            cycle.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    student = _start(folder, STUDENT_LOG, "support_bot.cli", ["student", "--parent-pid", str(os.getpid())])
    cycle = _start(folder, CYCLE_LOG, "distill.cli", ["cycle", "--parent-pid", str(os.getpid())])
    if stopped:
        cycle.send_signal(signal.SIGTERM)
    exit_code = cycle.wait()
    # A cycle that was stopped before it could hear the signal ended all the same because it was asked to.
    exit_code = 130 if stopped and exit_code == -signal.SIGTERM else exit_code
    if exit_code < 0:
        said = f"the cycle was killed by signal {-exit_code}, and what it had done is kept; submit it again, and it goes on"
    elif stopped and exit_code == 130:
        said = "cancelled, and what it had done is kept; submit it again, and it goes on"
    else:
        said = _last_words(folder / CYCLE_LOG)
    if exit_code != 0 and not stopped and student.poll():
        said = f"{said}; the student's server ended before: {_last_words(folder / STUDENT_LOG)}"
    _end(student)
    write_whole(folder / ENDED, json.dumps(asdict(Ended(exit_code, said, utc_now()))) + "\n")


def _start(folder: Path, log_name: str, module: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    with (folder / log_name).open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from {module} import main; main()",
                *arguments,
                "--settings",
                str(folder / SETTINGS),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, asking first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SECONDS_TO_END)


def _last_words(log: Path) -> str:
    """Return the sentence that a command ended with: its last error, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process aside, so that it leaves no zombie while this one lives."""
    threading.Thread(target=process.wait, name="job", daemon=True).start()
