"""What a student learns from a micro-batch: words, soft labels, and a local teacher's belief and relations, as the settings mix them.

In: the student's states and its output head. Out: one scalar. Holds no weight that learns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.settings import TrainTable
from distill.training.batches.packing import Batch
from distill.training.losses.head import WORDS_ALONE, Mixture, answer_loss
from distill.training.losses.local_teacher import LocalTeacher, open_local_teacher, student_watch
from distill.training.losses.relations import AttentionWatch, relation_loss
from distill.training.student.forward import Forward


@dataclass(frozen=True)
class Lesson:
    """Sources of what is learnt, and how much each says; the words alone where nothing is given."""

    mixture: Mixture = WORDS_ALONE
    teacher: LocalTeacher | None = None
    watch: AttentionWatch | None = None
    relations_weight: float = 0.0
    relation_heads: int = 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep, while the student runs, what its lesson needs beside the last states."""
        if self.watch is None:
            yield
            return
        with self.watch.watching():
            yield

    def loss_sum(self, scored: torch.Tensor, head: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the weighted sum over the predictions, in nats, with its graph. scored, head: as `answer_loss` takes them."""
        if self.teacher is None:
            return answer_loss(scored, head, batch.targets, self.mixture)
        view = self.teacher.beliefs(batch)
        states = view.states if self.mixture.whole_weight else None
        loss = answer_loss(scored, head, batch.targets, self.mixture, states)
        if self.watch is None or view.projections is None:
            return loss
        related = relation_loss(self.watch.take(), view.projections, batch, heads=self.relation_heads)
        return loss + self.relations_weight * related


def lesson_of(settings: TrainTable, student: Forward, *, base_dir: Path, first_layer: int, max_model_len: int) -> Lesson:
    """Return the lesson of the settings for a loaded student, given by its way to its states, with its local teacher opened.

    Raises OperatorError where that teacher does not fit the student.
    """
    table = settings.local_teacher
    if table is None:
        return Lesson(Mixture(settings.soft_weight, settings.temperature))
    return Lesson(
        Mixture(settings.soft_weight, settings.temperature, table.logits_weight),
        open_local_teacher(table, student=student, student_dir=base_dir, max_model_len=max_model_len),
        student_watch(student.model, table, first_layer=first_layer) if table.relations_weight else None,
        table.relations_weight,
        table.relation_heads,
    )
