"""How fast a student is trained, and in how much memory, beside TRL: `make bench SUBJECT=train`.

The same decisions of 5-turn and of 10-turn conversations, each on its logged history, are learnt by our training with and without
the prefix tree, by TRL with its defaults and by TRL tuned, one after the other and round by round, each in a process of its own.
`row tokens a second` counts what the rows hold one by one, the same number for all, so that the ratios are of the same work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill.background import background_environment
from tests.bench.arguments import at_least_one, folder_with
from tests.bench.machine import hardware, told, written
from tests.bench.train_work import SHAPES, Work

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
CASES = ("ours, tree", "ours, rows", "TRL, tuned", "TRL, defaults")
# Saving memory is a question of GPUs.
CUDA_CASES = (*CASES, "ours, tree, twice computed", "TRL, tuned, twice computed")
# What is read back from JSON.
Figures = dict[str, Any]


def cases(options: argparse.Namespace) -> dict[str, Work]:
    """Return what is measured by name. TRL's defaults are so slow on a CPU that they learn one conversation only."""
    cuda = options.device == "cuda"
    five, ten = options.conversations
    plain = Work(
        way="tree",
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        conversations={"5": five, "10": ten},
        rank=options.rank,
        rows_a_step=128 if cuda else 16,
        batch=options.trl_batch,
        times=2 if cuda else 1,
    )
    found = {
        "ours, tree": plain,
        "ours, rows": replace(plain, way="rows"),
        "TRL, tuned": replace(plain, way="trl, tuned", dtype=options.trl_dtype),
    }
    if cuda:
        found["ours, tree, twice computed"] = replace(plain, checkpointing=True)
        found["TRL, tuned, twice computed"] = replace(found["TRL, tuned"], checkpointing=True)
    few = plain.conversations if cuda else {"5": 1, "10": 1}
    found["TRL, defaults"] = replace(plain, way="trl, defaults", conversations=few, times=1)
    return {name: work for name, work in found.items() if not options.cases or name in options.cases}


def figures(options: argparse.Namespace) -> Figures:
    """Measure every case in turn, and write what is known after each, so that nothing is lost to whoever stops this."""
    works = cases(options)
    plain = next(iter(works.values()))
    found: Figures = {
        "subject": "train",
        "hardware": hardware() | {"device": options.device},
        "model": Path(options.model).name,
        "cases": {name: asdict(work) | {"model": Path(work.model).name} for name, work in works.items()},
    }
    [peak] = told_by("train_ways", asdict(replace(plain, way="gemm")), options.limit)
    found["gemm"] = peak
    if options.exactness:
        found["exactness"] = told_by("train_exactness", options.device, options.limit)
    runs: dict[str, list[Figures]] = {name: [] for name in works}
    for number in range(options.rounds):
        for name, work in works.items():
            if number and name == "TRL, defaults":
                continue
            _keep(found, options.json)
            # Ours as `distill train` begins it.
            environment = background_environment() if work.way in ("tree", "rows") else None
            runs[name] += told_by("train_ways", asdict(work), options.limit, environment)
            found["runs"] = runs
            found["by turns"] = summary(runs, works, peak)
    return found


def told_by(module: str, asked: object, limit: float, environment: Mapping[str, str] | None = None) -> list[Figures]:
    """Return the lines of a fresh process; where it fails, or is not done in time, its last says so."""
    argument = asked if isinstance(asked, str) else json.dumps(asked)
    command = [sys.executable, "-m", f"tests.bench.{module}", argument]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        try:
            code: int | None = subprocess.run(
                command, stdout=out, stderr=errors, cwd=ROOT, env=environment, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        out.seek(0)
        errors.seek(0)
        lines: list[Figures] = [json.loads(line) for line in out.read().splitlines() if line.startswith('{"')]
        if code != 0:
            said = errors.read()[-1500:]
            lines.append({"failed": f"not done in {limit:g} s" if code is None else f"exit code {code}", "said": said})
            print(f"{module} {argument}: {lines[-1]['failed']}\n{said}", file=sys.stderr)
        return lines


def _keep(found: Figures, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def summary(
    runs: Mapping[str, Sequence[Figures]], works: Mapping[str, Work], peak: Figures
) -> dict[str, dict[str, Figures]]:
    """Return, by number of turns and case, the best round's speeds, and how they compare."""
    found: dict[str, dict[str, Figures]] = {}
    for turns in ("5", "10"):
        best = {
            name: min((line for line in lines if line.get("turns") == int(turns)), key=lambda line: line["seconds"])
            for name, lines in runs.items()
            if any(line.get("turns") == int(turns) for line in lines)
        }
        speeds = {name: line["row_tokens"] / line["seconds"] for name, line in best.items()}
        found[turns] = {
            name: {
                "row tokens a second": speeds[name],
                "scored tokens a second": line["scored_tokens"] / line["seconds"],
                "row tokens a CPU second": line["row_tokens"] / line["cpu_seconds"],
                "peak memory, MB": line["peak_mb"],
                "share of the GEMM peak": share_of_peak(line, works[name], peak),
                **{
                    f"times {other}": speeds[name] / speeds[other]
                    for other in ("TRL, tuned", "TRL, defaults")
                    if other in speeds
                },
            }
            for name, line in best.items()
        }
    return found


def share_of_peak(line: Figures, work: Work, peak: Figures) -> float:
    """Return the share of the measured peak at which a case computes what it must.

    What it must: 4 operations a token for each frozen weight of the body, 6 for a trained one, 14 for each pair of tokens that see
    each other and each query element, and 4 for each scored token and weight of the head.
    """
    tokens = line["tree_tokens"] if work.way == "tree" else line["row_tokens"]
    each = 4 if work.kind == "lora" else 6
    must = each * tokens * peak["body"] + 14 * line["pairs"] * peak["attention"] + 4 * line["scored_tokens"] * peak["head"]
    return must / line["seconds"] / 1e9 / peak["gflops"][work.dtype if work.way != "trl, defaults" else "bfloat16"]


def show(found: Figures) -> None:
    """Print one table for each length of conversation."""
    for turns, by_case in found["by turns"].items():
        names = list(dict.fromkeys(name for row in by_case.values() for name in row))
        told(f"{turns} turns", {name: {case: row.get(name) for case, row in by_case.items()} for name in names})


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with what the device decides filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--model", type=_model, default=str(STUDENT), help=f"a checkpoint folder, or random weights: {', '.join(SHAPES)}"
    )
    parser.add_argument("--conversations", type=at_least_one, nargs=2, help="of 5 and of 10 turns")
    parser.add_argument(
        "--cases", nargs="+", choices=CUDA_CASES, help="all, where none is given; the last two on a GPU alone"
    )
    parser.add_argument("--rank", type=at_least_one)
    parser.add_argument("--rounds", type=at_least_one)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of our frozen weights")
    parser.add_argument("--trl-dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--trl-batch", type=at_least_one, help="rows at once")
    parser.add_argument("--exactness", action="store_true", help="also compare trees with rows one by one; always on a GPU")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one case")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    elsewhere = set(options.cases or ()) - set(CUDA_CASES if cuda else CASES)
    if elsewhere:
        parser.error(f"--cases: {', '.join(map(repr, sorted(elsewhere)))} is measured on a GPU alone; add --device cuda")
    import torch

    from distill.training.student.learning import precision_of

    best = "bfloat16" if cuda or precision_of(torch.device("cpu")) == "bfloat16" else "float32"
    options.exactness = options.exactness or cuda
    options.dtype = options.dtype or best
    options.trl_dtype = options.trl_dtype or best
    options.rank = options.rank or (32 if cuda else 16)
    options.rounds = options.rounds or (1 if cuda else 2)
    options.trl_batch = options.trl_batch or (16 if cuda else 4)
    options.conversations = options.conversations or ([48, 32] if cuda else [6, 4])
    return options


def _model(text: str) -> str:
    """Return a name of random weights as it is, or the folder of a checkpoint that is there."""
    return text if text in SHAPES else str(folder_with("config.json", "tokenizer.json")(text))


def main() -> None:
    """Print the figures."""
    options = options_of()
    found = figures(options)
    show(found)
    written(found, options.json)


if __name__ == "__main__":
    main()
