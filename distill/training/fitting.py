"""The training loop: steps, schedule, validation, the best weights, checkpoints and metrics.

In: a student, the trees of its rows and the settings. Out: the student holding its best weights, and how it went. The
order of everything is decided before the first step, so that a killed training goes on to the same bits on a CPU.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.settings import TrainTable
from distill.training.batches.forest import Forest, TokenTree
from distill.training.batches.packing import cut_batches, pack_batch
from distill.training.checkpoint import (
    Checkpoint,
    Fingerprint,
    Position,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from distill.training.metrics_log import MetricsLog
from distill.training.planning import Step, trees_of
from distill.training.rates import learning_rate_at, proven_learning_rate
from distill.training.student import LearningStudent

# What starting a micro-batch costs, in tokens computed meanwhile.
_OVERHEAD_TOKENS = {"cpu": 16, "cuda": 512}
# Padding is masked and never scored, so that any token will do.
_PAD_ID = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is. `loss` in nats per scored token of the last step; tokens are those computed, unpadded."""

    tokens_done: int
    tokens_total: int
    loss: float
    learning_rate: float
    tokens_per_second: float


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
        trees = trees_of(self.forest, step.parts)
        scored_weight = sum(tree.scored_weight for tree in trees)
        started, summed = time.monotonic(), 0.0
        for batch in self._batches(trees):
            loss = self.student.loss_sum(pack_batch(batch, pad_id=_PAD_ID), self._frozen) / scored_weight
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

    def _batches(self, trees: Sequence[TokenTree]) -> Iterator[list[TokenTree]]:
        yield from cut_batches(
            trees,
            token_budget=self.settings.token_budget_per_batch,
            overhead_tokens=_OVERHEAD_TOKENS[self.student.device.type],
        )

    def _frozen_states(self) -> torch.Tensor | None:
        """Compute once what the frozen layers make of the training rows; in an order that a resumed training repeats."""
        if not self.student.first_layer:
            return None
        whole = [self.forest.whole(row) for conversation in self.forest.conversations for row in conversation]
        batches = [[tree] for tree in trees_of(self.forest, whole)]
        return self.student.frozen_states(batches, len(self.forest))

    def _held_out_nll(self) -> float:
        """Return the loss on the words of the held-out trees in nats per scored token."""
        with torch.no_grad():
            summed = sum(
                float(self.student.nll_sum(pack_batch(batch, pad_id=_PAD_ID))) for batch in self._batches(self.validation)
            )
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
