"""One training by one or several processes of this machine: begun together, listened to, and ended together.

In: what is to be trained. Out: the progress and events of the first process, as they come, and how the training ended. When one
process dies the others are ended, and nothing waits for it. This process computes nothing. The others give way to whatever
else wants the cores, the student's server above all, and their memory is free as soon as they end.
"""

import json
import logging
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from conversations.cores import usable_cores
from conversations.errors import Failure, OperatorError, OutsideError, Refused
from conversations.messages import Json
from distill.background import background_environment
from distill.settings import TrainTable
from distill.training.fitting.disk import telling_of_a_full_disk
from distill.training.fitting.interruption import hearing_a_stop
from distill.training.fitting.memory import SMALLER_BATCHES, what_helps
from distill.training.request import TrainRequest

# How long the processes of a training that failed, which may wait for one that is gone, have to end before they are killed. Those
# that were asked to stop have as long as their checkpoint takes.
_SECONDS_TO_END = 10.0
# What a process says of its own end may come a little after another one has died of the lost connection.
_SECONDS_TO_EXPLAIN = 1.0
_LAST_WORDS = 12
_FAILURES: Mapping[int, type[Failure]] = {each.exit_code: each for each in (OperatorError, OutsideError, Refused)}
# The folder of a training's processes, beside what they write; a killed one leaves it.
_PLACE = ".processes"

log = logging.getLogger(__name__)


class TrainingFault(Exception):
    """A fault of ours in a process of a training, with its traceback."""


@dataclass
class _Worker:
    """A process of the training, what it said last, and how it says it ended."""

    rank: int
    process: "subprocess.Popen[str]"
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_WORDS))
    failure: Exception | None = None
    was_interrupted: bool = False
    readers: list[threading.Thread] = field(default_factory=list)


def process_count(settings: TrainTable) -> int:
    """Return how many processes train.

    Raises OperatorError for more than there are GPUs.
    """
    gpus = int(torch.cuda.device_count())
    if settings.processes is None:
        return max(1, gpus)
    if gpus and settings.processes > gpus:
        raise OperatorError(
            f"[train] processes is {settings.processes}, and there are {gpus} GPUs; expected at most one process a GPU; "
            "lower it, or leave the key out for one on each"
        )
    return settings.processes


def threads_of_each(settings: TrainTable, processes: int) -> int:
    """Return how many threads each process computes with on a CPU."""
    return max(1, (settings.threads or usable_cores()) // processes)


def train_together(
    request: TrainRequest,
    processes: int,
    heard: Callable[[str, Mapping[str, Json]], None],
    *,
    interpreter: str = sys.executable,
) -> None:
    """Train with so many processes and return when the result is written; `heard` is told what the first of them says.

    SIGTERM and Ctrl-C let them end the step and write a checkpoint; then KeyboardInterrupt is raised. Ctrl-Z stops them, too. A
    failure that a process reports is raised here, and TrainingFault for a fault of ours. Raises OutsideError when a process
    dies, with its rank and its last words, and where there is no room for what they are told.
    """
    with _place_for(request) as folder, hearing_a_stop() as stop:
        said: queue.SimpleQueue[tuple[_Worker, str]] = queue.SimpleQueue()
        threads = threads_of_each(request.settings, processes)
        with _begun(folder, processes, threads, said, interpreter) as workers, _stopping_with_this_one(workers):
            asked_to_stop = False
            while True:
                _listen(said, heard)
                if stop.asked and not asked_to_stop:
                    asked_to_stop = True
                    for worker in workers:
                        worker.process.terminate()
                going = [worker for worker in workers if worker.process.poll() is None]
                stops = asked_to_stop or any(worker.was_interrupted for worker in workers)
                if any(worker.process.returncode for worker in workers) and not (stops and going):
                    time.sleep(_SECONDS_TO_EXPLAIN)
                    _listen(said, heard)
                    raise _how_it_ended(workers, asked_to_stop=asked_to_stop)
                if not going:
                    _listen(said, heard)
                    return


@contextmanager
def _place_for(request: TrainRequest) -> Iterator[Path]:
    """Yield a folder with the request, which nobody finds afterwards."""
    with telling_of_a_full_disk(request.out_dir):
        for left in request.out_dir.glob(f"{_PLACE}.*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_PLACE}.", dir=request.out_dir))
    try:
        with telling_of_a_full_disk(request.out_dir):
            (folder / "request.pickle").write_bytes(pickle.dumps(request))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stopping_with_this_one(workers: list[_Worker]) -> Iterator[None]:
    """Let Ctrl-Z stop the processes with this one, and `fg` continue them: they are no part of the terminal's job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        # Continued.
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)

    before = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _listen(said: "queue.SimpleQueue[tuple[_Worker, str]]", heard: Callable[[str, Mapping[str, Json]], None]) -> None:
    """Pass on what processes have said since; wait for the first word a moment."""
    wait = 0.1
    while True:
        try:
            worker, line = said.get(timeout=wait)
        except queue.Empty:
            return
        wait = 0.0
        message = json.loads(line)
        match message["event"]:
            case "failed":
                worker.failure = _FAILURES[message["exit_code"]](message["text"])
            case "fault":
                worker.failure = TrainingFault(message["text"])
            case "interrupted":
                worker.was_interrupted = True
            case event if worker.rank == 0:
                heard(event, message["figures"])


def _how_it_ended(workers: list[_Worker], *, asked_to_stop: bool) -> BaseException:
    """Return what to raise for a training of which some processes have ended otherwise than well."""
    ended = [worker for worker in workers if worker.process.poll() is not None]
    # What looks like a fault may be what one met when another one had failed or was killed.
    for kind in (Failure,) if any(worker.process.returncode < 0 for worker in ended) else (Failure, TrainingFault):
        for worker in workers:
            if isinstance(worker.failure, kind):
                return worker.failure
    # One that still loads its libraries does not hear SIGTERM, and ends by it with nothing to keep.
    unheard = asked_to_stop and all(worker.process.returncode in (0, -signal.SIGTERM) for worker in ended)
    if unheard or any(worker.was_interrupted for worker in ended):
        return KeyboardInterrupt("stopped by the operator")
    # One that was killed comes before those that only lost their connection to it.
    worker = min((each for each in ended if each.process.returncode), key=lambda each: each.process.returncode)
    code = worker.process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    which, reaches = (
        ("its process", "it") if len(workers) == 1 else (f"process {worker.rank} of {len(workers)}", "all of them")
    )
    words = "\n".join(worker.last_words) or "(nothing)"
    why, remedy = "", "mend that and run the same again: it goes on after its last checkpoint"
    if code == -signal.SIGKILL:
        why, remedy = " (the system does so when memory runs out)", what_helps(SMALLER_BATCHES)
    return OutsideError(
        f"training: {which} {how}{why}; its last words: {words}\nexpected {reaches} to reach the end; {remedy}"
    )


@contextmanager
def _begun(
    folder: Path,
    processes: int,
    threads: int,
    said: "queue.SimpleQueue[tuple[_Worker, str]]",
    interpreter: str,
) -> Iterator[list[_Worker]]:
    """Start the processes; however this is left, none of them is left behind."""
    workers: list[_Worker] = []
    try:
        for rank in range(processes):
            process = subprocess.Popen(
                [interpreter, "-m", "distill.training.processes.worker", str(folder), str(rank), str(processes)],
                # Its end tells a process that this one is gone, in whatever way.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=background_environment() | _environment(rank, processes, threads),
                # Ctrl-C at a terminal comes to this process alone, which lets the others end their step.
                start_new_session=True,
            )
            worker = _Worker(rank, process)
            workers.append(worker)
            for read in (_read_said, _read_last_words):
                reader = threading.Thread(target=read, args=(worker, said), daemon=True)
                worker.readers.append(reader)
                reader.start()
        yield workers
    finally:
        _end(workers)


def _environment(rank: int, processes: int, threads: int) -> dict[str, str]:
    """Return what accelerate and gloo read: everybody is on this machine, and talks over its loopback."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(threads),
    }


def _read_said(worker: _Worker, said: "queue.SimpleQueue[tuple[_Worker, str]]") -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        if line.startswith("{"):
            said.put((worker, line))


def _read_last_words(worker: _Worker, _said: object) -> None:
    assert worker.process.stderr is not None
    for line in worker.process.stderr:
        worker.last_words.append(line.rstrip())
        # Every process warns of the same; what a library says by the way is of interest only at its end.
        if worker.rank == 0 and line.startswith("WARNING"):
            log.warning("%s", line.removeprefix("WARNING").strip())


def _end(workers: list[_Worker]) -> None:
    """Ask every process that still goes on to end, then end it."""
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + _SECONDS_TO_END
    for worker in workers:
        try:
            worker.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        for reader in worker.readers:
            reader.join()
        for pipe in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
            if pipe is not None:
                pipe.close()
