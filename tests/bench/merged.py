"""A merged student beside the same student unmerged, both in the real vLLM: how alike they answer, and how fast.

Run: `python -m tests.bench.merged [--prompts 50] [--tokens 32] [--dtype auto] [--steps 8] [--rows FOLDER] [--taught FOLDER]
[--json FILE]`. The embedded student is taught for a few steps on what the stages choose to assemble make of the demo with the
handbook teacher, or on the `assemble` folder of a run, whose `train` folder can be taken as it is where it has `merged`. Then
held-out questions are answered greedily, base plus adapter first and merged afterwards, one server at a time. The unmerged student
is asked twice: what differs between the two times is rounding, since questions that are answered at once are summed in another order.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import httpx

from conversations.prompt import Renderer
from conversations.settings import StudentTable, read_settings
from conversations.store import Record
from distill.cycle import perform_stage
from distill.run import Stage, new_run
from distill.settings import DistillSettings, TrainTable
from distill.training.request import TrainRequest
from support_bot.vllm import served_dtype
from tests.bench import machine
from tests.bench.arguments import at_least_one, folder_with
from tests.bench.serving import BASE, answers, free_port, load_adapter, served

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "demo"
STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
STREAMS = 8
ALONE = 3
ROWS_A_STEP = 16


@contextmanager
def teaching(settings_file: Path, port: int) -> Iterator[None]:
    """Serve the handbook teacher."""
    code = "from distill.cli import main; main()"
    command = [sys.executable, "-c", code, "teacher", "--port", str(port), "--settings", str(settings_file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                try:
                    httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5, trust_env=False)
                    break
                except httpx.HTTPError:
                    assert process.poll() is None, "the handbook teacher ended"
                    time.sleep(0.5)
            yield
        finally:
            process.terminate()


def demo_rows(folder: Path) -> Path:
    """Assemble the demo's data set in `folder` and return the stage's folder."""
    port = free_port()
    text = (DEMO / "settings.toml").read_text(encoding="utf-8")
    for old, new in (
        ("../../var/demo", str(folder)),
        ("../../var/students", str(STUDENT.parent)),
        ("8101", str(port)),
    ):
        text = text.replace(old, new)
    shutil.copytree(DEMO / "handbook", folder / "handbook")
    settings_file = folder / "settings.toml"
    settings_file.write_text(text, encoding="utf-8")
    importing = [
        sys.executable,
        "-c",
        "from conversations.cli import main; main()",
        "import",
        str(DEMO / "conversations.jsonl"),
    ]
    subprocess.run([*importing, "--settings", str(settings_file)], check=True, stdout=subprocess.DEVNULL)
    settings = read_settings(DistillSettings, settings_file)
    with teaching(settings_file, port), Record(settings.record.path) as record, new_run(record, settings) as run:
        for stage in (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE):
            perform_stage(run, stage)
        return run.folder / Stage.ASSEMBLE


def taught(rows: Path, folder: Path, base_dir: Path, steps: int) -> Path:
    """Train an adapter for some steps of 16 rows and merge it; return the folder of both."""
    from distill.training.train import train

    lines = (rows / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[: steps * ROWS_A_STEP]), encoding="utf-8")
    train(
        TrainRequest(
            base_dir=base_dir,
            train_path=folder / "train.jsonl",
            validation_path=None,
            out_dir=folder / "train",
            metrics_path=folder / "metrics.jsonl",
            settings=TrainTable(epochs=1.0, rows_per_step=ROWS_A_STEP, merged=True, replay_share=0.0),
            max_prompt_tokens=1536,
        ),
        lambda _: None,
    )
    return folder / "train"


def questions(rows: Path, base_dir: Path, count: int) -> list[tuple[int, ...]]:
    """Return held-out prompts, of the test set first."""
    from distill.training.decisions.reading import read_decisions

    renderer = Renderer.load(base_dir)
    held_out = []
    for name in ("test.jsonl", "validation.jsonl"):
        held_out += read_decisions(rows / name, renderer, max_prompt_tokens=1536, max_tokens=2048)[0]
    return [row.prompt_ids for row in held_out[:count]]


def likeness(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> dict[str, object]:
    """Return how alike answers are; tokens are counted up to the first that differs."""
    same = [_same_tokens(one, other) for one, other in zip(left, right, strict=True)]
    differ = [count for count, one, other in zip(same, left, right, strict=True) if list(one) != list(other)]
    return {
        "answers": len(same),
        "identical answers": len(same) - len(differ),
        "identical answers, share": round(1 - len(differ) / len(same), 4),
        "tokens before the first difference, share": round(sum(same) / max(1, sum(map(len, left))), 4),
        "tokens before it where there is one, median": statistics.median(differ) if differ else None,
    }


class Asked:
    """The answers of one model to the prompts, several asked at once, and how fast they came; a few more asked one by one."""

    def __init__(
        self, base_url: str, model: str, prompts: Sequence[tuple[int, ...]], max_tokens: int, stop_ids: Sequence[int]
    ) -> None:
        began = time.perf_counter()
        alone = answers(base_url, model, prompts[:ALONE], max_tokens=max_tokens, stop_ids=stop_ids)
        then = time.perf_counter()
        self.answers = answers(base_url, model, prompts, max_tokens=max_tokens, stop_ids=stop_ids, streams=STREAMS)
        ended = time.perf_counter()
        self.speed = {
            "tokens a second, 1 stream": round(sum(map(len, alone)) / (then - began), 2),
            f"tokens a second, {STREAMS} streams": round(sum(map(len, self.answers)) / (ended - then), 2),
        }


def figures(
    base_dir: Path,
    taught_dir: Path,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
    folder: Path,
    dtype: Literal["auto", "float32"],
) -> dict[str, object]:
    """Ask base plus adapter, then the merged student, and return how alike and how fast they are."""
    stop_ids = Renderer.load(base_dir).stop_ids
    with served(base_dir, folder / "unmerged.log", dtype=dtype) as base_url:
        load_adapter(base_url, "student", taught_dir / "adapter")
        unmerged, again = (Asked(base_url, "student", prompts, max_tokens, stop_ids) for _ in range(2))
        base = Asked(base_url, BASE, prompts, max_tokens, stop_ids)
    with served(taught_dir / "merged", folder / "merged.log", dtype=dtype, has_adapters=False) as base_url:
        merged = Asked(base_url, BASE, prompts, max_tokens, stop_ids)
    return {
        "hardware": machine.hardware(),
        "most tokens of an answer": max_tokens,
        "servers compute in": served_dtype(StudentTable(base=base_dir, profile="cpu", dtype=dtype)),
        "load of the machine, mean of the last minute": round(os.getloadavg()[0], 1),
        "likeness": {
            "merged, to base plus adapter": likeness(unmerged.answers, merged.answers),
            "base plus adapter, to itself": likeness(unmerged.answers, again.answers),
            "base, to base plus adapter": likeness(unmerged.answers, base.answers),
        },
        "speed": {"base plus adapter": again.speed, "merged": merged.speed},
    }


def show(found: dict[str, object]) -> None:
    """Print the figures as tables."""
    for title in ("likeness", "speed"):
        cases = found[title]
        assert isinstance(cases, dict)
        names = list(dict.fromkeys(name for case in cases.values() for name in case))
        machine.told(f"Merged: {title}", {name: {case: told.get(name) for case, told in cases.items()} for name in names})


def main() -> None:
    """Measure, print tables, and write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prompts", type=at_least_one, default=50)
    options.add_argument("--tokens", type=at_least_one, default=32)
    options.add_argument("--dtype", choices=("auto", "float32"), default="auto", help="in which the servers compute")
    options.add_argument("--steps", type=at_least_one, default=8)
    rows_files = folder_with("train.jsonl", "validation.jsonl", "test.jsonl")
    options.add_argument("--rows", type=rows_files, help="a run's assemble folder (else the demo's is made)")
    weights = folder_with("adapter", "merged")
    options.add_argument("--taught", type=weights, help="a run's train folder with adapter and merged (else one is trained)")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = chosen.rows or demo_rows(folder)
        taught_dir = chosen.taught or taught(rows, folder, STUDENT, chosen.steps)
        prompts = questions(rows, STUDENT, chosen.prompts)
        found = figures(STUDENT, taught_dir, prompts, chosen.tokens, folder, chosen.dtype)
    show(found)
    machine.written(found, chosen.json)


def _same_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


if __name__ == "__main__":
    main()
