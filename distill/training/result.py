"""How a training went, and its weights with their model card in the formats that vLLM loads.

In: a training that is over. Out: `adapter/` (and `merged/`) or `checkpoint/`, each whole or not at all, and the figures of the
stage's manifest.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from conversations.serving import RopeFactors, Serving
from distill.training.decisions.replay import replayed_file
from distill.training.decisions.training_row import TrainingRow
from distill.training.fingerprint import BASE, PLACES
from distill.training.fitting.checkpoint import Fingerprint
from distill.training.fitting.loop import Fitting
from distill.training.request import StartingPoint, TrainRequest
from distill.training.starting import started_from
from distill.training.student.learning import LearningStudent
from distill.training.training_set import TrainingSet
from distill.training.weights.card import base_model_of, licence_of, model_card, teachers_of
from distill.training.weights.folder import complete_checkpoint, note_serving, put_in_place
from distill.training.weights.merging import merge_adapter

FOLDERS: Mapping[str, str] = {"lora": "adapter", "full": "checkpoint"}
MERGED = "merged"


@dataclass(frozen=True)
class TrainResult:
    """How a training went. Losses in nats per scored token; `tokens` are those computed in all steps, unpadded.

    `tokens_one_by_one` is what an epoch would compute if every row stood alone, `tokens_per_epoch` what it computes; all count
    the replayed rows. `soft_label_coverage` is the share of the scored tokens at which a teacher's log-probabilities are learnt
    beside the word. `replayed_rows` were drawn out of `replayable_rows`. `started_from` is "base" or a release. `merged` is the
    agreement of the merged weights with the unmerged, None where none were asked for.
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
    tokens_with_soft_labels: int
    soft_label_coverage: float
    first_loss: float | None
    last_loss: float | None
    first_validation_nll: float | None
    best_validation_nll: float | None
    learning_rate: float
    trainable_parameters: int
    seconds: float
    threads: int
    processes: int
    token_budget_per_batch: int
    device: str
    precision: str
    train_rows: int
    train_rows_kept: int
    train_rows_left_out: dict[str, int]
    validation_rows: int
    validation_rows_kept: int
    validation_rows_left_out: dict[str, int]
    replayable_rows: int
    replayed_rows: int
    replayed_rows_kept: int
    replayed_rows_left_out: dict[str, int]
    started_from: str
    rope_factors: str = RopeFactors.NONE.value
    merged: dict[str, float] | None = None


def result_of(fitting: Fitting, rows: TrainingSet, start: StartingPoint | None, threads: int) -> TrainResult:
    """Return how a training went; the size of its weights is known once they are written."""
    position, student = fitting.position, fitting.student
    counts, held_out_counts, drawn = rows.counts, rows.held_out_counts, rows.replayed_counts
    scored = counts.tokens_scored + drawn.tokens_scored
    return TrainResult(
        kind=student.kind,
        weights=FOLDERS[student.kind],
        weights_bytes=0,
        steps=position.step,
        steps_planned=len(fitting.steps),
        best_step=position.best_step or position.step,
        tokens=position.tokens_done,
        tokens_per_epoch=sum(step.tokens for step in fitting.steps if step.epoch == 0),
        tokens_one_by_one=counts.tokens_one_by_one + drawn.tokens_one_by_one,
        tokens_scored=scored,
        tokens_with_soft_labels=counts.tokens_with_beliefs,
        soft_label_coverage=round(counts.tokens_with_beliefs / max(1, scored), 4),
        first_loss=position.first_loss,
        last_loss=position.last_loss,
        first_validation_nll=position.first_validation_nll,
        best_validation_nll=position.best_validation_nll,
        learning_rate=fitting.peak_learning_rate,
        trainable_parameters=sum(parameter.numel() for parameter in student.trainable.values()),
        seconds=round(position.seconds, 3),
        threads=threads,
        processes=fitting.group.size,
        token_budget_per_batch=position.token_budget,
        device=student.device.type,
        precision=student.precision,
        train_rows=counts.rows,
        train_rows_kept=counts.kept,
        train_rows_left_out=dict(counts.left_out),
        validation_rows=held_out_counts.rows,
        validation_rows_kept=held_out_counts.kept,
        validation_rows_left_out=dict(held_out_counts.left_out),
        replayable_rows=rows.replayable,
        replayed_rows=drawn.rows,
        replayed_rows_kept=drawn.kept,
        replayed_rows_left_out=dict(drawn.left_out),
        started_from=started_from(start),
    )


def write_weights(
    request: TrainRequest,
    student: LearningStudent,
    result: TrainResult,
    fingerprint: Fingerprint,
    rows: Sequence[TrainingRow],
) -> TrainResult:
    """Write the weights and what stands beside them, make them appear in one step, and return the result with their size.

    rows: decisions that a merged student is compared on, where the settings ask for one.
    """
    folder = request.out_dir / result.weights
    half_done = request.out_dir / f".{result.weights}.half"
    for left in (half_done, *request.out_dir.glob(f".{MERGED}.*.half")):
        shutil.rmtree(left, ignore_errors=True)
    student.save(half_done, base_name=request.base_dir.name)
    if result.kind == "full":
        complete_checkpoint(request.base_dir, half_done)
    serving = note_serving(
        request.base_dir,
        half_done,
        kind=result.kind,
        max_model_len=request.max_model_len,
        rank=request.settings.rank if result.kind == "lora" else None,
        dtype="float32" if result.kind == "lora" else "bfloat16",
        base_digest=fingerprint[BASE],
    )
    result = replace(result, rope_factors=serving.rope_factors.value)
    card = _card(request, result, fingerprint, serving)
    (half_done / "README.md").write_text(card, encoding="utf-8")
    put_in_place(half_done, folder)
    if request.settings.merged and result.kind == "lora":
        out_dir = request.out_dir / MERGED
        agreement = merge_adapter(request.base_dir, folder, out_dir, rows, max_model_len=request.max_model_len, card=card)
        result = replace(result, merged=asdict(agreement))
    return replace(result, weights_bytes=_bytes_of_weights(folder))


def weights_gone(request: TrainRequest, result: TrainResult) -> Path | None:
    """Return the folder of a finished training whose weights are not there, or not whole; None where nothing lacks."""
    folder, merged = request.out_dir / result.weights, request.out_dir / MERGED
    if _bytes_of_weights(folder) != result.weights_bytes:
        return folder
    return merged if result.merged is not None and not _bytes_of_weights(merged) else None


def _bytes_of_weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _card(request: TrainRequest, result: TrainResult, fingerprint: Fingerprint, serving: Serving) -> str:
    unsaid = ("kind", "weights", "weights_bytes", "rope_factors", "merged")
    return model_card(
        serving=serving,
        base_model=base_model_of(request.base_dir),
        licence=licence_of(request.base_dir),
        digests={name: value for name, value in fingerprint.items() if not name.startswith("[train]")},
        teachers=teachers_of(*(path for path in (request.train_path, replayed_file(request)) if path)),
        settings=request.settings.model_dump(mode="json", exclude=PLACES),
        figures={name: value for name, value in asdict(result).items() if name not in unsaid},
    )
