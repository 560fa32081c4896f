"""What a changed handbook means: answers that rest on words that are no more, who learned them, and whether a cycle is due.

In: the record and the handbook as it is. Out: figures for operators, a reason for a cycle, and a note of which handbook a cycle has
seen, so that one handbook is no reason twice. It changes no answer; `verify` retires.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from conversations import passages, runs
from conversations.errors import OperatorError
from conversations.lineage import releases_that_learned
from conversations.passages import Resting
from conversations.runs import RunState
from conversations.store import Record
from distill.dataset.handbook.articles import Handbook
from distill.rows import FactRow, LabelsRow

_SEEN = "handbook_seen"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """What rests on passages that the handbook has no more. `due_because` is empty where the newest training set is up to date."""

    gone: tuple[Resting, ...]
    answer_ids: tuple[str, ...]
    releases: tuple[str, ...]
    due_because: str


def changes(record: Record, handbook: Handbook) -> Changes:
    """Compare what accepted answers and training sets rest on with the handbook as it is."""
    gone = passages.resting_on_others(record, handbook.passages.keys())
    runs = {name for each in gone for name in each.run_ids}
    return Changes(
        gone=tuple(gone),
        answer_ids=tuple(sorted({name for each in gone for name in each.answer_ids})),
        releases=tuple(releases_that_learned(record, runs)),
        due_because=_due_because(record, handbook),
    )


def due_because_of_handbook(record: Record, path: Path) -> str:
    """Return why the handbook makes a cycle due, or "" where it does not; a handbook that cannot be read now makes none due."""
    try:
        handbook = _loaded(path, _signature(path))
    except OperatorError as error:
        log.warning("whether the handbook has changed is unknown: %s", error)
        return ""
    return _due_because(record, handbook)


def note_seen(record: Record, run_id: str, path: Path) -> None:
    """Note which handbook a cycle begins with; one that goes on keeps the first.

    Raises OperatorError for a handbook that cannot be read.
    """
    if _seen_by(record, run_id) is None:
        digest = Handbook.load(path).digest
        runs.add_event(record, run_id, stage="", event=_SEEN, detail={"digest": digest})


def retired_facts(labels: Iterable[LabelsRow], handbook: Handbook) -> tuple[str, ...]:
    """Return the facts that labels expect and the handbook has no more, or has otherwise, sorted."""
    return tuple(sorted({fact.fact_id for each in labels for fact in each.facts if not _stands(fact, handbook)}))


def without_retired(labels: LabelsRow, handbook: Handbook | None) -> LabelsRow:
    """Return labels that expect only what the handbook still says; as they are where there is no handbook."""
    if handbook is None or all(_stands(fact, handbook) for fact in labels.facts):
        return labels
    return labels.model_copy(update={"facts": tuple(fact for fact in labels.facts if _stands(fact, handbook))})


def _stands(fact: FactRow, handbook: Handbook) -> bool:
    return handbook.facts.get(fact.fact_id) == fact


def _due_because(record: Record, handbook: Handbook) -> str:
    """Look at the newest training set alone, which the next cycle replaces.

    One that came to an end without doing so, as a refused one does, would come to the same end again.
    """
    ended = next((run for run in runs.runs(record) if run.state is RunState.COMPLETE), None)
    if ended is not None and _seen_by(record, ended.run_id) == handbook.digest:
        return ""
    newest = next(iter(passages.passages_by_run(record).items()), None)
    if newest is None:
        return ""
    run_id, learned = newest
    gone = learned - handbook.passages.keys()
    return f"{len(gone)} handbook passages that the run {run_id} learned have changed" if gone else ""


def _seen_by(record: Record, run_id: str) -> str | None:
    event = runs.latest_event(record, run_id, stage="", event=_SEEN)
    return str(event.detail["digest"]) if event else None


@lru_cache(maxsize=1)
def _loaded(path: Path, signature: tuple[tuple[str, int, int], ...]) -> Handbook:
    return Handbook.load(path)


def _signature(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what shows that a handbook's files have changed, at the price of looking at their names."""
    files = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    try:
        return tuple((str(file), (found := file.stat()).st_mtime_ns, found.st_size) for file in files)
    except OSError:
        return ()
