"""What soft labels, rank, epochs and the learning rate each change: the study that the training's defaults are chosen from.

Run: `python -m tests.bench.study` does all of it on a machine with vLLM. In parts, for a lent accelerator:
`… study prepare --out DIR` makes the data (`tests.bench.study_data`); `… study run --data DIR --base STUDENT --device cuda
--parallel 4` trains and answers, and needs neither vLLM nor sentence-transformers; `… study show --data DIR` prints the table.

Each variant differs from the baseline in one setting and is trained with every seed, in a process of its own. What is done is in
`DIR/trials`, is kept when the study is killed, and is not done again. A student's answers to the held-out questions are greedy
and marked as the stage `evaluate` marks them. Changes are differences to the baseline, question by question and seed by seed,
with 95 % intervals from drawing conversations (fact accuracy), or from the seeds' spread (validation loss, Student's t).
Replay is measured where it has something to keep: in `tests.bench.cycles`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
BASELINE = "baseline"
SAMPLES = 2000
# What each variant changes in the baseline; a rank keeps alpha at twice itself, as `distill tune` does.
VARIANTS: Mapping[str, Mapping[str, float]] = {
    BASELINE: {},
    **{f"soft_weight {weight}": {"soft_weight": weight} for weight in (0.0, 0.25, 0.9)},
    **{f"rank {rank}": {"rank": rank, "alpha": 2 * rank} for rank in (4, 8, 32)},
    **{f"epochs {epochs}": {"epochs": epochs} for epochs in (1.0, 3.0)},
    **{f"learning_rate {rate:g}": {"learning_rate": rate} for rate in (5e-4, 1e-3, 4e-3)},
}
BASE_CHANGES: Mapping[str, float] = {"soft_weight": 0.5, "rank": 16, "alpha": 32, "epochs": 2.0, "learning_rate": 2e-3}


@dataclass(frozen=True)
class Trial:
    """One training of one variant with one seed, and where it leaves its result."""

    data: Path
    base: Path
    variant: str
    seed: int
    device: str

    @property
    def folder(self) -> Path:
        return self.data / "trials" / f"{self.variant.replace(' ', '_')}-seed{self.seed}"


def perform(trial: Trial, batch_size: int) -> dict[str, object]:
    """Train, answer and mark in this process, and return what is kept of it."""
    import shutil

    from conversations.prompt import Renderer
    from distill.rows import DatasetRow, read_rows
    from distill.settings import TrainTable
    from distill.training.train import TrainRequest, train

    study = json.loads((trial.data / "study.json").read_text(encoding="utf-8"))
    settings = TrainTable.model_validate(
        {**study["settings"], **BASE_CHANGES, **VARIANTS[trial.variant], "seed": trial.seed}
    )
    soft_labels = trial.data / "soft_labels.jsonl"
    result = train(
        TrainRequest(
            base_dir=trial.base,
            train_path=trial.data / "train.jsonl",
            validation_path=trial.data / "validation.jsonl",
            out_dir=trial.folder / "train",
            metrics_path=trial.folder / "metrics.jsonl",
            settings=settings,
            max_prompt_tokens=study["max_prompt_tokens"],
            soft_labels_path=soft_labels if soft_labels.is_file() else None,
            cache_dir=trial.data / "tokens",
        ),
        lambda _: None,
    )
    renderer = Renderer.load(trial.base)
    questions = list(read_rows(trial.data / "test.jsonl", DatasetRow))
    started = time.monotonic()
    texts = _answers(trial, questions, renderer, study, batch_size)
    shutil.rmtree(trial.folder / "train")
    return {
        "variant": trial.variant,
        "seed": trial.seed,
        "settings": settings.model_dump(mode="json"),
        "result": asdict(result),
        "answer_seconds": round(time.monotonic() - started, 1),
        "answers": [marked(row, text, study) for row, text in zip(questions, texts, strict=True)],
    }


def _answers(
    trial: Trial, questions: Sequence["object"], renderer: "object", study: dict[str, int], batch_size: int
) -> list[str]:
    from conversations.prompt import Renderer
    from distill.rows import DatasetRow
    from tests.bench.answering import greedy_answers

    assert isinstance(renderer, Renderer)
    prompts = []
    for row in questions:
        assert isinstance(row, DatasetRow)
        asked = [message.message() for message in row.messages[:-1]]
        prompts.append(renderer.prompt(asked, max_prompt_tokens=study["max_prompt_tokens"]).token_ids)
    token_ids = greedy_answers(
        trial.base,
        trial.folder / "train" / "adapter",
        prompts,
        stop_ids=renderer.stop_ids,
        max_new_tokens=study["max_answer_tokens"],
        device=trial.device,
        batch_size=batch_size,
    )
    return [renderer.text(answer).strip() for answer in token_ids]


def marked(row: "object", text: str, study: Mapping[str, dict[str, object]]) -> dict[str, object]:
    """Return an answer with its marks and, as `teacher_*`, those of the teacher's answer to the same question."""
    from conversations.messages import Role
    from distill.evaluation.metrics import Metric, Yardstick, score
    from distill.rows import DatasetRow, FactRow

    assert isinstance(row, DatasetRow)
    held = study["yardstick"]
    facts = {name: FactRow.model_validate(fact) for name, fact in dict(held["facts"]).items()}
    yardstick = Yardstick(facts, dict(held["article_texts"]), tuple(held["declining_phrases"]))
    question = "\n".join(message.content for message in row.messages[:-1] if message.role is Role.USER)
    asked = {"labels": row.labels, "question": question, "teacher_answer": "", "yardstick": yardstick}
    ours, teachers = score(text, **asked), score(row.messages[-1].content, **asked)
    return {
        "decision_id": row.decision_id,
        "conversation_id": row.conversation_id,
        "text": text,
        "fact_accuracy": ours[Metric.FACT_ACCURACY],
        "wrong_fact_rate": ours[Metric.WRONG_FACT_RATE],
        "teacher_fact_accuracy": teachers[Metric.FACT_ACCURACY],
    }


def run(trials: Sequence[Trial], *, parallel: int, batch_size: int) -> list[str]:
    """Do the trials that are not done, so many at once, print each as a line of JSON, and return what failed and why."""
    waiting = [trial for trial in trials if not (trial.folder / "result.json").is_file()]
    print(f"study: {len(trials) - len(waiting)} of {len(trials)} trials are done", file=sys.stderr, flush=True)
    failures = []
    with ThreadPoolExecutor(parallel) as pool:
        began = {pool.submit(_in_process, trial, batch_size, parallel): trial for trial in waiting}
        for done in as_completed(began):
            trial, failure = began[done], done.result()
            name = {"variant": trial.variant, "seed": trial.seed}
            if failure:
                failures.append(f"{trial.variant}, seed {trial.seed}: {failure}")
                print(json.dumps({**name, "failure": failure}), file=sys.stderr, flush=True)
                continue
            found = _read(trial)
            marks = [each["fact_accuracy"] for each in found["answers"] if each["fact_accuracy"] is not None]
            figures = {"fact_accuracy": round(sum(marks) / max(1, len(marks)), 4), "answers": len(marks)}
            trained = {key: found["result"][key] for key in ("best_validation_nll", "tokens", "seconds", "device")}
            print(json.dumps({**name, **figures, **trained}), file=sys.stderr, flush=True)
    return failures


def _in_process(trial: Trial, batch_size: int, parallel: int) -> str:
    """Do one trial in a process of its own; return why it failed, or nothing."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "tests.bench.study", "trial", "--data", str(trial.data), "--base", str(trial.base), "--device",
        trial.device, "--variant", trial.variant, "--seed", str(trial.seed), "--batch-size", str(batch_size),
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))} if parallel > 1 else {}
    log = trial.folder / "trial.log"
    with log.open("w", encoding="utf-8") as out:
        ended = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, **threads}, check=False)
    if ended.returncode == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {ended.returncode}: {lines[-1][:300] if lines else 'it said nothing'}"


def _read(trial: Trial) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((trial.folder / "result.json").read_text(encoding="utf-8"))
    return found


def table(trials: Iterable[Trial]) -> dict[str, dict[str, object]]:
    """Return each variant's marks and its changes against the baseline, over the seeds that both have."""
    from distill.evaluation.intervals import Score, difference_of_means, mean, ratio_of_means

    found: dict[str, dict[int, dict[str, object]]] = {}
    for trial in trials:
        if (trial.folder / "result.json").is_file():
            found.setdefault(trial.variant, {})[trial.seed] = _read(trial)

    def scores(variant: str, key: str) -> list[Score]:
        return [
            Score(f"{each['decision_id']} {seed}", each["conversation_id"], each[key])
            for seed, result in found[variant].items()
            for each in result["answers"]
            if each[key] is not None
        ]

    rows: dict[str, dict[str, object]] = {}
    for variant in found:
        accuracy = scores(variant, "fact_accuracy")
        losses = {seed: result["result"]["best_validation_nll"] for seed, result in found[variant].items()}
        row = {
            "seeds": len(losses),
            "fact_accuracy": mean(accuracy, SAMPLES),
            "share_kept_of_teacher": ratio_of_means(accuracy, scores(variant, "teacher_fact_accuracy"), SAMPLES),
        }
        if variant != BASELINE and BASELINE in found:
            row["change_of_fact_accuracy"] = difference_of_means(accuracy, scores(BASELINE, "fact_accuracy"), SAMPLES)
        rows[variant] = {name: value if isinstance(value, int) else value and value.as_json() for name, value in row.items()}
        rows[variant]["validation_nll"] = sum(losses.values()) / len(losses)
        rows[variant]["change_of_validation_nll"] = _change_over_seeds(losses, found.get(BASELINE, {}))
        rows[variant]["tokens"] = max(result["result"]["tokens"] for result in found[variant].values())
    return rows


def _change_over_seeds(
    losses: Mapping[int, float], baseline: Mapping[int, dict[str, dict[str, float]]]
) -> dict[str, object] | None:
    """Return the mean difference to the baseline, seed by seed, with its 95 % interval (Student's t)."""
    from distill.training.tuning.noise import mean_over_seeds

    both = sorted(losses.keys() & baseline.keys())
    return mean_over_seeds([losses[seed] - baseline[seed]["result"]["best_validation_nll"] for seed in both]).as_json()


def show(found: Mapping[str, object]) -> None:
    """Print the table."""
    from tests.bench.machine import told

    def interval(estimate: Mapping[str, float] | None) -> str:
        if estimate is None or estimate["value"] is None:
            return ""
        if estimate["low"] is None:
            return f"{estimate['value']:+.4f}"
        return f"{estimate['value']:+.4f} ({estimate['low']:+.4f} to {estimate['high']:+.4f})"

    cells = {
        variant: {name: interval(value) if isinstance(value, dict) else value for name, value in row.items()}
        for variant, row in dict(found["variants"]).items()
    }
    told("what each setting changes", cells)


def figures(trials: Sequence[Trial]) -> dict[str, object]:
    """Return the table with what it depends on."""
    from tests.bench.machine import hardware

    study = json.loads((trials[0].data / "study.json").read_text(encoding="utf-8"))
    devices = sorted({str(_read(each)["result"]["device"]) for each in trials if (each.folder / "result.json").is_file()})
    kept = {"train_rows_share": study["train_rows_share"], "baseline": dict(BASE_CHANGES)}
    return {"subject": "study", "hardware": hardware(), "devices": devices, **kept, "variants": table(trials)}


def main() -> None:
    """Do a part of the study, or all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["all", "prepare", "run", "show", "trial"], default="all")
    parser.add_argument("--out", "--data", dest="data", type=Path, default=ROOT / "var" / "bench" / "study")
    parser.add_argument("--base", type=Path, default=STUDENT)
    parser.add_argument("--teacher", type=Path, help="a fully tuned student's checkpoint (else it is trained first)")
    parser.add_argument(
        "--full", action="store_true", help="train on all rows, not on those of a third of the conversations"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--variant", choices=[*VARIANTS], help="of the part `trial`")
    parser.add_argument("--seed", type=int, help="of the part `trial`")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at once")
    parser.add_argument("--batch-size", type=int, default=44, help="prompts answered side by side")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data, base, device = arguments.data.absolute(), arguments.base.absolute(), arguments.device
    if arguments.part == "trial":
        trial = Trial(data, base, arguments.variant, arguments.seed, device)
        text = json.dumps(perform(trial, arguments.batch_size), ensure_ascii=False)
        half = trial.folder / ".result.half"
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(trial.folder / "result.json")
        return
    if arguments.part in ("all", "prepare"):
        from tests.bench.study_data import prepare

        prepare(data, base, arguments.teacher, share=1.0 if arguments.full else 1 / 3)
    # Seed by seed, so that an interrupted study has all variants of its first seeds.
    trials = [Trial(data, base, variant, seed, device) for seed in range(arguments.seeds) for variant in arguments.variants]
    failures = (
        run(trials, parallel=arguments.parallel, batch_size=arguments.batch_size) if arguments.part in ("all", "run") else []
    )
    if arguments.part in ("all", "show"):
        from tests.bench.machine import written

        found = figures(trials)
        show(found)
        written(found, arguments.json)
    if failures:
        raise SystemExit("failed:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
