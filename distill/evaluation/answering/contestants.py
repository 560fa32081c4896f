"""Who is measured: the candidate that was trained, the untuned base and the release in service, each with the server that has it.

In: a run whose training is done. Out: the candidate as a release of the record, asked to be loaded, and the servers that answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conversations import releases
from conversations.errors import OperatorError
from conversations.messages import utc_now
from conversations.releases import ReleaseKind
from conversations.serving import digest_of_weights
from distill.evaluation.answering.generation import wait_until_loaded
from distill.run import Run, Stage, file_digest

StudentModel = Literal["base", "candidate", "released"]
_ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Contestant:
    """A student that is measured, and the server that serves it."""

    model: StudentModel
    release_id: str
    server: releases.StudentServer


def register_candidate(run: Run) -> str:
    """Enter the run's weights as a release, once, ask for them to be loaded, and return the release's name."""
    release_id = run.run_id.replace("run_", "student-")
    if release_id not in {release.release_id for release in releases.releases(run.record)}:
        start = str(run.manifest(Stage.TRAIN).details.get("started_from", releases.STARTED_FROM_BASE))
        kind, folder = trained_weights(run)
        releases.register(
            run.record,
            releases.Release(
                release_id=release_id,
                run_id=run.run_id,
                base=run.settings.student.base.name,
                kind=kind,
                weights_path=str(folder),
                weights_digest=_digest_of(kind, folder),
                metrics={},
                created_at_utc=utc_now(),
                state=releases.ReleaseState.CANDIDATE,
                started_from=None if start == releases.STARTED_FROM_BASE else start,
            ),
            actor="distill evaluate",
            reason=f"trained by {run.run_id}, started from {start}",
        )
    releases.want(run.record, release_id, wanted_by="distill evaluate")
    return release_id


def trained_weights(run: Run) -> tuple[ReleaseKind, Path]:
    """Return what a run has trained and where it is: a whole student, an adapter merged into its base, or an adapter.

    Raises OperatorError when the training is not done.
    """
    told, folder = run.manifest(Stage.TRAIN).details, run.folder / Stage.TRAIN
    if told.get("kind") == "full":
        return ReleaseKind.FULL, folder / str(told["weights"])
    if told.get("merged"):
        return ReleaseKind.MERGED, folder / "merged"
    return ReleaseKind.LORA, folder / str(told.get("weights", "adapter"))


def _digest_of(kind: ReleaseKind, folder: Path) -> str:
    """Return the digest of released weights: of the one file of an adapter, or over the configuration and all files of a student.

    Raises OperatorError where the weights are gone.
    """
    needed = folder / (_ADAPTER_FILE if kind is ReleaseKind.LORA else "config.json")
    if not needed.is_file():
        raise OperatorError(
            f"{needed}: no such file; expected the weights that `distill train` wrote there; restore the folder, or train again in "
            "a new run"
        )
    return file_digest(needed) if kind is ReleaseKind.LORA else digest_of_weights(folder)


def contestants(run: Run, candidate: str) -> list[Contestant]:
    """Return base, candidate and, where it is another one, the release in service, each with its server.

    Raises OutsideError when nobody loads one of them in time, and OperatorError where no base student is known.
    """
    wait = run.settings.evaluate.load_timeout_seconds
    candidate_server = wait_until_loaded(run.record, candidate, wait)
    base = next((release.release_id for release in releases.wanted(run.record) if release.kind is ReleaseKind.BASE), None)
    if base is None:
        raise OperatorError("the record knows no base student; start `support-bot student` once with these settings")
    found: list[Contestant] = [
        Contestant("base", base, wait_until_loaded(run.record, base, wait)),
        Contestant("candidate", candidate, candidate_server),
    ]
    current = releases.in_service(run.record)
    if current is not None and current not in (base, candidate):
        found.append(Contestant("released", current, wait_until_loaded(run.record, current, wait)))
    return found
