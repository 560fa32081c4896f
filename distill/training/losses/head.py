"""Cross-entropy on the answers alone, without ever holding the logits of a whole batch.

In: the hidden states at the scored positions and the output head. Out: one scalar and its gradients. Knows nothing of
conversations, and never looks at a position that is not scored: with a vocabulary of 49 to 200 thousand entries the
unscored half of the output layer is the largest piece of work that can be left out.
"""

from typing import cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from distill.training.losses.targets import Targets

LOGITS_AT_ONCE = 8 * 1024 * 1024
# A GPU reads the whole head for each piece, and needs some hundred rows to be busy meanwhile: 640 of a vocabulary of 200 thousand.
TIMES_ON_A_GPU = 16


def answer_loss(hidden: torch.Tensor, head: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the weighted sum of the negative log-likelihoods (in nats) of the targets, a scalar.

    hidden: (scored, width), the final hidden state from which each target is predicted. head: (vocabulary, width),
    frozen or trained. No scored position gives 0.
    Logits are made a few rows at a time and their gradient is formed on the spot, so backward only multiplies.
    """
    if not torch.is_grad_enabled():
        # An autograd function is told of tensors that could have gradients, not of whether anyone wants them.
        hidden, head = hidden.detach(), head.detach()
    return cast(torch.Tensor, _AnswerLoss.apply(hidden, head, targets.token_ids, targets.weights))


class _AnswerLoss(torch.autograd.Function):  # type: ignore[misc]  # torch is read untyped
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        # Half-precision products are summed in float32; float64 stays, so that gradcheck can judge.
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        head_grad = torch.zeros_like(head, dtype=dtype) if wants_head else None
        used_head = head.to(hidden.dtype)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        logits_at_once = LOGITS_AT_ONCE * (TIMES_ON_A_GPU if head.is_cuda else 1)
        rows_at_once = max(1, logits_at_once // head.shape[0])
        for start in range(0, hidden.shape[0], rows_at_once):
            rows = slice(start, start + rows_at_once)
            logits = (hidden[rows] @ used_head.t()).to(dtype)
            row_targets, row_weights = targets[rows].unsqueeze(1), weights[rows].to(dtype).unsqueeze(1)
            log_norm = torch.logsumexp(logits, dim=1, keepdim=True)
            total += ((log_norm - logits.gather(1, row_targets)) * row_weights).sum()
            if hidden_grad is None and head_grad is None:
                continue
            # d/dlogits = weight * (softmax - one-hot)
            logits_grad = logits.sub_(log_norm).exp_().mul_(row_weights)
            logits_grad.scatter_add_(1, row_targets, -row_weights)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad.to(hidden.dtype) @ used_head
            if head_grad is not None:
                head_grad += logits_grad.t() @ hidden[rows].to(dtype)
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head.dtype))
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_grad, head_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * upstream.to(hidden_grad.dtype),
            None if head_grad is None else head_grad * upstream.to(head_grad.dtype),
            None,
            None,
        )
