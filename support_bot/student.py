"""The command `support-bot student`: what must hold before the servers are looked after, and how they end.

In: settings. Out: supervised servers until a signal, or the death of the process named as parent, ends them. Starts no
server before the checkpoint, the port and the installation have been checked; leaves no process behind.
"""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from urllib.parse import urlsplit

import psutil

from conversations import releases
from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.prompt import Renderer
from conversations.serving import Served, digest_of_tokenizer, rope_factors_of
from conversations.settings import StudentTable
from conversations.store import Record
from support_bot.checkpoint import check_checkpoint, weights_digest
from support_bot.settings import SupportBotSettings
from support_bot.supervisor import Pace, ServedBase, StudentSupervisor
from support_bot.vllm import VllmProcess, check_installed, check_serving, server_command, server_environment, server_url

_DIGEST_FILE = "student_digest.json"
_PARENT_LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


def look_after_students(
    settings: SupportBotSettings, *, parent_pid: int | None = None, say: Callable[[str], None], pace: Pace | None = None
) -> Mapping[str, Json]:
    """Run the student's server, or attach to running ones, until SIGTERM, SIGINT or the end of the process `parent_pid`.

    Calls `say` with one line for each change of state. Returns what was looked after.
    Raises OperatorError for settings that cannot work, OutsideError when a server of ours never comes up.
    """
    student = settings.student
    check_checkpoint(student.base)
    check_serving(student)
    if student.servers:
        for address in student.servers:
            _check_address(address)
    else:
        check_installed(student)
        check_port(student)
    with Record(settings.record.path) as record:
        digest = weights_digest(student.base, settings.record.path.parent / _DIGEST_FILE)
        base_release_id = releases.register_base(
            record, base=student.base.name, weights_path=str(student.base), weights_digest=digest
        )
        pace = pace or Pace(start_timeout_seconds=student.start_timeout_seconds)
        served = Served(
            base_digest=digest,
            tokenizer_digest=digest_of_tokenizer(student.base),
            prompt_digest=Renderer.load(student.base).digest,
            max_model_len=student.max_model_len,
            rope_factors=rope_factors_of(student.base, student.max_model_len),
            max_lora_rank=student.max_lora_rank,
        )
        supervisors = _supervisors(settings, record, base_release_id, served, say, pace)
        asyncio.run(_until_ended([supervisor.run() for supervisor in supervisors], parent_pid))
        say("student: stopped")
    return {
        "base_release_id": base_release_id,
        "servers": [{"base_url": supervisor.base_url, "starts": supervisor.starts} for supervisor in supervisors],
    }


def check_port(student: StudentTable) -> None:
    """Raise OperatorError when the student's server could not listen at its address."""
    family = socket.AF_INET6 if ":" in student.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((student.host, student.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OperatorError(
                    f"port {student.port} on {student.host} is in use ([student] port); end the process that listens there, "
                    "set another port, or attach to a running vLLM with [student] servers"
                ) from None
            raise OperatorError(
                f"cannot listen on {student.host}:{student.port} ([student] host and port): {error.strerror or error}; "
                "give an address of this machine and a port that is free"
            ) from None


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise OperatorError(
            f"[student] servers: {address!r} is not the address of a server; expected one such as 'http://127.0.0.1:8100', "
            "without /v1; mend it"
        )


def _supervisors(
    settings: SupportBotSettings,
    record: Record,
    base_release_id: str,
    served: Served,
    say: Callable[[str], None],
    pace: Pace,
) -> list[StudentSupervisor]:
    student = settings.student

    def supervisor(base_url: str, new_process: Callable[[], VllmProcess] | None) -> StudentSupervisor:
        base = ServedBase(student.base.name, base_release_id, base_url, served)
        return StudentSupervisor(record, base, new_process=new_process, say=say, pace=pace)

    if student.servers:
        return [supervisor(address.rstrip("/"), None) for address in student.servers]
    command = server_command(student, base_release_id)
    environment = server_environment(student)
    log_path = settings.record.path.parent / "logs" / f"student-{student.port}.log"
    say(f"student: the log of vLLM is {log_path}")
    return [supervisor(server_url(student), lambda: VllmProcess(command, environment, log_path))]


async def _until_ended(looking_after: list[Coroutine[None, None, None]], parent_pid: int | None) -> None:
    """Run the supervisors until a signal, the parent's end, or the failure of one of them; then end all of them."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    tasks = [asyncio.create_task(work) for work in looking_after]
    tasks.append(asyncio.create_task(_wait(ended)))
    if parent_pid is not None:
        tasks.append(asyncio.create_task(_wait_for_end_of(parent_pid)))
    done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in done:
        task.result()


async def _wait(ended: asyncio.Event) -> None:
    await ended.wait()


async def _wait_for_end_of(process_id: int) -> None:
    try:
        parent = psutil.Process(process_id)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(_PARENT_LOOK_SECONDS)
    except psutil.NoSuchProcess:
        log.info("process %d has ended", process_id)
