"""Soft labels go through trees, batches and the model exactly as if each row stood alone, each at its own token."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_student import tiny_model
from torch.nn.functional import log_softmax

from distill.training.batches.forest import Forest
from distill.training.batches.packing import pack_batch
from distill.training.decisions.training_row import SoftLabels, TrainingRow
from distill.training.losses.head import Mixture
from distill.training.losses.lesson import Lesson
from distill.training.student.learning import LearningStudent

SYSTEM, ASK, WEAK, NEXT = tuple(range(10, 16)), tuple(range(30, 37)), tuple(range(50, 54)), tuple(range(70, 75))
END = 2


def soft_labels(answer_ids: tuple[int, ...], *, seed: int, known: float = 0.8) -> SoftLabels:
    draw = random.Random(seed)
    ids, said = np.full((len(answer_ids), 3), -1, dtype=np.int32), np.full((len(answer_ids), 3), -np.inf, dtype=np.float32)
    for place, token_id in enumerate(answer_ids):
        if draw.random() < known:
            choices = [token_id, *draw.sample(range(100, 250), draw.randrange(3))]
            ids[place, : len(choices)] = choices
            said[place, : len(choices)] = [math.log(draw.uniform(0.05, 0.3)) for _ in choices]
    return SoftLabels(ids, said)


def rows_with_beliefs() -> list[TrainingRow]:
    """Answers that begin alike, with equal and with other beliefs about the same words, and one without any."""
    first, later = SYSTEM + ASK, SYSTEM + ASK + WEAK + NEXT
    answer = (90, 91, 92, END)
    equal = soft_labels(answer, seed=1)
    return [
        TrainingRow("a.1", "a", first, answer, 1.0, equal),
        TrainingRow("a.2", "a", first, answer, 0.5, equal),
        TrainingRow("a.3", "a", first, answer, 2.0, soft_labels(answer, seed=2)),
        TrainingRow("a.4", "a", first, (90, 91, 95, END), 0.25),
        TrainingRow("a.5", "a", later, (90, 97, END), 2.0, soft_labels((90, 97, END), seed=3)),
        TrainingRow("b.1", "b", SYSTEM + NEXT, (99, END), 1.0, soft_labels((99, END), seed=4, known=1.0)),
    ]


def one_by_one(model, rows: list[TrainingRow], *, soft_weight: float) -> torch.Tensor:
    """Each row alone, by transformers' own forward, with whole distributions: token t of an answer sits at the state before it."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = model(torch.tensor([row.prompt_ids + row.answer_ids])).logits[0].double()
        for place, token_id in enumerate(row.answer_ids):
            said = log_softmax(logits[len(row.prompt_ids) - 1 + place], dim=0)
            loss = -said[token_id]
            belief = dict(row.soft.at(place)) if row.soft else {}
            if belief:
                ids = list(belief)
                q = torch.tensor([belief[each] for each in ids], dtype=torch.float64).exp()
                rest, student = 1 - q.sum(), said[ids]
                divergence = (q * (q.log() - student)).sum() + rest * (rest.log() - torch.log1p(-student.exp().sum()))
                loss = (1 - soft_weight) * loss + soft_weight * divergence
            total = total + row.weight * loss
    return total


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_tree_with_soft_labels_has_the_loss_and_gradients_of_its_rows_one_by_one(family):
    rows, mixture = rows_with_beliefs(), Mixture(0.6)
    forest = Forest(rows)
    parts = [forest.whole(row) for conversation in forest.conversations for row in conversation]
    (tree,) = forest.trees(parts, max_tree_tokens=200, max_joined_tokens=200)
    batch = pack_batch([tree], pad_id=0)
    # Two rows agree in word and belief at every token and are one prediction there; a third and a fourth are their own.
    assert len(batch.targets) < sum(len(row.answer_ids) for row in rows)
    shared, plain = tiny_model(family), tiny_model(family)
    loss = LearningStudent(shared, kind="full", precision="float32", lesson=Lesson(mixture)).loss_sum(batch)
    expected = one_by_one(plain, rows, soft_weight=0.6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for (name, mine), (_, theirs) in zip(shared.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_belief_about_a_token_sits_at_the_state_before_it():
    """A student that is taught its own belief has nothing to learn; a belief that is one token off has."""
    model = tiny_model()
    prompt, answer = SYSTEM + ASK, (90, 91, 92, 93, END)
    with torch.no_grad():
        said = log_softmax(model(torch.tensor([prompt + answer])).logits[0], dim=1)
    own = said[len(prompt) - 1 : -1]
    top = own.topk(20, dim=1)
    losses = []
    for shift in (0, 1, -1):
        soft = SoftLabels(top.indices.roll(shift, 0).int().numpy(), top.values.roll(shift, 0).numpy())
        forest = Forest([TrainingRow("a", "a", prompt, answer, 1.0, soft)])
        (tree,) = forest.trees([forest.whole(0)], max_tree_tokens=100, max_joined_tokens=0)
        student = LearningStudent(model, kind="full", precision="float32", lesson=Lesson(Mixture(1.0)))
        model.zero_grad()
        loss = student.loss_sum(pack_batch([tree], pad_id=0))
        loss.backward()
        losses.append((loss.item(), max(float(each.grad.abs().max()) for each in model.parameters())))
    assert losses[0][0] == pytest.approx(0.0, abs=1e-5) and losses[0][1] == pytest.approx(0.0, abs=1e-4)
    for loss_off, gradient_off in losses[1:]:
        assert loss_off > 1e-3 and gradient_off > 1e-3


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=2, max_size=6), seeds=st.lists(st.integers(0, 1), min_size=6)
)
@settings(max_examples=50, deadline=None)
def test_predictions_are_added_up_only_where_word_and_belief_agree(weights, seeds):
    answer = (90, 91, END)
    rows = [
        TrainingRow(f"{number}", "a", SYSTEM, answer, weight, soft_labels(answer, seed=seeds[number], known=1.0))
        for number, weight in enumerate(weights)
    ]
    forest = Forest(rows)
    (tree,) = forest.trees(map(forest.whole, range(len(rows))), max_tree_tokens=100, max_joined_tokens=0)
    expected: dict[tuple[object, ...], float] = {}
    for row in rows:
        assert row.soft
        for place, token_id in enumerate(answer):
            key = (len(SYSTEM) - 1 + place, token_id, row.soft.at(place))
            expected[key] = expected.get(key, 0.0) + row.weight
    found = zip(tree.scored_at, tree.scored_ids, tree.scored_beliefs, tree.scored_weights, strict=True)
    assert {(at, token_id, belief): weight for at, token_id, belief, weight in found} == expected


def test_held_out_rows_are_measured_by_their_words_alone():
    rows = rows_with_beliefs()
    batches = []
    for of_rows in (rows, [dataclasses.replace(row, soft=None) for row in rows]):
        forest = Forest(of_rows)
        trees = list(forest.trees(map(forest.whole, range(len(rows))), max_tree_tokens=200, max_joined_tokens=200))
        batches.append(pack_batch(trees, pad_id=0))
    student = LearningStudent(tiny_model(), kind="full", precision="float32", lesson=Lesson(Mixture(0.6)))
    with torch.no_grad():
        torch.testing.assert_close(student.nll_sum(batches[0]), student.loss_sum(batches[1]))
        assert abs(float(student.loss_sum(batches[0]) - student.loss_sum(batches[1]))) > 0.1
