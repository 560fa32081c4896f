"""The processes that train one student together, each on its share of every step's trees.

In: trees, and what each process made of its own. Out: shares that are as even as whole trees allow, and sums over all
processes. A step's loss and gradients are those of one process, to rounding: they are divided by the weight of the whole step,
never by that of a share. Knows no student and no data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from distill.training.batches.forest import TokenTree

# A process that waits this long for the others has lost them: none computes, loads or saves for as long.
_LONGEST_WAIT = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """One of the processes that train together; by default the only one. Made for several by `join`."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Return whether this is the process that writes files."""
        return self.rank == 0

    def shares(self, trees: Sequence[TokenTree]) -> list[list[TokenTree]]:
        """Return the trees of each process: the longest first, each to whom has least to compute. None is lost or doubled."""
        shares: list[list[TokenTree]] = [[] for _ in range(self.size)]
        loads = [0] * self.size
        for tree in sorted(trees, key=lambda each: -len(each.nodes)) if self.size > 1 else trees:
            least = loads.index(min(loads))
            shares[least].append(tree)
            loads[least] += len(tree.nodes)
        return shares

    def sum(self, *numbers: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.size == 1:
            return list(numbers)
        # float64, so that the sum of shares is as exact as the sum in one process.
        summed = reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device), "sum")
        return [float(number) for number in summed]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Set every gradient to its sum over all processes; one that a share did not touch counts as zero."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        summed = reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]), "sum")
        pieces = summed.split([gradient.numel() for gradient in gradients])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()

    def wait(self) -> None:
        """Return when every process has come here."""
        self.sum(0.0)

    def leave(self) -> None:
        """End the connection to the other processes."""
        if self.size > 1:
            PartialState().destroy_process_group()


def join(rank: int, size: int, meeting_place: Path) -> Group:
    """Meet the other processes of this machine at a file that they all name, and return the group.

    A process has the GPU of its rank, or the CPU where there is none. Its environment must hold RANK, LOCAL_RANK and
    WORLD_SIZE, as accelerate reads them.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "cuda:nccl,cpu:gloo" if on_gpu else "gloo",
        init_method=meeting_place.absolute().as_uri(),
        rank=rank,
        world_size=size,
        timeout=_LONGEST_WAIT,
    )
    return Group(PartialState(cpu=not on_gpu).device, rank, size)
