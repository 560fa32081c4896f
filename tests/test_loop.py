"""The whole loop with real parts on a cut-down demo: vLLM, the handbook teacher, training, evaluation, the gate, the pages."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distill.rows import EvaluationRow, read_rows

DEMO = Path("deploy/demo")
ARTICLES = {"violet-pulse", "late-fee", "moving", "login-code"}
BOUNDS = ("wrong_fact_rate", "leak_rate", "format_fault_rate", "declined_rate", "topic_loss")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def cut_down_demo(folder: Path) -> Path:
    """Write a demo of four articles' conversations and a few training steps, with bounds that any student passes."""
    text = (DEMO / "settings.toml").read_text(encoding="utf-8")
    student, chat, console, teacher = free_ports(4)
    for old, new in (
        ("../../var/demo", str(folder)),
        ("../../var/students", str(Path("var/students").absolute())),
        ("8100", str(student)),
        ("7860", str(chat)),
        ("7861", str(console)),
        ("8101", str(teacher)),
        ("epochs = 2.0", "epochs = 0.4"),
        ("timed_decisions = 5", "timed_decisions = 1"),
        ("max_answer_tokens = 120", "max_answer_tokens = 24"),
        ("min_retained = 0.85", "min_retained = 0.0\nmin_decisions = 5"),
        ("max_wrong_fact_rate = 0.25", "".join(f"max_{name} = 1.0\n" for name in BOUNDS)),
        ("max_loss_to_released = 0.1", "max_loss_to_released = 1.0"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "settings.toml").write_text(text, encoding="utf-8")
    (folder / "handbook").mkdir()
    for name in ARTICLES:
        shutil.copy(DEMO / "handbook" / f"{name}.md", folder / "handbook")
    kept = []
    for line in (DEMO / "conversations.jsonl").read_text(encoding="utf-8").splitlines():
        named = {name for turn in json.loads(line)["labels"]["turns"] for name in turn["articles"]}
        if named and named <= ARTICLES:
            kept.append(line + "\n")
    (folder / "conversations.jsonl").write_text("".join(kept), encoding="utf-8")
    return folder / "settings.toml"


def answer_of(command: str, *arguments: str) -> dict[str, object]:
    code = f"from {command}.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.loop
@pytest.mark.timeout(1500)
def test_the_demo_teaches_measures_and_promotes_a_student_that_vllm_then_serves(tmp_path: Path) -> None:
    settings = cut_down_demo(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from support_bot.cli import main; main()",
            "demo",
            "--exit",
            "--json",
            "--settings",
            str(settings),
        ],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    for stage in report["stages"].values():
        assert stage["in"] == stage["accepted"] + stage["rejected"] + stage["unscored"]
    assert report["gate"]["outcome"] == "promote"
    assert {"base", "candidate", "teacher"} <= set(report["models"])
    listed = answer_of("distill", "releases", "--json", "--settings", str(settings))
    assert listed["in_service"] == report["release_id"]
    rows = list(read_rows(Path(report["run_path"]) / "evaluate" / "rows.jsonl", EvaluationRow))
    for model, told in report["models"].items():
        for metric, estimate in told["quality"].items():
            values = [row.scores[metric] for row in rows if row.model == model and row.scores.get(metric) is not None]
            assert estimate["n"] == len(values)
            assert estimate["value"] == pytest.approx(sum(v for v in values if v is not None) / len(values), abs=1e-5)
    verified = answer_of("conversations", "verify", "--json", "--settings", str(settings))
    assert verified["ok"] is True
    again = answer_of("distill", "report", "--json", "--settings", str(settings))
    assert again["run_id"] == report["run_id"]
