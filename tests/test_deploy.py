"""What is shipped to run the product elsewhere is as those systems expect it, and calls commands that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from distill.cli import app as distill_app
from support_bot.cli import _commands as support_bot_app

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def parsed(words: list[str]) -> None:
    """Let the command's own parser read the words; it raises for a subcommand or an option that does not exist."""
    group: Any = get_command({"distill": distill_app, "support-bot": support_bot_app}[words[0]])
    command = group.commands[words[1]]
    command.make_context(words[1], list(words[2:]))


def test_units_call_commands_and_options_that_exist() -> None:
    calls = [
        line.removeprefix("ExecStart=").split()
        for unit in UNITS
        for line in unit.read_text(encoding="utf-8").splitlines()
        if line.startswith("ExecStart=")
    ]
    assert len(calls) == 2
    for program, *words in calls:
        parsed([Path(program).name, *words])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program = tmp_path / "distill"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/support-bot/.venv/bin/distill", str(program))
        (tmp_path / unit.name).write_text(
            re.sub(r"^(User|Documentation)=.*\n", "", text, flags=re.MULTILINE), encoding="utf-8"
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "distill-" in line]
    assert about_ours == [], done.stderr


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_manifests_call_commands_that_exist_and_mount_what_they_declare(manifest: Path) -> None:
    found = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    if found["kind"] == "PersistentVolumeClaim":
        assert found["metadata"]["name"] == "support-bot-record"
        return
    spec = found["spec"]
    if found["kind"] == "CronJob":
        assert spec["concurrencyPolicy"] == "Forbid"
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    else:
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    parsed(container["command"])
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_the_example_of_a_job_loads_no_model_library() -> None:
    code = (
        "import runpy, sys; sys.argv = ['example', '--help']\n"
        "try:\n    runpy.run_path('deploy/examples/distillation_job.py', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=DEPLOY.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
