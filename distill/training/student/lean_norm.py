"""Root mean square layer normalisation (Zhang & Sennrich 2019, arXiv 1910.07467) that keeps its input as it comes.

In: a model with norms of transformers. Out: the same model, whose norms give the same and keep half as much or less for the gradient:
transformers' keep a copy in float32 and go over it in twice as many steps. A norm that is another function stays as it is.
"""

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

# Two tokens tell another function apart: one whose elements are alike, and one whose size is far from 1.
_PROBES = 2


class LeanNorm(nn.Module):  # type: ignore[misc]  # torch is read untyped
    """y = weight * x / sqrt(mean(x^2) + epsilon) over the last dimension, computed in float32."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised states. x: (..., width)."""
        y: torch.Tensor = _Norm.apply(x, self.weight, self.variance_epsilon)
        return y


class _Norm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        exact = x.to(_exact(x))
        size = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return weight * (exact * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, y_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normal = x.to(_exact(x)) * inverse
        grad = y_grad.to(normal.dtype)
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * normal).flatten(0, -2).sum(0).to(weight.dtype)
        x_grad = None
        if ctx.needs_input_grad[0]:
            grad = grad * weight
            along = (grad * normal).mean(-1, keepdim=True)
            x_grad = grad.addcmul_(normal, along, value=-1).mul_(inverse).to(x.dtype)
        return x_grad, weight_grad, None


def _exact(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def with_lean_norms(model: nn.Module) -> None:
    """Replace each norm of a model that a lean one equals, by trial, to rounding; names and weights stay."""
    for name, module in list(model.named_modules()):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not isinstance(weight, nn.Parameter) or not isinstance(epsilon, float) or isinstance(module, LeanNorm):
            continue
        lean = LeanNorm(weight, epsilon)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(_PROBES, *weight.shape, generator=generator).mul_(torch.tensor([[0.01], [3.0]])).to(weight)
        with torch.no_grad():
            alike = torch.allclose(lean(probe), module(probe), rtol=1e-2, atol=0.0)
        if alike:
            holder, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(holder), own_name, lean)
