"""Attention tree by tree is the dense attention of each token to itself and its ancestors, and lean norms are the model's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_student import tiny_model
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from distill.training.batches.packing import Batch, visible
from distill.training.losses.targets import Targets
from distill.training.student.lean_norm import LeanNorm, with_lean_norms
from distill.training.student.tree_attention import tree_attention, trees_of

HEADS, KEY_HEADS, WIDTH = 6, 2, 16


def _batch(ends: torch.Tensor, *, padding: int = 0, chains: bool = False) -> Batch:
    """Return rows of so many nodes, with padding behind them, which sees itself."""
    rows, count = ends.shape
    length = count + padding
    nodes = torch.full((rows, length), -1)
    nodes[:, :count] = torch.arange(count)
    padded = torch.arange(1, length + 1).repeat(rows, 1)
    padded[:, :count] = ends
    nothing = torch.empty(0, dtype=torch.int64)
    targets = Targets(nothing, nothing.float())
    return Batch(nodes, nodes, nodes, None if chains else padded, nothing, targets, tokens=rows * count)


def _subtree_ends(tree: st.DataObject, length: int) -> list[int]:
    """Return where the subtrees of a drawn tree end, its tokens counted in the order in which they stand."""
    parents = [-1, *(tree.draw(st.integers(max(0, at - 3), at - 1)) for at in range(1, length))]
    # In a depth-first order a token's parent is the one before it, or an ancestor of that one.
    ancestors: list[list[int]] = [[0]]
    for at in range(1, length):
        chain = ancestors[at - 1]
        parent = parents[at] if parents[at] in chain else chain[-1]
        ancestors.append([*chain[: chain.index(parent) + 1], at])
    return [max(at for at in range(length) if each in ancestors[at]) + 1 for each in range(length)]


@given(tree=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_token_sees_in_its_tree_whom_the_dense_mask_lets_it_see(tree, lengths):
    ends: list[int] = []
    for length in lengths:
        ends += [len(ends) + end for end in _subtree_ends(tree, length)]
    subtree_ends = torch.tensor([ends])
    sees = torch.zeros(len(ends), len(ends), dtype=torch.bool)
    places = trees_of(_batch(subtree_ends, padding=3))
    assert [(each.start, each.stop) for each in places] == [
        (sum(lengths[:at]), sum(lengths[: at + 1])) for at in range(len(lengths))
    ]
    for place in places:
        within = slice(place.start, place.stop)
        hidden = torch.ones(place.size, place.size, dtype=torch.bool).triu(1) if place.hidden is None else place.hidden
        assert not hidden.all(dim=1).any()
        sees[within, within] = ~hidden[: place.tokens, : place.tokens]
    assert torch.equal(sees, visible(subtree_ends)[0, 0])


def _drawn(rows: int, length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(length)
    shapes = ((rows, length, heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
    # As a layer hands them on. Keys far from 0 are what trained students have.
    query, key, value = (torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes)
    return [each.detach().requires_grad_() for each in (query, key + 4 * torch.randn(WIDTH).to(dtype), value)]


def _ends(rows: int, length: int) -> torch.Tensor:
    """Return rows of a tree with a trunk and two branches, and, behind it, a chain."""
    trunk, fork, stop = length // 4, length // 2, 3 * length // 4
    ends = [stop] * trunk + [fork] * (fork - trunk) + [stop] * (stop - fork) + [length] * (length - stop)
    return torch.tensor([ends] * rows)


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    mask = None if ends is None else visible(ends)
    found: torch.Tensor = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=0.3, enable_gqa=True
    )
    return found.transpose(1, 2)


def _by_trees(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor | None) -> torch.Tensor:
    rows, _, length, _ = query.shape
    batch = _batch(torch.full((rows, length), length), chains=True) if ends is None else _batch(ends)
    return tree_attention(query, key, value, trees_of(batch), 0.3)


@pytest.mark.parametrize("length", [8, 100, 700], ids=["one chunk", "some", "many chunks"])
@pytest.mark.parametrize("chains", [True, False])
def test_attention_tree_by_tree_and_its_gradients_are_the_dense_ones(length, chains):
    rows = 2
    ends = None if chains else _ends(rows, length)
    ours, dense = _drawn(rows, length, torch.float32), _drawn(rows, length, torch.float32)
    grad = torch.randn(rows, length, HEADS, WIDTH)
    found, expected = _by_trees(*ours, ends), _dense(*dense, ends)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.backward(grad)
    expected.backward(grad)
    for our, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(our.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chains", [True, False])
def test_in_bfloat16_attention_tree_by_tree_is_nearer_to_the_exact_one_than_torchs_kernel(chains):
    length = 200
    ends = None if chains else _ends(1, length)
    grad = torch.randn(1, length, HEADS, WIDTH).bfloat16()
    exact = [each.detach().double().requires_grad_() for each in _drawn(1, length, torch.bfloat16)]
    _dense(*exact, ends).backward(grad.double())
    wrong = {}
    for name, attention in (("ours", _by_trees), ("torch's", _dense)):
        inputs = _drawn(1, length, torch.bfloat16)
        attention(*inputs, ends).backward(grad)
        wrong[name] = [
            float((one.grad.double() - other.grad).norm() / other.grad.norm())
            for one, other in zip(inputs, exact, strict=True)
        ]
    assert max(wrong["ours"]) < 0.01
    assert sum(wrong["ours"]) < sum(wrong["torch's"])


def test_under_autocast_a_float32_students_attention_stays_float32():
    inputs = [each.detach() for each in _drawn(1, 40, torch.float32)]
    plain = _by_trees(*inputs, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_by_trees(*inputs, None), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lean_norms_give_what_the_models_own_give_and_the_same_gradients(dtype):
    own, lean = tiny_model("llama").to(dtype), tiny_model("llama").to(dtype)
    with_lean_norms(lean)
    assert sum(isinstance(module, LeanNorm) for module in lean.modules()) == 5
    assert own.state_dict().keys() == lean.state_dict().keys()
    theirs, ours = own.model.norm, lean.model.norm
    with torch.no_grad():
        for norm in (theirs, ours):
            norm.weight.copy_(torch.linspace(0.5, 2, norm.weight.numel()))
    x = (3 * torch.randn(2, 7, theirs.weight.numel())).to(dtype)
    kept = []
    for norm in (theirs, ours):
        states = x.clone().requires_grad_()
        out = norm(states)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(dtype))
        kept.append((out, states.grad, norm.weight.grad))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for their, our in zip(*kept, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


def test_a_norm_that_is_another_function_stays_as_it_is():
    class OneMore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))
            self.variance_epsilon = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.rms_norm(x, (8,), 1 + self.weight, 1e-6)

    model = nn.Sequential(OneMore(), nn.LayerNorm(8))
    with_lean_norms(model)
    assert not any(isinstance(module, LeanNorm) for module in model.modules())


def test_tokens_of_no_tree_attend_to_nothing_and_learn_nothing():
    length, padding = 40, 24
    ends = _ends(1, length)
    whole = _drawn(1, length + padding, torch.float32)
    grad = torch.randn(1, length + padding, HEADS, WIDTH)
    found = tree_attention(*whole, trees_of(_batch(ends, padding=padding)), 0.3)
    found.backward(grad)
    assert not found[:, length:].any()
    assert not any(each.grad[:, :, length:].any() for each in whole)
    alone = [each.detach()[:, :, :length].requires_grad_() for each in whole]
    expected = _dense(*alone, ends)
    expected.backward(grad[:, :length])
    torch.testing.assert_close(found[:, :length], expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one.grad[:, :, :length], other.grad, rtol=1e-4, atol=1e-4)
