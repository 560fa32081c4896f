"""Rows that share a history are computed once and learnt exactly as if each stood alone."""

import itertools
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_student import dataset_line, tiny_model, tiny_student
from torch.nn.attention.flex_attention import create_mask

from conversations.messages import ChatMessage, Role
from conversations.prompt import Renderer
from distill.training.batches.forest import Forest, Part, TokenTree
from distill.training.batches.layout import BLOCK_TOKENS, Layout, cut_batches, fill_rows, layout_on
from distill.training.batches.order import plan_epoch, plan_parts
from distill.training.batches.packing import Batch, pack_batch, pack_row, visible
from distill.training.decisions.reading import read_decisions
from distill.training.decisions.training_row import TrainingRow
from distill.training.student.attention import block_mask
from distill.training.student.learning import LearningStudent

SYSTEM, ASK, WEAK, NEXT = tuple(range(10, 16)), tuple(range(30, 37)), tuple(range(50, 54)), tuple(range(70, 75))
END = 2


def _conversation(name: str) -> list[TrainingRow]:
    """Three decisions: two answers to one question that begin alike, and one on the history behind it."""
    first = SYSTEM + ASK
    later = first + WEAK + NEXT
    return [
        TrainingRow(f"{name}.1", name, first, (90, 91, 92, END), 1.0),
        TrainingRow(f"{name}.2", name, first, (90, 91, 95, 96, END), 0.25),
        TrainingRow(f"{name}.3", name, later, (90, 97, END), 2.0),
    ]


def _trees(rows: list[TrainingRow], *, max_tree_tokens: int = 100, max_joined_tokens: int = 0) -> list[TokenTree]:
    forest = Forest(rows)
    parts = [forest.whole(row) for conversation in forest.conversations for row in conversation]
    return list(forest.trees(parts, max_tree_tokens=max_tree_tokens, max_joined_tokens=max_joined_tokens))


def _learning(model):
    return LearningStudent(model, kind="full", precision="float32")


def _assert_same_gradients(one, other, *, rtol=1e-4):
    for (name, mine), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=rtol, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def _one_by_one(model, rows):
    """Return transformers' own loss of each row without any sharing, masking or chunking."""
    total = torch.zeros(())
    for row in rows:
        token_ids = torch.tensor([row.prompt_ids + row.answer_ids])
        logits = model(token_ids).logits[0]
        start = len(row.prompt_ids) - 1
        nll = torch.nn.functional.cross_entropy(logits[start:-1], torch.tensor(row.answer_ids), reduction="sum")
        total = total + row.weight * nll
    return total


@pytest.mark.parametrize("max_joined_tokens", [0, 100], ids=["a tree a conversation", "one tree"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_batch_of_trees_has_the_loss_and_gradients_of_its_rows_one_by_one(family, max_joined_tokens):
    lone = TrainingRow("b.1", "b", SYSTEM + NEXT + ASK + WEAK + NEXT, (99, 98, END), 0.5)
    rows = [*_conversation("a"), lone]
    trees = _trees(rows, max_joined_tokens=max_joined_tokens)
    assert len(trees) == (1 if max_joined_tokens else 2)
    batch = pack_batch(trees, pad_id=0)
    assert batch.subtree_ends is not None
    assert batch.tokens < sum(row.input_tokens for row in rows)

    shared, plain = tiny_model(family), tiny_model(family)
    loss = _learning(shared).loss_sum(batch)
    expected = _one_by_one(plain, rows)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    _assert_same_gradients(shared, plain)


def test_a_batch_of_lone_rows_needs_no_mask_and_has_their_loss():
    rows = [_conversation("a")[0], TrainingRow("b.1", "b", SYSTEM + NEXT + ASK + NEXT, (99, 98, END), 0.5)]
    batch = pack_batch(_trees(rows), pad_id=0)
    assert batch.subtree_ends is None
    model = tiny_model()
    loss = _learning(model).loss_sum(batch)
    torch.testing.assert_close(loss, _one_by_one(model, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_trees_packed_into_one_row_have_the_loss_and_gradients_of_their_rows_one_by_one(family):
    rows = [row for name in "abc" for row in _conversation(name)]
    batch = pack_row(_trees(rows), pad_id=0, multiple_of=BLOCK_TOKENS)
    assert batch.token_ids.shape == (1, BLOCK_TOKENS)
    assert int((batch.position_ids[0, : batch.tokens] == 0).sum()) == 3
    packed, plain = tiny_model(family), tiny_model(family)
    loss, expected = _learning(packed).loss_sum(batch), _one_by_one(plain, rows)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    _assert_same_gradients(packed, plain)


def test_a_step_in_micro_batches_has_the_loss_and_gradients_of_the_step_in_one():
    rows = [row for name in "abcd" for row in _conversation(name)]
    total = sum(row.weight * len(row.answer_ids) for row in rows)
    whole, parted = tiny_model(), tiny_model()
    losses = []
    for model, budget in ((whole, 1000), (parted, 10)):
        batches = list(Layout(budget, 0, 100, 0, one_row=False).batches(_trees(rows)))
        assert len(batches) == (1 if model is whole else 4)
        loss = torch.zeros(())
        for batch in batches:
            part = _learning(model).loss_sum(batch) / total
            part.backward()
            loss += part.detach()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    _assert_same_gradients(whole, parted, rtol=1e-5)


def test_blocks_and_the_dense_mask_let_a_token_see_the_same_tokens():
    batch = pack_row(_trees([row for n in range(9) for row in _conversation(f"c{n}")]), pad_id=0, multiple_of=BLOCK_TOKENS)
    dense = visible(batch.subtree_ends)
    length = batch.token_ids.shape[1]
    assert length > BLOCK_TOKENS
    blocks = block_mask(batch.subtree_ends)
    assert torch.equal(create_mask(blocks.mask_mod, 1, 1, length, length, device="cpu"), dense)
    held = blocks.to_dense()[0, 0].bool().repeat_interleave(BLOCK_TOKENS, 0).repeat_interleave(BLOCK_TOKENS, 1)
    assert not (dense[0, 0] & ~held).any()
    assert not held.all()


_ids = st.integers(min_value=3, max_value=5)
_rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.lists(_ids, min_size=1, max_size=5),
        st.lists(_ids, max_size=3),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=8,
)


@given(
    drawn=_rows,
    max_tree_tokens=st.integers(min_value=1, max_value=20),
    max_joined_tokens=st.integers(min_value=0, max_value=20),
)
@settings(max_examples=200, deadline=None)
def test_exactly_the_answers_and_their_ends_are_scored_each_with_its_weight(drawn, max_tree_tokens, max_joined_tokens):
    rows = [
        TrainingRow(f"{number}", name, tuple(prompt), (*answer, END), weight)
        for number, (name, prompt, answer, weight) in enumerate(drawn)
    ]
    expected: dict[tuple[int, ...], float] = {}
    for row in rows:
        for length in range(1, len(row.answer_ids) + 1):
            path = row.prompt_ids + row.answer_ids[:length]
            expected[path] = expected.get(path, 0.0) + row.weight

    trees = _trees(rows, max_tree_tokens=max_tree_tokens, max_joined_tokens=max_joined_tokens)
    scored: dict[tuple[int, ...], float] = {}
    for tree in trees:
        for at, token_id, weight in zip(tree.scored_at, tree.scored_ids, tree.scored_weights, strict=True):
            path = [token_id]
            steps = at
            while steps >= 0:
                path.append(tree.token_ids[steps])
                assert tree.positions[steps] == 0 or tree.parents[steps] < steps
                steps = tree.parents[steps]
            assert tree.positions[at] == len(path) - 2
            scored[tuple(reversed(path))] = scored.get(tuple(reversed(path)), 0.0) + weight

    assert scored == pytest.approx(expected)
    assert sum(tree.row_count for tree in trees) == len(rows)
    largest = max(max_tree_tokens, max_joined_tokens)
    assert all(len(tree.token_ids) <= largest or tree.row_count == 1 for tree in trees)


def test_a_forest_stores_every_prefix_of_every_row_once():
    rows = [row for n in range(3) for row in _conversation(f"c{n}")]
    prefixes = {
        tuple((row.prompt_ids + row.answer_ids)[:length]) for row in rows for length in range(1, row.input_tokens + 1)
    }
    assert len(Forest(rows)) == len(prefixes)


def test_the_order_follows_from_seed_and_epoch_alone_and_loses_no_row():
    forest = Forest([row for n in range(9) for row in _conversation(f"c{n}")])
    plan = plan_epoch(forest, seed=3, epoch=1, rows_per_step=8)
    assert plan == plan_epoch(forest, seed=3, epoch=1, rows_per_step=8)
    assert plan != plan_epoch(forest, seed=3, epoch=2, rows_per_step=8)
    assert plan != plan_epoch(forest, seed=4, epoch=1, rows_per_step=8)
    assert sorted(itertools.chain.from_iterable(plan)) == list(range(len(forest.rows)))
    assert all(6 <= len(step) <= 12 for step in plan)
    for conversation in forest.conversations:
        assert sum(bool(set(conversation) & set(step)) for step in plan) == 1


def test_a_conversation_of_more_rows_than_two_steps_is_learnt_in_several_and_loses_no_row():
    forest = Forest([TrainingRow(f"{n:02d}", "a", (*SYSTEM, *range(100, 101 + n)), (END,)) for n in range(17)])
    plan = plan_epoch(forest, seed=3, epoch=1, rows_per_step=2)
    assert plan == plan_epoch(forest, seed=3, epoch=1, rows_per_step=2)
    assert sorted(itertools.chain.from_iterable(plan)) == list(range(17))
    assert max(map(len, plan)) <= 4 and len(plan) >= 7


def test_an_answer_of_many_rows_is_spelt_out_by_a_few_of_them_others_each_epoch_and_every_row_learns_its_opening():
    common, rare = (90, 91, 92, 93, 94, END), (80, 81, 82, 83, 84, END)
    rows = [TrainingRow(f"{n:02d}", f"{n:02d}", (*SYSTEM, 100 + n), common if n < 20 else rare) for n in range(22)]
    forest = Forest(rows)

    def parts_of(epoch: int) -> dict[int, Part]:
        return plan_parts(forest, seed=0, epoch=epoch, max_whole_per_answer=4, opening_tokens=3)

    first, second = parts_of(0), parts_of(1)
    assert first == parts_of(0)
    assert sorted(first) == list(range(22))
    assert Counter(first[row].scored for row in range(20)) == {6: 4, 3: 16}
    assert {row for row in range(20) if first[row].scored == 6} != {row for row in range(20) if second[row].scored == 6}
    assert all(first[row] == forest.whole(row) for row in (20, 21))
    everything = plan_parts(forest, seed=0, epoch=0, max_whole_per_answer=None, opening_tokens=3)
    assert all(part == forest.whole(row) for row, part in everything.items())


def test_a_part_of_an_answer_is_scored_from_its_first_token_and_no_further():
    rows = _conversation("a")
    [tree] = Forest(rows).trees([Part(1, 2)], max_tree_tokens=100, max_joined_tokens=0)
    assert tree.token_ids == rows[1].prompt_ids + rows[1].answer_ids[:1]
    assert sorted(zip(tree.scored_at, tree.scored_ids, strict=True)) == [
        (len(rows[1].prompt_ids) - 1, 90),
        (len(rows[1].prompt_ids), 91),
    ]


@given(lengths=st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_micro_batches_hold_every_tree_within_the_budget_at_the_least_cost(lengths):
    budget, overhead = 60, 5
    trees = _trees([TrainingRow(f"{n}", f"{n:02d}", tuple(range(length)), (END,)) for n, length in enumerate(lengths)])
    batches = cut_batches(trees, token_budget=budget, overhead_tokens=overhead)
    assert sorted(len(tree.token_ids) for batch in batches for tree in batch) == sorted(lengths)

    def cost(groups: list[list[int]]) -> float:
        if any(len(group) > 1 and len(group) * max(group) > budget for group in groups):
            return float("inf")
        return sum(len(group) * max(group) + overhead for group in groups)

    in_order = sorted(lengths)
    best = min(
        cost([in_order[a:b] for a, b in itertools.pairwise((0, *cuts, len(in_order)))])
        for many in range(len(in_order))
        for cuts in itertools.combinations(range(1, len(in_order)), many)
    )
    assert cost([[len(tree.token_ids) for tree in batch] for batch in batches]) == best


@given(lengths=st.lists(st.integers(min_value=1, max_value=70), max_size=30))
@settings(max_examples=100, deadline=None)
def test_rows_are_filled_with_every_tree_and_no_two_of_them_could_be_one(lengths):
    capacity = 60
    trees = _trees([TrainingRow(f"{n}", f"{n:02d}", tuple(range(length)), (END,)) for n, length in enumerate(lengths)])
    rows = fill_rows(trees, capacity=capacity)
    assert sorted(len(tree.nodes) for row in rows for tree in row) == sorted(lengths)
    filled = sorted(sum(len(tree.nodes) for tree in row) for row in rows)
    assert all(total <= capacity or len(row) == 1 for row in rows for total in [sum(len(tree.nodes) for tree in row)])
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


@pytest.mark.parametrize("masks", ["trees", "dense"])
def test_half_the_budget_of_a_cpu_makes_micro_batches_of_half_the_tokens_where_rows_share_a_history(masks):
    history = tuple(range(100, 130))
    forest = Forest([TrainingRow(f"{n:02d}", "a", (*history, *[n + 3] * 20), (END,)) for n in range(60)])
    largest = []
    for budget in (1024, 512, 256, 128, 64):
        layout = layout_on(torch.device("cpu"), token_budget=budget, masks=masks)
        batches = list(layout.batches(layout.trees(forest, [forest.whole(row) for row in range(60)])))
        largest.append(max(batch.token_ids.numel() for batch in batches))
        assert largest[-1] <= budget
    assert largest == sorted(set(largest), reverse=True)


def _laid_out(rows: list[TrainingRow], layout: Layout) -> tuple[list[Batch], int]:
    """Return the micro-batches of rows, and how many tokens their trees have."""
    forest = Forest(rows)
    trees = layout.trees(forest, [forest.whole(number) for number in range(len(rows))])
    return list(layout.batches(trees)), sum(len(tree.nodes) for tree in trees)


def test_a_cpus_rows_hold_whole_trees_and_little_else():
    chance = random.Random(0)
    rows = [TrainingRow(f"{n}", f"{n:04d}", tuple(range(chance.randint(20, 400))), (END,)) for n in range(99)]
    batches, tokens = _laid_out(rows, layout_on(torch.device("cpu"), token_budget=None, masks="trees"))
    assert sum(batch.tokens for batch in batches) == tokens
    assert all(batch.token_ids.shape[0] == 1 and batch.token_ids.shape[1] <= 1024 for batch in batches)
    # Few lengths of rows, so that what the library makes for each is used again.
    assert all(batch.token_ids.shape[1] % 64 == 0 for batch in batches)
    assert sum(batch.token_ids.numel() for batch in batches) - tokens < 64 * len(batches)


def test_a_gpus_rows_are_full_to_the_twentieth_part():
    chance = random.Random(0)
    rows = [
        TrainingRow(f"{n}", f"{n:04d}", tuple(chance.randrange(3, 200) for _ in range(chance.randint(20, 400))), (END,))
        for n in range(300)
    ]
    batches, tokens = _laid_out(rows, layout_on(torch.device("cuda"), token_budget=None, masks="blocks"))
    assert sum(batch.tokens for batch in batches) == tokens
    assert all(batch.token_ids.shape[0] == 1 and batch.token_ids.shape[1] <= 8192 for batch in batches)
    assert tokens >= 0.95 * sum(batch.token_ids.numel() for batch in batches)


def test_rows_that_are_left_out_are_counted_by_reason_and_the_others_are_the_chats_own_ids(tmp_path):
    renderer = Renderer.load(tiny_student(tmp_path / "student"))
    lines = [
        dataset_line(1, 1, ["Be kind.", "Hello", "Hi <|im_end|> there."]),
        dataset_line(2, 2, ["Be kind.", "Hello", "word " * 60]),
        dataset_line(3, 3, ["Be kind.", "long " * 60, "Yes."]),
        dataset_line(4, 4, ["Be kind.", "Hello", "  "]),
        dataset_line(5, 5, ["Be kind.", "Hello"]),
        dataset_line(6, 6, ["Be kind.", "Hello", "Yes."], weight=0.0),
        dataset_line(7, 7, ["Be kind.", "old " * 30, "Hm.", "Hello", "Yes."]),
        dataset_line(8, 8, ["Be kind.", "Hello", "I look."]).replace('"I look."', '"I look.", "extra_json": "{}"'),
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows, counts = read_decisions(path, renderer, max_prompt_tokens=120, max_tokens=200)

    assert counts.rows == 8
    expected = {"no_answer": 2, "no_weight": 1, "over_length": 1, "prompt_too_long": 1, "tool_call": 1}
    assert dict(counts.left_out) == expected
    assert counts.kept == len(rows) == counts.rows - sum(counts.left_out.values())
    assert counts.shortened == 1
    said = [ChatMessage(Role.SYSTEM, "Be kind."), ChatMessage(Role.USER, "Hello")]
    assert rows[0].prompt_ids == renderer.prompt(said, max_prompt_tokens=120).token_ids
    assert rows[0].answer_ids[-1] == renderer.stop_ids[0]
    assert rows[0].answer_ids.count(renderer.stop_ids[0]) == 1
    assert renderer.text(rows[0].answer_ids) == "Hi <|im_end|> there."
