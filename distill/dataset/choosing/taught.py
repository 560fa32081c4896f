"""What earlier runs taught, as choosing sees it: from which release the student learns on, and which questions it knows already.

In: the record and the settings. Out: a release's name, and candidates without those that need not be taught again. A student that
learns on from a release knows what the runs of that release's line taught, and no more: a run that the gate refused, or a release
that was rolled back, taught it nothing.
"""

from collections.abc import Mapping, Sequence

from conversations.decisions import Decision
from conversations.lineage import runs_behind, trained_in_service
from conversations.messages import Split
from conversations.store import Record
from conversations.taught import passages_taught, still_stands
from distill.dataset.choosing.candidates import Candidate
from distill.dataset.choosing.clusters import LeftOut
from distill.dataset.handbook.articles import Handbook
from distill.settings import DistillSettings


def starting_release(record: Record, settings: DistillSettings) -> str | None:
    """Return the release that the student of a run begun now learns on from, None for the base student."""
    return trained_in_service(record) if settings.train.start_from == "release" else None


def known_already(record: Record, settings: DistillSettings, run_id: str, starts_from: str | None) -> set[str]:
    """Return the decisions that were taught before and need not be again; none where the settings teach everything again."""
    if settings.choose.taught_before == "again":
        return set()
    present = Handbook.load(settings.handbook.path).passages.keys() if settings.handbook else ()
    return still_stands(record, run_id, present, by_runs=_line(record, settings, starts_from))


def known_passages(record: Record, settings: DistillSettings, run_id: str, starts_from: str | None) -> set[str]:
    """Return the handbook passages that were taught before, by their hashes; none where the settings teach everything again."""
    if settings.choose.taught_before == "again":
        return set()
    return passages_taught(record, run_id, by_runs=_line(record, settings, starts_from))


def _line(record: Record, settings: DistillSettings, starts_from: str | None) -> list[str] | None:
    """Return the runs whose teaching counts; None for every complete one."""
    if settings.train.start_from == "base":
        return None
    return runs_behind(record, starts_from) if starts_from else []


def without_known(
    wanted: Sequence[Candidate], known: Mapping[str, Decision], standing: set[str], left_out: dict[str, LeftOut]
) -> list[Candidate]:
    """Leave out the training decisions that stand as they were taught; what is tested or validated stays."""
    for each in wanted:
        decided = known.get(each.decision_id)
        if decided is not None and decided.split is Split.TRAIN and each.decision_id in standing:
            left_out[each.decision_id] = LeftOut.TAUGHT_BEFORE
    return [each for each in wanted if each.decision_id not in left_out]
