"""What a report promises of its figures: each follows from the stored rows, here counted again without any of the report's code."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from reported_run import MODELS, reported_run

from distill.evaluation.report import renew_report

Scored = list[tuple[str, str, float]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with reported_run(tmp_path) as run:
        write_json(run.folder / "evaluate" / "load.json", {"rows": LOAD})
        write_json(run.folder / "evaluate" / "judge.json", {"agreement": {"value": 0.8, "kappa": 0.6, "n": 20}})
        renew_report(run)
        yield run.folder


LOAD = [
    {"model": "candidate", "release_id": "student-2", "concurrency": n, "requests": 90, "failed": 0, "requests_per_hour": 900.0 * n,
     "tokens_per_second": 7.0, "first_token_ms": {"p50": 9.0, "p95": 11.0}, "latency_ms": {"p50": 800.0, "p95": 900.0}}
    for n in (1, 32)
]  # fmt: skip


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_number_of_a_report_follows_from_the_stored_rows(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    told = dict(numbers(report))
    counted = dict(numbers(counted_again(folder)))
    assert counted.keys() == told.keys(), counted.keys() ^ told.keys()
    wrong = {
        place: (told[place], value)
        for place, value in counted.items()
        if not math.isclose(told[place], value, abs_tol=1.1e-6)
    }
    assert not wrong
    assert len(told) > 900


def numbers(value: object, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report with its place."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{place}.{key}")
    elif isinstance(value, list):
        for key, each in enumerate(value):
            yield from numbers(each, f"{place}[{key}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, float(value)


def counted_again(folder: Path) -> dict[str, object]:
    rows = read_lines(folder / "evaluate" / "rows.jsonl")
    taken = json.loads((folder / "evaluate" / "taken.json").read_text(encoding="utf-8"))
    edition = {row["decision_id"]: row for row in read_lines(folder / "assemble" / "test.jsonl")}
    models = {
        name: one_model([row for row in rows if row["model"] == name], taken.get(name, {}), edition) for name in MODELS
    }
    models["teacher"]["cost_usd_per_1000_turns"] = 2.5
    failed = [
        (row["decision_id"], row["conversation_id"], 0.0) for row in rows if row["failure"] and row["model"] == "candidate"
    ]
    asked_of_both = {decision for decision, *_ in scored(rows, "teacher")}
    failed = [score for score in failed if score[0] in asked_of_both]
    assert failed, "a run without a failure would not tell how one counts"
    kept = {**ratio([*scored(rows, "candidate"), *failed], scored(rows, "teacher")), "failed": len(failed)}
    by_topic, by_depth = defaultdict(list), defaultdict(list)
    for row in rows:
        by_topic[row["topic"]].append(row)
        by_depth["6+" if row["turn_depth"] >= 6 else str(row["turn_depth"])].append(row)
    manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/manifest.json")}
    return {
        "stages": {
            name: {**manifest["counts"], "seconds": manifest["seconds"]}
            for name, manifest in manifests.items()
            if name != "promote"
        },
        "models": models,
        "bootstrap_samples": 2000,
        "retained": kept,
        "by_topic": {name: of_group(group) for name, group in by_topic.items()},
        "by_depth": {name: of_group(group) for name, group in by_depth.items()},
        "latency": histogram(rows),
        "load": LOAD,
        "judge": json.loads((folder / "evaluate" / "judge.json").read_text(encoding="utf-8")),
        "training": curves(read_lines(folder / "metrics.jsonl")),
        "targets": aims(models, kept),
        "test_edition": 3,
    }


def one_model(
    rows: Sequence[dict[str, object]], took: dict[str, object], edition: dict[str, dict[str, object]]
) -> dict[str, object]:
    timed = [row for row in rows if row["timed"] and not row["failure"]]
    spoken = [row for row in timed if row["completion_tokens"]]
    hourly = took["turns_together"] / took["seconds_together"] * 3600 if took.get("seconds_together") else None
    metrics = sorted({metric for row in rows for metric, score in row["scores"].items() if score is not None})
    referenced = [row for row in rows if not row["failure"] and edition[row["decision_id"]]["labels"]["replies"]]
    references = [edition[row["decision_id"]]["labels"]["replies"] for row in referenced]
    streams = [[(texts[place] if place < len(texts) else None) for texts in references] for place in range(2)]
    bleu = sacrebleu.corpus_bleu([row["text"] for row in referenced], streams)
    return {
        "quality": {metric: mean(scored(rows, None, metric)) for metric in metrics},
        "corpus_bleu": {"value": bleu.score / 100, "n": len(referenced)},
        "first_token_ms": spread([row["first_token_ms"] for row in timed if row["first_token_ms"] is not None]),
        "latency_ms": spread([row["latency_ms"] for row in timed]),
        "tokens_per_second": round(
            sum(row["completion_tokens"] for row in spoken) / (sum(row["latency_ms"] for row in spoken) / 1000), 3
        ),
        "timed_answers": len(timed),
        "failed_answers": len([row for row in rows if row["failure"]]),
        "asked_answers": len(rows),
        "memory_bytes": took.get("memory_bytes"),
        "gpu_memory_bytes": took.get("gpu_memory_bytes"),
        "weights_bytes": took.get("weights_bytes"),
        "concurrency": took.get("concurrency"),
        "requests_per_hour": None if hourly is None else round(hourly, 3),
        "cost_usd_per_1000_turns": None if hourly is None else 1000 * 0.1 / hourly,
    }


def scored(rows: Sequence[dict[str, object]], model: str | None, metric: str = "fact_accuracy") -> Scored:
    return [
        (row["decision_id"], row["conversation_id"], row["scores"][metric])
        for row in rows
        if model in (None, row["model"]) and row["scores"].get(metric) is not None
    ]


def of_group(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    return {model: mean(scores) for model in MODELS if (scores := scored(rows, model))}


def level(conversations: int) -> float:
    """How far out the ends of the interval are taken, by the functions that the report's code does not use."""
    wide = math.sqrt(conversations / (conversations - 1)) * scipy.stats.t.ppf(0.975, conversations - 1)
    return NormalDist().cdf(-wide)


def draws(conversations: int) -> np.ndarray:
    return np.random.default_rng(20_240_601).integers(0, conversations, size=(2000, conversations))


def mean(scores: Scored) -> dict[str, object]:
    names = sorted({name for _, name, _ in scores})
    of = {name: [score for _, conversation, score in scores if conversation == name] for name in names}
    value = sum(score for *_, score in scores) / len(scores)
    told: dict[str, object] = {"value": value, "n": len(scores), "conversations": len(names), "low": None, "high": None}
    if len(names) == 1:
        return told
    if all(score == value for *_, score in scores) and value in (0, 1):
        # Wilson's interval where a share was seen in none or in all.
        z2 = NormalDist().inv_cdf(0.975) ** 2
        far = z2 / (len(names) + z2)
        return {**told, "low": 0.0 if value == 0 else 1 - far, "high": far if value == 0 else 1.0}
    drawn = [sum(sum(of[names[i]]) for i in row) / sum(len(of[names[i]]) for i in row) for row in draws(len(names))]
    return {**told, **ends(drawn, len(names))}


def ratio(one: Scored, other: Scored) -> dict[str, object]:
    others = {decision: score for decision, _, score in other}
    pairs = [(conversation, score, others[decision]) for decision, conversation, score in one if decision in others]
    names = sorted({name for name, *_ in pairs})
    top = {name: sum(a for conversation, a, _ in pairs if conversation == name) for name in names}
    bottom = {name: sum(b for conversation, _, b in pairs if conversation == name) for name in names}
    drawn = [sum(top[names[i]] for i in row) / sum(bottom[names[i]] for i in row) for row in draws(len(names))]
    value = sum(top.values()) / sum(bottom.values())
    return {"value": value, "n": len(pairs), "conversations": len(names), **ends(drawn, len(names))}


def ends(drawn: Sequence[float], conversations: int) -> dict[str, float]:
    tail = level(conversations)
    return {"low": at(drawn, tail), "high": at(drawn, 1 - tail)}


def at(values: Sequence[float], share: float) -> float:
    """A percentile by linear interpolation between the neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(values: Sequence[float]) -> dict[str, float | None]:
    return {name: round(at(values, share), 3) if values else None for name, share in (("p50", 0.5), ("p95", 0.95))}


def histogram(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    times = [row["latency_ms"] for row in rows if row["latency_ms"]]
    lowest, highest = (math.floor(20 * math.log10(end(times))) for end in (min, max))
    edges = [round(10 ** (place / 20), 3) for place in range(lowest - 1, highest + 3)]

    def counts(model: str, timed: bool) -> list[int]:
        of = [row["latency_ms"] for row in rows if row["model"] == model and row["timed"] is timed and not row["failure"]]
        return [sum(low <= time < high for time in of) for low, high in itertools.pairwise(edges)]

    return {
        "edges_ms": edges,
        "models": {name: {"one_at_a_time": counts(name, True), "together": counts(name, False)} for name in MODELS},
    }


def curves(lines: Sequence[dict[str, object]]) -> dict[str, object]:
    loss = [(line["tokens"], line["loss"]) for line in lines if "loss" in line]
    cuts = [place * len(loss) // 300 for place in range(301)]
    pieces = [loss[start:end] for start, end in itertools.pairwise(cuts)]
    return {
        "loss": [[piece[-1][0], sum(value for _, value in piece) / len(piece)] for piece in pieces],
        "validation_nll": [[line["tokens"], line["validation_nll"]] for line in lines if "validation_nll" in line],
    }


def aims(models: dict[str, dict[str, object]], kept: dict[str, object]) -> list[dict[str, object]]:
    student, teacher = models["candidate"], models["teacher"]
    rows = [
        (student["quality"]["fact_accuracy"]["value"], teacher["quality"]["fact_accuracy"]["value"], None, None, 0.92),
        (student["latency_ms"]["p50"], teacher["latency_ms"]["p50"], 480, 3200, 0.15),
        (student["memory_bytes"], None, 60e9, 1.2e12, 0.05),
        (student["cost_usd_per_1000_turns"], 2.5, None, None, 0.4),
        (max(student["requests_per_hour"], *(row["requests_per_hour"] for row in LOAD)), None, None, None, 10),
    ]
    found = []
    for place, (own, theirs, aim_own, aim_theirs, share) in enumerate(rows):
        change = kept["value"] if place == 0 else own / theirs if theirs else None
        measured = {"teacher": theirs, "student": own, "ratio": change}
        ends_of = {"low": kept["low"], "high": kept["high"]} if place == 0 else {}
        aim = {"teacher": aim_theirs, "student": aim_own, "ratio": share}
        found.append({**measured, **ends_of, "aim": aim, "on_cpu": measured})
    # Under load there were more, at the highest level.
    found[-1]["concurrency"] = LOAD[-1]["concurrency"]
    return found
