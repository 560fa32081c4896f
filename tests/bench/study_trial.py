"""One training of the study, its answers to the held-out questions, and their marks: `python -m tests.bench.study_trial TRIAL.json`.

In: what is to be trained, as `tests.bench.study` wrote it. Out: `result.json` in the trial's folder, whole or not at all. A killed
trial goes on from its training's checkpoint. Needs torch, transformers and peft, and neither vLLM nor sentence-transformers.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from conversations.messages import Role
from conversations.prompt import Renderer
from distill.evaluation.scoring.facts import Yardstick, fact_scores
from distill.evaluation.scoring.metric import Metric
from distill.rows import SOFT_LABELS_FILE, DatasetRow, FactRow, read_rows
from distill.run import write_whole
from distill.settings import TrainTable
from distill.training.fitting.interruption import end_with_the_watcher
from distill.training.request import TrainRequest

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Trial:
    """One training of one variant with one seed: what it changes in the study's settings, and where it leaves its result."""

    data: Path
    base: Path
    variant: str
    seed: int
    changes: dict[str, float]
    device: str
    batch_size: int

    @property
    def folder(self) -> Path:
        """Return the trial's own folder."""
        return self.data / "trials" / f"{self.variant.replace(' ', '_')}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """What all trials share, as `tests.bench.study_data` wrote it."""

    settings: TrainTable
    max_prompt_tokens: int
    max_answer_tokens: int
    train_rows_share: float
    facts: dict[str, FactRow]
    article_texts: dict[str, str]
    declining_phrases: tuple[str, ...]

    @property
    def yardstick(self) -> Yardstick:
        """Return what answers are held against."""
        return Yardstick(self.facts, self.article_texts, self.declining_phrases)


def read_study(data: Path) -> Study:
    """Return what all trials of a folder share."""
    return TypeAdapter(Study).validate_json((data / "study.json").read_bytes())


def perform(trial: Trial) -> dict[str, object]:
    """Train, answer and mark in this process, and return what is kept of it."""
    from distill.training.train import train

    study = read_study(trial.data)
    settings = TrainTable.model_validate({**study.settings.model_dump(), **trial.changes, "seed": trial.seed})
    request = TrainRequest(
        base_dir=trial.base,
        train_path=trial.data / "train.jsonl",
        validation_path=trial.data / "validation.jsonl",
        out_dir=trial.folder / "train",
        metrics_path=trial.folder / "metrics.jsonl",
        settings=settings,
        max_prompt_tokens=study.max_prompt_tokens,
        soft_labels_path=trial.data / SOFT_LABELS_FILE,
        cache_dir=trial.data / "tokens",
    )
    result = train(request, lambda _: None)
    rows = list(read_rows(trial.data / "test.jsonl", DatasetRow))
    started = time.monotonic()
    texts = _answers(trial, rows, study)
    answer_seconds = round(time.monotonic() - started, 1)
    shutil.rmtree(request.out_dir)
    return {
        "variant": trial.variant,
        "seed": trial.seed,
        "settings": settings.model_dump(mode="json"),
        "result": asdict(result),
        "answer_seconds": answer_seconds,
        "answers": [marked(row, text, study.yardstick) for row, text in zip(rows, texts, strict=True)],
    }


def _answers(trial: Trial, rows: Sequence[DatasetRow], study: Study) -> list[str]:
    """Return the trained student's greedy answer to each row's question."""
    renderer = Renderer.load(trial.base)
    prompts = [
        renderer.prompt([each.message() for each in row.messages[:-1]], max_prompt_tokens=study.max_prompt_tokens).token_ids
        for row in rows
    ]
    from tests.bench.answering import greedy_answers

    answers = greedy_answers(
        trial.base,
        trial.folder / "train" / "adapter",
        prompts,
        stop_ids=renderer.stop_ids,
        max_new_tokens=study.max_answer_tokens,
        device=trial.device,
        batch_size=trial.batch_size,
    )
    return [renderer.text(answer).strip() for answer in answers]


def marked(row: DatasetRow, text: str, yardstick: Yardstick) -> dict[str, object]:
    """Return an answer with its marks, and the mark of the teacher's answer to the same question."""
    question = "\n".join(message.content for message in row.messages[:-1] if message.role is Role.USER)

    def marks(answer: str) -> Mapping[Metric, float]:
        return fact_scores(answer, labels=row.labels, question=question, yardstick=yardstick)

    found = marks(text)
    return {
        "decision_id": row.decision_id,
        "conversation_id": row.conversation_id,
        "text": text,
        "fact_accuracy": found.get(Metric.FACT_ACCURACY),
        "wrong_fact_rate": found.get(Metric.WRONG_FACT_RATE),
        "teacher_fact_accuracy": marks(row.messages[-1].content).get(Metric.FACT_ACCURACY),
    }


def main() -> None:
    """Do the trial of a file, for as long as the study that asked for it lives."""
    end_with_the_watcher()
    trial = TypeAdapter(Trial).validate_json(Path(sys.argv[1]).read_bytes())
    write_whole(trial.folder / RESULT_FILE, json.dumps(perform(trial), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
