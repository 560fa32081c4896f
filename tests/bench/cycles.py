"""Three cycles with new topics arriving in each: what a student keeps of the old ones and learns of the new, by how it goes on.

Run: `python -m tests.bench.cycles` does all of it. In parts, for a lent accelerator: `… cycles --prepare DIR` makes the data
(`tests.bench.cycles_data`); `… cycles --data DIR --base STUDENT --device cuda` trains and answers, and needs neither vLLM nor
sentence-transformers. What is done is in `DIR/trainings`, is kept when the benchmark is killed, and is not done again.

The first cycle is the same for every way of going on. After each, the student answers the held-out questions of the topics that
have come so far, greedily; they are marked as the stage `evaluate` marks them, with 95 % intervals from drawing conversations. Old
topics are those of earlier cycles. The held-out questions of a topic are the same for every student.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from conversations.prompt import Renderer
from distill.evaluation.figures.intervals import Estimate, Score, difference_of_means, mean
from distill.evaluation.scoring.facts import Yardstick
from distill.rows import DatasetRow, FactRow, read_rows
from distill.run import file_digest, read_json, write_whole
from distill.settings import TrainTable
from distill.training.request import StartingPoint, TrainRequest
from distill.training.train import train
from tests.bench import machine
from tests.bench.answering import greedy_answers
from tests.bench.study_trial import marked

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
DATA = ROOT / "var" / "bench" / "cycles"
CYCLES = 3
FIRST = "first"
SAMPLES = 2000


@dataclass(frozen=True)
class Way:
    """How a student goes on from the first cycle: on which record's rows, replaying which share, at which share of the rate."""

    record: str
    replay_share: float
    rate_share: float = 1.0


WAYS: Mapping[str, Way] = {
    "base, everything again": Way("again", 0.0),
    "learn on, replay 0": Way("chain", 0.0),
    "learn on, replay 0.1": Way("chain", 0.1),
    "learn on, replay 0.2": Way("chain", 0.2),
    "learn on, replay 0.3": Way("chain", 0.3),
    "learn on, replay 0.2, half the rate": Way("chain", 0.2, 0.5),
    "learn on, replay 0.2, a quarter of the rate": Way("chain", 0.2, 0.25),
}
USUAL = ("base, everything again", "learn on, replay 0", "learn on, replay 0.2")


@dataclass(frozen=True)
class Bench:
    """Where the data is, which student learns, and how much of it."""

    data: Path
    base: Path
    device: str
    batch_size: int
    epochs: float | None = None
    seed: int = 0
    most_questions: int | None = None

    def told(self) -> dict[str, object]:
        """Return what the data is made of."""
        return dict(json.loads((self.data / "cycles.json").read_text(encoding="utf-8")))

    def folder(self, way: str, cycle: int) -> Path:
        """Return where a training leaves its result; the first cycle is everybody's."""
        name = FIRST if cycle == 1 else way.replace(",", "").replace(" ", "_")
        return self.data / "trainings" / f"{self.device}-seed-{self.seed}" / name / f"cycle-{cycle}"


def perform(bench: Bench, way: str, cycle: int) -> dict[str, object]:
    """Train one cycle of one way, answer and mark, and return what is kept of it; what is done is read."""
    folder = bench.folder(way, cycle)
    done = folder / "result.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    result = _train(bench, WAYS[way], cycle, folder, bench.folder(way, cycle - 1) if cycle > 1 else None)
    started = time.monotonic()
    found = {
        "way": FIRST if cycle == 1 else way,
        "cycle": cycle,
        "result": result,
        "answers": _answers(bench, folder / "train" / "adapter", cycle),
        "answer_seconds": round(time.monotonic() - started, 1),
    }
    write_whole(done, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return found


def _train(bench: Bench, way: Way, cycle: int, folder: Path, before: Path | None) -> dict[str, object]:
    told, rows = bench.told(), bench.data / way.record / f"cycle-{cycle}"
    settings = TrainTable.model_validate({**dict(told["settings"]), "seed": bench.seed, "replay_share": way.replay_share})
    changes: dict[str, object] = {} if bench.epochs is None else {"epochs": bench.epochs}
    starts_from = str(read_json(rows / "rows.json")["starts_from"])
    start = None
    if before is not None and starts_from != "base":
        adapter = before / "train" / "adapter"
        start = StartingPoint(starts_from, adapter, file_digest(adapter / "adapter_model.safetensors"))
        if settings.learning_rate is not None:
            changes["learning_rate"] = settings.learning_rate * way.rate_share
    result = train(
        TrainRequest(
            base_dir=bench.base,
            train_path=rows / "train.jsonl",
            validation_path=rows / "validation.jsonl",
            out_dir=folder / "train",
            metrics_path=folder / "metrics.jsonl",
            settings=settings.model_copy(update=changes),
            max_prompt_tokens=int(str(told["max_prompt_tokens"])),
            replay_path=rows / "replay.jsonl",
            start=start,
            cache_dir=bench.data / "tokens",
        ),
        lambda _: None,
    )
    return asdict(result)


def _answers(bench: Bench, adapter: Path, cycle: int) -> list[dict[str, object]]:
    """Return the marked answers to the held-out questions of the topics that have come by a cycle."""
    told, renderer = bench.told(), Renderer.load(bench.base)
    yardstick = _yardstick(dict(told["yardstick"]))
    asked = [(group, row) for group, row in _questions(bench) if group <= cycle]
    limit = int(str(told["max_prompt_tokens"]))
    prompts = [
        renderer.prompt([message.message() for message in row.messages[:-1]], max_prompt_tokens=limit).token_ids
        for _, row in asked
    ]
    token_ids = greedy_answers(
        bench.base, adapter, prompts, stop_ids=renderer.stop_ids, max_new_tokens=int(str(told["max_answer_tokens"])),
        device=bench.device, batch_size=bench.batch_size,
    )  # fmt: skip
    return [
        {"group": group, **marked(row, renderer.text(answer).strip(), yardstick)}
        for (group, row), answer in zip(asked, token_ids, strict=True)
    ]


def _yardstick(held: Mapping[str, object]) -> Yardstick:
    facts = {name: FactRow.model_validate(fact) for name, fact in dict(held["facts"]).items()}
    return Yardstick(facts, dict(held["article_texts"]), tuple(held["declining_phrases"]))


def _questions(bench: Bench) -> list[tuple[int, DatasetRow]]:
    """Return the held-out questions that have facts to state, each with the group of its newest topic."""
    group_of: Mapping[str, int] = dict(bench.told()["group_of"])
    found: dict[int, list[DatasetRow]] = {}
    for row in read_rows(bench.data / "again" / f"cycle-{CYCLES}" / "test.jsonl", DatasetRow):
        if row.labels.facts:
            found.setdefault(max(group_of[name] for name in row.labels.articles), []).append(row)

    def place(row: DatasetRow) -> str:
        return hashlib.sha256(row.decision_id.encode()).hexdigest()

    return [(group, row) for group in sorted(found) for row in sorted(found[group], key=place)[: bench.most_questions]]


def table(bench: Bench, ways: Sequence[str]) -> dict[str, dict[str, object]]:
    """Do what is not done and return a line for each cycle of each way."""
    lines: dict[str, dict[str, object]] = {}
    for way in ways:
        for cycle in range(1, CYCLES + 1):
            found = perform(bench, way, cycle)
            answers = list(found["answers"])
            scores = {
                kind: [
                    Score(each["decision_id"], each["conversation_id"], each[metric])
                    for each in answers
                    if (each["group"] == cycle) is new and each[metric] is not None
                ]
                for kind, metric, new in (
                    ("old topics", "fact_accuracy", False), ("new topics", "fact_accuracy", True),
                    ("teacher, old", "teacher_fact_accuracy", False), ("teacher, new", "teacher_fact_accuracy", True),
                )
            }  # fmt: skip
            estimates = {kind: mean(some, SAMPLES) for kind, some in scores.items()}
            result = dict(found["result"])
            rows = read_json(bench.data / WAYS[way].record / f"cycle-{cycle}" / "rows.json")
            lines[f"{way}: cycle {cycle}"] = {
                "started_from": result["started_from"],
                "taught_before": rows["taught_before"],
                "rows": result["train_rows_kept"],
                "replayed": result["replayed_rows_kept"],
                "of": result["replayable_rows"],
                "tokens": result["tokens"],
                "seconds": round(float(result["seconds"]), 1),
                **{kind: estimate.as_json() if estimate else None for kind, estimate in estimates.items()},
            }
            print(f"cycles: {way}, cycle {cycle}: {json.dumps(lines[f'{way}: cycle {cycle}'])}", file=sys.stderr, flush=True)
    return lines


def over_seeds(benches: Sequence[Bench], ways: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return what each way of going on comes to over several seeds, and its change against the first way, question by question."""

    def scores(way: str, cycle: int, *, new: bool) -> list[Score]:
        return [
            Score(f"{each['decision_id']} {bench.seed}", each["conversation_id"], each["fact_accuracy"])
            for bench in benches
            for each in perform(bench, way, cycle)["answers"]
            if (each["group"] == cycle) is new and each["fact_accuracy"] is not None
        ]

    def told(estimate: Estimate | None) -> dict[str, object] | None:
        return estimate.as_json() if estimate else None

    lines: dict[str, dict[str, object]] = {}
    for way in ways:
        for cycle in range(2, CYCLES + 1):
            line: dict[str, object] = {"seeds": len(benches)}
            for kind, new in (("old topics", False), ("new topics", True)):
                found, against = scores(way, cycle, new=new), scores(ways[0], cycle, new=new)
                line[kind] = told(mean(found, SAMPLES))
                line[f"{kind}, change"] = None if way == ways[0] else told(difference_of_means(found, against, SAMPLES))
            lines[f"{way}: cycle {cycle}"] = line
    return lines


def figures(bench: Bench, ways: Sequence[str] = USUAL) -> dict[str, object]:
    """Return the table with what it depends on."""
    told = bench.told()
    first = (bench.data / record / "cycle-1" / "train.jsonl" for record in ("again", "chain"))
    assert len({path.read_bytes() for path in first}) == 1, "the first cycle is not the same for every way of going on"
    return {
        "subject": "cycles",
        "hardware": machine.hardware(),
        "device": bench.device,
        "seed": bench.seed,
        "share of the demo": told["share"],
        "epochs": bench.epochs if bench.epochs is not None else dict(told["settings"])["epochs"],
        "cycles": table(bench, ways),
    }


def show(found: Mapping[str, object]) -> None:
    """Print the table."""

    def cell(value: object) -> object:
        if not isinstance(value, dict):
            return value
        low, high = value["low"], value["high"]
        told_range = "" if low is None else f" ({low:.0%} to {high:.0%})"
        return f"{value['value']:.1%}{told_range}, n={value['n']}"

    lines = dict(found["cycles"])
    machine.told(
        "Three cycles, new topics in each",
        {name: {key: cell(value) for key, value in line.items()} for name, line in lines.items()},
    )


def main() -> None:
    """Prepare, train, answer, print a table, and write the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prepare", type=Path, metavar="DIR", help="only make the data, here")
    options.add_argument("--data", type=Path, metavar="DIR", help="only train and answer, from data made before")
    options.add_argument("--base", type=Path, default=STUDENT)
    options.add_argument("--share", type=float, default=0.4, help="of the demo's conversations")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--epochs", type=float, help="else the demo's")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="several: each alone, then all together"
    )
    options.add_argument("--questions", type=int, metavar="N", help="at most so many of each group")
    options.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(USUAL), metavar="WAY")
    options.add_argument("--every-way", action="store_true", help=f"all of {len(WAYS)}, not {len(USUAL)}")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    data = chosen.prepare or chosen.data or DATA
    if chosen.data is None:
        from tests.bench.cycles_data import prepare

        prepare(data, chosen.base, share=chosen.share)
    if chosen.prepare is None:
        benches = [
            Bench(data, chosen.base, chosen.device, chosen.batch_size, chosen.epochs, seed, chosen.questions)
            for seed in chosen.seeds
        ]
        ways = list(WAYS) if chosen.every_way else chosen.ways
        of_each = [figures(bench, ways) for bench in benches]
        for found in of_each:
            show(found)
        told = of_each[0]
        if len(benches) > 1:
            together = over_seeds(benches, ways)
            show({"cycles": together})
            told = {"subject": "cycles", "seeds": of_each, "over seeds": together}
        machine.written(told, chosen.json)


if __name__ == "__main__":
    main()
