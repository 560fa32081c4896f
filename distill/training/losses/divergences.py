"""What a few rows of logits lose, and the gradient of it, in closed form.

In: logits of the student, (rows, vocabulary), in float32 or float64. Out: a loss for each row, in nats, and its gradient by the
logits. Divergences are forward, KL(teacher || student), and multiplied by the square of the temperature, so that their
gradient keeps its size (Hinton, Vinyals and Dean 2015). Knows no head, no hidden state and no autograd.
"""

from typing import NamedTuple

import torch

# OpenAI's schema says this of a token that is not among the likeliest.
_NO_LOG_PROBABILITY = -9999.0
# Of what is left of 1, no more than this is rounding: twenty log-probabilities in float32.
_ROUNDING = 1e-6


class Lost(NamedTuple):
    """losses: (rows,). gradient: (rows, vocabulary), by the logits; None where nobody asked for it."""

    losses: torch.Tensor
    gradient: torch.Tensor | None


class Choices(NamedTuple):
    """A teacher's tempered belief: (rows, choices) ids, each once in a row, and probabilities, 0 where `ids` says nothing.

    `rest`: (rows,), the probability of all other tokens together. `known`: (rows, choices) bool, which entries say something.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor
    known: torch.Tensor
    rest: torch.Tensor


def cross_entropy(logits: torch.Tensor, token_ids: torch.Tensor, *, with_gradient: bool) -> Lost:
    """Return the negative log-likelihood of the tokens. token_ids: (rows,)."""
    log_norm = torch.logsumexp(logits, dim=1, keepdim=True)
    at = token_ids.unsqueeze(1)
    losses = (log_norm - logits.gather(1, at)).squeeze(1)
    if not with_gradient:
        return Lost(losses, None)
    # d/dlogits = softmax - one-hot
    gradient = (logits - log_norm).exp_()
    return Lost(losses, gradient.scatter_add_(1, at, -torch.ones_like(at, dtype=gradient.dtype)))


def bucket_divergence(logits: torch.Tensor, teacher: Choices, *, temperature: float, with_gradient: bool) -> Lost:
    """Return the divergence over the teacher's choices and one bucket for all other tokens.

    The bucket keeps the student from learning that nothing else is possible, as choices that are scaled up to 1 would teach
    (Anshumann et al. 2025, arXiv 2503.16870). What the student gives to the bucket is summed over its tokens, not taken as
    1 - the rest, which is no more than rounding where the student is sure.
    """
    scaled = logits / temperature
    # Entries that say nothing point to a known choice of their row, so that writing to them changes nothing else.
    first_known = teacher.ids.gather(1, teacher.known.int().argmax(dim=1, keepdim=True))
    at = torch.where(teacher.known, teacher.ids, first_known)
    chosen = scaled.gather(1, at).masked_fill(~teacher.known, -torch.inf)
    others = scaled.scatter_(1, at, -torch.inf)
    log_others = torch.logsumexp(others, dim=1, keepdim=True)
    log_norm = torch.logaddexp(torch.logsumexp(chosen, dim=1, keepdim=True), log_others)
    rest = teacher.rest.unsqueeze(1)
    losses = _divergence(teacher.probabilities, chosen - log_norm) + _divergence(rest, log_others - log_norm)
    if not with_gradient:
        return Lost(losses * temperature**2, None)
    # With s the student's probabilities and S those of its bucket: s - q for a choice, s (1 - Q / S) for a token of the bucket.
    # The latter is written as softmax within the bucket times (S - Q), because S may be too small to divide by.
    shift = torch.where(torch.isfinite(log_others), log_others, 0.0)
    gradient = others.sub_(shift).exp_().mul_((log_others - log_norm).exp() - rest)
    gradient.scatter_(1, at, 0.0)
    gradient.scatter_add_(1, at, (chosen - log_norm).exp() - teacher.probabilities)
    return Lost(losses * temperature**2, gradient.mul_(temperature))


def whole_divergence(logits: torch.Tensor, teacher_logits: torch.Tensor, *, temperature: float, with_gradient: bool) -> Lost:
    """Return the divergence over the whole vocabulary. teacher_logits: (rows, vocabulary)."""
    teacher = torch.log_softmax(teacher_logits / temperature, dim=1)
    student = torch.log_softmax(logits / temperature, dim=1)
    probabilities = teacher.exp()
    # Rounding as in `_divergence`.
    differences = teacher.sub_(student).mul_(probabilities).sub_(probabilities)
    losses = differences.add_(student.exp_()).sum(dim=1) * temperature**2
    return Lost(losses, student.sub_(probabilities).mul_(temperature) if with_gradient else None)


def tempered(ids: torch.Tensor, log_probabilities: torch.Tensor, *, vocabulary: int, temperature: float) -> Choices:
    """Return what a teacher's most likely tokens, said at temperature 1, say at another temperature.

    ids, log_probabilities: (rows, choices) as in Targets. A token that stands twice has the sum of both; what says nothing, or
    that a token is impossible, is in the rest. A choice of probability p gets p^(1/T) / Z. Of the rest, r, only the sum is known,
    so it is spread evenly over the n tokens that are not named: n (r/n)^(1/T) / Z. Without that, the named tokens
    would claim nearly everything at any T above 1. At T = 1 nothing is assumed. A sum above 1 is scaled to 1, and a rest of
    rounding's size is none, because a root would make much of it. Counted in float64, returned in the type of the second.
    """
    known = (ids >= 0) & (log_probabilities > _NO_LOG_PROBABILITY)
    order = torch.where(known, ids, vocabulary).sort(dim=1)
    is_new = torch.ones_like(known)
    is_new[:, 1:] = order.values[:, 1:] != order.values[:, :-1]
    group = is_new.cumsum(dim=1) - 1
    said = torch.where(known, log_probabilities.double(), -torch.inf).exp().gather(1, order.indices)
    merged = torch.zeros_like(said).scatter_add_(1, group, said)
    merged_ids = torch.full_like(ids, vocabulary).scatter_(1, group, order.values)
    known = merged_ids < vocabulary
    unnamed = vocabulary - known.sum(dim=1)
    rest = 1 - merged.sum(dim=1)
    rest = torch.where((rest > _ROUNDING) & (unnamed > 0), rest, 0.0)
    share = 1 / temperature
    powers = torch.where(known, merged**share, 0.0)
    rest_power = unnamed.clamp(min=1) * (rest / unnamed.clamp(min=1)) ** share
    norm = powers.sum(dim=1) + rest_power
    dtype = log_probabilities.dtype
    return Choices(
        merged_ids.masked_fill(~known, 0), (powers / norm.unsqueeze(1)).to(dtype), known, (rest_power / norm).to(dtype)
    )


def _divergence(teacher: torch.Tensor, student_log: torch.Tensor) -> torch.Tensor:
    """Return sum (q log q/s - q + s) of each row. What the teacher holds impossible costs what it takes from the others.

    Over all tokens q and s add up to 1, so that this is the divergence, and unlike sum q log q/s it is hardly moved by an error in a
    logarithm: by (s - q) of it, not by q. At high temperatures, where s is near q, the square of the temperature enlarges the error.
    """
    dtype = student_log.dtype
    # There are few entries, and nearly everything may be in one of them.
    teacher, student_log = teacher.double(), student_log.double()
    differences = torch.where(teacher > 0, teacher * (teacher.log() - student_log), 0.0)
    return (differences - teacher + student_log.exp()).sum(dim=1).to(dtype)
