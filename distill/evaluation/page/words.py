"""The words of a report: what each figure is called and how it is written.

In: pieces of a report. Out: text, "not measured" where there is nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conversations.messages import Json

MISSING = "not measured"
MODEL_TITLES = {
    "base": "base student",
    "candidate": "new student",
    "released": "student in service",
    "teacher": "teacher",
}
METRIC_GROUPS: Mapping[str, Mapping[str, str]] = {
    "Against the handbook": {
        "fact_accuracy": "fact accuracy",
        "wrong_fact_rate": "states a wrong fact",
        "declined_rate": "says it does not know",
        "unanswerable_declined_rate": "not in the handbook: says so",
        "unanswerable_wrong_fact_rate": "not in the handbook: states a fact",
    },
    "Against right answers and people's replies": {
        "exact_match": "exact match",
        "token_f1": "F1 of words",
        "nli_accuracy": "inference: right label",
        "math_accuracy": "maths: right final answer",
        "reference_bleu": "BLEU, mean of answers",
        "reference_rouge_1": "ROUGE-1",
        "reference_rouge_l": "ROUGE-L",
        "reference_similarity": "likeness in meaning",
    },
    "By the judge": {
        "judge_grade": "grade",
        "judge_wins_teacher": "liked better than the teacher",
        "judge_wins_released": "liked better than the one in service",
    },
    "Likeness to the teacher, which is no accuracy": {
        "teacher_likeness": "chrF",
        "teacher_bleu": "BLEU, mean of answers",
        "teacher_similarity": "likeness in meaning",
    },
    "How it answers": {
        "refusal_rate": "says no, or that it does not know",
        "leak_rate": "gives away personal data",
        "format_fault_rate": "breaks the form",
        "answer_words": "words in an answer",
    },
}
_NO_SHARES = frozenset({"answer_words"})


@dataclass(frozen=True)
class Cell:
    """A figure, and its interval and count where it has any."""

    figure: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.figure} {self.detail}" if self.detail else self.figure


@dataclass(frozen=True)
class Line:
    """One line of a table: what it is, and a cell for each model."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Some lines of a table under one heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class TargetLine:
    """One aim: the case study's words, the figures here, and whether it is reached."""

    title: str
    aim: str
    teacher: str
    student: str
    change: str
    outcome: str
    reason: str
    on_gpu: str


def part(value: Json) -> dict[str, Json]:
    """Return a piece of a report that is an object; an empty one where there is nothing."""
    return value if isinstance(value, dict) else {}


def items(value: Json) -> list[dict[str, Json]]:
    """Return a piece of a report that is a list of objects; an empty one where there is nothing."""
    return [part(each) for each in value] if isinstance(value, list) else []


def number(value: Json) -> float | None:
    """Return a figure, or None where there is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def sections(report: Mapping[str, Json]) -> list[Section]:
    """Return the tables that compare the models; a metric that no model has a figure for is left out."""
    models = [part(model) for model in part(report["models"]).values()]
    known = {metric for titles in METRIC_GROUPS.values() for metric in titles}
    others = [metric for model in models for metric in part(model.get("quality")) if metric not in known]
    groups = {**METRIC_GROUPS, "Others": {metric: metric.replace("_", " ") for metric in others}}
    found = [
        Section(
            group, tuple(_metric_line(metric, title, models) for metric, title in titles.items() if _has(models, metric))
        )
        for group, titles in groups.items()
    ]
    if any(model.get("corpus_bleu") for model in models):
        cells = tuple(estimate(model.get("corpus_bleu"), as_share=True) for model in models)
        found.append(Section("All answers together", (Line("corpus BLEU", cells),)))
    # A report of an earlier version has not every key.
    taking = [Line(title, tuple(Cell(write(model.get(key))) for model in models)) for title, write, key in _TAKING]
    if any(model.get("failed_answers") for model in models):
        found.insert(0, Section("Not answered", (Line("gave no answer", tuple(map(_failed, models))),)))
    found.append(Section("Speed, memory and cost", tuple(taking)))
    return [section for section in found if section.lines]


def _failed(model: Mapping[str, Json]) -> Cell:
    """Return how many answers a model did not give; a report of an earlier version does not say of how many."""
    failed, asked = number(model.get("failed_answers")), number(model.get("asked_answers"))
    return Cell(MISSING if failed is None else f"{failed:,.0f}" if asked is None else f"{failed:,.0f} of {asked:,.0f}")


def _has(models: Sequence[Mapping[str, Json]], metric: str) -> bool:
    return any(part(model.get("quality")).get(metric) for model in models)


def _metric_line(metric: str, title: str, models: Sequence[Mapping[str, Json]]) -> Line:
    as_share = metric not in _NO_SHARES
    return Line(title, tuple(estimate(part(model.get("quality")).get(metric), as_share=as_share) for model in models))


def titles_of(report: Mapping[str, Json]) -> list[str]:
    """Return the models' names, with a star at those that cannot be compared in everything."""
    return [
        MODEL_TITLES[name] + (" *" if part(model).get("comparable") is False else "")
        for name, model in part(report["models"]).items()
    ]


def notes_of(report: Mapping[str, Json]) -> list[str]:
    """Return what must be said of models."""
    return [str(part(model)["note"]) for model in part(report["models"]).values() if part(model).get("note")]


def target_lines(report: Mapping[str, Json]) -> list[TargetLine]:
    """Return the table of aims; none where the report is of an earlier version."""
    return [_target_line(row) for row in items(report.get("targets"))]


def target_reasons(report: Mapping[str, Json]) -> list[str]:
    """Return what must be said of aims, such as why they are missing, with the names of those."""
    of_reason: dict[str, list[str]] = {}
    for line in target_lines(report):
        if line.reason:
            of_reason.setdefault(line.reason, []).append(line.title)
    return [f"{', '.join(titles)}: {reason}" for reason, titles in of_reason.items()]


def share(value: Json) -> str:
    """Return an estimate of a share in per cent, with its interval and count."""
    return str(estimate(value, as_share=True))


def kept_of(report: Mapping[str, Json]) -> str:
    """Return the share of the teacher's quality that is kept, with its interval, its count and what counts as 0 in it."""
    failed = number(part(report["retained"]).get("failed"))
    note = f", of which {failed:.0f} gave no answer and count as 0" if failed else ""
    return share(report["retained"]) + note


def estimate(value: Json, *, as_share: bool) -> Cell:
    """Return an estimate with its interval and count."""
    found = part(value)
    middle, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if middle is None:
        return Cell(MISSING)

    def told(figure: float) -> str:
        return f"{figure:.1%}" if as_share else f"{figure:.1f}"

    interval = f"({told(low)} to {told(high)}) " if low is not None and high is not None else ""
    return Cell(told(middle), f"{interval}n={found.get('n')}")


def spread(value: Json) -> str:
    """Return the median and the 95th percentile of times."""
    p50, p95 = number(part(value).get("p50")), number(part(value).get("p95"))
    return MISSING if p50 is None or p95 is None else f"{p50:,.0f} / {p95:,.0f} ms"


def size(value: Json) -> str:
    """Return bytes as MB, GB or TB, of 10^6, 10^9 and 10^12 bytes."""
    found = number(value)
    if found is None:
        return MISSING
    if found >= 1e12:
        return f"{found / 1e12:,.1f} TB"
    return f"{found / 1e9:,.1f} GB" if found >= 1e9 else f"{found / 1e6:,.0f} MB"


def dollars(value: Json) -> str:
    """Return an amount of money."""
    found = number(value)
    return MISSING if found is None else f"${found:,.4f}"


def plain(value: Json) -> str:
    """Return a figure in as many digits as it is worth."""
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}" if found >= 100 else f"{found:,.1f}"


_TAKING: tuple[tuple[str, Callable[[Json], str], str], ...] = (
    ("first token p50 / p95", spread, "first_token_ms"),
    ("whole answer p50 / p95", spread, "latency_ms"),
    ("tokens a second, one answer at a time", plain, "tokens_per_second"),
    ("requests an hour, together", plain, "requests_per_hour"),
    ("memory of the server", size, "memory_bytes"),
    ("memory of the GPU", size, "gpu_memory_bytes"),
    ("weights on disk", size, "weights_bytes"),
    ("cost of 1,000 turns", dollars, "cost_usd_per_1000_turns"),
)
_WRITTEN: Mapping[str, Callable[[Json], str]] = {
    "share": lambda value: MISSING if number(value) is None else f"{number(value):.1%}",
    "ms": lambda value: MISSING if number(value) is None else f"{number(value):,.0f} ms",
    "bytes": size,
    "usd": dollars,
    "requests": plain,
}


def _target_line(row: Mapping[str, Json]) -> TargetLine:
    aim, written = part(row["aim"]), _WRITTEN[str(row["unit"])]
    kept = row["name"] == "quality_kept"
    bound, at_most = number(aim["ratio"]), bool(aim["at_most"])
    assert bound is not None
    teacher, student = number(aim["teacher"]), number(aim["student"])
    case = f"{written(teacher)} → {written(student)}, " if teacher is not None and student is not None else ""
    change = _change(number(row["ratio"]), kept=kept, at_most=at_most)
    if kept and number(row["ratio"]) is not None:
        low, high = number(row["low"]), number(row["high"])
        change += f" ({low:.1%} to {high:.1%})" if low is not None and high is not None else ""
    at_once, on_gpu = number(row.get("concurrency")), part(row["on_gpu"])
    return TargetLine(
        title=str(row["title"]),
        aim=case + _change(bound, kept=kept, at_most=at_most),
        teacher=written(row["teacher"]),
        student=written(row["student"]) + ("" if at_once is None else f", {at_once:,.0f} at once"),
        change=change,
        outcome=str(row["outcome"]),
        reason=str(row["reason"]),
        on_gpu=_change(number(on_gpu.get("ratio")), kept=kept, at_most=at_most) if on_gpu else MISSING,
    )


def _change(ratio: float | None, *, kept: bool, at_most: bool) -> str:
    """Return student / teacher as the case study says it: kept, less by so much, or so many times."""
    if ratio is None:
        return "–"
    if kept:
        return f"{ratio:.1%}" if ratio != round(ratio, 2) else f"{ratio:.0%}"
    return f"{ratio - 1:+.0%}" if at_most else f"{ratio:,.3g} times"


def load_lines(load: Json) -> list[tuple[str, ...]]:
    """Return what each student bore under load, as a report holds it, a line for each number of requests at once."""
    return [
        (
            MODEL_TITLES.get(str(row.get("model")), str(row.get("model"))),
            str(row.get("concurrency")),
            plain(row.get("requests_per_hour")),
            plain(row.get("tokens_per_second")),
            spread(row.get("first_token_ms")),
            spread(row.get("latency_ms")),
            f"{row.get('failed')} of {row.get('requests')}",
        )
        for row in items(load)
    ]


LOAD_TITLES = (
    "student", "requests at once", "requests an hour", "tokens a second", "first token p50 / p95", "whole answer p50 / p95", "failed",
)  # fmt: skip


def reasons_of(report: Mapping[str, Json]) -> Sequence[str]:
    """Return why the gate said what it said, and what was done with its word."""
    gate = part(report.get("gate"))
    reasons, overridden = gate.get("reasons"), part(gate.get("overridden"))
    told = [str(reason) for reason in reasons] if isinstance(reasons, list) else []
    if overridden:
        told.append(f"overridden by {overridden.get('by')}: {overridden.get('reason')}")
    trial = number(part(gate.get("canary")).get("share"))
    return [*told, f"tried on {trial:.0%} of new conversations first"] if trial is not None else told
