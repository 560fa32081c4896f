"""The report of a run: one JSON object, one page, one table, all computed from the stored rows.

In: a run's rows and manifests. Out: `report.json`, `report.html`, and lines for a terminal. A figure that was not measured
is null in the JSON and "not measured" in print, never nought.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from conversations.errors import OperatorError
from conversations.messages import Json, Role
from conversations.releases import STARTED_FROM_BASE
from distill.evaluation.evaluate import ROWS, TAKEN
from distill.evaluation.figures.intervals import Estimate, Score, difference_of_means, mean, percentile, ratio_of_means
from distill.evaluation.scoring.metric import Metric
from distill.rows import DatasetRow, EvaluationRow, read_rows
from distill.run import STAGES, Run, Stage, read_json, write_whole

Report: TypeAlias = dict[str, Json]
MODELS = ("base", "candidate", "released", "teacher")
_TITLES = {
    "base": "base student",
    "candidate": "new student",
    "released": "student in service",
    "teacher": "teacher",
}
_WORST = 20


def build_report(run: Run) -> Report:
    """Compute a run's report from its stored rows; the gate is not in it yet."""
    rows = list(read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow))
    settings = run.settings.evaluate
    taken = read_json(run.folder / Stage.EVALUATE / TAKEN)
    models: dict[str, Json] = {}
    for name in MODELS:
        of_model = [row for row in rows if row.model == name]
        if of_model:
            models[name] = _model(of_model, taken.get(name), settings.bootstrap_samples, _teacher_notes(run, name))
    retained = ratio_of_means(
        scores_of(rows, "candidate", settings.quality_metric),
        scores_of(rows, "teacher", settings.quality_metric),
        settings.bootstrap_samples,
    )
    assembled = run.manifest(Stage.ASSEMBLE).details
    return {
        "run_id": run.run_id,
        "run_path": str(run.folder),
        "stages": {stage.value: _stage(run, stage) for stage in STAGES if run.is_complete(stage)},
        "models": models,
        "quality_metric": settings.quality_metric,
        "retained": retained.as_json() if retained else None,
        "test_edition": assembled.get("test_edition"),
        "test_digest": assembled.get("test_digest"),
        "release_id": run.manifest(Stage.EVALUATE).details.get("candidate"),
        "started_from": run.manifest(Stage.TRAIN).details.get("started_from"),
    }


def estimate_difference(run: Run) -> Estimate | None:
    """Return how the candidate's quality differs from the release in service, or None without one."""
    rows = list(read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow))
    settings = run.settings.evaluate
    return difference_of_means(
        scores_of(rows, "candidate", settings.quality_metric),
        scores_of(rows, "released", settings.quality_metric),
        settings.bootstrap_samples,
    )


def scores_of(rows: Sequence[EvaluationRow], model: str, metric: str) -> list[Score]:
    """Return a model's scores by one metric, those that apply."""
    return [
        Score(row.decision_id, row.conversation_id, value)
        for row in rows
        if row.model == model and (value := row.scores.get(metric)) is not None
    ]


def write_report(run: Run, report: Report) -> None:
    """Write `report.json` and `report.html` into the run's folder."""
    write_whole(run.folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_whole(run.folder / "report.html", _page(run, report))


def read_report(folder: Path) -> Report:
    """Return a finished run's report.

    Raises OperatorError where there is none.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise OperatorError(f"{path}: no report; the run has not come to its end: `distill cycle` goes on with it")
    return read_json(path)


def printed(report: Report) -> RenderableType:
    """Return the report as a terminal shows it."""
    models = _mapping(report["models"])
    table = Table(title=f"Run {report['run_id']}, test edition {report['test_edition']}", title_justify="left")
    table.add_column("")
    for name in models:
        table.add_column(_TITLES[name] + _note(models[name]), justify="right")
    for title, cells in _lines(report):
        table.add_row(title, *cells)
    gate = _mapping(report.get("gate"))
    reasons = gate.get("reasons")
    lines: list[RenderableType] = [
        table,
        Text(f"Kept of the teacher's {report['quality_metric']}: {_share(report['retained'])}"),
    ]
    # A report of an earlier version says nothing of it: every training started from the base then.
    started = report.get("started_from") or STARTED_FROM_BASE
    lines.append(Text(f"Gate: {gate.get('outcome', 'not asked')}", style="bold"))
    lines += [Text(f"  - {reason}") for reason in (reasons if isinstance(reasons, list) else [])]
    lines.append(Text(f"Release: {report['release_id']}, started from {started}   Folder: {report['run_path']}"))
    if any(_mapping(model).get("comparable") is False for model in models.values()):
        lines.append(Text("* " + _HANDBOOK_NOTE, style="dim"))
    return Group(*lines)


_HANDBOOK_NOTE = (
    "The handbook teacher is a search over the handbook, no large model: "
    "its latency, memory and cost are not comparable with a model's."
)
_METRIC_LINES = (
    (Metric.FACT_ACCURACY, "fact accuracy"),
    (Metric.WRONG_FACT_RATE, "states a wrong fact"),
    (Metric.DECLINED_RATE, "says it does not know"),
    (Metric.UNANSWERABLE_DECLINED_RATE, "not in the handbook: says so"),
    (Metric.UNANSWERABLE_WRONG_FACT_RATE, "not in the handbook: states a fact"),
    (Metric.TEACHER_LIKENESS, "likeness to the teacher (chrF)"),
)


def _lines(report: Report) -> list[tuple[str, list[str]]]:
    """Return the rows of the table that compares the models."""
    models = [_mapping(model) for model in _mapping(report["models"]).values()]
    lines = [
        (title, [_share(_mapping(model["quality"]).get(metric)) for model in models]) for metric, title in _METRIC_LINES
    ]
    known = [(title, cells) for title, cells in lines if any(cell != _MISSING for cell in cells)]
    known.append(("first token p50 / p95 (ms)", [_spread(model["first_token_ms"]) for model in models]))
    known.append(("whole answer p50 / p95 (ms)", [_spread(model["latency_ms"]) for model in models]))
    known.append(("memory of the server", [_megabytes(model["memory_bytes"]) for model in models]))
    known.append(("weights on disk", [_megabytes(model["weights_bytes"]) for model in models]))
    known.append(("cost of 1,000 turns", [_dollars(model["cost_usd_per_1000_turns"]) for model in models]))
    return known


def _model(rows: Sequence[EvaluationRow], taken: Json, samples: int, notes: Mapping[str, Json]) -> dict[str, Json]:
    """Return one model's part of the report. Latency is of the answers that were asked for one at a time."""
    name = rows[0].model
    quality: dict[str, Json] = {}
    for metric in Metric:
        estimate = mean(scores_of(rows, name, metric), samples)
        if estimate is not None:
            quality[metric.value] = estimate.as_json()
    timed = [row for row in rows if row.timed and not row.failure]
    took = _mapping(taken)
    return {
        "release_id": rows[0].release_id,
        "quality": quality,
        "first_token_ms": _percentiles([row.first_token_ms for row in timed]),
        "latency_ms": _percentiles([row.latency_ms for row in timed]),
        "timed_answers": len(timed),
        "failed_answers": sum(bool(row.failure) for row in rows),
        "memory_bytes": took.get("memory_bytes"),
        "weights_bytes": took.get("weights_bytes"),
        "cost_usd_per_1000_turns": _cost(took),
        "turns_per_hour": _turns_per_hour(took),
        **notes,
    }


def _teacher_notes(run: Run, name: str) -> dict[str, Json]:
    """Return what must be said of a teacher: its cost by its prices, and whether its figures can be compared at all."""
    if name != "teacher":
        return {"comparable": True}
    teacher = run.settings.teachers[run.settings.teach.teacher]
    if teacher.kind == "handbook":
        return {"comparable": False, "note": _HANDBOOK_NOTE}
    answered = run.manifest(Stage.TEACH).details.get("cost_usd_per_1000_turns")
    return {"comparable": True, "cost_usd_per_1000_turns": answered}


def _percentiles(values: Sequence[float | None]) -> dict[str, Json]:
    known = [value for value in values if value is not None]
    return {"p50": _rounded(percentile(known, 0.5)), "p95": _rounded(percentile(known, 0.95))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _turns_per_hour(took: Mapping[str, Json]) -> float | None:
    turns, seconds = took.get("turns_together"), took.get("seconds_together")
    if not isinstance(turns, int) or not isinstance(seconds, int | float) or not turns or seconds <= 0:
        return None
    return round(turns / seconds * 3600, 3)


def _cost(took: Mapping[str, Json]) -> float | None:
    """Return dollars for 1,000 turns on a server that is busy at the measured concurrency."""
    hourly, turns = took.get("server_usd_per_hour"), _turns_per_hour(took)
    if turns is None or not isinstance(hourly, int | float):
        return None
    return round(hourly / turns * 1000, 6)


def _stage(run: Run, stage: Stage) -> Json:
    manifest = run.manifest(stage)
    return {**manifest.counts.model_dump(by_alias=True), "seconds": manifest.seconds}


_MISSING = "not measured"


def _mapping(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _note(model: Json) -> str:
    return " *" if _mapping(model).get("comparable") is False else ""


def _share(value: Json) -> str:
    estimate = _mapping(value)
    number = estimate.get("value")
    if not isinstance(number, int | float):
        return _MISSING
    low, high = estimate.get("low"), estimate.get("high")
    told = f"{number:.1%}"
    if isinstance(low, int | float) and isinstance(high, int | float):
        told += f" ({low:.1%} to {high:.1%})"
    return f"{told} n={estimate.get('n')}"


def _spread(value: Json) -> str:
    percentiles = _mapping(value)
    p50, p95 = percentiles.get("p50"), percentiles.get("p95")
    if not isinstance(p50, int | float) or not isinstance(p95, int | float):
        return _MISSING
    return f"{p50:,.0f} / {p95:,.0f}"


def _megabytes(value: Json) -> str:
    return f"{value / 1e6:,.0f} MB" if isinstance(value, int | float) else _MISSING


def _dollars(value: Json) -> str:
    return f"${value:,.4f}" if isinstance(value, int | float) else _MISSING


def _page(run: Run, report: Report) -> str:
    """Return the report as one page that needs nothing else."""
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("distill.evaluation.page", "."), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.jinja")
    models = _mapping(report["models"])
    return template.render(
        report=report,
        titles=[_TITLES[name] + _note(models[name]) for name in models],
        lines=_lines(report),
        retained=_share(report["retained"]),
        gate=_mapping(report.get("gate")),
        stages=_mapping(report["stages"]),
        bars=_bars(report),
        worst=_worst_cases(run, list(models)),
        note=_HANDBOOK_NOTE if any(_mapping(model).get("comparable") is False for model in models.values()) else "",
    )


def _bars(report: Report) -> list[dict[str, Json]]:
    """Return the quality of each model with its interval, in per cent, for the picture."""
    bars: list[dict[str, Json]] = []
    for name, model in _mapping(report["models"]).items():
        estimate = _mapping(_mapping(_mapping(model)["quality"]).get(str(report["quality_metric"])))
        value, low, high = estimate.get("value"), estimate.get("low"), estimate.get("high")
        if isinstance(value, int | float):
            bars.append(
                {
                    "title": _TITLES[name],
                    "value": round(value * 100, 1),
                    "low": round((low if isinstance(low, int | float) else value) * 100, 1),
                    "high": round((high if isinstance(high, int | float) else value) * 100, 1),
                }
            )
    return bars


def _worst_cases(run: Run, models: Sequence[str]) -> list[dict[str, Json]]:
    """Return the cases in which the new student falls furthest behind the teacher, side by side."""
    metric = str(run.settings.evaluate.quality_metric)
    answers: dict[str, dict[str, EvaluationRow]] = {}
    for row in read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow):
        answers.setdefault(row.decision_id, {})[row.model] = row
    gaps: list[tuple[float, str]] = []
    for decision_id, by_model in answers.items():
        student, teacher = (by_model[name].scores.get(metric) for name in ("candidate", "teacher"))
        if student is not None and teacher is not None:
            gaps.append((student - teacher, decision_id))
    questions = {row.decision_id: row for row in read_rows(run.folder / Stage.ASSEMBLE / "test.jsonl", DatasetRow)}
    return [
        {
            # An erasure finds the page by this name.
            "decision_id": decision_id,
            "gap": f"{gap:+.2f}",
            "question": [m.content for m in questions[decision_id].messages[:-1] if m.role is Role.USER][-1],
            "expected": [fact.says for fact in questions[decision_id].labels.facts],
            "answers": [
                {
                    "title": _TITLES[name],
                    "text": answers[decision_id][name].text,
                    "score": answers[decision_id][name].scores.get(metric),
                }
                for name in models
            ],
        }
        for gap, decision_id in sorted(gaps)[:_WORST]
        if gap < 0
    ]
