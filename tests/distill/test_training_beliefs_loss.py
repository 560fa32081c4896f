"""What a teacher believes is learnt exactly: against the whole vocabulary, spelled out by torch in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from conversations.errors import OperatorError
from distill.training.losses import head as head_module
from distill.training.losses.head import Mixture, TeacherStates, answer_loss
from distill.training.losses.targets import Targets

WIDTH = 3


def _brute_force(
    logits: torch.Tensor, said: dict[int, float], word: int, *, soft_weight: float, temperature: float
) -> torch.Tensor:
    """The loss of one prediction over the whole vocabulary: the teacher's rest is spread evenly, everything is tempered,
    and only then the tokens that are not named are put into one bucket."""
    vocabulary = logits.shape[0]
    words = -log_softmax(logits, dim=0)[word]
    if not said:
        return words
    teacher = torch.zeros(vocabulary, dtype=torch.float64)
    for token, probability in said.items():
        teacher[token] = probability
    unnamed = [token for token in range(vocabulary) if token not in said]
    rest = 1 - sum(said.values())
    for token in unnamed:
        teacher[token] = rest / len(unnamed) if rest > 1e-6 else 0.0
    teacher = teacher ** (1 / temperature)
    teacher = teacher / teacher.sum()
    student = torch.softmax(logits / temperature, dim=0)
    divergence = torch.zeros((), dtype=torch.float64)
    for bucket in [[token] for token in said] + ([unnamed] if unnamed else []):
        q, s = teacher[bucket].sum(), student[bucket].sum()
        if q > 0:
            divergence = divergence + q * (q / s).log()
    return (1 - soft_weight) * words + soft_weight * temperature**2 * divergence


@st.composite
def _cases(draw: st.DrawFn):
    """Rows of a tiny vocabulary: choices in any order, some of them twice, some of them none, some positions without any."""
    vocabulary = draw(st.integers(2, 7))
    number = st.floats(-4, 4, allow_nan=False)
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = draw(st.lists(st.integers(0, vocabulary - 1), max_size=vocabulary, unique=True))
        shares = [draw(st.floats(0.01, 1)) for _ in tokens]
        rest = draw(st.sampled_from([0.0, 0.3, 5.0]))
        entries = [(token, share / (sum(shares) + rest)) for token, share in zip(tokens, shares, strict=True)]
        if entries and draw(st.booleans()):
            token, probability = entries.pop()
            entries += [(token, probability * 0.25), (token, probability * 0.75)]
        entries = draw(st.permutations(entries))
        rows.append((entries, draw(st.integers(0, vocabulary - 1)), draw(st.floats(0, 2))))
    states = [[draw(number) for _ in range(WIDTH)] for _ in rows]
    head = [[draw(number) for _ in range(WIDTH)] for _ in range(vocabulary)]
    mixture = Mixture(draw(st.sampled_from([0.3, 1.0])), draw(st.sampled_from([0.5, 1.0, 2.0, 5.0])))
    return rows, torch.tensor(states, dtype=torch.float64), torch.tensor(head, dtype=torch.float64), mixture


def _targets(rows, choices: int = 9) -> Targets:
    """Rows as tensors; what says nothing stands as -1, as -inf, or as OpenAI's -9999."""
    ids = torch.full((len(rows), choices), -1)
    said = torch.full((len(rows), choices), -math.inf, dtype=torch.float64)
    for row, (entries, _, _) in enumerate(rows):
        for place, (token, probability) in enumerate(entries):
            ids[row, place], said[row, place] = token, math.log(probability)
        if entries:
            ids[row, -1], said[row, -1] = 0, -9999.0
    return Targets(
        torch.tensor([word for _, word, _ in rows]),
        torch.tensor([weight for _, _, weight in rows], dtype=torch.float64),
        ids,
        said,
    )


@given(case=_cases(), rows_at_once=st.sampled_from([1, 2, 100]))
@settings(max_examples=300, deadline=None)
def test_soft_labels_with_their_bucket_are_the_divergence_over_the_whole_vocabulary(case, rows_at_once):
    rows, states, head, mixture = case
    mine = [states.clone().requires_grad_(), head.clone().requires_grad_()]
    plain = [states.clone().requires_grad_(), head.clone().requires_grad_()]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(head_module, "LOGITS_AT_ONCE", 2 * rows_at_once * head.shape[0])
        loss = answer_loss(mine[0], mine[1], _targets(rows), mixture)
    expected = torch.zeros((), dtype=torch.float64)
    for row, (entries, word, weight) in enumerate(rows):
        said: dict[int, float] = {}
        for token, probability in entries:
            said[token] = said.get(token, 0.0) + probability
        expected = expected + weight * _brute_force(
            plain[1] @ plain[0][row], said, word, soft_weight=mixture.soft_weight, temperature=mixture.temperature
        )
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)


@given(case=_cases(), seed=st.integers(0, 5), whole_weight=st.sampled_from([0.4, 1.0]))
@settings(max_examples=150, deadline=None)
def test_the_whole_belief_of_a_local_teacher_is_the_divergence_over_the_whole_vocabulary(case, seed, whole_weight):
    rows, states, head, mixture = case
    mixture = Mixture(mixture.soft_weight, mixture.temperature, whole_weight)
    random = torch.Generator().manual_seed(seed)
    teacher = TeacherStates(
        torch.randn(len(rows), 5, generator=random, dtype=torch.float64),
        torch.randn(head.shape[0], 5, generator=random, dtype=torch.float64),
    )
    mine = [states.clone().requires_grad_(), head.clone().requires_grad_()]
    plain = [states.clone().requires_grad_(), head.clone().requires_grad_()]
    targets = _targets(rows)
    loss = answer_loss(mine[0], mine[1], targets, mixture, teacher)
    student = log_softmax(plain[0] @ plain[1].t() / mixture.temperature, dim=1)
    believed = log_softmax(teacher.hidden @ teacher.head.t() / mixture.temperature, dim=1)
    whole = (believed.exp() * (believed - student)).sum(dim=1) * mixture.temperature**2
    without = answer_loss(plain[0], plain[1], targets, mixture)
    expected = (1 - whole_weight) * without + whole_weight * (targets.weights * whole).sum()
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_of_beliefs_agree_with_finite_differences(temperature):
    random = torch.Generator().manual_seed(1)
    states, head = (torch.randn(n, WIDTH, generator=random, dtype=torch.float64).requires_grad_() for n in (3, 6))
    targets = _targets([([(1, 0.5), (4, 0.2)], 2, 1.0), ([], 0, 0.5), ([(0, 0.1), (0, 0.3)], 0, 2.0)])
    teacher = TeacherStates(states.detach().flip(0), head.detach().flip(0))
    mixture = Mixture(0.7, temperature, 0.25)
    assert torch.autograd.gradcheck(lambda h, w: answer_loss(h, w, targets, mixture, teacher), (states, head))


@pytest.mark.parametrize("probabilities", [[1.0], [0.6, 0.4000001], [1e-30, 1.0], [1.0 + 1e-6]])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_teacher_that_is_surer_than_sure_and_a_student_without_doubt_give_numbers(probabilities, temperature):
    ids = torch.arange(len(probabilities)).unsqueeze(0)
    targets = Targets(torch.tensor([0]), torch.ones(1), ids, torch.tensor([probabilities]).log())
    # In float32 the student gives every token but one the probability 0, and the bucket less than the smallest number.
    for logits in ([300.0, 0.0, 0.0, 0.0], [-300.0, 0.0, 300.0, 0.0], [0.0, 0.0, 0.0, 0.0]):
        states = torch.ones(1, 1, requires_grad=True)
        head = torch.tensor(logits).unsqueeze(1).requires_grad_()
        loss = answer_loss(states, head, targets, Mixture(1.0, temperature))
        loss.backward()
        assert math.isfinite(loss.item()) and loss.item() >= -1e-4
        assert states.grad is not None and head.grad is not None
        assert states.grad.isfinite().all() and head.grad.isfinite().all()


def test_a_rest_that_the_student_holds_nearly_impossible_still_pulls_at_it():
    # 1 - 0.9999999999 is rounding in float32; the sum over the bucket's own tokens is not.
    targets = Targets(torch.tensor([0]), torch.ones(1), torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]))
    states = torch.ones(1, 1, requires_grad=True)
    head = torch.tensor([60.0, 0.0, 0.0]).unsqueeze(1)
    loss = answer_loss(states, head, targets, Mixture(1.0))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 60 - math.log(2)), rel=1e-5)
    assert states.grad is not None
    assert states.grad.item() == pytest.approx(60 * 0.5, rel=1e-5)


class _Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made


def test_logits_are_never_whole_whatever_is_learnt_beside_the_words(monkeypatch):
    vocabulary, scored = 1000, 64
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", 8 * vocabulary)
    random = torch.Generator().manual_seed(3)
    states, head = torch.randn(scored, 2, generator=random).requires_grad_(), torch.randn(vocabulary, 2, generator=random)
    believed = torch.randint(vocabulary, (scored, 5), generator=random), torch.full((scored, 5), -3.0)
    targets = Targets(torch.zeros(scored, dtype=torch.int64), torch.ones(scored), *believed)
    teacher = TeacherStates(torch.randn(scored, 3, generator=random), torch.randn(vocabulary, 3, generator=random))
    with _Largest() as largest:
        answer_loss(states, head, targets, Mixture(0.5, 2.0, 0.5), teacher).backward()
    # Of the whole, 64 000 numbers, a few rows at a time; head and teacher's head are 2 000 and 3 000.
    assert largest.numbers <= 8 * vocabulary // 2


def test_a_frozen_head_gets_no_gradient_and_no_weight_on_beliefs_is_the_words_alone_to_the_bit():
    random = torch.Generator().manual_seed(2)
    states, head = torch.randn(4, WIDTH, generator=random), torch.randn(6, WIDTH, generator=random)
    soft = _targets([([(1, 0.5), (4, 0.2)], 2, 1.0), ([], 0, 0.5), ([(0, 0.1)], 0, 2.0), ([(3, 0.9)], 3, 1.0)])
    plain = Targets(soft.token_ids, soft.weights)
    grads = []
    for targets, mixture in ((soft, Mixture(0.0)), (plain, Mixture(0.0)), (plain, Mixture(0.5))):
        mine = states.clone().requires_grad_()
        loss = answer_loss(mine, head, targets, mixture)
        loss.backward()
        grads.append((loss.detach(), mine.grad))
    for other in grads[1:]:
        assert torch.equal(grads[0][0], other[0]) and torch.equal(grads[0][1], other[1])
    assert head.grad is None


def test_a_soft_label_that_the_head_has_no_row_for_is_refused_by_name():
    targets = Targets(torch.tensor([0]), torch.ones(1), torch.tensor([[6]]), torch.tensor([[-0.1]]))
    with pytest.raises(OperatorError, match=r"token 6.*output head has 6"):
        answer_loss(torch.ones(1, WIDTH), torch.ones(6, WIDTH), targets, Mixture(0.5))


@pytest.mark.parametrize("spread", [0.3, 3.0], ids=["a student that is nearly right", "a student that is wrong"])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_beliefs_are_exact_in_float32_from_the_lowest_temperature_to_the_highest(temperature, spread):
    vocabulary, named = 5000, 20
    random = torch.Generator().manual_seed(4)
    believed = torch.randn(vocabulary, generator=random) * 3
    logits = believed + torch.randn(vocabulary, generator=random) * spread
    likeliest = log_softmax(believed.double(), dim=0).topk(named)
    said = dict(zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True))
    targets = Targets(torch.tensor([7]), torch.ones(1), likeliest.indices[None], likeliest.values.float()[None])
    # A state of one number leaves the logits as they are.
    loss = answer_loss(torch.ones(1, 1), logits[:, None], targets, Mixture(1.0, temperature))
    expected = _brute_force(logits.double(), said, 7, soft_weight=1.0, temperature=temperature)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)

    teacher = TeacherStates(torch.ones(1, 1), believed[:, None])
    words = Targets(torch.tensor([7]), torch.ones(1))
    loss = answer_loss(torch.ones(1, 1), logits[:, None], words, Mixture(0.0, temperature, 1.0), teacher)
    student, whole = (log_softmax(each.double() / temperature, dim=0) for each in (logits, believed))
    expected = (whole.exp() * (whole - student)).sum() * temperature**2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
