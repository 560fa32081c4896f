"""The whole product on one machine: student, teacher, seeded record, pages, one cycle, and the report.

In: settings, and the conversations that lie beside the settings file. Out: the report of the newest complete run. Every
process that it starts ends with it. It speaks to the teaching room through commands and the record alone.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console

from conversations import releases, runs
from conversations.errors import OperatorError, OutsideError, Refused
from conversations.exchange import imports
from conversations.messages import Json
from conversations.store import Record
from support_bot.app import PASSWORD_VARIABLE
from support_bot.settings import SupportBotSettings

CONVERSATIONS = "conversations.jsonl"
_TEACHER_SECONDS = 120
_SECONDS_TO_END = 20


@dataclass
class _Processes:
    """The processes of a demo; leaving the context ends them all."""

    settings_file: Path
    log_folder: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], *, more: Mapping[str, str] | None = None, log: bool = True) -> None:
        """Start a command of this product in a process group of its own, its words in a log file or on this terminal."""
        self.log_folder.mkdir(parents=True, exist_ok=True)
        out = (self.log_folder / f"{name}.log").open("wb") if log else None
        self.started[name] = subprocess.Popen(
            [*_command(command[0]), *command[1:], "--settings", str(self.settings_file)],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(more or {})},
            start_new_session=True,
        )

    def check(self) -> None:
        """Raise what a process of the demo ended with, its last words included."""
        for name, process in self.started.items():
            if process.poll() is not None and process.returncode != 0:
                log = self.log_folder / f"{name}.log"
                words = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
                message = f"{name} ended with {process.returncode}: {words[-600:] or 'it said nothing'}"
                raise OperatorError(message) if process.returncode == 2 else OutsideError(message)

    def end(self) -> None:
        """End every process, asking first."""
        for process in self.started.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in self.started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_demo(settings: SupportBotSettings, *, exit_after: bool) -> dict[str, Json]:
    """Run the demo and return the report; without `exit_after` it serves until Ctrl-C.

    Raises Refused when the gate did not promote, OperatorError or OutsideError when a part could not run.
    """
    say = Console(emoji=False, stderr=True, soft_wrap=True, highlight=False)
    teacher_port = _handbook_teacher_port(settings.settings_file)
    _check_ports(settings, teacher_port)
    password = os.environ.get(PASSWORD_VARIABLE) or secrets.token_urlsafe(9)
    processes = _Processes(settings.settings_file, settings.record.path.parent / "logs")
    with Record(settings.record.path) as record, _ended_by_signals(), contextlib.closing(_Ending(processes)):
        _import(record, settings.settings_file.parent / CONVERSATIONS, say)
        say.print(f"student: starting vLLM with {settings.student.base.name} (usually 40 to 90 s on 2 cores)")
        processes.start("student", ["support-bot", "student", "--parent-pid", str(os.getpid())])
        if teacher_port is not None:
            processes.start("teacher", ["distill", "teacher", "--port", str(teacher_port)])
        processes.start("serve", ["support-bot", "serve"], more={PASSWORD_VARIABLE: password})
        _wait_for_student(record, processes, say)
        serve = settings.serve
        say.print(f"chat:    http://{serve.host}:{serve.chat_port}")
        say.print(f"console: http://{serve.host}:{serve.console_port} (user {serve.console_user}, password {password})")
        report = _finished_report(record)
        if report is None:
            if teacher_port is not None:
                _wait_for_teacher(processes, teacher_port)
            say.print(
                "cycle: choose, teach, verify, assemble, train, evaluate, promote (usually 6 to 12 minutes on 2 cores)"
            )
            report = _cycle(settings, say)
        else:
            say.print(f"cycle: the run {report['run_id']} is finished; its release is loaded")
            _print_report(settings, say)
        if not exit_after:
            processes.start("schedule", ["distill", "schedule"])
            say.print(
                "Both pages stay up. Ask the chat a question, or start another run in the console. Ctrl-C ends the demo."
            )
            _stay(processes)
        return report


class _Ending:
    """Ends the processes when it is closed."""

    def __init__(self, processes: _Processes) -> None:
        self._processes = processes

    def close(self) -> None:
        """End the processes."""
        self._processes.end()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into the interrupt that Ctrl-C is, so that every way out ends the processes."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(name: str) -> list[str]:
    """Return how to call a command of this product with the interpreter that runs now."""
    modules = {"support-bot": "support_bot.cli", "distill": "distill.cli"}
    return [sys.executable, "-c", f"from {modules[name]} import main; main()"]


def _handbook_teacher_port(settings_file: Path) -> int | None:
    """Return the port of the handbook teacher, or None where the settings name another kind, which runs elsewhere.

    The teachers' table is the teaching room's; only the address is looked at here, and that room checks the rest.
    """
    tables = tomllib.loads(settings_file.read_text(encoding="utf-8"))
    teacher = tables.get("teachers", {}).get(tables.get("teach", {}).get("teacher"), {})
    if teacher.get("kind") != "handbook":
        return None
    try:
        return urlsplit(str(teacher.get("base_url", ""))).port
    except ValueError as error:
        raise OperatorError(
            f"{settings_file}: base_url of the handbook teacher = {teacher['base_url']!r}: {error}; "
            "expected an address with a port, such as http://127.0.0.1:8101/v1"
        ) from None


def _check_ports(settings: SupportBotSettings, teacher_port: int | None) -> None:
    """Raise OperatorError when a port of the demo is taken, before anything is started."""
    ports = {
        "[student] port": settings.student.port,
        "[serve] chat_port": settings.serve.chat_port,
        "[serve] console_port": settings.serve.console_port,
    }
    if teacher_port is not None:
        ports["the port in the teacher's base_url"] = teacher_port
    for key, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise OperatorError(
                    f"port {port} ({key}) cannot be used: {error.strerror}; stop what listens there (another demo?), "
                    f"or set another port in {settings.settings_file}"
                ) from None


def _import(record: Record, path: Path, say: Console) -> None:
    counts = imports.import_files(record, [path])
    say.print(
        f"record: {counts.conversations} conversations imported, {counts.already_present} already present ({record.path})"
    )


def _wait_for_student(record: Record, processes: _Processes, say: Console) -> None:
    """Wait until a server has the release in service in memory."""
    with say.status("student: loading"):
        while True:
            processes.check()
            current = releases.in_service(record)
            if current is not None and releases.servers_with(record, current):
                say.print(f"student: ready with release {current}")
                return
            time.sleep(0.5)


def _wait_for_teacher(processes: _Processes, port: int) -> None:
    deadline = time.monotonic() + _TEACHER_SECONDS
    while time.monotonic() < deadline:
        processes.check()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.3)
    raise OutsideError(f"the handbook teacher did not answer within {_TEACHER_SECONDS} s; see teacher.log beside the record")


def _finished_report(record: Record) -> dict[str, Json] | None:
    """Return the report of the newest run that ended in a promotion."""
    for run in runs.runs(record):
        if run.state is runs.RunState.COMPLETE and run.report is not None and run.outcome == "promote":
            return dict(run.report)
    return None


def _cycle(settings: SupportBotSettings, say: Console) -> dict[str, Json]:
    """Run one cycle with its progress on this terminal, and return its report."""
    done = subprocess.run(
        [*_command("distill"), "cycle", "--json", "--settings", str(settings.settings_file)],
        stdout=subprocess.PIPE,
        check=False,
    )
    match done.returncode:
        case 0 | Refused.exit_code if done.stdout.strip():
            report: dict[str, Json] = json.loads(done.stdout)
            _print_report(settings, say)
            if done.returncode != 0:
                raise Refused("the loop ran, and the gate let nothing into service; the report above says why")
            return report
        case Refused.exit_code:
            raise Refused("the cycle could not come to a report; the line above says why")
        case OperatorError.exit_code:
            raise OperatorError("the cycle could not run; the line above says what to mend")
        case OutsideError.exit_code:
            raise OutsideError("the cycle stopped; the line above says why; run the demo again and it goes on from there")
        case code:
            raise RuntimeError(f"distill cycle ended with {code}")


def _print_report(settings: SupportBotSettings, say: Console) -> None:
    command = [*_command("distill"), "report", "--settings", str(settings.settings_file)]
    subprocess.run(command, check=False, stdout=sys.stderr if say.stderr else None)


def _stay(processes: _Processes) -> None:
    """Serve until Ctrl-C, or until a process of the demo fails."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            processes.check()
            time.sleep(1)
