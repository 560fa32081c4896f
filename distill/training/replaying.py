"""What a run's training takes from earlier runs, and what the record learns of it: the release it starts from, the rows it replays.

In: an open run. Out: the starting point; and in the record, which decisions the run has learnt in the end.
"""

from pathlib import Path

from conversations import lineage
from distill.rows import DatasetRow, read_rows
from distill.run import Run, Stage
from distill.training.decisions.replay import FILE
from distill.training.request import StartingPoint
from distill.training.starting import starting_point


def start_of(run: Run) -> StartingPoint | None:
    """Return from which release the student of a run learns on: the one that `choose` found in service, None for the base.

    It stays the same when the run is taken up again, whatever is in service by then: `choose` has left out what it knows.
    """
    named = run.manifest(Stage.CHOOSE).details.get("starts_from")
    return starting_point(run.record, run.settings, str(named) if named else None)


def replay_of(run: Run) -> Path | None:
    """Return the file with what may be replayed; None for a run that was assembled before there was one."""
    path = run.folder / Stage.ASSEMBLE / "replay.jsonl"
    return path if path.is_file() else None


def settle_replay(run: Run, replay_path: Path) -> None:
    """Enter into the record which of the rows that might be replayed the run has learnt."""
    drawn = {row.decision_id: row for row in read_rows(run.stage_folder(Stage.TRAIN) / FILE, DatasetRow)}
    might = (row.decision_id for row in read_rows(replay_path, DatasetRow))
    lineage.settle_use(
        run.record,
        run.run_id,
        unused=[decision_id for decision_id in might if decision_id not in drawn],
        passages=[passage for row in drawn.values() for passage in row.passages],
    )
