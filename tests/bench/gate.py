"""How often the gate lets a candidate through that is worse, as good, or measured too little; and what the plain bootstrap would do.

Run: `python -m tests.bench.gate [--rows RUN/evaluate/rows.jsonl] [--candidates 200] [--json FILE]`. Conversations are drawn with
replacement out of the stored rows of a run (the demo's, where there is one, else made-up ones of the same shape), until there are n
decisions. The candidate's answers there are what the release in service would say; a simulated candidate says the same but for some
answers that turn from right to wrong and back, each with the chance that makes it worse by just so much in expectation. How many turn
(the churn), and whether they turn one by one or whole conversations at once, differs between the cases: the hardest for any
statistics are losses without a gain, in whole conversations. Every candidate goes through the whole gate, with every other bound
wide open or held, so that the margin alone decides.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.figures.intervals import Score, difference_of_means, ratio_of_means
from distill.evaluation.gate.bounds import judge
from distill.evaluation.gate.evidence import Evidence, Judged
from distill.evaluation.gate.verdict import CheckOutcome, GateOutcome
from distill.rows import EvaluationRow, read_rows
from distill.settings import PromoteTable
from tests.bench.machine import hardware, told, written

METRIC = "fact_accuracy"
DEMO = Path(__file__).parents[2] / "var" / "demo" / "runs"
SIZES = (60, 120, 250, 500, 1000)
MARGINS = (0.02, 0.05, 0.10)
FLOORS = (0.85, 0.95)
# Share of decisions that get better; as many and the wanted loss get worse.
CHURN = 0.03
# A bootstrap of 300 draws is what a comparison needs; reports draw 2,000.
_DRAWS = 300
Conversation = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Case:
    """A kind of candidate: how much worse it is, at which margin and floor of the gate, and how its answers differ."""

    loss: float
    margin: float
    floor: float = 0.0
    churn: float = CHURN
    whole_conversations: bool = False


def stored_conversations(rows_file: Path) -> list[Conversation]:
    """Return the topic and the candidate's score of each decision, by conversation."""
    found: dict[str, list[tuple[str, float]]] = {}
    for row in read_rows(rows_file, EvaluationRow):
        score = row.scores.get(METRIC)
        if row.model == "candidate" and score is not None:
            found.setdefault(row.conversation_id, []).append((row.topic, score))
    return [tuple(each) for each in found.values()]


def made_up_conversations(count: int = 70, seed: int = 1) -> list[Conversation]:
    """Return conversations of one to three decisions, scored in thirds and mostly right, as the demo's are."""
    rng = np.random.default_rng(seed)
    topics = [f"topic {number}" for number in range(8)]
    return [
        tuple(
            (topics[place % len(topics)], float(rng.choice([0, 1 / 3, 2 / 3, 1], p=[0.09, 0.01, 0.02, 0.88])))
            for _ in range(rng.choice([1, 2, 3], p=[0.15, 0.75, 0.10]))
        )
        for place in range(count)
    ]


def newest_demo_rows() -> Path | None:
    """Return the rows of the newest finished evaluation of the demo, or None."""
    found = sorted(DEMO.glob("run_*/evaluate/rows.jsonl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def drawn_rows(pool: Sequence[Conversation], case: Case, n: int, rng: np.random.Generator) -> list[EvaluationRow]:
    """Return the rows of a simulated candidate, of the release in service and of the teacher on n drawn decisions."""
    mean = float(np.mean([score for each in pool for _, score in each]))
    gain = min(case.churn, 1 - mean)
    # A right answer (or the right part of one) is lost with this chance, and a wrong one mended: in expectation loss - gain.
    loses, mends = (case.loss + gain) / mean, gain / (1 - mean) if mean < 1 else 0.0
    rows: list[EvaluationRow] = []
    place = decisions = 0
    while decisions < n:
        conversation = pool[rng.integers(len(pool))][: n - decisions]
        together = rng.random(2)
        for turn, (topic, score) in enumerate(conversation):
            lost, mended = (together if case.whole_conversations else rng.random(2)) < (loses, mends)
            ours = (0.0 if lost else score) + ((1 - score) if mended else 0.0)
            for model, value in (("candidate", ours), ("released", score), ("teacher", score)):
                rows.append(_row(place, turn, topic, model, value))
        decisions += len(conversation)
        place += 1
    return rows


def verdict(rows: Sequence[EvaluationRow], case: Case, judged: Judged | None = None) -> tuple[GateOutcome, bool]:
    """Return what the gate says, and whether it found a topic much worse."""
    bounds = PromoteTable(min_retained=case.floor, max_wrong_fact_rate=1.0, max_loss_to_released=case.margin)
    said = judge(Evidence(rows, {}, "candidate", METRIC, bounds, "released", False, judged))
    topics = next(check for check in said.checks if check.name == "topics")
    return said.outcome, topics.outcome is not CheckOutcome.PASSED


def bootstrap_promotes(rows: Sequence[EvaluationRow], case: Case) -> bool:
    """Tell what a percentile bootstrap by conversation would have said: the method of the report's intervals."""
    ours, theirs = (
        [Score(row.decision_id, row.conversation_id, row.scores[METRIC] or 0.0) for row in rows if row.model == model]
        for model in ("candidate", "teacher")
    )
    found = (ratio_of_means if case.floor else difference_of_means)(ours, theirs, _DRAWS)
    return found is not None and found.low is not None and found.low >= (case.floor or -case.margin)


def shares(pool: Sequence[Conversation], case: Case, n: int, candidates: int, seed: int) -> dict[str, float]:
    """Return what becomes of simulated candidates, in per cent of them."""
    rng = np.random.default_rng(seed)
    names = ("promoted", "refused", "inconclusive", "a topic stood in the way", "bootstrap would promote")
    counts = dict.fromkeys(names, 0)
    for _ in range(candidates):
        rows = drawn_rows(pool, case, n, rng)
        outcome, topic = verdict(rows, case)
        counts["promoted"] += outcome is GateOutcome.PROMOTE
        counts["refused"] += outcome is GateOutcome.REFUSE
        counts["inconclusive"] += outcome is GateOutcome.INCONCLUSIVE
        counts["a topic stood in the way"] += topic
        counts["bootstrap would promote"] += bootstrap_promotes(rows, case)
    return {name: round(100 * count / candidates, 1) for name, count in counts.items()}


def figures(
    pool: Sequence[Conversation],
    candidates: int,
    sizes: Sequence[int] = SIZES,
    margins: Sequence[float] = MARGINS,
    floors: Sequence[float] = FLOORS,
    seed: int = 7,
) -> dict[str, Any]:
    """Return every figure."""
    worse = {
        f"worse by the margin of {margin:.0%}, {how}": {
            f"n={n}": shares(pool, Case(margin, margin, churn=churn, whole_conversations=whole), n, candidates, seed)
            for n in sizes
        }
        for margin in margins
        for how, churn, whole in (
            ("answers turn both ways", CHURN, False),
            ("losses alone", 0.0, False),
            ("losses alone, whole conversations", 0.0, True),
        )
    }
    clearly = {
        f"10 points worse, margin {margin:.0%}": {
            f"n={n}": shares(pool, Case(0.1, margin), n, candidates, seed) for n in sizes
        }
        for margin in margins[:2]
    }
    equal = {
        f"equal, margin {margin:.0%}": {f"n={n}": shares(pool, Case(0.0, margin), n, candidates, seed) for n in sizes}
        for margin in margins
    }
    mean = float(np.mean([score for each in pool for _, score in each]))
    floor = {
        f"keeps exactly the floor of {share:.0%}, {how}": {
            f"n={n}": shares(pool, Case((1 - share) * mean, 1.0, share, churn, whole), n, candidates, seed) for n in sizes
        }
        for share in floors
        for how, churn, whole in (("answers turn both ways", CHURN, False), ("losses alone, whole conversations", 0.0, True))
    }
    rng = np.random.default_rng(seed)
    few = [
        verdict(drawn_rows(pool, Case(loss, 0.1), 10, rng), Case(loss, 0.1))[0]
        for loss in (0.0, 0.1)
        for _ in range(candidates)
    ]
    down = [
        verdict(drawn_rows(pool, Case(0.0, 0.1), 250, rng), Case(0.0, 0.1), Judged("connection refused"))[0]
        for _ in range(candidates)
    ]
    return {
        "hardware": hardware(),
        "conversations": len(pool),
        "decisions": sum(len(each) for each in pool),
        "candidates": candidates,
        "churn": CHURN,
        "worse": worse,
        "clearly worse": clearly,
        "equal": equal,
        "floor": floor,
        "n=10": {outcome.value: few.count(outcome) for outcome in GateOutcome},
        "judge down": {outcome.value: down.count(outcome) for outcome in GateOutcome},
    }


def show(found: Mapping[str, object]) -> None:
    """Print the tables."""
    for title, unit in (
        ("worse", "promoted, of candidates worse by exactly the margin (%)"),
        ("clearly worse", "promoted, of candidates 10 points worse (%)"),
        ("equal", "promoted, of candidates as good (%)"),
        ("floor", "promoted, of candidates that keep exactly the floor of the teacher's quality (%)"),
    ):
        cases = found[title]
        assert isinstance(cases, dict)
        lines = {
            f"{name}{told_as}": {n: each[figure] for n, each in by_n.items()}
            for name, by_n in cases.items()
            for told_as, figure in (("", "promoted"), (" (bootstrap)", "bootstrap would promote"))
        }
        told(unit, lines)
    told("outcomes", {name: found[name] for name in ("n=10", "judge down")})  # type: ignore[dict-item]


def main() -> None:
    """Measure, print the tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=Path, help="the rows.jsonl of a finished evaluation (else the demo's, else made-up ones)"
    )
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    rows_file = wanted.rows or newest_demo_rows()
    pool = stored_conversations(rows_file) if rows_file else made_up_conversations()
    print(f"drawn from {rows_file or 'made-up rows'}: {len(pool)} conversations", file=sys.stderr)
    found = figures(pool, wanted.candidates)
    show(found)
    written(found, wanted.json)


# Simulated candidates are made of the same few rows over and over.
@lru_cache(maxsize=100_000)
def _row(place: int, turn: int, topic: str, model: str, value: float) -> EvaluationRow:
    scores: dict[str, float | None] = {METRIC: value}
    if model == "candidate":
        scores |= {"leak_rate": 0.0, "format_fault_rate": 0.0}
    return EvaluationRow.model_construct(
        decision_id=f"d{place}.{turn}", conversation_id=f"c{place}", topic=topic, model=model, release_id=model, text="",
        scores=scores, timed=False, first_token_ms=None, latency_ms=None, prompt_tokens=None, completion_tokens=None, failure="",
    )  # fmt: skip


if __name__ == "__main__":
    main()
