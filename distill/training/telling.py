"""What the record hears of a training: each figure once, however often the training was killed.

In: figures, as the loop writes them into `metrics.jsonl`. Out: events of the run. That file is cut back to the last checkpoint and
written again; events are never taken back, so that what is computed again is not told again.
"""

from collections.abc import Callable, Mapping

from conversations import runs
from conversations.messages import Json
from distill.run import Run, Stage

# Each stands once for a step; whatever else happens is told each time that it does.
_ONCE_A_STEP = ("step", "validation")


def telling(run: Run) -> Callable[[str, Mapping[str, Json]], None]:
    """Return what tells the record of a run the figures that it has not heard before."""
    newest = {event: _newest_step(run, event) for event in _ONCE_A_STEP}

    def tell(event: str, figures: Mapping[str, Json]) -> None:
        if event not in newest or int(str(figures["step"])) > newest[event]:
            run.event(Stage.TRAIN, event, figures)

    return tell


def _newest_step(run: Run, event: str) -> int:
    """Return the last step of which the record has heard; -1 where it has heard of none."""
    told = runs.latest_event(run.record, run.run_id, stage=Stage.TRAIN, event=event)
    return int(str(told.detail["step"])) if told else -1
