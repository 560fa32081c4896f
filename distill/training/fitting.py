"""The training loop: steps, schedule, validation, the best weights, checkpoints and metrics.

In: a student, the trees of its rows and the settings. Out: the student holding its best weights, and how it went. The
order of everything is decided before the first step, so that a killed training goes on to the same bits on a CPU.
"""

import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conversations.errors import OperatorError
from conversations.messages import Json, utc_now
from distill.settings import TrainTable
from distill.training.batches.forest import Forest, Part, TokenTree
from distill.training.batches.layout import Layout
from distill.training.batches.order import plan_epoch, plan_parts
from distill.training.checkpoint import (
    Checkpoint,
    Fingerprint,
    Position,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from distill.training.student import LearningStudent

# A validation may read this share of the tokens that are trained between two validations.
_VALIDATION_SHARE = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is. `loss` in nats per scored token of the last step; tokens are those computed, unpadded."""

    tokens_done: int
    tokens_total: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Step:
    """One optimizer step that is still to be made: its epoch (from 0), what of which rows it learns, and tokens to compute."""

    epoch: int
    parts: tuple[Part, ...]
    tokens: int


def plan_steps(forest: Forest, settings: TrainTable, layout: Layout) -> list[Step]:
    """Return every step of the training in order; a broken last epoch is its first steps."""
    steps: list[Step] = []
    for epoch in range(math.ceil(settings.epochs)):
        plan = plan_epoch(forest, seed=settings.seed, epoch=epoch, rows_per_step=settings.rows_per_step)
        parts = plan_parts(
            forest,
            seed=settings.seed,
            epoch=epoch,
            max_whole_per_answer=settings.max_whole_per_answer,
            opening_tokens=settings.opening_tokens,
        )
        share = min(1.0, settings.epochs - epoch)
        for rows in plan[: math.ceil(share * len(plan))]:
            of_step = tuple(parts[row] for row in rows)
            steps.append(Step(epoch, of_step, sum(len(tree.nodes) for tree in layout.trees(forest, of_step))))
    return steps


def learning_rate_at(step: int, *, steps: int, peak: float, settings: TrainTable) -> float:
    """Return the learning rate of a step (from 1): a linear rise, then the schedule's way down to almost 0."""
    warmup = math.ceil(settings.warmup_share * steps)
    if step <= warmup:
        return peak * step / warmup
    left = (steps - step + 1) / max(1, steps - warmup)
    return peak * (left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


def proven_learning_rate(parameters: int, settings: TrainTable) -> float:
    """Return the settings' learning rate, or one that is proven for the student's size.

    LoRA: 1e-3 below two thousand million parameters, 3e-4 above (Tinker cookbook); a tenth for full training.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    return (1e-3 if parameters < 2e9 else 3e-4) * (1.0 if settings.kind == "lora" else 0.1)


def validation_sample(forest: Forest, settings: TrainTable, layout: Layout) -> list[TokenTree]:
    """Return the held-out rows that each validation reads: as many, drawn by the seed, as its share of time allows."""
    drawn = list(forest.conversations)
    random.Random(f"{settings.seed}/validation").shuffle(drawn)
    room = _VALIDATION_SHARE * settings.validate_every_tokens
    sample: list[Part] = []
    for conversation in drawn:
        parts = [forest.whole(row) for row in conversation]
        room -= sum(len(tree.nodes) for tree in layout.trees(forest, parts))
        if sample and room < 0:
            break
        sample += parts
    return layout.trees(forest, sample)


class MetricsLog:
    """The run's `metrics.jsonl`, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def bytes(self) -> int:
        """Return the present length of the file."""
        return self._path.stat().st_size

    def cut(self, length: int) -> None:
        """Forget what was written after the file had this length in bytes."""
        if length < self.bytes():
            with self._path.open("r+b") as file:
                file.truncate(length)

    def write(self, event: str, figures: dict[str, Json]) -> None:
        """Append one line."""
        line: dict[str, Json] = {"stage": "train", "event": event, **figures, "at_utc": utc_now()}
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")


class Fitting:
    """One training that goes on, from its beginning or from its checkpoint."""

    def __init__(
        self,
        student: LearningStudent,
        forest: Forest,
        steps: Sequence[Step],
        validation: Sequence[TokenTree],
        settings: TrainTable,
        metrics: MetricsLog,
    ) -> None:
        self.student = student
        self.forest = forest
        self.steps = steps
        self.validation = validation
        self.settings = settings
        self.metrics = metrics
        self.position = Position()
        self.best: dict[str, torch.Tensor] | None = None
        self._frozen: torch.Tensor | None = None
        self._layout = student.layout(settings.token_budget_per_batch)
        self.peak_learning_rate = proven_learning_rate(student.parameters, settings)
        self.optimizer = torch.optim.AdamW(
            list(student.trainable.values()),
            lr=self.peak_learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def run(
        self,
        checkpoint_path: Path,
        fingerprint: Fingerprint,
        threads: int,
        on_progress: Callable[[TrainProgress], None],
    ) -> None:
        """Make the steps that are left, and leave the student with its best weights.

        Raises OperatorError when the loss is no longer a number.
        """
        self._frozen = self._frozen_states()
        if not self._take_up(checkpoint_path):
            self._validate()
            self._keep(checkpoint_path, fingerprint, threads)
        started, before = time.monotonic(), self.position.seconds
        begun_at = self.position.tokens_done
        tokens_total = sum(step.tokens for step in self.steps)
        while not self._is_over():
            learning_rate, loss = self._step()
            self.position.seconds = before + time.monotonic() - started
            speed = (self.position.tokens_done - begun_at) / max(1e-9, self.position.seconds - before)
            on_progress(TrainProgress(self.position.tokens_done, tokens_total, loss, learning_rate, speed))
            if self._is_validation_due():
                self._validate()
            if self.position.step % self.settings.checkpoint_every_steps == 0 or self._is_over():
                self._keep(checkpoint_path, fingerprint, threads)
        if self.best is not None:
            self.student.put_back(self.best)

    def _take_up(self, checkpoint_path: Path) -> bool:
        """Go back to the checkpoint; return whether there is one."""
        saved = load_checkpoint(checkpoint_path)
        if saved is None:
            return False
        self.student.put_back(saved.learned)
        self.optimizer.load_state_dict(saved.optimizer)
        restore_random_states(saved.random_states)
        self.position, self.best = saved.position, saved.best
        self.metrics.cut(saved.position.metrics_bytes)
        log.info("going on after step %d of %d", self.position.step, len(self.steps))
        return True

    def _keep(self, checkpoint_path: Path, fingerprint: Fingerprint, threads: int) -> None:
        self.position.metrics_bytes = self.metrics.bytes()
        save_checkpoint(
            checkpoint_path,
            Checkpoint(
                fingerprint=fingerprint,
                threads=threads,
                position=self.position,
                learned=self.student.learned(),
                best=self.best,
                optimizer=self.optimizer.state_dict(),
                random_states=random_states(),
            ),
        )

    def _is_over(self) -> bool:
        return self.position.step >= len(self.steps) or self.position.validations_without_gain >= self.settings.patience

    def _is_validation_due(self) -> bool:
        due = self.position.tokens_since_validation >= self.settings.validate_every_tokens
        return bool(self.validation) and (due or self.position.step == len(self.steps))

    def _step(self) -> tuple[float, float]:
        """Make the next step and return its learning rate and its loss in nats per scored token."""
        step = self.steps[self.position.step]
        learning_rate = learning_rate_at(
            self.position.step + 1, steps=len(self.steps), peak=self.peak_learning_rate, settings=self.settings
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        trees = self._layout.trees(self.forest, step.parts)
        scored_weight = sum(tree.scored_weight for tree in trees)
        started, summed = time.monotonic(), 0.0
        for batch in self._layout.batches(trees):
            loss = self.student.loss_sum(batch, self._frozen) / scored_weight
            loss.backward()
            summed += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(list(self.student.trainable.values()), self.settings.clip_norm)
        if not math.isfinite(summed) or not math.isfinite(float(norm)):
            raise OperatorError(
                f"training: the loss is {summed!r} and the gradient {float(norm)!r} at step {self.position.step + 1} "
                f"with learning rate {learning_rate:g}; expected numbers; lower [train] learning_rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(step, summed)
        figures: dict[str, Json] = {
            "step": self.position.step,
            "epoch": step.epoch,
            "tokens": self.position.tokens_done,
            "loss": summed,
            "learning_rate": learning_rate,
            "gradient_norm": float(norm),
            "tokens_per_second": round(step.tokens / (time.monotonic() - started), 1),
        }
        self.metrics.write("step", figures)
        return learning_rate, summed

    def _count(self, step: Step, loss: float) -> None:
        position = self.position
        position.step += 1
        position.tokens_done += step.tokens
        position.tokens_since_validation += step.tokens
        position.first_loss = loss if position.first_loss is None else position.first_loss
        position.last_loss = loss

    def _frozen_states(self) -> torch.Tensor | None:
        """Compute once what the frozen layers make of the training rows; in an order that a resumed training repeats."""
        if not self.student.first_layer:
            return None
        whole = [self.forest.whole(row) for conversation in self.forest.conversations for row in conversation]
        trees = self._layout.trees(self.forest, whole)
        return self.student.frozen_states(self._layout.batches(trees), len(self.forest))

    def _held_out_nll(self) -> float:
        """Return the loss on the held-out trees in nats per scored token."""
        with torch.no_grad():
            summed = sum(float(self.student.loss_sum(batch)) for batch in self._layout.batches(self.validation))
        return summed / sum(tree.scored_weight for tree in self.validation)

    def _validate(self) -> None:
        """Measure the held-out loss and keep the weights when it is the best of any trained ones."""
        if not self.validation:
            return
        nll, position = self._held_out_nll(), self.position
        position.tokens_since_validation = 0
        if position.step == 0:
            position.first_validation_nll = nll
        elif position.best_validation_nll is None or nll < position.best_validation_nll:
            position.best_validation_nll, position.best_step = nll, position.step
            position.validations_without_gain = 0
            self.best = self.student.learned()
        else:
            position.validations_without_gain += 1
        figures: dict[str, Json] = {
            "step": position.step,
            "tokens": position.tokens_done,
            "validation_nll": nll,
            "best_step": position.best_step,
        }
        self.metrics.write("validation", figures)
