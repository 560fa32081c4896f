"""What the product aims at, beside what was measured: the table of a case study that nobody has reproduced.

In: a report's figures. Out: one row for each aim with teacher, student, change, and met, missed or missing. What was not measured, or
cannot be compared, is missing with the reason; it is never counted as met, nor as nought.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from conversations.messages import Json


class TargetOutcome(StrEnum):
    """Whether an aim is reached."""

    MET = "met"
    MISSED = "missed"
    MISSING = "missing"


@dataclass(frozen=True)
class _Aim:
    """One aim: `reached` is held against student / teacher. Bytes, milliseconds and dollars as in the models' part."""

    name: str
    title: str
    teacher: float | None
    student: float | None
    ratio: float
    at_most: bool
    unit: str

    def reached(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio


# The case study's figures. It tells the cost and the number of requests as a ratio alone.
_AIMS = (
    _Aim("quality_kept", "kept of the teacher's quality", None, None, 0.92, at_most=False, unit="share"),
    _Aim("latency_p50", "whole answer, p50", 3200.0, 480.0, 0.15, at_most=True, unit="ms"),
    _Aim("memory", "memory of the server", 1.2e12, 60e9, 0.05, at_most=True, unit="bytes"),
    _Aim("cost_per_1000_turns", "cost of 1,000 turns", None, None, 0.40, at_most=True, unit="usd"),
    _Aim("requests_per_hour", "requests an hour", None, None, 10.0, at_most=False, unit="requests"),
)


def targets(models: Mapping[str, Json], retained: Json, quality_metric: str, load: Json) -> list[Json]:
    """Return the rows of the table. `load` holds what each model bore under load, where that was measured."""
    student, teacher = _part(models.get("candidate")), _part(models.get("teacher"))
    figures: dict[str, Callable[[dict[str, Json]], float | None]] = {
        "quality_kept": lambda model: _number(_part(_part(model.get("quality")).get(quality_metric)).get("value")),
        "latency_p50": lambda model: _number(_part(model.get("latency_ms")).get("p50")),
        "memory": _memory,
        "cost_per_1000_turns": lambda model: _number(model.get("cost_usd_per_1000_turns")),
        "requests_per_hour": lambda model: _most_requests(model, load)[0],
    }
    on_gpu = student.get("gpu_memory_bytes") is not None
    rows: list[Json] = []
    for aim in _AIMS:
        figure = figures[aim.name]
        row = _row(aim, figure(teacher), figure(student), comparable=teacher.get("comparable") is not False)
        if aim.name == "quality_kept":
            row.update(_of_retained(aim, retained))
        if aim.name == "requests_per_hour":
            row["concurrency"] = _most_requests(student, load)[1]
        elsewhere: Json = None
        measured: Json = {key: row[key] for key in ("teacher", "student", "ratio", "outcome")}
        rows.append({**row, "on_cpu": elsewhere if on_gpu else measured, "on_gpu": measured if on_gpu else elsewhere})
    return rows


def _row(aim: _Aim, teacher: float | None, student: float | None, *, comparable: bool) -> dict[str, Json]:
    ratio = None
    reason = ""
    if student is None:
        reason = "the student's figure was not measured"
    elif not comparable:
        reason = "the teacher is no large model; its figure cannot be compared"
    elif teacher is None or teacher <= 0:
        reason = "the teacher's figure was not measured"
    else:
        ratio = round(student / teacher, 6)
    return {
        "name": aim.name,
        "title": aim.title,
        "unit": aim.unit,
        "aim": {"teacher": aim.teacher, "student": aim.student, "ratio": aim.ratio, "at_most": aim.at_most},
        "teacher": teacher,
        "student": student,
        "ratio": ratio,
        "low": None,
        "high": None,
        "outcome": _outcome(aim, ratio),
        "reason": reason,
    }


def _of_retained(aim: _Aim, retained: Json) -> dict[str, Json]:
    """Return the share kept as the report holds it: paired, over the decisions that both have, and also of the handbook teacher."""
    kept = _part(retained)
    ratio, low, high = (_number(kept.get(key)) for key in ("value", "low", "high"))
    reason = ""
    if ratio is None:
        reason = "student and teacher have no scored decision in common, or the teacher scored nothing"
    elif ratio >= aim.ratio and (low is None or low < aim.ratio):
        reason = "the measured value reaches the aim, the lower end of its interval does not"
    failed = _number(kept.get("failed"))
    if failed:
        reason = f"{reason}{'; ' if reason else ''}answers that the new student did not give count as 0: {failed:.0f}"
    return {"ratio": ratio, "low": low, "high": high, "outcome": _outcome(aim, ratio), "reason": reason}


def _outcome(aim: _Aim, ratio: float | None) -> str:
    if ratio is None:
        return TargetOutcome.MISSING.value
    return (TargetOutcome.MET if aim.reached(ratio) else TargetOutcome.MISSED).value


def _memory(model: Mapping[str, Json]) -> float | None:
    """Return the memory that the model lives in: a GPU's where its server has one."""
    on_gpu = _number(model.get("gpu_memory_bytes"))
    return on_gpu if on_gpu is not None else _number(model.get("memory_bytes"))


def _most_requests(model: Mapping[str, Json], load: Json) -> tuple[float | None, Json]:
    """Return the most requests an hour, in the evaluation or under load, and how many there were at once."""
    rows = [_part(row) for row in (load if isinstance(load, list) else [])]
    measured = [
        (requests, row.get("concurrency"))
        for row in (model, *(row for row in rows if row.get("release_id") == model.get("release_id")))
        if (requests := _number(row.get("requests_per_hour"))) is not None
    ]
    return max(measured, key=lambda each: each[0], default=(None, None))


def _part(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
