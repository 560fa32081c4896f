"""A whole distillation as a script, in a few minutes: `.venv/bin/python deploy/examples/distillation_job.py --folder var/job`.

It makes up a question-answering file, teaches the embedded student the answers that stand in it, measures the student before and
after, and prints the figures. It needs no network and no large model: the teacher is the file. For a real one, write
`teacher=TeacherTable(base_url="https://…/v1", model="…", api_key_variable="…", licence_allows_training="yes")` and `max_cost_usd`.
"""

import argparse
import json
import random
from pathlib import Path

from distill.job import DistillationJob, Hyperparameters, JobMetrics, TeacherTable

STUDENT = Path(__file__).parents[2] / "var" / "students" / "smollm2-135m-instruct"
NAMES = (
    "Ada",
    "Bela",
    "Caro",
    "Dana",
    "Edda",
    "Finn",
    "Gero",
    "Hanna",
    "Ida",
    "Jule",
    "Kaya",
    "Liv",
    "Mina",
    "Nora",
    "Otto",
    "Pia",
)
THINGS = ("parcel", "letter", "bicycle", "suitcase", "umbrella", "guitar", "lamp", "jacket")
PLACES = (
    "the north desk",
    "locker four",
    "the blue room",
    "the back office",
    "counter nine",
    "the garage",
    "shelf twelve",
    "the gate",
)


def lines(count: int, chance: random.Random) -> str:
    """Made-up questions about where things are, each with what is known and the short answer."""
    made = []
    for _ in range(count):
        name, other = chance.sample(NAMES, 2)
        thing, second = chance.sample(THINGS, 2)
        place, elsewhere = chance.sample(PLACES, 2)
        known = f"The {thing} of {name} is at {place}. The {second} of {other} is at {elsewhere}."
        made.append({"question": f"Where is the {thing} of {name}?", "context": known, "answer": place})
    return "".join(json.dumps(each) + "\n" for each in made)


def job_in(folder: Path, training_lines: int, test_lines: int, epochs: float) -> DistillationJob:
    """Write the data and describe the job."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(7)
    (folder / "training.jsonl").write_text(lines(training_lines, chance), encoding="utf-8")
    (folder / "test.jsonl").write_text(lines(test_lines, chance), encoding="utf-8")
    return DistillationJob(
        teacher=TeacherTable(kind="logged", logged_authors=("imported",), licence_allows_training="yes"),
        student=STUDENT,
        training_data=folder / "training.jsonl",
        test_data=folder / "test.jsonl",
        task_type="qa",
        hyperparameters=Hyperparameters(learning_rate=1e-3, batch_size=8, num_epochs=epochs),
        folder=folder / "job",
        system_prompt="Answer with the place alone.",
        settings={
            # Lines out of one template are near-duplicates of each other, and would be left out as twins of the test.
            "choose": {"near_duplicate_jaccard": 1.0},
            "prompt": {"max_prompt_tokens": 256, "max_answer_tokens": 32},
            "evaluate": {"max_answer_tokens": 24, "timed_decisions": 4},
        },
    )


def printed(metrics: JobMetrics) -> str:
    """The figures as a small table."""
    rows = [f"{'':>24}{'baseline':>12}{'distilled':>12}{'improvement':>13}"]
    for title, name in (
        (metrics.accuracy_metric, "accuracy"),
        ("bleu_score", "bleu_score"),
        ("inference_time (ms)", "inference_time"),
    ):
        cells = [getattr(each, name) for each in (metrics.baseline, metrics.distilled, metrics.improvement)]
        shown = ["not measured" if cell is None else f"{cell:.3f}" for cell in cells]
        rows.append(f"{title:>24}{shown[0]:>12}{shown[1]:>12}{shown[2]:>13}")
    return "\n".join(rows)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where the data and the job are made")
    parser.add_argument("--training-lines", type=int, default=160)
    parser.add_argument("--test-lines", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=2.0)
    given = parser.parse_args()
    job = job_in(given.folder, given.training_lines, given.test_lines, given.epochs)
    job.submit()
    # Nothing below needs this process: DistillationJob.attach(folder) does the same tomorrow.
    print(f"the job runs in {job.folder}; waiting for it")
    job.wait()
    print(printed(job.metrics()))
    print(f"the gate says: {job.gate}")


if __name__ == "__main__":
    main()
