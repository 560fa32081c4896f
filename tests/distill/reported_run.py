"""A run with made-up rows, measured by the stages' own machinery, to try its report on without training or serving a student."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from small_run import SmallRun, small_run

from conversations.decisions import AnswerAuthor
from conversations.messages import Json, Role
from conversations.serving import RopeFactors, Serving
from distill.dataset.teach import costs_of
from distill.evaluation.report import build_report, write_report
from distill.rows import AnswerRow, DatasetRow, EvaluationRow, FactRow, LabelsRow, MessageRow
from distill.run import Counts, Outcome, Run, Stage, new_run, write_whole
from distill.training.weights.card import model_card

GATE: dict[str, Json] = {"outcome": "refuse", "reasons": ["keeps 70.0% of the teacher's quality; the floor is 90%"]}
TOPICS = ("lights", "billing $5 or $6", "moving <b>house</b>")
MODELS = ("base", "candidate", "released", "teacher")
Change = Callable[[list[EvaluationRow]], list[EvaluationRow]]


def questions(count: int = 45, conversations: int = 16) -> list[DatasetRow]:
    """The test edition: several questions a conversation, some of which the handbook does not answer."""
    return [
        DatasetRow(
            decision_id=f"decision_{place:024x}",
            conversation_id=f"conversation_{place % conversations:024x}",
            cluster_id=f"cluster_{place % conversations}",
            topic=TOPICS[place % 3 if place % 7 else 0],
            weight=1.0,
            teacher="big",
            turn_depth=1 + place // conversations if place != 3 else 9,
            labels=LabelsRow(
                answerable=place % 5 != 0,
                articles=("coral",),
                facts=(FactRow(fact_id="coral.wait", says="wait 12 minutes", match=(r"\b12 minutes\b",)),),
                replies=("Please wait 12 minutes.", "Please wait 30 minutes, number 9.")[: max(0, 2 - place % 4)],
            ),
            messages=(
                MessageRow(role=Role.SYSTEM, content="You help."),
                MessageRow(role=Role.USER, content=f"Earlier question {place}?"),
                MessageRow(role=Role.ASSISTANT, content="Restart it."),
                MessageRow(role=Role.USER, content=f"Question {place} <script>alert(1)</script>?"),
                MessageRow(role=Role.ASSISTANT, content="Coral light: please wait 12 minutes."),
            ),
        )
        for place in range(count)
    ]


def rows(asked: Sequence[DatasetRow], seed: int = 5) -> list[EvaluationRow]:
    """Every model's answers: the teacher mostly right, the base never; a few failed, a few timed."""
    drawn = random.Random(seed)
    right = {"base": 0.0, "candidate": 0.7, "released": 0.6, "teacher": 0.9}
    found: list[EvaluationRow] = []
    for place, row in enumerate(asked):
        for model in MODELS:
            answerable, failed = row.labels.answerable, model == "candidate" and place == 17
            hit = 1.0 if drawn.random() < right[model] else 0.0 if model == "base" else drawn.choice((0.0, 0.5))
            scores: dict[str, float | None] = {
                "fact_accuracy": hit if answerable else None,
                "wrong_fact_rate": float(drawn.random() < 0.1) if answerable else None,
                "unanswerable_declined_rate": None if answerable else float(drawn.random() < 0.5),
                "teacher_likeness": None if model == "teacher" else drawn.random(),
                "answer_words": float(drawn.randint(5, 40)),
            }
            timed = model == "teacher" or place % 6 == 0
            found.append(
                EvaluationRow(
                    decision_id=row.decision_id,
                    conversation_id=row.conversation_id,
                    topic=row.topic,
                    turn_depth=row.turn_depth,
                    model=model,
                    release_id={"base": "base-1", "candidate": "student-2", "released": "student-1", "teacher": "big"}[
                        model
                    ],
                    text="" if failed else f"Please wait {drawn.choice((12, 12, 30))} minutes, number {place}.",
                    scores={} if failed else scores,
                    timed=timed,
                    first_token_ms=None if failed or model == "teacher" else 50 + 100 * drawn.random(),
                    latency_ms=None if failed else 500 + 3000 * drawn.random(),
                    prompt_tokens=100,
                    completion_tokens=None if failed else drawn.randint(8, 60),
                    failure="vLLM went away" if failed else "",
                )
            )
    return found


def taken() -> dict[str, Json]:
    """What serving took, as the stage writes it."""
    common: dict[str, Json] = {
        "concurrency": 8,
        "server_usd_per_hour": 0.1,
        "turns_together": 37,
        "memory_bytes": 4_000_000_000,
    }
    return {
        "base": {**common, "release_id": "base-1", "weights_bytes": 270_000_000, "seconds_together": 12.5},
        "candidate": {**common, "release_id": "student-2", "weights_bytes": 290_000_000, "seconds_together": 11.25},
        "released": {**common, "release_id": "student-1", "weights_bytes": 290_000_000, "seconds_together": 0.0},
    }


@contextmanager
def reported_run(
    folder: Path, *, change: Change = lambda found: found, took: dict[str, Json] | None = None
) -> Iterator[Run]:
    """A run that has come to its end, with its report written."""
    with small_run(folder, "http://127.0.0.1:9/v1") as small, new_run(small.record, small.settings) as run:
        fill(run, small, change=change, took=taken() if took is None else took)
        yield run


def fill(run: Run, small: SmallRun, *, change: Change, took: dict[str, Json]) -> None:
    asked = questions()

    def counted(**details: Json) -> Outcome:
        return Outcome(Counts(taken_in=3, accepted=2, rejected=1, unscored=0, rejected_by_reason={"why": 1}), details)

    def train(run: Run) -> Outcome:
        _write_weights(run.stage_folder(Stage.TRAIN) / "adapter")
        steps = [{"event": "step", "step": n, "tokens": 100 * n, "loss": 5 / n} for n in range(1, 351)]
        held_out = [
            {"event": "validation", "step": n, "tokens": 100 * n, "validation_nll": 4 / (1 + n)} for n in (0, 175, 350)
        ]
        write_whole(run.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in (*steps, *held_out)))
        return counted(started_from="base")

    def assemble(run: Run) -> Outcome:
        run.write_rows(Stage.ASSEMBLE, "test.jsonl", asked)
        return counted(test_edition=3, test_digest="sha256:t")

    def evaluate(run: Run) -> Outcome:
        run.write_rows(Stage.EVALUATE, "rows.jsonl", change(rows(asked)))
        write_whole(run.stage_folder(Stage.EVALUATE) / "taken.json", json.dumps(took))
        return counted(candidate="student-2")

    def promote(run: Run) -> Outcome:
        write_report(run, {**build_report(run), "gate": GATE})
        return Outcome(
            Counts(taken_in=1, accepted=0, rejected=1, unscored=0, rejected_by_reason={"gate": 1}),
            {**GATE, "release_id": "student-2"},
        )

    for stage in (Stage.CHOOSE, Stage.VERIFY):
        run.perform(stage, lambda _: counted())
    run.perform(Stage.TEACH, lambda _: counted(**costs_of(taught(asked))))
    run.perform(Stage.ASSEMBLE, assemble)
    run.perform(Stage.TRAIN, train)
    run.perform(Stage.EVALUATE, evaluate)
    run.perform(Stage.PROMOTE, promote)


def taught(asked: Sequence[DatasetRow]) -> list[AnswerRow]:
    """What the stage `teach` has taken: the teacher's answers at a quarter of a cent each, and one that a person gave."""
    common = {
        "teacher": "big",
        "text": "Wait.",
        "finish_reason": "stop",
        "passages": (),
        "prompt_tokens": 9,
        "completion_tokens": 2,
    }
    paid = {**common, "request_hash": "sha256:r", "cost_usd": 0.0025, "latency_ms": 700.0}
    free = {**common, "request_hash": "", "cost_usd": 0.0, "latency_ms": 0.0, "author": AnswerAuthor.OPERATOR}
    return [
        AnswerRow.model_validate(
            {"decision_id": row.decision_id, "answer_id": f"answer_{place}", **(paid if place else free)}
        )
        for place, row in enumerate(asked)
    ]


def _write_weights(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    serving = Serving(
        kind="lora", base="tiny", base_digest="sha256:b", tokenizer_digest="sha256:k", max_model_len=64,
        rope_factors=RopeFactors.NONE, rank=4, dtype="float32",
    )  # fmt: skip
    card = model_card(
        serving=serving,
        base_model="owner/tiny",
        licence="apache-2.0",
        digests={"train rows": "sha256:d"},
        teachers={"big": "40 rows, its licence allows training"},
        settings={"epochs": 2.0},
        figures={"steps": 350},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
