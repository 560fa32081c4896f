"""The command `support-bot student`: what must hold before the servers are looked after, and how they end.

In: settings. Out: supervised servers until a signal, or the death of the process named as parent, ends them. Starts no
server before the checkpoint, the port and the installation have been checked; leaves no process behind.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence

import psutil

from conversations import releases
from conversations.messages import Json
from conversations.processes import is_alive, process_token
from conversations.prompt import Renderer
from conversations.serving import Served, digest_of_tokenizer, rope_factors_of
from conversations.store import Record
from support_bot.checkpoint import check_checkpoint, weights_digest
from support_bot.serving.fleet import Fleet
from support_bot.serving.pace import Pace
from support_bot.serving.ports import check_port
from support_bot.settings import SupportBotSettings
from support_bot.vllm import check_installed, check_serving

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
    if not student.servers:
        check_installed(student)
        check_port(student)
    with Record(settings.record.path) as record:
        digest = weights_digest(student.base, settings.record.path.parent / _DIGEST_FILE)
        base_release_id = releases.register_base(
            record, base=student.base.name, weights_path=str(student.base), weights_digest=digest
        )
        pace = pace or Pace(start_timeout_seconds=student.start_timeout_seconds)
        renderer = Renderer.load(student.base)
        served = Served(
            base_digest=digest,
            tokenizer_digest=digest_of_tokenizer(student.base),
            prompt_digest=renderer.digest,
            max_model_len=student.max_model_len,
            rope_factors=rope_factors_of(student.base, student.max_model_len),
            max_lora_rank=student.max_lora_rank,
        )
        fleet = Fleet(settings, record, base_release_id, served, renderer, say, pace)
        asyncio.run(_until_ended(fleet.work(), parent_pid))
        say("student: stopped")
    return {
        "base_release_id": base_release_id,
        "servers": [{"base_url": supervisor.base_url, "starts": supervisor.starts} for supervisor in fleet.supervisors],
    }


async def _until_ended(looking_after: Sequence[Coroutine[None, None, None]], parent_pid: int | None) -> None:
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
        token = process_token(process_id)
        while is_alive(token):
            await asyncio.sleep(_PARENT_LOOK_SECONDS)
    except psutil.NoSuchProcess:
        log.info("process %d has ended", process_id)
