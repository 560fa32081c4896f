"""The stage `train`: an assembled dataset becomes the student's new weights.

In: the student's checkpoint folder, `train.jsonl`, `validation.jsonl`. Out: `adapter/` (or `checkpoint/`) with its model
card, `training.json`, and one line a step in the run's `metrics.jsonl`. A killed training goes on where it was and, on
a CPU, ends with the same bits. Never reads the test set, the record or a customer's name.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from distill.rows import SOFT_LABELS_FILE
from distill.run import Counts, Outcome, Run, Stage, write_whole
from distill.training.batches.forest import Forest
from distill.training.checkpoint import Fingerprint, load_checkpoint, refuse_other_training
from distill.training.decisions.reading import RowCounts, read_decisions
from distill.training.fingerprint import fingerprint_of
from distill.training.fitting import Fitting, TrainProgress
from distill.training.metrics_log import MetricsLog
from distill.training.planning import plan_steps, validation_sample
from distill.training.request import TrainRequest
from distill.training.result import TrainResult, result_of, write_weights
from distill.training.student import device_at_hand, open_student

RESULT_FILE = "training.json"
CHECKPOINT_FILE = ".checkpoint.pt"


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
            soft_labels_path=run.folder / Stage.ASSEMBLE / SOFT_LABELS_FILE,
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
    fingerprint = fingerprint_of(request)
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
    forest, counts = _read_forest(request.train_path, renderer, request, soft_labels=request.beliefs_learnt)
    # What is held out is measured by its words alone.
    held_out, held_out_counts = _read_forest(request.validation_path, renderer, request, soft_labels=None)
    if not forest.rows:
        raise OperatorError(
            f"{request.train_path}: no row to learn: {counts.rows} rows, left out {dict(counts.left_out)}; expected "
            f"at least one answer within [train] max_tokens = {settings.max_tokens}; teach more, or raise the limit"
        )
    with _threads(threads), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        student = open_student(request.base_dir, settings, device=device_at_hand())
        fitting = Fitting(
            student,
            forest,
            plan_steps(forest, settings),
            validation_sample(held_out, settings),
            settings,
            MetricsLog(request.metrics_path),
        )
        fitting.run(request.out_dir / CHECKPOINT_FILE, fingerprint, threads, on_progress)
        result = result_of(fitting, counts, held_out_counts, threads)
        result = write_weights(request, student, result, fingerprint)
    held = {"fingerprint": dict(fingerprint), "result": asdict(result)}
    write_whole(request.out_dir / RESULT_FILE, json.dumps(held, indent=2) + "\n")
    (request.out_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _finished(path: Path, fingerprint: Fingerprint) -> TrainResult | None:
    if not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    refuse_other_training(path, held["fingerprint"], fingerprint)
    return TrainResult(**held["result"])


def _read_forest(
    path: Path | None, renderer: Renderer, request: TrainRequest, *, soft_labels: Path | None
) -> tuple[Forest, RowCounts]:
    if path is None:
        return Forest([]), RowCounts(
            rows=0, kept=0, shortened=0, left_out={}, tokens_one_by_one=0, tokens_scored=0, tokens_with_beliefs=0
        )
    rows, counts = read_decisions(
        path,
        renderer,
        max_prompt_tokens=request.max_prompt_tokens,
        max_tokens=request.settings.max_tokens,
        soft_labels=soft_labels,
    )
    return Forest(rows), counts


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
