"""How long customers wait while a student is trained on the same cores, and what that costs the training: `make bench SUBJECT=beside`.

A real vLLM answers one customer who thinks for a second between two questions, then several at once who do not think, alone and
beside a training that goes on meanwhile. Measured for the ways in which the server's threads may wait for one another
(`conversations.cores`), and for trainings as any program runs and as ours do. Each training is measured alone too, and two of a
kind side by side. All in one run, round by round.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conversations.cores import BACKGROUND_SPINS, spinning_briefly
from tests.bench.arguments import at_least_one, folder_with
from tests.bench.machine import hardware, percentile, told, written
from tests.bench.serving import BASE, answers, served

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
PROMPT_TOKENS, ANSWER_TOKENS = 150, 48
# What a server's threads do while they wait, as their environment says it; the empty one is the product's.
SERVERS: Mapping[str, Mapping[str, str]] = {
    "sleeps at once": {"OMP_WAIT_POLICY": "passive"},
    "ours": {},
    "spins for 20,000": {"GOMP_SPINCOUNT": "20000"},
}
TRAININGS = ("as any program", "spins briefly", "ours")
Figures = dict[str, Any]


@dataclass
class Training:
    """A training that goes on until it is ended, and what it has said: row tokens and the time of each step."""

    process: "subprocess.Popen[str]"
    steps: list[tuple[float, int]] = field(default_factory=list)

    def speed(self, since: float) -> float:
        """Return its row tokens a second since a moment."""
        return sum(tokens for at, tokens in self.steps if at > since) / (time.monotonic() - since)


@contextmanager
def training(way: str, model: str) -> Iterator[Training]:
    """Train in a process of its own, past its first step, until the block is left."""
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.beside_training", model, *(["--gives-way"] if way == "ours" else [])],
        cwd=ROOT,
        env=plain if way == "as any program" else spinning_briefly(plain, BACKGROUND_SPINS),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A session is what Linux shares cores between, and whoever trains has one of their own.
        start_new_session=True,
    )
    begun = Training(process)

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            begun.steps.append((time.monotonic(), int(json.loads(line)["row_tokens"])))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        while not begun.steps:
            assert process.poll() is None, f"the training ended with {process.returncode}"
            time.sleep(0.1)
        yield begun
    finally:
        with process:
            process.kill()
            listener.join()


def customers(url: str, seconds: float, *, at_once: int, thinks: float) -> list[float]:
    """Return how long each answer took, in seconds, when so many customers ask for so long."""
    waited: list[float] = []
    draw = random.Random(f"{url} {time.monotonic_ns()}")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(thinks)
        # A prompt that was never seen, so that nothing of it is kept.
        prompts = [[draw.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(at_once)]
        begun = time.monotonic()
        answers(url, BASE, prompts, max_tokens=ANSWER_TOKENS, streams=at_once)
        waited.append(time.monotonic() - begun)
    return waited


def served_figures(url: str, options: argparse.Namespace) -> Figures:
    """Return how long customers wait at a server, alone and beside each way of training."""
    customers(url, 0.1, at_once=1, thinks=0)
    found: Figures = {"alone": _waits(url, options)}
    for way in options.trainings:
        with training(way, options.model) as begun:
            found[f"beside a training {way}"] = _waits(url, options, begun)
    return found


def _waits(url: str, options: argparse.Namespace, beside: Training | None = None) -> Figures:
    line: Figures = {}
    for name, at_once, thinks in (("one who thinks", 1, 1.0), (f"{options.at_once} at once", options.at_once, 0.0)):
        since = time.monotonic()
        waited = customers(url, options.seconds, at_once=at_once, thinks=thinks)
        line[f"{name}, p50 s"] = statistics.median(waited)
        line[f"{name}, p95 s"] = percentile(waited, 0.95)
        if beside is not None:
            line[f"{name}, trained tokens/s"] = beside.speed(since)
    return line


def training_figures(options: argparse.Namespace) -> Figures:
    """Return how fast each way of training is alone, and how fast two of a kind are together."""
    found: Figures = {}
    for way in options.trainings:
        speeds: Figures = {}
        for name, count in (("alone", 1), ("two, both together", 2)):
            with ExitStack() as stack:
                begun = [stack.enter_context(training(way, options.model)) for _ in range(count)]
                since = time.monotonic()
                time.sleep(options.seconds)
                speeds[f"{name}, trained tokens/s"] = sum(each.speed(since) for each in begun)
        found[way] = speeds
    return found


def figures(options: argparse.Namespace) -> Figures:
    """Measure every server and every training, round by round."""
    rounds: list[Figures] = []
    for _ in range(options.rounds):
        measured: dict[str, Figures] = {}
        rounds.append({"trainings": training_figures(options), "servers": measured})
        for name in options.servers:
            with (
                tempfile.TemporaryDirectory() as folder,
                _environment(SERVERS[name]),
                served(Path(options.model), Path(folder) / "vllm.log") as url,
                _environment({}),
            ):
                measured[name] = served_figures(url, options)
    return {
        "subject": "beside",
        "hardware": hardware(),
        "model": Path(options.model).name,
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "seconds": options.seconds,
        "rounds": rounds,
    }


@contextmanager
def _environment(chosen: Mapping[str, str]) -> Iterator[None]:
    """Let what is started meanwhile wait as chosen, and as the product chooses where nothing is."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def show(found: Figures) -> None:
    """Print a table for each round."""
    for number, this in enumerate(found["rounds"], 1):
        told(f"Trainings, round {number}", _rounded(this["trainings"]))
        for name, lines in this["servers"].items():
            told(f"Server: {name}, round {number}", _rounded(lines))


def _rounded(lines: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, object]]:
    return {
        line: {name: round(value) if value > 20 else round(value, 2) for name, value in cells.items()}
        for line, cells in lines.items()
    }


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=folder_with("config.json"), default=STUDENT)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--at-once", type=at_least_one, default=4)
    parser.add_argument("--rounds", type=at_least_one, default=1)
    parser.add_argument("--servers", nargs="*", choices=list(SERVERS), default=list(SERVERS), metavar="WAY")
    parser.add_argument("--trainings", nargs="*", choices=TRAININGS, default=list(TRAININGS), metavar="WAY")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print the tables and write the figures."""
    options = options_of()
    options.model = str(options.model)
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = figures(options)
    show(found)
    written(found, options.json)


if __name__ == "__main__":
    main()
