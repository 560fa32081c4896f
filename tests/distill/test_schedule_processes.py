"""Schedulers as the processes that they are: two on one record, killed, stopped, and what goes on after them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, SmallRun, conversation, small_run
from taught_run import set_keys

from conversations import runs, schedules
from conversations.schedules import LEASE
from distill.rows import AnswerRow, read_rows

DUE = "[schedule]\nevery_hours = 0.000001\nmin_new_conversations = 1\npoll_seconds = 0.1\n"
COMMAND = "import sys; from distill.cli import main; sys.argv = ['distill', *sys.argv[1:]]; main()"
# Looks once for each line that it is told, so that several can be told at the same moment.
LOOKER = """
import sys
from pathlib import Path
from conversations.settings import read_settings
from conversations.store import Record
from distill.schedule import schedule
from distill.settings import DistillSettings
settings = read_settings(DistillSettings, Path(sys.argv[1]))
with Record(settings.record.path) as record:
    print("ready", flush=True)
    for line in sys.stdin:
        said = []
        schedule(record, settings, lambda *_: None, said.append, once=True)
        print("; ".join(said), flush=True)
"""


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def scheduler() -> Iterator[Start]:
    """Starts schedulers on a small run; none of them outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(small: SmallRun, *more: str) -> subprocess.Popen[bytes]:
        with (small.folder / "schedule.log").open("ab") as log:
            command = [sys.executable, "-c", COMMAND, "schedule", "--settings", str(small.settings_file), *more]
            started.append(subprocess.Popen(command, stderr=log))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def until(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def finished_stages(small: SmallRun, run_id: str) -> Counter[str]:
    return Counter(event.stage for event in runs.run_events(small.record, run_id) if event.event == "finished")


@pytest.mark.slow
def test_two_schedulers_that_look_at_the_same_moment_start_one_cycle(tmp_path: Path) -> None:
    rounds = 6
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.")) as teacher,
        small_run(tmp_path, teacher.base_url, more=DUE) as small,
    ):
        lookers = [
            subprocess.Popen(
                [sys.executable, "-c", LOOKER, str(small.settings_file)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        try:
            for each in lookers:
                assert each.stdout is not None and each.stdout.readline() == "ready\n"
            for number in range(rounds):
                wanted = number % 2
                if wanted:
                    runs.request_run(small.record, requested_by=f"jo{number}")
                else:
                    small.import_conversations(
                        [conversation(20 + number, f"What of question number {number} at sea level?")]
                    )
                for each in lookers:
                    assert each.stdin is not None
                    each.stdin.write("look\n")
                    each.stdin.flush()
                said = [each.stdout.readline() for each in lookers if each.stdout is not None]
                assert len(runs.runs(small.record)) == number + 1, said
                assert sum("started: " in line for line in said) == 1, said
        finally:
            for each in lookers:
                assert each.stdin is not None and each.stdout is not None
                each.stdin.close()
                each.wait()
                each.stdout.close()
        assert len(runs.requests(small.record)) == rounds // 2
        assert {request.state for request in runs.requests(small.record)} == {"done"}
        assert len({request.run_id for request in runs.requests(small.record)}) == rounds // 2
        assert len(teacher.seen) == len(QUESTIONS) + rounds // 2, "a question was paid for twice"


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "due"])
def test_killed_schedulers_are_followed_by_one_that_goes_on_with_the_same_run(
    tmp_path: Path, scheduler: Start, asked: bool
) -> None:
    kills, seed = 3, int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.", seconds=0.4)) as teacher,
        small_run(tmp_path, teacher.base_url, more="" if asked else DUE) as small,
    ):
        set_keys(small, concurrency="1")
        small.import_conversations(
            [conversation(20 + n, f"box{n} question{n} what{n} now{n} please{n} help{n}") for n in range(22)]
        )
        request = runs.request_run(small.record, requested_by="jo") if asked else None
        for _ in range(kills):
            before = len(teacher.seen)
            process = scheduler(small)
            until(lambda seen=before: len(teacher.seen) > seen)
            time.sleep(chance.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            process.wait()
        (left,) = runs.runs(small.record)
        assert left.state is runs.RunState.INTERRUPTED, seed
        scheduler(small, "--once").wait()
        (run,) = runs.runs(small.record)
        assert run.run_id == left.run_id and run.state is runs.RunState.COMPLETE, seed
        assert finished_stages(small, run.run_id) == {"choose": 1, "teach": 1, "verify": 1}, seed
        answers = list(read_rows(Path(run.path) / "teach" / "answers.jsonl", AnswerRow))
        assert len(answers) <= len(teacher.seen) <= len(answers) + kills, seed
        log = [entry.decision for entry in reversed(schedules.decisions_taken(small.record))]
        assert log == ["started", *["resumed"] * kills, "ended"], seed
        if request is not None:
            settled = runs.request(small.record, request.request_id)
            assert (settled.state, settled.run_id) == ("done", run.run_id)


@pytest.mark.slow
def test_a_scheduler_that_is_asked_to_stop_in_a_cycle_leaves_a_run_that_the_next_one_ends(
    tmp_path: Path, scheduler: Start
) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.", seconds=0.3)) as teacher,
        small_run(tmp_path, teacher.base_url, more=DUE) as small,
    ):
        set_keys(small, concurrency="1")
        process = scheduler(small)
        until(lambda: len(teacher.seen) > 1)
        process.terminate()
        assert process.wait(timeout=60) == 0
        (run,) = runs.runs(small.record)
        assert run.state is runs.RunState.INTERRUPTED and run.outcome == "stopped by the operator"
        assert schedules.take_lease(small.record, LEASE, holder="x:1:1.0", seconds=0) is None
        # A second one that looks again and again, and is idle when it is asked to stop.
        process = scheduler(small)
        until(lambda: runs.run(small.record, run.run_id).state is runs.RunState.COMPLETE)
        until(lambda: schedules.decisions_taken(small.record)[0].decision == "waits")
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert len(teacher.seen) <= len(QUESTIONS) + 1
        log = [entry.decision for entry in reversed(schedules.decisions_taken(small.record))]
        assert log == ["started", "ended", "resumed", "ended", "waits"]


@pytest.mark.slow
def test_a_run_that_has_become_anothers_ends_here(tmp_path: Path) -> None:
    """As after a machine that slept: the process finds that it was taken to be dead, and stops before both write."""
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.", seconds=30)) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        with (small.folder / "cycle.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "cycle", "--settings", str(small.settings_file)], stderr=log
            )
        until(lambda: teacher.seen)
        with small.record.write() as transaction:
            transaction.execute("UPDATE runs SET process_token = 'another-machine:1:1.000'")
        assert process.wait(timeout=60) == 130
        assert "another process has taken its place" in (small.folder / "cycle.log").read_text(encoding="utf-8")
        assert runs.runs(small.record)[0].state is runs.RunState.RUNNING, "the other's run was written to"


def test_the_command_tells_what_it_decided_as_it_goes(tmp_path: Path, scheduler: Start) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        assert scheduler(small, "--once").wait() == 0
        said = (small.folder / "schedule.log").read_text(encoding="utf-8")
        assert "schedule: waits: fewer than 50 conversations are new (8 of 50 new conversations)" in " ".join(said.split())
        assert json.dumps([entry.reason for entry in schedules.decisions_taken(small.record)]) == (
            '["fewer than 50 conversations are new"]'
        )
