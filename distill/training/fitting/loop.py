"""The training loop: steps, validation, the best weights, checkpoints and metrics.

In: a student, the trees of its rows and the settings. Out: the student holding its best weights, and how it went. The
order of everything is decided before the first step, so that a killed training goes on to the same bits on a CPU.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from conversations.errors import OperatorError, OutsideError
from conversations.messages import Json
from distill.settings import TrainTable
from distill.training.batches.forest import Forest, TokenTree
from distill.training.batches.layout import Layout
from distill.training.fitting.checkpoint import (
    Checkpoint,
    Fingerprint,
    Position,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from distill.training.fitting.interruption import StopRequest, hearing_a_stop
from distill.training.fitting.memory import spent_twice, telling_of_spent_memory
from distill.training.fitting.metrics_log import MetricsLog
from distill.training.fitting.passes import OutOfMemory, Passes
from distill.training.fitting.planning import Step
from distill.training.fitting.rates import learning_rate_at, proven_learning_rate, weight_groups
from distill.training.fitting.remedies import IN_A_NEW_RUN
from distill.training.processes.group import Group
from distill.training.processes.sharding import load_optimizer_state, optimizer_state, whole
from distill.training.student.learning import LearningStudent

log = logging.getLogger(__name__)

_FEWER_WEIGHTS = 'set [train] kind = "lora", lower its rank, or let fewer last_layers learn,'


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is. `loss` in nats per scored token of the last step; tokens are those computed, unpadded."""

    tokens_done: int
    tokens_total: int
    loss: float
    learning_rate: float
    tokens_per_second: float


def progress_of(figures: Mapping[str, Json]) -> TrainProgress:
    """Return the progress that another process told, as `asdict` wrote it."""
    return TypeAdapter(TrainProgress).validate_python(figures)


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
        group: Group | None = None,
    ) -> None:
        """Take up everything that was decided before. Without a group this process trains alone."""
        self.student = student
        self.forest = forest
        self.steps = steps
        self.validation = validation
        self.settings = settings
        self.metrics = metrics
        self.group = group or Group(student.device)
        self._token_budget = student.layout(settings.token_budget_per_batch).token_budget
        self.position = Position(token_budget=self._token_budget)
        self.best: dict[str, torch.Tensor] | None = None
        self._frozen: torch.Tensor | None = None
        self._passes = Passes(student, self.group)
        self.peak_learning_rate = proven_learning_rate(student.family, student.parameters, settings)
        self.optimizer = torch.optim.AdamW(
            weight_groups(student.trainable, settings.weight_decay), lr=self.peak_learning_rate, fused=True
        )

    def run(
        self,
        checkpoint_path: Path,
        fingerprint: Fingerprint,
        threads: int,
        on_progress: Callable[[TrainProgress], None],
    ) -> None:
        """Make the steps that are left, and leave the student with its best weights.

        On SIGTERM ends the step, writes a checkpoint and raises KeyboardInterrupt. Raises OperatorError when the loss is no
        longer a number, OutsideError when memory runs out for the second time or the disk is full.
        """
        keep = _Keeping(checkpoint_path, fingerprint, threads)
        self._frozen = self._frozen_states()
        with hearing_a_stop() as stop:
            if not self._take_up(checkpoint_path):
                self._keep(keep)
            if self.position.step == 0:
                self._validate()
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
                stopping = self._stops(stop)
                if stopping or self._is_over() or self.position.step % self.settings.checkpoint_every_steps == 0:
                    self._keep(keep)
                if stopping:
                    raise KeyboardInterrupt(f"stopped after step {self.position.step} of {len(self.steps)}")
        if self.best is not None:
            self.student.put_back(self.best)
        self._warn_of_loss()

    def _warn_of_loss(self) -> None:
        """Say so where even the best weights do worse on held-out rows than those that the training began with."""
        first, best = self.position.first_validation_nll, self.position.best_validation_nll
        if self.group.writes and first is not None and best is not None and best > first:
            log.warning(
                "the training ends worse than it began: its best held-out loss is %.4f nats a token, after step %d, and was %.4f "
                "before the first; expected a lower one; lower [train] learning_rate (%g) or look at the training rows",
                best,
                self.position.best_step,
                first,
                self.peak_learning_rate,
            )

    @property
    def is_divided(self) -> bool:
        """Return whether the student's weights are divided among several processes."""
        return self._passes.divided

    def _stops(self, stop: StopRequest) -> bool:
        """Tell whether any process of the group was asked to stop, so that all of them end after the same step."""
        return self.group.sum(float(stop.asked))[0] > 0

    def _take_up(self, checkpoint_path: Path) -> bool:
        """Go back to the checkpoint; return whether there is one."""
        saved = load_checkpoint(checkpoint_path)
        # Nobody writes the first checkpoint before everybody has looked for one.
        self.group.wait()
        if saved is None:
            return False
        self.student.put_back(saved.learned)
        load_optimizer_state(self.optimizer, saved.optimizer)
        restore_random_states(saved.random_states)
        self.position, self.best = saved.position, saved.best
        self.metrics.cut(saved.position.metrics_bytes)
        log.info("going on after step %d of %d", self.position.step, len(self.steps))
        return True

    def _keep(self, keep: "_Keeping") -> None:
        self.position.metrics_bytes = self.metrics.bytes()
        checkpoint = Checkpoint(
            fingerprint=keep.fingerprint,
            threads=keep.threads,
            position=self.position,
            learned=self.student.learned(),
            best=self.best,
            optimizer=optimizer_state(self.optimizer),
            random_states=random_states(),
        )
        if self.group.writes:
            save_checkpoint(keep.path, checkpoint)

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
        started = time.monotonic()
        loss = self._within_memory(lambda layout: self._learn(step, layout))
        norm = float(whole(torch.nn.utils.clip_grad_norm_(list(self.student.trainable.values()), self.settings.clip_norm)))
        if not math.isfinite(loss) or not math.isfinite(norm):
            rows = ", ".join(self.forest.rows[part.row].decision_id for part in step.parts)
            raise OperatorError(
                f"training: the loss is {loss!r} and the gradient {norm!r} at step {self.position.step + 1} "
                f"with learning rate {learning_rate:g}, on the rows {rows}; expected numbers; look at these rows, lower [train] "
                f"learning_rate, {IN_A_NEW_RUN}; the checkpoint before this step is kept"
            )
        with telling_of_spent_memory(
            f"in the optimizer's step {self.position.step + 1}",
            expected="two moments for each weight that learns",
            to_lower=_FEWER_WEIGHTS,
        ):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(step, loss)
        figures: dict[str, Json] = {
            "step": self.position.step,
            "epoch": step.epoch,
            "tokens": self.position.tokens_done,
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "tokens_per_second": round(step.tokens / (time.monotonic() - started), 1),
        }
        self.metrics.write("step", figures)
        return learning_rate, loss

    def _learn(self, step: Step, layout: Layout) -> float:
        return self._passes.gradients(layout.trees(self.forest, step.parts), self._frozen, layout)

    def _within_memory(self, work: Callable[[Layout], float]) -> float:
        """Return what work makes of trees so laid out; when memory runs out, with half the token budget, once in a training."""
        states = random_states()
        try:
            return work(self.student.layout(self.position.token_budget))
        except OutOfMemory:
            pass
        # Outside of the handler, whose traceback would keep the tensors that did not fit.
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        budget = self.position.token_budget
        if budget < self._token_budget:
            raise OutsideError(spent_twice(self.position.step + 1, budget))
        self.position.token_budget = max(1, budget // 2)
        log.warning(
            "out of memory at step %d: micro-batches hold %d tokens from here on, not %d",
            self.position.step + 1,
            self.position.token_budget,
            budget,
        )
        figures: dict[str, Json] = {"step": self.position.step + 1, "token_budget_per_batch": self.position.token_budget}
        self.metrics.write("out_of_memory", figures)
        restore_random_states(states)
        try:
            return work(self.student.layout(self.position.token_budget))
        except OutOfMemory:
            raise OutsideError(spent_twice(self.position.step + 1, self.position.token_budget)) from None

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
        rows = [self.forest.whole(row) for conversation in self.forest.conversations for row in conversation]
        layout = self.student.layout(self.position.token_budget)
        with telling_of_spent_memory(
            "while what the frozen layers make of the rows was computed once for all steps",
            expected="it and one micro-batch",
            to_lower="lower [train] token_budget_per_batch or max_tokens",
        ):
            return self.student.frozen_states(layout.batches(layout.trees(self.forest, rows)), len(self.forest))

    def _validate(self) -> None:
        """Measure the held-out loss and keep the weights when it is the best of any trained ones."""
        if not self.validation:
            return
        nll, position = self._within_memory(lambda layout: self._passes.loss(self.validation, layout)), self.position
        if not math.isfinite(nll):
            raise OperatorError(
                f"training: the held-out loss is {nll!r} after step {position.step} with learning rate "
                f"{self.optimizer.param_groups[0]['lr']:g}; expected a number; lower [train] learning_rate {IN_A_NEW_RUN}; "
                "the checkpoint before it is kept"
            )
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


@dataclass(frozen=True)
class _Keeping:
    """Where checkpoints go, and what they say of the training beside its state."""

    path: Path
    fingerprint: Fingerprint
    threads: int
