"""Killed at any moment, teaching goes on, pays for nothing twice and writes the same file."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import small_run
from taught_run import chosen, set_keys, talk, teach_in

from distill.run import Stage

KILLS, CONCURRENCY = 20, 4
CHILD = """
import sys
sys.argv = ["distill", "teach", "--run", sys.argv[1], "--settings", sys.argv[2]]
from distill.cli import main
main()
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_cost_what_was_under_way_and_change_no_byte(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    talks = [
        talk(
            place, [f"question{place}x{turn} box{place} what{turn} now{place} please{turn} help{place}" for turn in range(8)]
        )
        for place in range(30)
    ]
    with (
        ScriptedTeacher(lambda question, before: Act(f"About {question}", seconds=0.12)) as teacher,
        small_run(tmp_path / "killed", teacher.base_url) as small,
    ):
        set_keys(small, concurrency=str(CONCURRENCY))
        small.import_conversations(talks)
        run = chosen(small)
        decisions = len((run.folder / "choose" / "decisions.jsonl").read_text(encoding="utf-8").splitlines())
        # The same record, never killed.
        whole = tmp_path / "whole"
        small.record.copy_to(tmp_path / "copy.db")
        kills = 0
        while kills < KILLS:
            before = len(teacher.seen)
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, run.run_id, str(small.settings_file)], stderr=subprocess.DEVNULL
            )
            while len(teacher.seen) == before and child.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.3))
            if child.poll() is not None:
                break
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
        _, answers = teach_in(small, run)
        assert kills == KILLS, f"seed {seed}: only {kills} kills"
        assert len(answers) == decisions
        assert decisions <= len(teacher.seen) <= decisions + KILLS * CONCURRENCY, seed
        asked = len(teacher.seen)
        killed = (run.folder / "teach" / "answers.jsonl").read_bytes()
        again = chosen(small)
        teach_in(small, again)
        assert len(teacher.seen) == asked
        assert (again.folder / "teach" / "answers.jsonl").read_bytes() == killed
        with small_run(whole, teacher.base_url) as uninterrupted:
            pass
        shutil.copy(tmp_path / "copy.db", whole / "record.db")
        for rest in whole.glob("record.db-*"):
            rest.unlink()
        with small_run_again(whole) as uninterrupted:
            set_keys(uninterrupted, concurrency=str(CONCURRENCY))
            fresh = chosen(uninterrupted)
            uninterrupted.perform(Stage.TEACH, run_id=fresh.run_id)
            lines = (fresh.folder / "teach" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    # In another record other replies were measured; all but their time is the same.
    without_time = [
        [{**json.loads(line), "latency_ms": 0} for line in text] for text in (lines, killed.decode().splitlines())
    ]
    assert without_time[0] == without_time[1]


def small_run_again(folder: Path):
    """A small run that stands there, its record as it is."""
    from contextlib import contextmanager

    from small_run import SmallRun

    from conversations.store import Record

    @contextmanager
    def opened():
        with Record(folder / "record.db") as record:
            yield SmallRun(folder, folder / "settings.toml", record)

    return opened()
