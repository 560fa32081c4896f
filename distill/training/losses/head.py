"""The loss of the answers alone, through the output head, without ever holding the logits of a whole batch.

In: the hidden states at the scored positions, the output head and what is to be learnt there: words, a teacher's likeliest
tokens, a local teacher's whole belief. Out: one scalar and its gradients. Knows nothing of conversations, and never looks at a
position that is not scored: with a vocabulary of 49 to 200 thousand entries the unscored half of the output layer is the
largest piece of work that can be left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from conversations.errors import OperatorError
from distill.training.losses.divergences import Lost, bucket_divergence, cross_entropy, tempered, whole_divergence
from distill.training.losses.targets import Targets

LOGITS_AT_ONCE = 8 * 1024 * 1024
# A GPU reads the whole head for each piece, and needs some hundred rows to be busy meanwhile: 640 of a vocabulary of 200 thousand.
TIMES_ON_A_GPU = 16
# A piece of the scored positions, or their numbers.
_Rows: TypeAlias = slice | torch.Tensor


@dataclass(frozen=True)
class TeacherStates:
    """What a local teacher sees at the scored positions. hidden: (scored, its width); head: (vocabulary, its width)."""

    hidden: torch.Tensor
    head: torch.Tensor


@dataclass(frozen=True)
class Mixture:
    """How much each source says in the loss of a prediction: (1 - b) [(1 - a) words + a soft labels] + b whole belief.

    a is `soft_weight` where the position has soft labels and 0 elsewhere, b is `whole_weight` where there is a local teacher.
    `temperature` is that of both beliefs.
    """

    soft_weight: float = 0.0
    temperature: float = 1.0
    whole_weight: float = 0.0


WORDS_ALONE = Mixture()


def answer_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: Targets,
    mixture: Mixture = WORDS_ALONE,
    teacher: TeacherStates | None = None,
) -> torch.Tensor:
    """Return the weighted sum of the targets' losses (in nats), a scalar.

    hidden: (scored, width), the final hidden state from which each target is predicted. head: (vocabulary, width),
    frozen or trained. No scored position gives 0.
    Logits are made a few rows at a time and their gradient is formed on the spot, so backward only multiplies.
    Raises OperatorError where a soft label names a token that the head has no row for.
    """
    if targets.soft_ids is not None and mixture.soft_weight and targets.soft_ids.numel():
        largest = int(targets.soft_ids.max())
        if largest >= head.shape[0]:
            raise OperatorError(
                f"training: a soft label names token {largest}, and the student's output head has {head.shape[0]}; "
                "expected a tokenizer that fits its model; set [student] base to a checkpoint folder as it was published"
            )
    if not torch.is_grad_enabled():
        # An autograd function is told of tensors that could have gradients, not of whether anyone wants them.
        hidden, head = hidden.detach(), head.detach()
    return cast(torch.Tensor, _AnswerLoss.apply(hidden, head, targets, mixture, teacher))


class _AnswerLoss(torch.autograd.Function):  # type: ignore[misc]  # torch is read untyped
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: Targets,
        mixture: Mixture,
        teacher: TeacherStates | None,
    ) -> torch.Tensor:
        # Half-precision products are summed in float32; float64 stays, so that gradcheck can judge.
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        head_grad = torch.zeros_like(head, dtype=dtype) if wants_head else None
        used_head = head.to(hidden.dtype)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        with_gradient = wants_hidden or wants_head
        for rows, is_soft in _rows_at_a_time(targets, mixture, teacher, vocabulary=head.shape[0]):
            logits = (hidden[rows] @ used_head.t()).to(dtype)
            weights = targets.weights[rows].to(dtype)
            losses, gradient = cross_entropy(logits, targets.token_ids[rows], with_gradient=with_gradient)
            if is_soft:
                believed = _soft(logits, targets, rows, mixture.temperature, with_gradient=with_gradient)
                losses, gradient = _mixed(Lost(losses, gradient), believed, mixture.soft_weight)
            if teacher is not None:
                believed = _whole(logits, teacher, rows, mixture.temperature, with_gradient=with_gradient)
                losses, gradient = _mixed(Lost(losses, gradient), believed, mixture.whole_weight)
            total += (losses * weights).sum()
            if gradient is None:
                continue
            gradient.mul_(weights.unsqueeze(1))
            if hidden_grad is not None:
                hidden_grad[rows] = gradient.to(hidden.dtype) @ used_head
            if head_grad is not None:
                head_grad += gradient.t() @ hidden[rows].to(dtype)
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
            None,
        )


def _rows_at_a_time(
    targets: Targets, mixture: Mixture, teacher: TeacherStates | None, *, vocabulary: int
) -> Iterator[tuple[_Rows, bool]]:
    """Yield which rows are computed together and whether they have soft labels: these and those without stay apart.

    Each source beside the words takes as much room again as the logits, so that there are fewer rows at once.
    """
    logits_at_once = LOGITS_AT_ONCE * (TIMES_ON_A_GPU if targets.token_ids.is_cuda else 1)
    at_once = logits_at_once // vocabulary // (1 + (teacher is not None))
    if targets.soft_ids is None or not mixture.soft_weight:
        for start in range(0, len(targets), max(1, at_once)):
            yield slice(start, start + max(1, at_once)), False
        return
    has_soft = (targets.soft_ids >= 0).any(dim=1)
    for is_soft, room in ((False, at_once), (True, at_once // 2)):
        for rows in (has_soft == is_soft).nonzero().squeeze(1).split(max(1, room)):
            if len(rows):
                yield rows, is_soft


def _soft(logits: torch.Tensor, targets: Targets, rows: _Rows, temperature: float, *, with_gradient: bool) -> Lost:
    """Return the divergence from what the teacher said of its likeliest tokens."""
    assert targets.soft_ids is not None and targets.soft_log_probabilities is not None
    choices = tempered(
        targets.soft_ids[rows],
        targets.soft_log_probabilities[rows].to(logits.dtype),
        vocabulary=logits.shape[1],
        temperature=temperature,
    )
    return bucket_divergence(logits, choices, temperature=temperature, with_gradient=with_gradient)


def _whole(logits: torch.Tensor, teacher: TeacherStates, rows: _Rows, temperature: float, *, with_gradient: bool) -> Lost:
    """Return the divergence from the local teacher's distribution, made of the same few rows."""
    teacher_logits = (teacher.hidden[rows] @ teacher.head.t()).to(logits.dtype)
    return whole_divergence(logits, teacher_logits, temperature=temperature, with_gradient=with_gradient)


def _mixed(first: Lost, second: Lost, share: float) -> Lost:
    """Return (1 - share) of one loss and `share` of another; the first one's gradient is spent."""
    losses = first.losses * (1 - share) + second.losses * share
    if first.gradient is None or second.gradient is None:
        return Lost(losses, None)
    return Lost(losses, first.gradient.mul_(1 - share).add_(second.gradient, alpha=share))
