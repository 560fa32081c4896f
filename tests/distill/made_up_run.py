"""A run whose stages up to `evaluate` have left what the gate reads, and a student server that is nothing but its line in the record.

Nothing is trained or asked: the rows are made up, so that a test decides what the gate sees.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from conversations import releases, runs
from conversations.messages import Role
from conversations.releases import Load, Release, ReleaseKind, ReleaseState, ServerState
from conversations.settings import read_settings
from conversations.store import Record
from distill.rows import DatasetRow, EvaluationRow, LabelsRow, MessageRow, rows_text
from distill.run import STAGES, Counts, Outcome, Run, Stage, new_run, open_run
from distill.settings import DistillSettings

METRIC = "fact_accuracy"
BASE, OLD = "base-1", "student-old"
TOPICS = ("billing", "lights", "moving")
Change = Callable[[EvaluationRow], EvaluationRow | None]


def rows(
    *,
    conversations: int = 100,
    each: int = 2,
    released: str = OLD,
    candidate: str = "student-new",
    change: Change = lambda row: row,
) -> list[EvaluationRow]:
    """Rows of a candidate that answers all as the teacher and the student in service do, each row as `change` returns it."""
    found = []
    for place in range(conversations * each):
        for model, release_id in (("candidate", candidate), ("released", released), ("teacher", "big")):
            scores: dict[str, float | None] = {METRIC: 1.0}
            if model != "teacher":
                scores |= {"wrong_fact_rate": 0.0, "declined_rate": 0.0, "leak_rate": 0.0, "format_fault_rate": 0.0}
            row = EvaluationRow.model_validate(
                {
                    "decision_id": f"decision_{place}", "conversation_id": f"conversation_{place // each}",
                    "topic": TOPICS[place // each % len(TOPICS)], "model": model, "release_id": release_id, "text": "Wait 12 minutes.",
                    "scores": scores, "timed": place < 8, "first_token_ms": 100.0, "latency_ms": 900.0, "prompt_tokens": 50,
                    "completion_tokens": 8,
                }
            )  # fmt: skip
            changed = change(row)
            if changed is not None:
                found.append(changed)
    return found


def scored(row: EvaluationRow, **scores: float | None) -> EvaluationRow:
    """The row with other scores."""
    return row.model_copy(update={"scores": {**row.scores, **scores}})


@contextmanager
def measured_run(
    folder: Path, *, promote: str = "", more: str = "", load_seconds: float = 0.6, change: Change = lambda row: row
) -> Iterator[Run]:
    """A run that waits for its gate, with OLD in service, held as `distill promote` holds it."""
    write_settings(folder, promote, more, load_seconds)
    settings = read_settings(DistillSettings, folder / "settings.toml")
    with Record(settings.record.path) as record:
        enter(
            record, Release(BASE, None, "tiny", ReleaseKind.BASE, str(folder), "", {}, "2026-01-01", ReleaseState.CANDIDATE)
        )
        enter(
            record, Release(OLD, None, "tiny", ReleaseKind.LORA, str(folder), "", {}, "2026-01-02", ReleaseState.CANDIDATE)
        )
        for release_id in (BASE, OLD):
            releases.promote(record, release_id, actor="test", reason="test")
        with new_run(record, settings) as run:
            _fill(run, change)
        with open_run(record, settings, run.run_id) as opened:
            yield opened


def enter(record: Record, release: Release) -> None:
    """Enter a release."""
    releases.register(record, release, actor="test", reason="test")


def let_through(run: Run) -> str:
    """The candidate's name, once the gate has said yes to it in the record."""
    name = candidate_of(run)
    runs.note_report(run.record, run.run_id, {"release_id": name, "gate": {"outcome": "promote"}})
    return name


def candidate_of(run: Run) -> str:
    """The name of the run's candidate."""
    return str(run.manifest(Stage.EVALUATE).details["candidate"])


def load(record: Record, *release_ids: str) -> None:
    """A healthy server that has releases in memory."""
    releases.announce_server(
        record,
        server_id="s1",
        base_url="http://127.0.0.1:9",
        base="tiny",
        state=ServerState.READY,
        memory_bytes=3_000_000_000,
    )
    for release_id in release_ids:
        releases.note_load(record, Load("s1", release_id, True, ""))


def write_settings(folder: Path, promote: str, more: str, load_seconds: float) -> None:
    """Settings of a run without a teacher that could be asked."""
    (folder / "no-student").mkdir(parents=True, exist_ok=True)
    (folder / "no-student" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "settings.toml").write_text(
        f"""
[record]
path = "record.db"
[student]
base = "no-student"
profile = "cpu"
[prompt]
system = "You help."
[runs]
folder = "runs"
[teachers.big]
base_url = "http://127.0.0.1:9/v1"
model = "big-1"
licence_allows_training = "yes"
[teach]
teacher = "big"
max_cost_usd = 0.0
max_calls = 1
[evaluate]
server_usd_per_hour = 0.1
bootstrap_samples = 100
load_timeout_seconds = {load_seconds}
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.05
{promote}
{more}
""",
        encoding="utf-8",
    )


def _fill(run: Run, change: Change) -> None:
    candidate = run.run_id.replace("run_", "student-")
    weights = run.stage_folder(Stage.TRAIN) / "adapter"
    weights.mkdir()
    (weights / "adapter_model.safetensors").write_bytes(b"weights")
    (run.folder / "metrics.jsonl").write_text("", encoding="utf-8")
    measured = rows(candidate=candidate, change=change)
    run.write_rows(Stage.ASSEMBLE, "test.jsonl", [_question(row) for row in measured if row.model == "teacher"])
    run.write_rows(Stage.EVALUATE, "rows.jsonl", measured)
    taken = {name: {"memory_bytes": 3_000_000_000, "weights_bytes": 7} for name in ("candidate", "released")}
    (run.stage_folder(Stage.EVALUATE) / "taken.json").write_text(json.dumps(taken), encoding="utf-8")
    details: Mapping[Stage, dict[str, object]] = {
        Stage.ASSEMBLE: {"test_edition": 1, "test_digest": "sha256:1"},
        Stage.TRAIN: {"started_from": "base"},
        Stage.EVALUATE: {"candidate": candidate},
    }
    for stage in STAGES[:-1]:
        counts = Counts(taken_in=1, accepted=1, rejected=0, unscored=0, rejected_by_reason={})
        run.perform(stage, lambda _, stage=stage, counts=counts: Outcome(counts, details.get(stage, {})))  # type: ignore[misc]
    release = Release(
        candidate, run.run_id, "tiny", ReleaseKind.LORA, str(weights), "", {}, "2026-01-03", ReleaseState.CANDIDATE
    )
    enter(run.record, release)


def _question(row: EvaluationRow) -> DatasetRow:
    messages = (
        MessageRow(role=Role.USER, content=f"Why does the lamp glow, {row.decision_id}?"),
        MessageRow(role=Role.ASSISTANT, content=row.text),
    )
    return DatasetRow(
        decision_id=row.decision_id, conversation_id=row.conversation_id, cluster_id=row.conversation_id, topic=row.topic,
        weight=1.0, teacher="big", labels=LabelsRow(answerable=True), messages=messages,
    )  # fmt: skip


def text_of(measured: list[EvaluationRow]) -> str:
    """Rows as they stand in a file."""
    return rows_text(measured)
