"""Rows become token ids once; what is kept is what was made, and it goes with the person whose words it was."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import small_run
from test_training_train import ignore, request_in
from tiny_student import tiny_student, write_dataset

from conversations import decisions, erasure, search, turns
from conversations.prompt import Renderer
from distill.run import Stage
from distill.settings import token_cache
from distill.training.decisions import cache
from distill.training.decisions.cache import kept_rows
from distill.training.decisions.reading import RowCounts, read_decisions
from distill.training.decisions.training_row import SoftLabels, TrainingRow
from distill.training.train import train

COUNTS = RowCounts(
    rows=1, kept=1, shortened=0, left_out={"over_length": 2}, tokens_one_by_one=3, tokens_scored=2, tokens_with_beliefs=1
)


class Maker:
    """Makes rows and counts how often it was asked to."""

    def __init__(self, rows: list[TrainingRow]) -> None:
        self.rows = rows
        self.asked = 0

    def __call__(self) -> tuple[list[TrainingRow], RowCounts]:
        self.asked += 1
        return self.rows, COUNTS


def row(number: int = 0, soft: SoftLabels | None = None, **changes) -> TrainingRow:
    made = TrainingRow(f"decision_{number}", f"conversation_{number}", (5, 6, 7), (8, 2), 0.1, soft)
    return dataclasses.replace(made, **changes)


def same(first: TrainingRow, second: TrainingRow) -> bool:
    one, other = ({k: v for k, v in vars(each).items() if k != "soft"} for each in (first, second))
    if (first.soft is None) != (second.soft is None):
        return False
    return one == other and (
        first.soft is None
        or (
            np.array_equal(first.soft.token_ids, second.soft.token_ids)
            and np.array_equal(first.soft.log_probabilities, second.soft.log_probabilities)
        )
    )


def soft_labels(choices: int) -> SoftLabels:
    return SoftLabels(
        np.array([list(range(choices)), [-1] * choices], dtype=np.int32),
        np.array([[-0.5] * choices, [-np.inf] * choices], dtype=np.float32),
    )


def test_rows_are_made_once_and_then_read_as_they_were(tmp_path: Path) -> None:
    rows = [row(0), row(1, soft_labels(3)), row(2, soft_labels(1), prompt_ids=(1,), weight=2.5)]
    maker = Maker(rows)
    for _ in range(2):
        found, counts = kept_rows(tmp_path, {"rows": "a"}, maker)
        assert counts == COUNTS
        assert all(same(one, other) for one, other in zip(found, rows, strict=True))
    assert maker.asked == 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 200_000), min_size=1), st.lists(st.integers(0, 200_000), min_size=1), st.floats(0.1)
        ),
        max_size=5,
    )
)
def test_any_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, made) -> None:
    folder = tmp_path_factory.mktemp("cache")
    rows = [
        row(number, prompt_ids=tuple(prompt), answer_ids=tuple(answer), weight=weight)
        for number, (prompt, answer, weight) in enumerate(made)
    ]
    kept_rows(folder, {}, Maker(rows))
    found, _ = kept_rows(folder, {}, Maker([]))
    assert all(same(one, other) for one, other in zip(found, rows, strict=True))


def test_anything_that_decides_the_rows_makes_them_anew(tmp_path: Path) -> None:
    maker = Maker([row()])
    for decided_by in ({"rows": "a"}, {"rows": "b"}, {"rows": "a", "limit": "9"}):
        kept_rows(tmp_path, decided_by, maker)
    assert maker.asked == 3


@pytest.mark.parametrize("damage", ["cut", "one byte", "empty"])
def test_damaged_entry_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    maker = Maker([row(number) for number in range(50)])
    kept_rows(tmp_path, {}, maker)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = {"cut": whole[:-200], "one byte": whole[:-300] + b"?" + whole[-299:], "empty": b""}[damage]
    path.write_bytes(damaged)
    found, _ = kept_rows(tmp_path, {}, maker)
    assert maker.asked == 2 and len(found) == 50 and path.read_bytes() == whole
    assert "made again" in caplog.text


def test_only_the_entries_used_last_are_kept(tmp_path: Path) -> None:
    left_by_a_kill = tmp_path / ".0.tokens.17.half"
    left_by_a_kill.write_bytes(b"decision_0")
    os.utime(left_by_a_kill, (0, 0))
    for number in range(cache.MOST_ENTRIES):
        kept_rows(tmp_path, {"rows": str(number)}, Maker([row()]))
        for path in tmp_path.glob("*.tokens"):
            os.utime(path, (path.stat().st_mtime - 10, path.stat().st_mtime - 10))
    kept_rows(tmp_path, {"rows": "0"}, Maker([]))
    kept_rows(tmp_path, {"rows": "new"}, Maker([row()]))
    assert len(list(tmp_path.iterdir())) == cache.MOST_ENTRIES
    for number, made in (("0", 0), ("new", 0), ("1", 1)):
        maker = Maker([row()])
        kept_rows(tmp_path, {"rows": number}, maker)
        assert maker.asked == made


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    found, _ = kept_rows(tmp_path / "file" / "cache", {}, Maker([row()]))
    assert same(found[0], row())
    assert "cannot be" in caplog.text


def test_a_second_training_on_the_same_rows_makes_no_token_ids(tmp_path: Path) -> None:
    first = request_in(tmp_path, cache_dir=tmp_path / "token_cache")
    taught = train(first, ignore)
    name = "adapter/adapter_model.safetensors"
    second = dataclasses.replace(first, out_dir=tmp_path / "second")
    train(second, ignore)
    assert (first.out_dir / name).read_bytes() == (second.out_dir / name).read_bytes()

    # Other rows under the same name show that they come from what is kept.
    other = write_dataset(tmp_path / "other.jsonl", 3)
    renderer = Renderer.load(first.base_dir)
    kept_rows(tmp_path / "planted", {}, lambda: read_decisions(other, renderer, max_prompt_tokens=200, max_tokens=256))
    (planted,) = (tmp_path / "planted").iterdir()
    for path in (tmp_path / "token_cache").iterdir():
        path.write_bytes(planted.read_bytes())
    third = train(dataclasses.replace(first, out_dir=tmp_path / "third"), ignore)
    assert (taught.train_rows_kept, third.train_rows_kept) == (16, 6)


def test_an_erased_person_leaves_no_token_ids_and_the_others_keep_theirs(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        small.perform(Stage.CHOOSE)
        known = {each.conversation_id: each.decision_id for each in decisions.decisions(small.record)}
        conversations = [each.conversation_id for each in search.find(small.record)]
        folder = token_cache(small.settings)
        for number, each in enumerate(conversations[:2]):
            own = row(decision_id=known[each], conversation_id=each)
            kept_rows(folder, {"rows": str(number)}, Maker([own]))
        assert len(list(folder.iterdir())) == 2
        erasure.erase_customer(small.record, turns.conversation(small.record, conversations[0]).customer_id, actor="test")
        (left,) = folder.iterdir()
        assert conversations[1].encode() in left.read_bytes()


def test_kept_rows_are_those_of_the_file(tmp_path: Path) -> None:
    renderer = Renderer.load(tiny_student(tmp_path / "student"))
    path = write_dataset(tmp_path / "train.jsonl", 5)
    plain, counts = read_decisions(path, renderer, max_prompt_tokens=200, max_tokens=256)
    for _ in range(2):
        found, found_counts = kept_rows(
            tmp_path / "cache", {}, lambda: read_decisions(path, renderer, max_prompt_tokens=200, max_tokens=256)
        )
        assert found_counts == counts
        assert all(same(one, other) for one, other in zip(found, plain, strict=True))
