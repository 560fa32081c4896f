"""A scheduler that is killed in training and in measuring, with the real student and vLLM, and what the next one makes of it."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conversations import runs, schedules
from conversations.store import Record
from distill.job.tables import write_settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "distillation_job.py"
COMMAND = "import sys; from {0} import main; sys.argv = ['{0}', *sys.argv[1:]]; main()"


def start(folder: Path, module: str, *words: str) -> subprocess.Popen[bytes]:
    with (folder / f"{words[0]}.log").open("ab") as log:
        command = [sys.executable, "-c", COMMAND.format(module), *words, "--settings", str(folder / "settings.toml")]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def until(what: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 480) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.loop
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_scheduler_killed_in_training_and_in_measuring_is_followed_by_one_that_ends_the_same_run(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("distillation_job", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    job = example.job_in(tmp_path, 16, 6, 1.0)
    tables = {**job._tables, "train": {**job._tables["train"], "checkpoint_every_steps": 1}}
    write_settings(tmp_path / "settings.toml", tables)
    with Record(tmp_path / "record.db") as record:
        request = runs.request_run(record, requested_by="jo")
        started = [start(tmp_path, "support_bot.cli", "student", "--parent-pid", str(os.getpid()))]

        def happened(stage: str, event: str) -> bool:
            (run,) = runs.runs(record) or [None]
            return run is not None and runs.latest_event(record, run.run_id, stage=stage, event=event) is not None

        try:
            for stage, event in (("train", "step"), ("evaluate", "started")):
                started.append(start(tmp_path, "distill.cli", "schedule"))
                until(lambda stage=stage, event=event: happened(stage, event), started[-1])
                time.sleep(0.5)
                os.killpg(started[-1].pid, signal.SIGKILL)
                started[-1].wait()
            started.append(start(tmp_path, "distill.cli", "schedule", "--once"))
            assert started[-1].wait() == 0
        finally:
            for each in started:
                if each.poll() is None:
                    os.killpg(each.pid, signal.SIGTERM)
                each.wait(timeout=60)
        (run,) = runs.runs(record)
        said = (tmp_path / "schedule.log").read_text(encoding="utf-8")[-2000:]
        assert run.state is runs.RunState.COMPLETE and run.report is not None, said
        finished = Counter(event.stage for event in runs.run_events(record, run.run_id) if event.event == "finished")
        assert set(finished) == {"choose", "teach", "verify", "assemble", "train", "evaluate", "promote"}
        assert set(finished.values()) == {1}, finished
        settled = runs.request(record, request.request_id)
        assert (settled.state, settled.run_id) == ("done", run.run_id)
        log = [entry.decision for entry in reversed(schedules.decisions_taken(record))]
        assert log == ["started", "resumed", "resumed", "ended"]
