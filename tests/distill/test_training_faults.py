"""What goes wrong in a training is told with its step, its rows and what to do, and costs only the steps since a checkpoint."""

import dataclasses
import json
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_training_train import SETTINGS, ignore, metrics_of, request_in
from tiny_student import dataset_line, tiny_model, tiny_student

from conversations.errors import OperatorError, OutsideError
from conversations.prompt import Renderer
from distill.training.batches.forest import Forest
from distill.training.batches.packing import Batch
from distill.training.decisions.reading import read_decisions
from distill.training.decisions.training_row import TrainingRow
from distill.training.decisions.vocabulary import check_vocabulary
from distill.training.fitting.checkpoint import load_checkpoint
from distill.training.fitting.loop import Fitting
from distill.training.fitting.memory import is_out_of_memory
from distill.training.fitting.metrics_log import MetricsLog
from distill.training.fitting.planning import plan_steps, validation_sample
from distill.training.student.learning import LearningStudent, open_student
from distill.training.train import train

CHECKPOINT = ".checkpoint.pt"


def test_loss_that_is_no_number_names_step_rate_and_rows_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    request = request_in(tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e30, "validate_every_tokens": 10**6}))
    with pytest.raises(
        OperatorError, match=r"loss is nan.*at step 2 with learning rate 1e\+30, on the rows decision_\d+, d"
    ) as told:
        train(request, ignore)
    # A run that has begun refuses another rate.
    assert "lower [train] learning_rate, and begin a new run with `distill cycle`" in str(told.value)
    rows = str(told.value).split("on the rows ")[1].split("; ")[0].split(", ")
    assert len(rows) == 4 and all(name.startswith("decision_") for name in rows)
    saved = load_checkpoint(request.out_dir / CHECKPOINT)
    assert saved is not None and saved.position.step == 0
    assert all(torch.isfinite(weights).all() for weights in saved.learned.values())


def test_held_out_loss_that_is_no_number_is_told_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    request = request_in(tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e30, "validate_every_tokens": 1}))
    with pytest.raises(OperatorError, match=r"held-out loss is nan after step 1 with learning rate 1e\+30"):
        train(request, ignore)
    saved = load_checkpoint(request.out_dir / CHECKPOINT)
    assert saved is not None and saved.position.step == 0


class HungryStudent(LearningStudent):
    """A student for which no memory is left as soon as a micro-batch holds more than so many tokens."""

    most_tokens = 10**9

    def loss_sum(self, batch: Batch, frozen: torch.Tensor | None = None) -> torch.Tensor:
        if batch.token_ids.numel() > self.most_tokens:
            torch.empty(2**50)
        return super().loss_sum(batch, frozen)


def fitting_in(folder: Path, *, most_tokens: int, token_budget: int) -> Fitting:
    settings = SETTINGS.model_copy(update={"token_budget_per_batch": token_budget, "rows_per_step": 16, "epochs": 2.0})
    request = request_in(folder, settings)
    # Trees of one length, which share micro-batches without padding.
    lines = [dataset_line(number, number, ["Be kind.", chr(97 + number) * 40, "On the shelf."]) for number in range(16)]
    request.train_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    renderer = Renderer.load(request.base_dir)
    train_rows, held_out = (
        read_decisions(path, renderer, max_prompt_tokens=200, max_tokens=256)[0]
        for path in (request.train_path, request.validation_path)
    )
    torch.manual_seed(0)
    student = open_student(request.base_dir, settings, device=torch.device("cpu"))
    student.__class__ = HungryStudent
    student.most_tokens = most_tokens
    forest = Forest(train_rows)
    validation = validation_sample(Forest(held_out), settings, student.layout(token_budget))
    metrics = MetricsLog(request.metrics_path, lambda _event, _figures: None)
    return Fitting(
        student, forest, plan_steps(forest, settings, student.layout(token_budget)), validation, settings, metrics
    )


def run(fitting: Fitting, folder: Path) -> None:
    fitting.run(folder / CHECKPOINT, {}, 1, ignore)


def test_spent_memory_halves_the_micro_batches_once_and_begins_the_step_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = fitting_in(tmp_path / "small", most_tokens=10**9, token_budget=400)
    run(small, tmp_path / "small")
    hungry = fitting_in(tmp_path / "hungry", most_tokens=400, token_budget=800)
    with caplog.at_level(logging.WARNING):
        run(hungry, tmp_path / "hungry")
    assert "micro-batches hold 400 tokens from here on, not 800" in caplog.text
    assert hungry.position.token_budget == 400
    events = metrics_of(tmp_path / "hungry")
    said = [line for line in events if line["event"] == "out_of_memory"]
    assert len(said) == 1 and said[0]["token_budget_per_batch"] == 400
    # From the step that was begun again on, everything is as if the micro-batches had always been small.
    assert [line for line in events if line["event"] == "step"] == [
        line for line in metrics_of(tmp_path / "small") if line["event"] == "step"
    ]
    assert all(torch.equal(weights, small.student.learned()[name]) for name, weights in hungry.student.learned().items())


def test_memory_that_is_spent_for_the_second_time_is_told_with_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(
        OutsideError,
        match=r"out of memory at step 1, with micro-batches of 400 tokens.*token_budget_per_batch.*begin a new run",
    ):
        run(fitting_in(tmp_path, most_tokens=30, token_budget=800), tmp_path)


class HungryOptimizer(torch.optim.AdamW):
    """An optimizer whose moments find no room."""

    def step(self) -> None:
        torch.empty(2**50)


def test_memory_that_is_spent_by_the_optimizer_is_told_with_what_to_lower(tmp_path: Path) -> None:
    fitting = fitting_in(tmp_path, most_tokens=10**9, token_budget=800)
    fitting.optimizer = HungryOptimizer(fitting.student.trainable.values())
    with pytest.raises(OutsideError, match=r"out of memory in the optimizer's step 1; .*lower its rank.*begin a new run"):
        run(fitting, tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT) is not None


def test_memory_that_is_spent_while_frozen_layers_are_computed_is_told(tmp_path: Path) -> None:
    class Hungry(LearningStudent):
        def frozen_states(self, batches: object, node_count: int) -> None:
            torch.empty(2**50)

    fitting = fitting_in(tmp_path, most_tokens=10**9, token_budget=800)
    fitting.student.__class__ = Hungry
    fitting.student.first_layer = 1
    with pytest.raises(OutsideError, match=r"out of memory while what the frozen layers.*token_budget_per_batch"):
        run(fitting, tmp_path)


def test_memory_that_is_spent_while_a_student_is_opened_is_not_taken_for_a_model_that_cannot_be_trained(
    tmp_path: Path,
) -> None:
    base = tiny_student(tmp_path / "student")

    def starved(*_: object) -> None:
        torch.empty(2**50)

    with (
        torch.nn.modules.module.register_module_forward_pre_hook(starved),
        pytest.raises(OutsideError, match=r"out of memory while .*student was loaded.*base to a smaller model"),
    ):
        open_student(base, SETTINGS, device=torch.device("cpu"))


def test_onednn_without_memory_is_told_apart_from_onednn_without_a_kernel() -> None:
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Let the operating system refuse to write more, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_the_last_whole_checkpoint_and_the_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = request_in(tmp_path / "straight")
    train(straight, ignore)
    request = request_in(tmp_path / "full")
    sizes: list[int] = []
    # The first checkpoint holds no moments yet: there is room for it and not for the next one.
    with (
        no_file_longer_than(60_000),
        pytest.raises(
            OutsideError,
            match=r"\.checkpoint\.pt: the checkpoint after step 3 .*File too large; it takes \d{5,} bytes and \d+ are free",
        ),
    ):
        train(request, lambda _: sizes.append((request.out_dir / CHECKPOINT).stat().st_size))
    assert len(sizes) == 3 and sizes[0] < 60_000
    assert [path.name for path in request.out_dir.iterdir()] == [CHECKPOINT]
    saved = load_checkpoint(request.out_dir / CHECKPOINT)
    assert saved is not None and saved.position.step == 0
    train(request, ignore)
    name = "adapter/adapter_model.safetensors"
    assert (request.out_dir / name).read_bytes() == (straight.out_dir / name).read_bytes()
    assert metrics_of(tmp_path / "full") == metrics_of(tmp_path / "straight")


def test_full_disk_while_the_weights_are_written_leaves_the_checkpoint(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    reached: list[int] = []

    def watch(_: object) -> None:
        reached.append(1)
        if len(reached) == 6:
            shutil.copyfile(request.out_dir / CHECKPOINT, tmp_path / "before.pt")

    train(request, watch)
    shutil.rmtree(request.out_dir)
    request.out_dir.mkdir()
    (tmp_path / "before.pt").rename(request.out_dir / CHECKPOINT)
    over = dataclasses.replace(request, settings=SETTINGS)
    with pytest.raises(OutsideError, match=r"File too large|os error 27"), no_file_longer_than(20_000):
        train(over, ignore)
    assert not (request.out_dir / "adapter").exists()
    assert train(over, ignore).steps == 6


def test_no_row_at_all_is_told_apart_from_rows_that_are_all_left_out(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    request.train_path.write_text("", encoding="utf-8")
    with pytest.raises(OperatorError, match=r"train\.jsonl: there is no row in it.*choose"):
        train(request, ignore)
    silent = [dataset_line(number, number, ["Be kind.", "Where?", "  "]) for number in range(3)]
    weightless = [dataset_line(9, 9, ["Be kind.", "Where?", "There."], weight=0.0)]
    request.train_path.write_text("\n".join([*silent, *weightless]) + "\n", encoding="utf-8")
    with pytest.raises(OperatorError, match=r"4 rows, left out \{'no_answer': 3, 'no_weight': 1\}"):
        train(request, ignore)


def test_the_shortest_row_there_can_be_is_learnt(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 3.0, "rows_per_step": 1})
    student = open_student(tiny_student(tmp_path / "student"), settings, device=torch.device("cpu"))
    # One token is read, and only the end of the turn is to be said.
    forest = Forest([TrainingRow("decision_0", "conversation_0", (1,), (2,))])
    fitting = Fitting(
        student,
        forest,
        plan_steps(forest, settings, student.layout(None)),
        [],
        settings,
        MetricsLog(tmp_path / "metrics.jsonl", lambda *_: None),
    )
    run(fitting, tmp_path)
    losses = [line["loss"] for line in metrics_of(tmp_path)]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_tokenizer_with_ids_beyond_the_embedding_is_refused_before_training(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    check_vocabulary(request.base_dir)
    tiny_model(vocabulary=200).save_pretrained(request.base_dir)
    with pytest.raises(OperatorError, match=r"makes the id 258 \('.+'\), and its embedding has 200 rows"):
        train(request, ignore)
    assert not (request.out_dir / CHECKPOINT).exists()


def test_rows_left_out_are_counted_by_reason_in_the_result(tmp_path: Path) -> None:
    request = request_in(tmp_path)
    lines = request.train_path.read_text(encoding="utf-8")
    long = dataset_line(50, 50, ["Be kind.", "Where?", "There. " * 60])
    no_answer = dataset_line(51, 51, ["Be kind.", "Where?", " "])
    request.train_path.write_text(lines + long + "\n" + no_answer + "\n", encoding="utf-8")
    result = train(request, ignore)
    assert (result.train_rows, result.train_rows_kept) == (18, 16)
    assert result.train_rows_left_out == {"no_answer": 1, "over_length": 1}
    assert json.loads((request.out_dir / "training.json").read_text())["result"]["train_rows_left_out"]["over_length"] == 1
