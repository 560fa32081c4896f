"""A fully trained student's weights, gradients and optimizer, divided among the processes that train it (FSDP2).

In: a loaded student. Out: the same student, of which each process holds a share. A layer is whole in each process only while it
computes; what stands outside the layers (embedding, norm, head) is gathered once a step, because the head reads it in pieces.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor


@dataclass(frozen=True)
class _Outer:
    """A weight outside the layers: its shares, and under which names which modules hold it (tied weights: several)."""

    shares: nn.Parameter
    holders: tuple[tuple[nn.Module, str], ...]


class Sharding:
    """The division of one student's weights."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, *, size: int) -> None:
        """Divide what learns: `layers`, and every trainable weight outside of them. Frozen weights stay whole."""
        device = next(model.parameters()).device.type
        self._mesh = init_device_mesh(device, (size,))
        within = {id(module) for layer in layers for module in layer.modules()}
        holders: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            if id(module) not in within:
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.requires_grad:
                        holders.setdefault(parameter, []).append((module, name))
        for layer in layers:
            divided = fully_shard(layer, mesh=self._mesh, reshard_after_forward=True)
            # Sums, because a step's loss is divided by the weight of the whole step already.
            divided.set_gradient_divide_factor(1.0)
            divided.set_force_sum_reduction_for_comms(True)
        self._outer = [
            _Outer(nn.Parameter(distribute_tensor(whole.detach(), self._mesh, [Shard(0)])), tuple(held))
            for whole, held in holders.items()
        ]
        for outer in self._outer:
            _give(outer, outer.shares)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold the weights outside the layers whole; at the end their gradients are summed and divided again."""
        gathered = []
        for outer in self._outer:
            with torch.no_grad():
                whole = nn.Parameter(cast(DTensor, outer.shares).full_tensor())
            _give(outer, whole)
            gathered.append(whole)
        try:
            yield
        finally:
            for outer in self._outer:
                _give(outer, outer.shares)
        for outer, whole in zip(self._outer, gathered, strict=True):
            if whole.grad is not None:
                summed = DTensor.from_local(whole.grad, self._mesh, [Partial()])
                outer.shares.grad = summed.redistribute(placements=[Shard(0)])


def _give(outer: _Outer, weight: nn.Parameter) -> None:
    for module, name in outer.holders:
        setattr(module, name, weight)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the shares of every process in it; all of them must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a whole tensor, on the device of another tensor and divided as that is."""
    placed = tensor.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements) if isinstance(like, DTensor) else placed


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Return an optimizer's state with whole tensors."""
    state = optimizer.state_dict()
    moments = {
        number: {name: whole(value) if isinstance(value, torch.Tensor) else value for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Set an optimizer to a state that `optimizer_state` returned, divided as its weights are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        number: {
            name: divided_as(value, weights[number]) if value.shape == weights[number].shape else value
            for name, value in of_one.items()
        }
        for number, of_one in cast(Mapping[int, Mapping[str, torch.Tensor]], state["state"]).items()
    }
    optimizer.load_state_dict({**state, "state": moments})
