"""What is to be predicted at the scored positions of a micro-batch.

In: rows, as a forest lays them out. Out: tensors side by side, one entry a prediction. Knows no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill.training.decisions.training_row import Belief


@dataclass(frozen=True)
class Targets:
    """One entry for each prediction that is learnt.

    token_ids: (scored,) int64. weights: (scored,) float32, constants. soft_ids: (scored, choices) int64, -1 where there is no
    choice, and soft_log_probabilities: the same shape, float32, in nats: what the teacher believed; None where no entry has any.
    """

    token_ids: torch.Tensor
    weights: torch.Tensor
    soft_ids: torch.Tensor | None = None
    soft_log_probabilities: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return how many predictions there are."""
        return int(self.token_ids.shape[0])

    def to(self, device: torch.device) -> "Targets":
        """Return the targets with their tensors on a device."""
        return Targets(
            self.token_ids.to(device),
            self.weights.to(device),
            None if self.soft_ids is None else self.soft_ids.to(device),
            None if self.soft_log_probabilities is None else self.soft_log_probabilities.to(device),
        )


def targets_of(token_ids: Sequence[int], weights: Sequence[float], beliefs: Sequence[Belief]) -> Targets:
    """Return predictions, given side by side, as tensors."""
    ids, weighed = torch.tensor(token_ids, dtype=torch.int64), torch.tensor(weights, dtype=torch.float32)
    most = max(map(len, beliefs), default=0)
    if not most:
        return Targets(ids, weighed)
    nothing = (-1, -math.inf)
    filled = [[*belief, *[nothing] * (most - len(belief))] for belief in beliefs]
    return Targets(
        ids,
        weighed,
        torch.tensor([[token_id for token_id, _ in row] for row in filled], dtype=torch.int64),
        torch.tensor([[log_probability for _, log_probability in row] for row in filled], dtype=torch.float32),
    )
