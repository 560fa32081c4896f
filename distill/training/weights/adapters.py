"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear layers of a student, in PEFT's format and with less work than PEFT's.

In: a loaded student. Out: the same student with its weights frozen and a trainable pair (A, B) beside each linear layer that
is to learn; and the files that PEFT and vLLM read. PEFT's own layers compute in the number format of A and B, and turn every
activation there and back; here both products run in the format of the layer, and only A, B and their gradients are float32.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
NAME_IN_FILE = "base_model.model."


class AdaptedLinear(nn.Module):  # type: ignore[misc]  # torch is read untyped
    """A frozen linear layer with a trainable low-rank change: y = W x + b + scale B A x.

    The scale is alpha / rank, or, rank-stabilised, alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023).
    A: (rank, in), drawn as PEFT draws it from torch's present random state; B: (out, rank), zero. Both float32.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: int, rank_stabilised: bool = False) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.alpha = alpha
        self.rank_stabilised = rank_stabilised
        self.scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)
        device = linear.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the adapted layer's output. x: (..., in)."""
        y = cast(torch.Tensor, _Adapted.apply(x, self.linear.weight, self.lora_a, self.lora_b, self.scale))
        return y if self.linear.bias is None else y + self.linear.bias


class _Adapted(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low_rank = rows @ lora_a.to(x.dtype).t()
        y = (rows @ weight.t()).addmm_(low_rank, lora_b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(rows, low_rank, weight, lora_a, lora_b)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, y_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low_rank, weight, lora_a, lora_b = ctx.saved_tensors
        shape, y_grad = y_grad.shape[:-1], y_grad.reshape(-1, y_grad.shape[-1])
        low_rank_grad = (y_grad @ lora_b.to(y_grad.dtype)).mul_(ctx.scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (y_grad @ weight).addmm_(low_rank_grad, lora_a.to(y_grad.dtype)).view(*shape, -1)
        lora_a_grad = (low_rank_grad.t() @ rows).to(lora_a.dtype)
        lora_b_grad = (y_grad.t() @ low_rank).to(lora_b.dtype).mul_(ctx.scale)
        return x_grad, None, lora_a_grad, lora_b_grad, None


def adapt(layers: Iterable[nn.Module], *, rank: int, alpha: int, rank_stabilised: bool = False) -> None:
    """Put an adapter on every linear layer inside some of a student's layers."""
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                holder, _, own_name = name.rpartition(".")
                adapted = AdaptedLinear(module, rank=rank, alpha=alpha, rank_stabilised=rank_stabilised)
                setattr(layer.get_submodule(holder), own_name, adapted)


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Return a student's adapted layers by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def save_adapters(model: nn.Module, folder: Path, *, base_name: str, first_layer: int, layer_count: int) -> None:
    """Write the adapters as PEFT does; the base is named without its place."""
    adapted = adapted_layers(model)
    some = next(iter(adapted.values()))
    config = LoraConfig(
        r=some.lora_a.shape[0],
        lora_alpha=some.alpha,
        use_rslora=some.rank_stabilised,
        target_modules=sorted({name.rpartition(".")[2] for name in adapted}),
        layers_to_transform=list(range(first_layer, layer_count)) if first_layer else None,
        base_model_name_or_path=base_name,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    _put_in_order(folder / CONFIG_FILE)
    tensors = {}
    for name, layer in adapted.items():
        tensors[f"{NAME_IN_FILE}{name}.lora_A.weight"] = layer.lora_a.detach().cpu().contiguous()
        tensors[f"{NAME_IN_FILE}{name}.lora_B.weight"] = layer.lora_b.detach().cpu().contiguous()
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapters(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights that `save_adapters` wrote into a file, by the names that they have in a student which learns."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path).items():
        layer, _, pair = name.removeprefix(NAME_IN_FILE).removesuffix(".weight").rpartition(".")
        found[f"{layer}.{pair.lower()}"] = tensor
    return found


def _put_in_order(path: Path) -> None:
    """Sort the configuration: PEFT keeps the targets as a set, whose order changes from run to run."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
