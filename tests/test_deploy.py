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

from conversations.settings import read_settings
from distill.cli import app as distill_app
from distill.settings import DistillSettings
from support_bot.cli import _commands as support_bot_app
from support_bot.settings import read_support_bot_settings
from support_bot.vllm import server_url

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
    assert len(calls) == 5, "student, serve, teacher, and the two ways to schedule"
    for program, *words in calls:
        parsed([Path(program).name, *words])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in ("distill", "support-bot"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/support-bot/.venv/bin", str(tmp_path))
        (tmp_path / unit.name).write_text(
            re.sub(r"^(User|Documentation)=.*\n", "", text, flags=re.MULTILINE), encoding="utf-8"
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "distill-" in line or "support-bot-" in line]
    assert about_ours == [], done.stderr


def objects(kind: str) -> list[Any]:
    found = [each for manifest in MANIFESTS for each in yaml.safe_load_all(manifest.read_text(encoding="utf-8"))]
    return [each for each in found if each["kind"] == kind]


def templates() -> list[Any]:
    jobs = [each["spec"]["jobTemplate"]["spec"]["template"] for each in objects("CronJob")]
    return [*(each["spec"]["template"] for each in objects("Deployment")), *jobs]


def test_pods_call_commands_that_exist_and_mount_what_there_is() -> None:
    assert len(templates()) == 3
    for template in templates():
        pod = template["spec"]
        (container,) = pod["containers"]
        parsed(container["command"])
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert volumes["settings"]["configMap"]["name"] in {each["metadata"]["name"] for each in objects("ConfigMap")}
        claim = volumes["record"]["persistentVolumeClaim"]["claimName"]
        assert claim in {each["metadata"]["name"] for each in objects("PersistentVolumeClaim")}
    for deployment in objects("Deployment"):
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    (cronjob,) = objects("CronJob")
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_chat_does_not_start_without_its_password() -> None:
    (serve,) = [each for each in templates() if each["spec"]["containers"][0]["command"][:2] == ["support-bot", "serve"]]
    (source,) = serve["spec"]["containers"][0]["envFrom"]
    assert not source["secretRef"].get("optional", False)


def test_pods_reach_the_student_and_customers_the_chat_with_the_settings_that_lie_beside(tmp_path: Path) -> None:
    (settings_map,) = objects("ConfigMap")
    file = tmp_path / "settings.toml"
    file.write_text(settings_map["data"]["settings.toml"], encoding="utf-8")
    settings = read_support_bot_settings(file)
    read_settings(DistillSettings, file)
    student, serve = settings.student, settings.serve
    services = {each["metadata"]["name"]: each["spec"] for each in objects("Service")}
    pods = {each["metadata"]["labels"]["app"]: each["spec"]["containers"][0] for each in templates()}

    leads = services[student.announce_host]
    assert server_url(student) == f"http://{student.announce_host}:{leads['ports'][0]['port']}"
    assert leads["clusterIP"] == "None", "the ports of whole releases are reached without being listed"
    assert pods[leads["selector"]["app"]]["command"][1] == "student"
    (policy,) = objects("NetworkPolicy")
    allowed = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    assert policy["spec"]["podSelector"]["matchLabels"] == leads["selector"] and set(allowed) == set(pods)

    chat = services["support-bot-chat"]
    ports = {each["name"]: each["containerPort"] for each in pods[chat["selector"]["app"]]["ports"]}
    assert ports == {"chat": serve.chat_port, "console": serve.console_port}
    assert [each["targetPort"] for each in chat["ports"]] == ["chat"]
    assert (student.host, serve.host) == ("0.0.0.0", "0.0.0.0")


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
