"""The words of a report: what each figure is called and how it is written.

In: pieces of a report. Out: text, "not measured" where there is nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conversations.messages import Json
from distill.evaluation.figures.targets import TargetOutcome
from distill.evaluation.scoring.metric import Metric

MISSING = "not measured"
MODEL_TITLES = {
    "base": "base student",
    "candidate": "new student",
    "released": "student in service",
    "teacher": "teacher",
}
METRIC_GROUPS: Mapping[str, Mapping[Metric, str]] = {
    "Against the handbook": {
        Metric.FACT_ACCURACY: "fact accuracy",
        Metric.WRONG_FACT_RATE: "states a wrong fact",
        Metric.DECLINED_RATE: "says it does not know",
        Metric.UNANSWERABLE_DECLINED_RATE: "not in the handbook: says so",
        Metric.UNANSWERABLE_WRONG_FACT_RATE: "not in the handbook: states a fact",
    },
    "Against right answers and people's replies": {
        Metric.EXACT_MATCH: "exact match",
        Metric.TOKEN_F1: "F1 of words",
        Metric.NLI_ACCURACY: "inference: right label",
        Metric.MATH_ACCURACY: "maths: right final answer",
        Metric.REFERENCE_BLEU: "BLEU, mean of answers",
        Metric.REFERENCE_ROUGE_1: "ROUGE-1",
        Metric.REFERENCE_ROUGE_L: "ROUGE-L",
        Metric.REFERENCE_SIMILARITY: "likeness in meaning",
    },
    "By the judge": {
        Metric.JUDGE_GRADE: "grade",
        Metric.JUDGE_WINS_TEACHER: "liked better than the teacher",
        Metric.JUDGE_WINS_RELEASED: "liked better than the student in service",
    },
    "Likeness to the teacher, which is no accuracy": {
        Metric.TEACHER_LIKENESS: "chrF",
        Metric.TEACHER_BLEU: "BLEU, mean of answers",
        Metric.TEACHER_SIMILARITY: "likeness in meaning",
    },
    "How it answers": {
        Metric.LEAK_RATE: "gives away personal data",
        Metric.FORMAT_FAULT_RATE: "breaks the form",
        Metric.ANSWER_WORDS: "words in an answer",
    },
}
_NO_SHARES = frozenset({Metric.ANSWER_WORDS.value})
TARGET_TITLES = {
    "quality_kept": "kept of the teacher's quality",
    "latency_p50": "whole answer, p50",
    "memory": "memory of the server",
    "cost_per_1000_turns": "cost of 1,000 turns",
    "requests_per_hour": "requests an hour",
}


@dataclass(frozen=True)
class Line:
    """One line of a table: what it is, and a cell for each model."""

    title: str
    cells: tuple[str, ...]


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
    """Return the tables that compare the models; what no model has a figure for is left out, but for what serving takes."""
    models = [part(model) for model in part(report["models"]).values()]
    found: list[Section] = []
    for group, titles in METRIC_GROUPS.items():
        lines = [Line(title, tuple(_metric_cell(metric, model) for model in models)) for metric, title in titles.items()]
        found.append(Section(group, tuple(line for line in lines if set(line.cells) != {MISSING})))
    if any(model.get("corpus_bleu") for model in models):
        found.append(Section("All answers together", (Line("corpus BLEU", tuple(_bleu(model) for model in models)),)))
    told: tuple[tuple[str, Callable[[Json], str], str], ...] = (
        ("first token p50 / p95", spread, "first_token_ms"),
        ("whole answer p50 / p95", spread, "latency_ms"),
        ("tokens a second, one answer at a time", plain, "tokens_per_second"),
        ("requests an hour, together", plain, "requests_per_hour"),
        ("memory of the server", size, "memory_bytes"),
        ("memory of the GPU", size, "gpu_memory_bytes"),
        ("weights on disk", size, "weights_bytes"),
        ("cost of 1,000 turns", dollars, "cost_usd_per_1000_turns"),
    )
    # A report of an earlier version has not every key.
    taking = tuple(Line(title, tuple(write(model.get(key)) for model in models)) for title, write, key in told)
    found.append(Section("Speed, memory and cost", taking))
    return [section for section in found if section.lines]


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


def share(value: Json) -> str:
    """Return an estimate of a share in per cent, with its interval and count."""
    return estimate(value, as_share=True)


def estimate(value: Json, *, as_share: bool) -> str:
    """Return an estimate with its interval and count."""
    found = part(value)
    middle, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if middle is None:
        return MISSING

    def told(figure: float) -> str:
        return f"{figure:.1%}" if as_share else f"{figure:.1f}"

    interval = f" ({told(low)} to {told(high)})" if low is not None and high is not None else ""
    return f"{told(middle)}{interval} n={found.get('n')}"


def spread(value: Json) -> str:
    """Return the median and the 95th percentile of times."""
    p50, p95 = number(part(value).get("p50")), number(part(value).get("p95"))
    return MISSING if p50 is None or p95 is None else f"{p50:,.0f} / {p95:,.0f} ms"


def size(value: Json) -> str:
    """Return bytes as megabytes or gigabytes, of 10^6 and 10^9 bytes."""
    found = number(value)
    if found is None:
        return MISSING
    return f"{found / 1e9:,.1f} GB" if found >= 1e9 else f"{found / 1e6:,.0f} MB"


def dollars(value: Json) -> str:
    """Return an amount of money."""
    found = number(value)
    return MISSING if found is None else f"${found:,.4f}"


def plain(value: Json) -> str:
    """Return a figure in as many digits as it is worth."""
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}" if found >= 100 else f"{found:,.1f}"


def _metric_cell(metric: Metric, model: Mapping[str, Json]) -> str:
    return estimate(part(model.get("quality")).get(metric.value), as_share=metric.value not in _NO_SHARES)


def _bleu(model: Mapping[str, Json]) -> str:
    return share(model.get("corpus_bleu"))


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
    interval = {"value": row["ratio"], "low": row["low"], "high": row["high"]}
    change = _change(number(row["ratio"]), kept=kept, at_most=at_most)
    if kept and number(row["ratio"]) is not None:
        change = share({**interval, "n": None}).removesuffix(" n=None")
    on_gpu = part(row["on_gpu"])
    return TargetLine(
        title=TARGET_TITLES[str(row["name"])],
        aim=case + _change(bound, kept=kept, at_most=at_most),
        teacher=written(row["teacher"]),
        student=written(row["student"]),
        change=change,
        outcome=str(row["outcome"]),
        reason=str(row["reason"]),
        on_gpu=_change(number(on_gpu.get("ratio")), kept=kept, at_most=at_most) if on_gpu else MISSING,
    )


def _change(ratio: float | None, *, kept: bool, at_most: bool) -> str:
    """Return student / teacher as the case study says it: kept, less by so much, or so many times."""
    if ratio is None:
        return TargetOutcome.MISSING.value
    if kept:
        return f"{ratio:.1%}" if ratio != round(ratio, 2) else f"{ratio:.0%}"
    return f"{ratio - 1:+.0%}" if at_most else f"{ratio:,.3g} times"


def load_lines(report: Mapping[str, Json]) -> list[tuple[str, ...]]:
    """Return what each student bore under load, a line for each number of requests at once."""
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
        for row in items(report.get("load"))
    ]


LOAD_TITLES = (
    "student", "requests at once", "requests an hour", "tokens a second", "first token p50 / p95", "whole answer p50 / p95", "failed",
)  # fmt: skip


def reasons_of(report: Mapping[str, Json]) -> Sequence[str]:
    """Return why the gate said what it said."""
    reasons = part(report.get("gate")).get("reasons")
    return [str(reason) for reason in reasons] if isinstance(reasons, list) else []
