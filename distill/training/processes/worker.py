"""One of the processes that train a student: `python -m distill.training.processes.worker FOLDER RANK SIZE`.

In: the request, in the folder that `launch` made, which is also where the processes meet. Out: one JSON object a line on standard
output, for every progress, event and end; logs on standard error. Started by `launch` alone, and ends with it. A stop that comes
outside the steps ends it at once, and leaves nothing half written.
"""

import json
import logging
import pickle
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from conversations.cores import give_way
from conversations.errors import Failure
from conversations.messages import Json
from distill.training.fitting.interruption import end_with_the_watcher, ending_at_sigterm
from distill.training.fitting.loop import TrainProgress
from distill.training.processes.group import Group, join
from distill.training.request import TrainRequest
from distill.training.student.learning import device_at_hand
from distill.training.train import train_in


def main(folder: Path, rank: int, size: int) -> int:
    """Train this process's share and return its exit code."""
    end_with_the_watcher()
    request: TrainRequest = pickle.loads((folder / "request.pickle").read_bytes())
    give_way(request.settings.nice)
    group = join(rank, size, folder / "meeting") if size > 1 else Group(device_at_hand())
    try:
        with ending_at_sigterm():
            train_in(group, request, _say_progress, _say)
    except Failure as failure:
        _print({"event": "failed", "exit_code": failure.exit_code, "text": str(failure)})
        return failure.exit_code
    except KeyboardInterrupt:
        _print({"event": "interrupted"})
        return 130
    except Exception:  # noqa: BLE001  # told with its traceback by the process that listens
        _print({"event": "fault", "text": traceback.format_exc()})
        return 1
    group.leave()
    return 0


def _say_progress(progress: TrainProgress) -> None:
    _say("progress", asdict(progress))


def _say(event: str, figures: Mapping[str, Json]) -> None:
    _print({"event": event, "figures": dict(figures)})


def _print(message: Mapping[str, Json]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
