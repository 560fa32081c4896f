"""The stage as `distill train` runs it: it calls nobody, its figures are in the record, and SIGTERM interrupts it as Ctrl-C does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import small_run
from test_training_train import Killed, ignore, killed_at, metrics_of, request_in
from tiny_student import tiny_student

from conversations import runs
from conversations.runs import RunState
from distill.run import Stage, new_run
from distill.training.telling import telling
from distill.training.train import train
from support_bot.console.runs import show_runs

# Read by every Python process at its start: notes each of them, every address that a socket is told to reach, and every name that
# is looked up.
WATCHING = """
import os, sys
def watch(event, about):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        with open(os.environ["CALLS"], "a") as out:
            print(event, about[1:] if event != "socket.getaddrinfo" else about[:1], file=out)
sys.addaudithook(watch)
with open(os.environ["CALLS"] + ".processes", "a") as out:
    print(os.getpid(), file=out)
"""
STAGES = (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE)
TRAIN = "\n[train]\nepochs = 120.0\nrows_per_step = 2\npatience = 100000\ncheckpoint_every_steps = 100000\nthreads = 1\n"


@pytest.mark.slow
def test_training_calls_nobody_is_followed_in_the_record_and_interrupted_by_sigterm(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    with (
        ScriptedTeacher(lambda question, before: Act(text="Coral light: please wait 12 minutes.")) as teacher,
        small_run(tmp_path, teacher.base_url, more=TRAIN) as small,
    ):
        tiny_student(tmp_path / "no-student")
        run, _ = small.perform(*STAGES)
        command = [sys.executable, "-c", "from distill.cli import main; main()", "train", "--run", run.run_id]
        command += ["--settings", str(small.settings_file)]
        (tmp_path / "watching").mkdir()
        (tmp_path / "watching" / "sitecustomize.py").write_text(WATCHING, encoding="utf-8")
        # A proxy that nobody may be asked through shows as a call too.
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        surroundings |= {"CALLS": str(calls), "PYTHONPATH": str(tmp_path / "watching")}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=surroundings)
        until = time.monotonic() + 100
        while time.monotonic() < until and runs.latest_event(small.record, run.run_id, stage="train", event="step") is None:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        assert "held out" in show_runs(small.record) or "loss" in show_runs(small.record)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=100)
        assert process.returncode == 130, said
        assert not calls.exists(), calls.read_text()
        assert len((tmp_path / "calls.processes").read_text(encoding="ascii").split()) == 2
        known = runs.run(small.record, run.run_id)
        assert (known.state, known.outcome) == (RunState.INTERRUPTED, "stopped by the operator")
        assert (run.folder / "train" / ".checkpoint.pt").is_file()

        small.perform(Stage.TRAIN, run_id=run.run_id)
        in_file = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        in_record = {
            int(str(each.detail["step"])): each.detail["loss"]
            for each in runs.run_events(small.record, run.run_id)
            if each.event == "step"
        }
        assert in_record == {line["step"]: line["loss"] for line in in_file if line["event"] == "step"}
        assert len(list((tmp_path / "runs" / "token_cache").iterdir())) == 2


def test_the_record_hears_each_figure_once_however_often_a_training_is_killed(tmp_path: Path) -> None:
    request = request_in(tmp_path / "training")
    with small_run(tmp_path / "small", "http://127.0.0.1:1") as small, new_run(small.record, small.settings) as run:
        # Past a checkpoint, before the next one, twice; then to the end.
        for step in (5, 1):
            with pytest.raises(Killed):
                train(request, killed_at(step), telling(run))
        train(request, ignore, telling(run))
        heard = [
            (each.event, each.detail["step"])
            for each in runs.run_events(small.record, run.run_id)
            if each.stage == Stage.TRAIN
        ]
    assert heard == [(line["event"], line["step"]) for line in metrics_of(tmp_path / "training")]
    assert [step for event, step in heard if event == "step"] == [1, 2, 3, 4, 5, 6]
