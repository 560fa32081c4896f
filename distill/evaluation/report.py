"""The report of a run: one JSON object, computed from the stored rows alone, and what is written out of it.

In: a run's rows and manifests. Out: `report.json`, `report.html` (`page/`) and the figures on the model card. A figure that was not
measured is null in the JSON and "not measured" in print, never nought. The JSON holds no name of a decision or a customer, so that
an erasure leaves it whole.
"""

import json
from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path
from typing import TypeAlias

from conversations import artefacts, audit, runs
from conversations.errors import OperatorError
from conversations.gate_word import OVERRIDDEN
from conversations.messages import Json
from conversations.settings import read_settings
from conversations.store import Record
from distill.evaluation.answering.load import LOAD
from distill.evaluation.evaluate import JUDGE, ROWS, TAKEN
from distill.evaluation.figures.corpus_bleu import corpus_bleu, references_by_decision
from distill.evaluation.figures.curves import training_curves
from distill.evaluation.figures.quality import by_depth, by_topic, qualities, retained
from distill.evaluation.figures.speed import latency_histogram, speed, taking
from distill.evaluation.figures.targets import targets
from distill.evaluation.scoring.row import MODELS
from distill.rows import DatasetRow, EvaluationRow, read_rows
from distill.run import STAGES, Run, Stage, read_json, write_whole
from distill.settings import DistillSettings
from distill.training.weights.card import with_measured

Report: TypeAlias = dict[str, Json]
# The action in the audit.
REPORT_FILE, PAGE_FILE = "report.json", "report.html"
HANDBOOK_NOTE = (
    "The handbook teacher is a search over the handbook, no large model: "
    "its latency, memory and cost are not comparable with a model's."
)


def build_report(run: Run) -> Report:
    """Compute a run's report from its stored rows; the gate is not in it yet."""
    rows = evaluation_rows(run)
    settings = run.settings.evaluate
    metric, samples = settings.quality_metric, settings.bootstrap_samples
    models = _models(run, rows)
    kept = retained(rows, metric, samples)
    load = _load(run)
    assembled = run.manifest(Stage.ASSEMBLE).details
    return {
        "run_id": run.run_id,
        "run_path": str(run.folder),
        "stages": {
            stage.value: _stage(run, stage) for stage in STAGES if run.is_complete(stage) and stage is not Stage.PROMOTE
        },
        "models": models,
        "quality_metric": metric,
        "bootstrap_samples": samples,
        "retained": kept,
        "by_topic": by_topic(rows, metric, samples),
        "by_depth": by_depth(rows, metric, samples),
        "latency": latency_histogram(rows, list(models)),
        "load": load,
        "judge": _optional(run, JUDGE),
        "training": training_curves(run.folder / "metrics.jsonl"),
        "targets": targets(models, kept, metric, load),
        "test_edition": assembled.get("test_edition"),
        "test_digest": assembled.get("test_digest"),
        "release_id": run.manifest(Stage.EVALUATE).details.get("candidate"),
        "started_from": run.manifest(Stage.TRAIN).details.get("started_from"),
    }


def evaluation_rows(run: Run) -> list[EvaluationRow]:
    """Return the stored rows that every figure is computed from."""
    return list(read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow))


def write_report(run: Run, report: Report) -> None:
    """Write `report.json`, `report.html` and the figures on the model card, each whole or not at all. Again is the same."""
    # Drawing is loaded only where something is drawn.
    from distill.evaluation.page.page import page_of

    write_whole(run.folder / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(run.folder / PAGE_FILE, page_of(run, report))
    _write_cards(run, report)


def read_report(folder: Path) -> Report:
    """Return a finished run's report.

    Raises OperatorError where there is none.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        raise OperatorError(f"{path}: no report; the run has not come to its end: `distill cycle` goes on with it")
    return read_json(path)


def renew_report(run: Run) -> Report:
    """Compute the report of a finished run anew, write it and return it. The gate's word stays: it was given on what was known.

    The record, out of which the console reads, gets it too.
    """
    before = read_report(run.folder)
    # A gate that was cut off before its end has left its word in the report alone, and will speak again.
    gate = gate_of(run) if run.is_complete(Stage.PROMOTE) else before.get("gate")
    report = {**build_report(run), "gate": gate}
    write_report(run, report)
    runs.note_report(run.record, run.run_id, report)
    return report


def gate_of(run: Run) -> Report:
    """Return the gate's word as the stage has left it, and the operator's against it as the audit holds it."""
    details = run.manifest(Stage.PROMOTE).details
    gate: Report = {name: details[name] for name in ("outcome", "reasons", "checks", "canary") if name in details}
    for entry in audit.entries_of(run.record, str(run.manifest(Stage.EVALUATE).details.get("candidate")), OVERRIDDEN):
        told: Report = json.loads(entry.detail_json)
        if told.get("run_id") == run.run_id:
            gate["overridden"] = {"by": entry.actor, "reason": told.get("reason"), "at": entry.happened_at_utc}
    return gate


def finished_run(record: Record, settings: DistillSettings, known: runs.Run) -> Run:
    """Return a run to be read: measured by its own settings, with everything where today's settings have it."""
    folder = Path(known.path)
    own = read_settings(DistillSettings, folder / "settings.toml")
    measures = {"evaluate": own.evaluate, "teach": own.teach, "teachers": own.teachers}
    return Run(record, settings.model_copy(update=measures), known.run_id, folder, lambda stage, share, note: None)


def check_report(run: Run) -> int:
    """Compute every figure of a report again from the stored rows, compare, and return how many were compared; the gate's too.

    Raises OperatorError that names the first figure that differs, with both values.
    """
    stored = read_report(run.folder)
    again = {**build_report(run), "gate": gate_of(run)}
    # Where the folder lies is no figure, and it may have been moved.
    differing = [found for found in _differences(stored, again, "") if not found.startswith("run_path:")]
    if differing:
        more = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
        raise OperatorError(
            f"{run.folder / REPORT_FILE}: {differing[0]}{more}; a report holds what its stored rows say: "
            "they or it were changed since, by hand, by an erasure or by a later measurement; `distill report --renew` makes it anew"
        )
    return sum(1 for _ in _leaves(again))


def _models(run: Run, rows: Sequence[EvaluationRow]) -> dict[str, Json]:
    taken = read_json(run.folder / Stage.EVALUATE / TAKEN)
    references = references_by_decision(list(read_rows(run.folder / Stage.ASSEMBLE / "test.jsonl", DatasetRow)))
    models: dict[str, Json] = {}
    for name in MODELS:
        of_model = [row for row in rows if row.model == name]
        if of_model:
            models[name] = {
                "release_id": of_model[0].release_id,
                "quality": qualities(of_model, name, run.settings.evaluate.bootstrap_samples),
                "corpus_bleu": corpus_bleu(of_model, references),
                **speed(of_model),
                **taking(_part(taken.get(name))),
                **_teacher_notes(run, name),
            }
    return models


def _teacher_notes(run: Run, name: str) -> dict[str, Json]:
    """Return what must be said of a teacher: its cost by its prices, how it was timed, and whether it can be compared at all."""
    if name != "teacher":
        return {"comparable": True}
    teacher = run.settings.teachers[run.settings.teach.teacher]
    if teacher.kind == "handbook":
        return {"comparable": False, "note": HANDBOOK_NOTE}
    cost = run.manifest(Stage.TEACH).details.get("cost_usd_per_1000_turns")
    asked = f"The teacher's times are those of the stage teach, with up to {teacher.concurrency} requests at once."
    return {"comparable": True, "cost_usd_per_1000_turns": cost, "note": asked}


def _stage(run: Run, stage: Stage) -> Json:
    manifest = run.manifest(stage)
    return {**manifest.counts.model_dump(by_alias=True), "seconds": manifest.seconds}


def _load(run: Run) -> Json:
    """Return the rows of what each student bore under load, or None where that was not measured."""
    found = _optional(run, LOAD)
    return found.get("rows") if isinstance(found, dict) else found


def _optional(run: Run, name: str) -> Json:
    """Return what a file of the stage holds that not every evaluation writes, or None."""
    path = run.folder / Stage.EVALUATE / name
    if not path.is_file():
        return None
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write_cards(run: Run, report: Report) -> None:
    """Put the figures on the model cards beside the run's weights, and note the cards as they are now."""
    teacher = run.settings.teach.teacher
    # A folder whose name begins with a dot is half done.
    for path in sorted((run.folder / Stage.TRAIN).glob("[!.]*/README.md")):
        write_whole(path, with_measured(path.read_text(encoding="utf-8"), report, teacher=teacher))
        with run.record.write() as transaction:
            artefacts.renew(transaction, path)


def _part(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _leaves(value: Json) -> Iterator[Json]:
    """Yield every value of a report that is no list and no object."""
    match value:
        case dict():
            for each in value.values():
                yield from _leaves(each)
        case list():
            for each in value:
                yield from _leaves(each)
        case _:
            yield value


def _differences(told: Json, again: Json, place: str) -> Iterator[str]:
    """Yield where two reports differ, as `place: value, the rows say value`."""
    if isinstance(told, dict) and isinstance(again, dict):
        for name in [*again, *(key for key in told if key not in again)]:
            here = f"{place}.{name}" if place else name
            if name not in told or name not in again:
                yield f"{here}: it is in {'the rows' if name in again else 'the report'} alone"
            else:
                yield from _differences(told[name], again[name], here)
    elif isinstance(told, list) and isinstance(again, list) and len(told) == len(again):
        for number, (one, other) in enumerate(zip(told, again, strict=True)):
            yield from _differences(one, other, f"{place}[{number}]")
    elif not _same(told, again):
        yield f"{place}: {told!r}, the rows say {again!r}"


def _same(told: Json, again: Json) -> bool:
    # Other versions of NumPy may add up in another order.
    if isinstance(told, float) and isinstance(again, float | int):
        return isclose(told, again, rel_tol=1e-6, abs_tol=2e-6)
    return told == again
