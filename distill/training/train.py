"""The stage `train`: an assembled dataset becomes the student's new weights.

In: the student's checkpoint folder, `train.jsonl`, `validation.jsonl`. Out: `adapter/` (or `checkpoint/`) with its model
card, `training.json`, and one line a step in the run's `metrics.jsonl`. A killed training goes on where it was and, on
a CPU, ends with the same bits. Never reads the test set, the record or a customer's name.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.prompt import Renderer
from distill.run import Counts, Outcome, Run, Stage, file_digest, write_whole
from distill.settings import TrainTable
from distill.training.batches.forest import Forest
from distill.training.checkpoint import Fingerprint, load_checkpoint, refuse_other_training
from distill.training.decisions.reading import RowCounts, read_decisions
from distill.training.fitting import Fitting, MetricsLog, TrainProgress, plan_steps, validation_sample
from distill.training.student import LearningStudent, device_at_hand, open_student, precision_of, put_in_place
from distill.training.weights.card import model_card, teachers_of

RESULT_FILE = "training.json"
CHECKPOINT_FILE = ".checkpoint.pt"
FOLDERS: Mapping[str, str] = {"lora": "adapter", "full": "checkpoint"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """The release whose weights learn on, instead of the base's."""

    release_id: str
    weights_path: Path
    weights_digest: str


@dataclass(frozen=True)
class TrainRequest:
    """What is to be trained on what, and where the result goes.

    `max_prompt_tokens` is the chat's and `max_model_len` the server's. `replay_path` holds dataset rows of earlier runs,
    `soft_labels_path` what teachers believed; None where there are none. `start` is None for the base. Token ids are kept in
    `cache_dir` under the digest of all that decides them.
    """

    base_dir: Path
    train_path: Path
    validation_path: Path | None
    out_dir: Path
    metrics_path: Path
    settings: TrainTable
    max_prompt_tokens: int
    max_model_len: int = 2048
    replay_path: Path | None = None
    soft_labels_path: Path | None = None
    start: StartingPoint | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a training went. Losses in nats per scored token; `tokens` are those computed in all steps, unpadded.

    `tokens_one_by_one` is what an epoch would compute if every row stood alone, `tokens_per_epoch` what it computes.
    """

    kind: Literal["lora", "full"]
    weights: str
    weights_bytes: int
    steps: int
    steps_planned: int
    best_step: int
    tokens: int
    tokens_per_epoch: int
    tokens_one_by_one: int
    tokens_scored: int
    first_loss: float | None
    last_loss: float | None
    first_validation_nll: float | None
    best_validation_nll: float | None
    learning_rate: float
    trainable_parameters: int
    seconds: float
    threads: int
    device: str
    precision: str
    train_rows: int
    train_rows_kept: int
    train_rows_left_out: dict[str, int]
    validation_rows: int
    validation_rows_kept: int
    validation_rows_left_out: dict[str, int]


def train_stage(run: Run) -> Outcome:
    """Train the student of a run on what the run assembled."""

    def show(progress: TrainProgress) -> None:
        run.report_progress(
            Stage.TRAIN,
            min(0.99, progress.tokens_done / progress.tokens_total),
            f"loss {progress.loss:.3f}, {progress.tokens_per_second:.0f} tokens/s",
        )

    result = train(
        TrainRequest(
            base_dir=run.settings.student.base,
            train_path=run.folder / Stage.ASSEMBLE / "train.jsonl",
            validation_path=run.folder / Stage.ASSEMBLE / "validation.jsonl",
            out_dir=run.stage_folder(Stage.TRAIN),
            metrics_path=run.folder / "metrics.jsonl",
            settings=run.settings.train,
            max_prompt_tokens=run.settings.prompt.max_prompt_tokens,
        ),
        show,
    )
    left_out = dict(result.train_rows_left_out)
    for reason, count in result.validation_rows_left_out.items():
        left_out[reason] = left_out.get(reason, 0) + count
    return Outcome(
        Counts(
            taken_in=result.train_rows + result.validation_rows,
            accepted=result.train_rows_kept + result.validation_rows_kept,
            rejected=sum(left_out.values()),
            unscored=0,
            rejected_by_reason=left_out,
        ),
        asdict(result),
    )


def train(request: TrainRequest, on_progress: Callable[[TrainProgress], None]) -> TrainResult:
    """Fine-tune the student, write its weights, and say how it went; `on_progress` is called after every step.

    A finished training is returned as it is; a begun one goes on.
    Raises OperatorError when there is nothing to learn, the base cannot be loaded, the loss is no number, or the
    training in `out_dir` was begun with another base, other rows or other settings.
    """
    fingerprint = _fingerprint(request)
    finished = _finished(request.out_dir / RESULT_FILE, fingerprint)
    if finished is not None:
        return finished
    saved = load_checkpoint(request.out_dir / CHECKPOINT_FILE)
    if saved is not None:
        refuse_other_training(request.out_dir / CHECKPOINT_FILE, saved.fingerprint, fingerprint)
    # The order of sums follows the number of threads, so that a training keeps the one that it began with.
    threads = saved.threads if saved else request.settings.threads or os.cpu_count() or 1
    del saved
    settings = request.settings
    renderer = Renderer.load(request.base_dir)
    forest, counts = _read_forest(request.train_path, renderer, request)
    held_out, held_out_counts = _read_forest(request.validation_path, renderer, request)
    if not forest.rows:
        raise OperatorError(
            f"{request.train_path}: no row to learn: {counts.rows} rows, left out {dict(counts.left_out)}; expected "
            f"at least one answer within [train] max_tokens = {settings.max_tokens}; teach more, or raise the limit"
        )
    with _threads(threads), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        student = open_student(request.base_dir, settings, device=device_at_hand())
        layout = student.layout(settings.token_budget_per_batch)
        fitting = Fitting(
            student,
            forest,
            plan_steps(forest, settings, layout),
            validation_sample(held_out, settings, layout),
            settings,
            MetricsLog(request.metrics_path),
        )
        fitting.run(request.out_dir / CHECKPOINT_FILE, fingerprint, threads, on_progress)
        result = _result(fitting, counts, held_out_counts, threads)
        result = _write_weights(request, student, result, fingerprint)
    held = {"fingerprint": dict(fingerprint), "result": asdict(result)}
    write_whole(request.out_dir / RESULT_FILE, json.dumps(held, indent=2) + "\n")
    (request.out_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def digest_of_base(base_dir: Path) -> str:
    """Return the digest of a student's weights, configuration and tokenizer.

    Raises OperatorError where the folder holds no weights.
    """
    weights = sorted(base_dir.glob("*.safetensors"))
    if not weights or not (base_dir / "config.json").is_file():
        raise OperatorError(
            f"{base_dir}: no config.json and *.safetensors there; expected a Hugging Face checkpoint folder; "
            f"set [student] base to one, or make the embedded student with `distill unpack-student`"
        )
    digest = hashlib.sha256()
    for path in [*weights, base_dir / "config.json", base_dir / "tokenizer.json"]:
        if path.is_file():
            digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return "sha256:" + digest.hexdigest()


def _fingerprint(request: TrainRequest) -> Fingerprint:
    """Return, by name, everything that decides what a training ends with."""
    device = device_at_hand()
    return {
        "base": digest_of_base(request.base_dir),
        "train rows": file_digest(request.train_path),
        "validation rows": file_digest(request.validation_path) if request.validation_path else "none",
        "[prompt] max_prompt_tokens": str(request.max_prompt_tokens),
        "device": f"{device.type} in {precision_of(device)}",
        **{f"version of {name}": metadata.version(name) for name in ("torch", "transformers", "peft")},
        **{f"[train] {name}": str(value) for name, value in request.settings.model_dump().items()},
    }


def _finished(path: Path, fingerprint: Fingerprint) -> TrainResult | None:
    if not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    refuse_other_training(path, held["fingerprint"], fingerprint)
    return TrainResult(**held["result"])


def _read_forest(path: Path | None, renderer: Renderer, request: TrainRequest) -> tuple[Forest, RowCounts]:
    if path is None:
        return Forest([]), RowCounts(rows=0, kept=0, shortened=0, left_out={}, tokens_one_by_one=0, tokens_scored=0)
    rows, counts = read_decisions(
        path,
        renderer,
        max_prompt_tokens=request.max_prompt_tokens,
        max_tokens=request.settings.max_tokens,
    )
    return Forest(rows), counts


def _result(fitting: Fitting, counts: RowCounts, held_out_counts: RowCounts, threads: int) -> TrainResult:
    position, student = fitting.position, fitting.student
    return TrainResult(
        kind=student.kind,
        weights=FOLDERS[student.kind],
        weights_bytes=0,
        steps=position.step,
        steps_planned=len(fitting.steps),
        best_step=position.best_step or position.step,
        tokens=position.tokens_done,
        tokens_per_epoch=sum(step.tokens for step in fitting.steps if step.epoch == 0),
        tokens_one_by_one=counts.tokens_one_by_one,
        tokens_scored=counts.tokens_scored,
        first_loss=position.first_loss,
        last_loss=position.last_loss,
        first_validation_nll=position.first_validation_nll,
        best_validation_nll=position.best_validation_nll,
        learning_rate=fitting.peak_learning_rate,
        trainable_parameters=sum(parameter.numel() for parameter in student.trainable.values()),
        seconds=round(position.seconds, 3),
        threads=threads,
        device=student.device.type,
        precision=student.precision,
        train_rows=counts.rows,
        train_rows_kept=counts.kept,
        train_rows_left_out=dict(counts.left_out),
        validation_rows=held_out_counts.rows,
        validation_rows_kept=held_out_counts.kept,
        validation_rows_left_out=dict(held_out_counts.left_out),
    )


def _write_weights(
    request: TrainRequest, student: LearningStudent, result: TrainResult, fingerprint: Fingerprint
) -> TrainResult:
    """Write the weights and their card, make them appear in one step, and return the result with their size."""
    folder = request.out_dir / result.weights
    half_done = request.out_dir / f".{result.weights}.half"
    shutil.rmtree(half_done, ignore_errors=True)
    base_name = request.base_dir.name
    student.save(half_done, base_dir=request.base_dir, base_name=base_name)
    settings: dict[str, Json] = request.settings.model_dump(mode="json")
    figures: dict[str, Json] = {
        name: value for name, value in asdict(result).items() if name not in ("kind", "weights", "weights_bytes")
    }
    card = model_card(
        base_name=base_name,
        kind=result.kind,
        digests={name: value for name, value in fingerprint.items() if not name.startswith("[train]")},
        teachers=teachers_of(request.train_path),
        settings=settings,
        figures=figures,
    )
    (half_done / "README.md").write_text(card, encoding="utf-8")
    put_in_place(half_done, folder)
    weights_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return TrainResult(**{**asdict(result), "weights_bytes": weights_bytes})


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
