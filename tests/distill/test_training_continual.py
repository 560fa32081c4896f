"""A student may learn on from a release, and learn again what earlier runs taught; whoever asks is told from what."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_training_train import SETTINGS, Killed, ignore, killed_at, request_in
from tiny_student import dataset_line, tiny_student

from conversations import releases
from conversations.errors import OperatorError
from conversations.messages import utc_now
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.settings import read_settings
from conversations.store import Record
from distill.run import file_digest
from distill.settings import DistillSettings, TrainTable
from distill.training.decisions.replay import drawn_places, wanted_rows
from distill.training.request import StartingPoint
from distill.training.starting import learn_on, starting_point
from distill.training.student.learning import open_student
from distill.training.train import train

ONE_STEP = SETTINGS.model_copy(update={"epochs": 1.0, "rows_per_step": 16})
WORLD = """
[record]
path = "record.db"
[student]
base = "student"
profile = "cpu"
[prompt]
system = "Be kind."
[runs]
folder = "runs"
[teachers]
[teach]
teacher = "nobody"
max_cost_usd = 0.0
max_calls = 1
[train]
start_from = "release"
{train}
[evaluate]
server_usd_per_hour = 0.1
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.02
"""


def trained(folder: Path, settings: TrainTable = SETTINGS) -> StartingPoint:
    """A release of a tiny student."""
    request = request_in(folder, settings)
    train(request, ignore)
    weights = request.out_dir / "adapter"
    return StartingPoint("release-1", weights, file_digest(weights / "adapter_model.safetensors"))


def replay_of(folder: Path, topics: dict[str, int]) -> Path:
    """Rows of earlier runs, so many of each topic."""
    lines = []
    for topic, count in topics.items():
        for _ in range(count):
            number = 500 + len(lines)
            line = json.loads(dataset_line(number, number, ["Be kind.", f"About {topic}?", f"All about {topic}."]))
            lines.append(json.dumps({**line, "topic": topic, "teacher": "earlier", "passages": [topic]}))
    path = folder / "replay.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def world(folder: Path, start: StartingPoint, *, kind: ReleaseKind = ReleaseKind.LORA, train: str = "rank = 4\nalpha = 8"):
    """A record in which the release is in service, and settings whose student learns on."""
    (folder / "settings.toml").write_text(WORLD.format(train=train), encoding="utf-8")
    record = Record(folder / "record.db")
    release = Release(
        start.release_id, None, "student", kind, str(start.weights_path), start.weights_digest, {}, utc_now(),
        ReleaseState.CANDIDATE,
    )  # fmt: skip
    releases.register(record, release, actor="test", reason="test")
    releases.promote(record, start.release_id, actor="test", reason="test")
    return record, read_settings(DistillSettings, folder / "settings.toml")


def test_a_student_that_learns_on_is_the_release_before_its_first_step_and_says_so(tmp_path: Path) -> None:
    start = trained(tmp_path)
    student = open_student(tmp_path / "student", SETTINGS, device=torch.device("cpu"))
    learn_on(student, start)
    released = load_file(start.weights_path / "adapter_model.safetensors")
    for name, weights in student.learned().items():
        layer, _, pair = name.rpartition(".")
        assert torch.equal(weights, released[f"base_model.model.{layer}.{pair[:-1]}{pair[-1].upper()}.weight"]), name

    before = json.loads((tmp_path / "train" / "training.json").read_text(encoding="utf-8"))["result"]
    request = dataclasses.replace(request_in(tmp_path, ONE_STEP), out_dir=tmp_path / "on", metrics_path=tmp_path / "m.jsonl")
    result = train(dataclasses.replace(request, start=start), ignore)
    assert (before["started_from"], result.started_from) == ("base", "release-1")
    assert result.first_validation_nll == pytest.approx(before["best_validation_nll"], abs=1e-6)
    assert "| release that learns on | release-1 sha256:" in (tmp_path / "on" / "adapter" / "README.md").read_text(
        encoding="utf-8"
    )
    with pytest.raises(OperatorError, match=r"release that learns on was release-1 .* and is none"):
        train(request, ignore)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("rank = 8\nalpha = 8", "its rank is 4 and would be 8; .*start_from"),
        ("rank = 4\nalpha = 16", "its alpha is 8 and would be 16"),
        ("rank = 4\nalpha = 8\nrank_stabilised = true", "its rank_stabilised is False and would be True"),
        ('kind = "full"', r"is of the kind 'lora' and \[train\] kind is \"full\": only an adapter can learn on"),
    ],
)
def test_an_adapter_of_another_form_is_refused_with_the_difference(tmp_path: Path, settings: str, told: str) -> None:
    record, read = world(tmp_path, trained(tmp_path, ONE_STEP), train=settings)
    with record, pytest.raises(OperatorError, match=told):
        starting_point(record, read, "release-1")


def test_weights_that_are_gone_changed_or_of_another_base_do_not_learn_on(tmp_path: Path) -> None:
    start = trained(tmp_path, ONE_STEP)
    record, read = world(tmp_path, start)
    with record:
        assert starting_point(record, read, "release-1") == start
        tiny_student(tmp_path / "student", seed=1)
        with pytest.raises(OperatorError, match=r"its base student is sha256:.* and would be sha256:"):
            starting_point(record, read, "release-1")
        weights = start.weights_path / "adapter_model.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
        with pytest.raises(OperatorError, match="expected the released weights"):
            starting_point(record, read, "release-1")
        weights.unlink()
        with pytest.raises(OperatorError, match=r"adapter_model.safetensors is gone; restore the folder"):
            starting_point(record, read, "release-1")


def test_a_release_that_adapts_other_layers_is_refused_with_one_of_them(tmp_path: Path) -> None:
    start = trained(tmp_path, ONE_STEP)
    request = request_in(tmp_path, ONE_STEP.model_copy(update={"last_layers": 1}))
    request = dataclasses.replace(request, out_dir=tmp_path / "on", metrics_path=tmp_path / "m.jsonl", start=start)
    with pytest.raises(
        OperatorError, match=r"layers\.0\..*lora_a: \(4, \d+\) there, absent here; restore \[train\] last_layers"
    ):
        train(request, ignore)


def test_a_share_of_the_training_rows_is_replayed_and_every_old_topic_is_there(tmp_path: Path) -> None:
    topics = {"lights": 30, "bills": 3, "moving": 1}
    settings = ONE_STEP.model_copy(update={"replay_share": 0.2})
    request = dataclasses.replace(request_in(tmp_path, settings), replay_path=replay_of(tmp_path, topics))
    result = train(request, ignore)
    # 16 rows of its own and 4 replayed ones: a fifth of 20.
    assert (result.train_rows, result.replayed_rows, result.replayed_rows_kept, result.replayable_rows) == (16, 4, 4, 34)
    drawn = [json.loads(line) for line in (tmp_path / "train" / "replayed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(row["topic"] for row in drawn).keys() == topics.keys()
    assert "| earlier | 4 rows" in (tmp_path / "train" / "adapter" / "README.md").read_text(encoding="utf-8")


def test_another_seed_replays_other_rows_and_the_same_seed_the_same(tmp_path: Path) -> None:
    topics = ["lights"] * 50
    draws = [drawn_places(topics, 10, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=8), wanted=st.integers(0, 60), seed=st.integers(0, 5))
def test_a_draw_is_as_large_as_wanted_and_no_topic_lacks_what_another_has_twice(
    counts: list[int], wanted: int, seed: int
) -> None:
    topics = [str(topic) for topic, count in enumerate(counts) for _ in range(count)]
    places = drawn_places(topics, wanted, seed)
    assert places == sorted(set(places)) and len(places) == min(wanted, len(topics))
    drawn = Counter(topics[place] for place in places)
    for topic, count in enumerate(counts):
        assert drawn[str(topic)] == count or drawn[str(topic)] >= max(drawn.values(), default=0) - 1


@given(own=st.integers(1, 10_000), share=st.floats(0, 0.9))
def test_the_replayed_rows_make_up_their_share_of_all(own: int, share: float) -> None:
    rows = wanted_rows(own, share)
    assert abs(rows - share * (own + rows)) <= 0.5 + 1e-6


def test_replayed_rows_are_learnt_in_the_same_steps_as_the_others(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"replay_share": 0.5, "epochs": 1.0})
    plain = train(request_in(tmp_path, SETTINGS.model_copy(update={"epochs": 1.0})), ignore)
    path = replay_of(tmp_path, {"lights": 16})
    both = train(dataclasses.replace(request_in(tmp_path, settings), out_dir=tmp_path / "both", replay_path=path), ignore)
    assert both.steps == 2 * plain.steps and both.tokens_scored > plain.tokens_scored
    none = SETTINGS.model_copy(update={"replay_share": 0.0, "epochs": 1.0})
    without = train(dataclasses.replace(request_in(tmp_path, none), out_dir=tmp_path / "none", replay_path=path), ignore)
    assert (without.replayed_rows, without.replayable_rows, without.steps) == (0, 16, plain.steps)


def test_a_killed_training_that_learns_on_and_replays_ends_with_the_same_bits(tmp_path: Path) -> None:
    start = trained(tmp_path / "release", ONE_STEP)
    settings = SETTINGS.model_copy(update={"replay_share": 0.2})
    straight, broken = (
        dataclasses.replace(
            request_in(tmp_path / name, settings), replay_path=replay_of(tmp_path, {"lights": 6, "bills": 2}), start=start
        )
        for name in ("straight", "broken")
    )
    expected = train(straight, ignore)
    assert expected.replayed_rows_kept == 4 and expected.steps > 5
    for step in (1, 4):
        with pytest.raises(Killed):
            train(broken, killed_at(step))
    train(broken, ignore)
    for name in ("adapter/adapter_model.safetensors", "replayed.jsonl"):
        assert (straight.out_dir / name).read_bytes() == (broken.out_dir / name).read_bytes()
    with pytest.raises(OperatorError, match=r"replayed rows was sha256:.* and is sha256:"):
        train(dataclasses.replace(straight, replay_path=replay_of(tmp_path, {"lights": 1})), ignore)
