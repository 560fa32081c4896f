"""The chunked loss is torch's cross-entropy, value and gradients."""

import pytest
import torch

from distill.training.losses.head import LOGITS_AT_ONCE, answer_loss
from distill.training.losses.targets import Targets


def _case(scored: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(7)
    hidden = torch.randn(scored, width, generator=random, dtype=dtype)
    head = torch.randn(vocabulary, width, generator=random, dtype=dtype)
    targets = torch.randint(vocabulary, (scored,), generator=random)
    weights = torch.rand(scored, generator=random, dtype=dtype)
    return hidden, head, targets, weights


@pytest.mark.parametrize("head_is_trained", [False, True])
def test_loss_and_gradients_equal_plain_cross_entropy_over_several_chunks(head_is_trained):
    vocabulary = 60_000
    scored = LOGITS_AT_ONCE // vocabulary + 50
    hidden, head, targets, weights = _case(scored, 6, vocabulary, torch.float32)
    mine = [hidden.clone().requires_grad_(), head.clone().requires_grad_(head_is_trained)]
    plain = [hidden.clone().requires_grad_(), head.clone().requires_grad_(head_is_trained)]

    loss = answer_loss(*mine, Targets(targets, weights)) / weights.sum()
    nll = torch.nn.functional.cross_entropy(plain[0] @ plain[1].t(), targets, reduction="none")
    expected = (nll * weights).sum() / weights.sum()
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine[0].grad, plain[0].grad, rtol=1e-5, atol=1e-6)
    if head_is_trained:
        torch.testing.assert_close(mine[1].grad, plain[1].grad, rtol=1e-4, atol=1e-6)
    else:
        assert mine[1].grad is None


def test_gradients_agree_with_finite_differences():
    hidden, head, targets, weights = _case(5, 3, 11, torch.float64)
    targets[1] = targets[0]
    assert torch.autograd.gradcheck(
        lambda h, w: answer_loss(h, w, Targets(targets, weights)), (hidden.requires_grad_(), head.requires_grad_())
    )


def test_no_scored_position_gives_zero_and_not_nan():
    hidden, head, targets, weights = _case(0, 4, 9, torch.float32)
    loss = answer_loss(hidden.requires_grad_(), head.requires_grad_(), Targets(targets, weights))
    loss.backward()
    assert loss.item() == 0.0
    assert head.grad is not None
    assert head.grad.abs().sum().item() == 0.0
