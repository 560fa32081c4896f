"""One training in a process of its own, watched while it goes on: `python -m distill.training.tuning.trial REQUEST`.

In: what is to be trained. Out: how it ended, whatever happened to the process. A trial that crashes or is killed for memory
takes nobody with it, leaves the device's memory as it was, and says why in its log. The process ends with the one that
started it, and a training that was begun goes on from its checkpoint. Knows nothing of why a trial is made.

Loads no library of training before the process is watched: loading them takes seconds, in which it would outlive its watcher.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from conversations.cores import give_way
from conversations.errors import run_command
from conversations.messages import Json
from distill.background import background_environment
from distill.run import write_whole
from distill.training.fitting.interruption import end_with_the_watcher
from distill.training.request import TrainRequest

if TYPE_CHECKING:
    from distill.training.fitting.loop import TrainProgress
    from distill.training.result import TrainResult

LOG_FILE = "trial.log"
_SECONDS_TO_END = 60
_REQUEST = TypeAdapter(TrainRequest)


class TrialState(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class TrialNews:
    """How far a trial is: tokens computed of those planned, the loss of the last step, and speed in tokens a second.

    `validation_nll` is the held-out loss in nats per token where this is news of a validation, else None.
    """

    tokens: int
    tokens_planned: int
    loss: float
    tokens_per_second: float
    validation_nll: float | None = None


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended. `result` is there when it is complete, `reason` when it failed."""

    state: TrialState
    tokens: int
    tokens_planned: int
    result: "TrainResult | None" = None
    reason: str = ""


def run_trial(request: TrainRequest, folder: Path, stops: Callable[[TrialNews], bool]) -> TrialEnd:
    """Train in a new process and return how that ended; a finished training is not repeated.

    `stops` hears all news and ends the trial by returning True. The request, and the log with what the process said on its
    standard error, are kept in `folder`.
    """
    from distill.training.result import TrainResult

    write_whole(folder / "request.json", _REQUEST.dump_json(request, indent=1).decode() + "\n")
    tokens = tokens_planned = 0
    result: TrainResult | None = None
    with _process([sys.executable, "-m", __name__, str(folder / "request.json")], folder / LOG_FILE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if "result" in told:
                result = TypeAdapter(TrainResult).validate_python(told["result"])
                continue
            news = TrialNews(**told)
            tokens, tokens_planned = news.tokens, news.tokens_planned
            if stops(news):
                return TrialEnd(TrialState.STOPPED, tokens, tokens_planned)
        status = process.wait()
    if result is None or status:
        return TrialEnd(TrialState.FAILED, tokens, tokens_planned, reason=_reason(status, folder / LOG_FILE))
    return TrialEnd(TrialState.COMPLETE, result.tokens, tokens_planned or result.tokens, result)


@contextmanager
def _process(command: list[str], log_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold a process open whose standard input ends with ours; it has ended when this does."""
    with (
        log_path.open("w", encoding="utf-8") as log,
        # A group of its own: what interrupts the study is the study's to pass on.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=background_environment(),
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=_SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    process.kill()


def _reason(status: int, log_path: Path) -> str:
    """Return why a process ended, in its last words or by its signal."""
    said = [line.strip() for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last_words = said[-1][:500] if said else ""
    if status >= 0:
        return last_words or f"ended with exit code {status} and without a result"
    name = signal.Signals(-status).name
    why = "; the system does so when memory runs out" if name == "SIGKILL" else ""
    return f"ended by {name}{why}" + (f"; its last words: {last_words}" if last_words else "")


def _tell(news: dict[str, Json]) -> None:
    print(json.dumps(news), flush=True)  # noqa: T201 — the pipe to the process that watches


def _train() -> None:
    end_with_the_watcher()
    request = _REQUEST.validate_json(Path(sys.argv[1]).read_bytes())
    give_way(request.settings.nice)
    from distill.training.train import train

    last: dict[str, Json] = {}

    def on_progress(progress: "TrainProgress") -> None:
        last.update(
            tokens=progress.tokens_done,
            tokens_planned=progress.tokens_total,
            loss=progress.loss,
            tokens_per_second=progress.tokens_per_second,
        )
        _tell(last)

    def on_event(event: str, figures: Mapping[str, Json]) -> None:
        # The untrained student is validated too, before there is any news to add that to.
        if event == "validation" and last:
            _tell({**last, "validation_nll": figures["validation_nll"]})

    _tell({"result": asdict(train(request, on_progress, on_event))})


if __name__ == "__main__":
    run_command(_train)
