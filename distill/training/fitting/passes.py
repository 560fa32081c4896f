"""One pass over trees: their loss with its gradients, or their loss alone, by micro-batches and by every process of the group.

In: trees and how they are laid out. Out: the loss of all processes together, in nats per scored token. Changes no
weight, and tells when memory ran out anywhere, so that all processes begin a pass again together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from distill.training.batches.forest import TokenTree
from distill.training.batches.layout import Layout
from distill.training.batches.packing import Batch
from distill.training.fitting.memory import is_out_of_memory
from distill.training.processes.group import Group
from distill.training.processes.sharding import Sharding
from distill.training.student.learning import LearningStudent


class OutOfMemory(Exception):
    """Memory ran out, in this process or in another one of the group."""


class Passes:
    """What a student makes of trees. Weights are divided among several processes when all of them are trained."""

    def __init__(self, student: LearningStudent, group: Group) -> None:
        self._student = student
        self._group = group
        several = group.size > 1 and student.kind == "full"
        self._sharding: Sharding | None = student.divide(group.size) if several else None

    @property
    def divided(self) -> bool:
        """Return whether the student's weights are divided among several processes."""
        return self._sharding is not None

    def gradients(self, trees: Sequence[TokenTree], frozen: torch.Tensor | None, layout: Layout) -> float:
        """Form the gradients of trees and return their loss, both of the whole group; `frozen` is what `frozen_states` made.

        Raises OutOfMemory.
        """
        scored_weight = sum(tree.scored_weight for tree in trees)

        def learn() -> float:
            # Asked for once at the end: a GPU goes on with one micro-batch while the next is laid out.
            summed = torch.zeros((), dtype=torch.float64, device=self._student.device)
            for batch, share in self._own_batches(trees, layout):
                loss = self._student.loss_sum(batch, frozen) * (share / scored_weight)
                loss.backward()
                summed += loss.detach()
            return float(summed)

        loss = self._of_all(learn)
        if self._sharding is None:
            self._group.sum_gradients(list(self._student.trainable.values()))
        return loss

    def loss(self, trees: Sequence[TokenTree], layout: Layout) -> float:
        """Return the negative log-likelihood of the words of trees in nats per scored token, whatever is learnt beside them.

        Raises OutOfMemory.
        """

        def look() -> float:
            with torch.no_grad():
                return sum(share * float(self._student.nll_sum(batch)) for batch, share in self._own_batches(trees, layout))

        return self._of_all(look) / sum(tree.scored_weight for tree in trees)

    def _of_all(self, compute: Callable[[], float]) -> float:
        """Return the sum of what every process computes with whole outer weights."""
        own, ran_out = 0.0, False
        try:
            with self._whole_weights():
                own = compute()
        except (RuntimeError, MemoryError) as error:
            # Processes that divide the weights meet within the layers, where they cannot tell each other.
            if self._sharding is not None or not is_out_of_memory(error):
                raise
            ran_out = True
        of_all, ran_out_anywhere = self._group.sum(own, float(ran_out))
        if ran_out_anywhere:
            raise OutOfMemory
        return of_all

    def _own_batches(self, trees: Sequence[TokenTree], layout: Layout) -> Iterator[tuple[Batch, float]]:
        """Yield this process's micro-batches, each with 1, or with 0 where it only keeps the others company.

        Processes that divide the weights meet within every layer, so that each must compute as many micro-batches.
        """
        shares = [list(layout.batches(share)) for share in self._group.shares(trees)]
        yield from ((batch, 1.0) for batch in shares[self._group.rank])
        if self._sharding is not None:
            idle = max(map(len, shares)) - len(shares[self._group.rank])
            shortest = min(trees, key=lambda tree: len(tree.nodes))
            yield from ((batch, 0.0) for _ in range(idle) for batch in layout.batches([shortest]))

    @contextmanager
    def _whole_weights(self) -> Iterator[None]:
        if self._sharding is None:
            yield
            return
        with self._sharding.gathered():
            yield
