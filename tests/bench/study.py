"""What soft labels, rank, epochs and the learning rate each change: the study that the training's defaults are chosen from.

Run: `python -m tests.bench.study` does all of it on a machine with vLLM. In parts, for a lent accelerator:
`… study prepare --data DIR` makes the data (`tests.bench.study_data`); `… study run --data DIR --base STUDENT --device cuda
--parallel 4` trains and answers, and needs neither vLLM nor sentence-transformers; `… study show --data DIR` prints the table.

Each variant differs from the baseline in one setting and is trained with every seed, in a process of its own
(`tests.bench.study_trial`). What is done is in `DIR/trials`, is kept when the study is killed, and is not done again. A student's
answers to the held-out questions are greedy and marked as the stage `evaluate` marks them. Changes are differences to the baseline,
question by question and seed by seed, with 95 % intervals from drawing conversations (fact accuracy), or from the seeds' spread
(validation loss, Student's t). Replay is measured where it has something to keep: in `tests.bench.cycles`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pydantic import TypeAdapter

from distill.evaluation.figures.intervals import Estimate, Score, difference_of_means, mean, ratio_of_means
from distill.run import write_whole
from distill.training.tuning.noise import mean_over_seeds
from tests.bench.arguments import at_least_one, folder_with
from tests.bench.study_trial import RESULT_FILE, Trial, read_study

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
BASELINE = "baseline"
SAMPLES = 2000
# A rank keeps alpha at twice itself, as `distill tune` does.
BASELINE_SETTINGS: Mapping[str, float] = {"soft_weight": 0.5, "rank": 16, "alpha": 32, "epochs": 2.0, "learning_rate": 2e-3}
VARIANTS: Mapping[str, Mapping[str, float]] = {
    BASELINE: {},
    **{f"soft_weight {weight}": {"soft_weight": weight} for weight in (0.0, 0.25, 0.9)},
    **{f"rank {rank}": {"rank": rank, "alpha": 2 * rank} for rank in (4, 8, 32)},
    **{f"epochs {epochs}": {"epochs": epochs} for epochs in (1.0, 3.0)},
    **{f"learning_rate {rate:g}": {"learning_rate": rate} for rate in (5e-4, 1e-3, 4e-3)},
}
Found = Mapping[str, object]


def run(trials: Sequence[Trial], *, parallel: int) -> list[str]:
    """Do the trials that are not done, so many at once, tell each as a line of JSON, and return what failed and why."""
    waiting = [trial for trial in trials if not (trial.folder / RESULT_FILE).is_file()]
    _tell({"trials": len(trials), "done": len(trials) - len(waiting)})
    failures = []
    with ThreadPoolExecutor(parallel) as pool:
        begun = {pool.submit(_in_process, trial, parallel): trial for trial in waiting}
        for done in as_completed(begun):
            trial, failure = begun[done], done.result()
            name = {"variant": trial.variant, "seed": trial.seed}
            if failure:
                failures.append(f"{trial.variant}, seed {trial.seed}: {failure}")
                _tell({**name, "failure": failure})
                continue
            found = _read(trial)
            accuracy = mean(_scores({trial.seed: found}, "fact_accuracy"), SAMPLES)
            trained = {key: found["result"][key] for key in ("best_validation_nll", "tokens", "seconds", "device")}
            _tell(
                {**name, "fact_accuracy": accuracy and accuracy.as_json(), **trained, "answering": found["answer_seconds"]}
            )
    return failures


def _in_process(trial: Trial, parallel: int) -> str:
    """Do one trial in a process of its own; return why it failed, or nothing."""
    asked = write_whole(trial.folder / "trial.json", TypeAdapter(Trial).dump_json(trial, indent=1).decode() + "\n")
    # Side by side, processes that each take every core only wait for one another.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))} if parallel > 1 else {}
    log = trial.folder / "trial.log"
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "tests.bench.study_trial", str(asked)]
        # The pipe that nobody writes to tells the trial that this study lives.
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=out, env={**os.environ, **threads}
        )
        with process:
            status = process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "" if status == 0 else f"exit code {status}: {lines[-1][:300] if lines else 'it said nothing'}"


def _read(trial: Trial) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((trial.folder / RESULT_FILE).read_text(encoding="utf-8"))
    return found


def _scores(by_seed: Mapping[int, Mapping[str, Iterable[Mapping[str, object]]]], key: str) -> list[Score]:
    """Return the marks of a variant's answers: one for each question and seed, of the question's conversation."""
    return [
        Score(f"{each['decision_id']} {seed}", str(each["conversation_id"]), float(str(each[key])))
        for seed, found in by_seed.items()
        for each in found["answers"]
        if each[key] is not None
    ]


def table(trials: Iterable[Trial]) -> dict[str, Found]:
    """Return each variant's marks and its changes against the baseline, over the seeds that both have."""
    found: dict[str, dict[int, dict[str, dict[str, object]]]] = {}
    for trial in trials:
        if (trial.folder / RESULT_FILE).is_file():
            found.setdefault(trial.variant, {})[trial.seed] = _read(trial)
    baseline = found.get(BASELINE, {})
    rows: dict[str, Found] = {}
    for variant, by_seed in found.items():
        losses = {seed: float(str(each["result"]["best_validation_nll"])) for seed, each in by_seed.items()}
        theirs = {seed: float(str(each["result"]["best_validation_nll"])) for seed, each in baseline.items()}
        accuracy = _scores(by_seed, "fact_accuracy")
        rows[variant] = {
            "seeds": len(by_seed),
            "fact accuracy": _values(mean(accuracy, SAMPLES)),
            "kept of teacher": _values(ratio_of_means(accuracy, _scores(by_seed, "teacher_fact_accuracy"), SAMPLES)),
            "its change": _values(difference_of_means(accuracy, _scores(baseline, "fact_accuracy"), SAMPLES)),
            "validation loss": sum(losses.values()) / len(losses),
            "loss's change": mean_over_seeds(
                [losses[seed] - theirs[seed] for seed in losses.keys() & theirs.keys()]
            ).as_json(),
            "tokens": max(int(str(each["result"]["tokens"])) for each in by_seed.values()),
            "training, s": max(float(str(each["result"]["seconds"])) for each in by_seed.values()),
        }
    return rows


def _values(estimate: Estimate | None) -> Found | None:
    return None if estimate is None else estimate.as_json()


def figures(trials: Sequence[Trial]) -> dict[str, object]:
    """Return the table with what it depends on."""
    from tests.bench.machine import hardware

    devices = sorted({str(_read(each)["result"]["device"]) for each in trials if (each.folder / RESULT_FILE).is_file()})
    kept = {"train_rows_share": read_study(trials[0].data).train_rows_share, "baseline": dict(BASELINE_SETTINGS)}
    return {"subject": "study", "hardware": hardware(), "devices": devices, **kept, "variants": table(trials)}


def show(found: Found) -> None:
    """Print the table, a line a variant."""
    from tests.bench.machine import told

    def cell(value: object) -> object:
        if not isinstance(value, dict):
            return value
        if value["value"] is None or value["low"] is None:
            return f"{value['value'] or 0:.3f}"
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    variants = found["variants"]
    assert isinstance(variants, dict)
    told(
        "what each setting changes",
        {name: {key: cell(value) for key, value in row.items()} for name, row in variants.items()},
    )


def _tell(figures_of_trial: Found) -> None:
    print(json.dumps(figures_of_trial), file=sys.stderr, flush=True)


def main() -> None:
    """Do a part of the study, or all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["all", "prepare", "run", "show"], default="all")
    parser.add_argument("--data", "--out", type=Path, default=ROOT / "var" / "bench" / "study")
    parser.add_argument("--base", type=folder_with("config.json"), default=STUDENT)
    parser.add_argument(
        "--teacher", type=folder_with("config.json"), help="a fully tuned student's checkpoint (else it is trained first)"
    )
    parser.add_argument(
        "--full", action="store_true", help="train on all rows, not on those of a third of the conversations"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--parallel", type=at_least_one, default=1, help="trainings at once")
    parser.add_argument("--batch-size", type=at_least_one, default=44, help="prompts answered side by side")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.part in ("run", "show") and not (asked.data / "study.json").is_file():
        parser.error(f"--data: there is no study.json in {str(asked.data)!r}; `study prepare --data {asked.data}` makes it")
    data, base = asked.data.absolute(), asked.base.absolute()
    if asked.part in ("all", "prepare"):
        from tests.bench.study_data import prepare

        prepare(data, base, asked.teacher, share=1.0 if asked.full else 1 / 3)
    # Seed by seed, so that an interrupted study has all variants of its first seeds.
    trials = [
        Trial(data, base, variant, seed, {**BASELINE_SETTINGS, **VARIANTS[variant]}, asked.device, asked.batch_size)
        for seed in range(asked.seeds)
        for variant in asked.variants
    ]
    failures = run(trials, parallel=asked.parallel) if asked.part in ("all", "run") else []
    if asked.part in ("all", "show"):
        from tests.bench.machine import written

        found = figures(trials)
        show(found)
        written(found, asked.json)
    if failures:
        raise SystemExit("failed:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
