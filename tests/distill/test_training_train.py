"""A training can be killed and goes on to the same bits; what it writes is what vLLM loads."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_student import dataset_line, tiny_student, write_dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from distill.settings import TrainTable
from distill.training.decisions.reading import read_decisions
from distill.training.fitting.loop import TrainProgress
from distill.training.fitting.rates import learning_rate_at
from distill.training.request import TrainRequest
from distill.training.train import train

SETTINGS = TrainTable(
    rank=4,
    alpha=8,
    learning_rate=1e-2,
    epochs=1.5,
    rows_per_step=4,
    token_budget_per_batch=512,
    max_tokens=256,
    validate_every_tokens=500,
    checkpoint_every_steps=3,
    threads=1,
)


class Killed(Exception):
    """Stands for the end of the process."""


def ignore(_: TrainProgress) -> None:
    """Look away."""


def request_in(folder: Path, settings: TrainTable = SETTINGS, **changes) -> TrainRequest:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "student").exists():
        tiny_student(folder / "student")
        write_dataset(folder / "train.jsonl", 8)
        write_dataset(folder / "validation.jsonl", 2, first=100)
    whole = TrainRequest(
        base_dir=folder / "student",
        train_path=folder / "train.jsonl",
        validation_path=folder / "validation.jsonl",
        out_dir=folder / "train",
        metrics_path=folder / "metrics.jsonl",
        settings=settings,
        max_prompt_tokens=200,
    )
    return dataclasses.replace(whole, **changes)


def metrics_of(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("at_utc", "tokens_per_second")} for line in lines]


def killed_at(step: int):
    seen: list[int] = []

    def watch(progress: TrainProgress) -> None:
        seen.append(progress.tokens_done)
        if len(seen) == step:
            raise Killed

    return watch


def test_finished_training_is_not_repeated(tmp_path):
    request = request_in(tmp_path)
    result = train(request, ignore)
    assert train(request, killed_at(1)) == result
    with pytest.raises(OperatorError, match="rank was 4 and is 2"):
        train(dataclasses.replace(request, settings=SETTINGS.model_copy(update={"rank": 2})), ignore)


def test_adapter_is_in_pefts_format_and_changes_the_base_as_in_training(tmp_path):
    request = request_in(tmp_path, SETTINGS.model_copy(update={"epochs": 12.0, "validate_every_tokens": 4000}))
    result = train(request, ignore)
    folder = request.out_dir / "adapter"
    written = "".join((folder / name).read_text(encoding="utf-8") for name in ("adapter_config.json", "README.md"))
    assert str(tmp_path) not in written
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "student"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["r"] == 4
    weights = load_file(folder / "adapter_model.safetensors")
    # A and B of four attention and three feed-forward layers, in two blocks.
    assert len(weights) == 2 * 7 * 2
    assert result.weights_bytes == (folder / "adapter_model.safetensors").stat().st_size

    # A CPU that computes bfloat16 by itself trains in it, and not in transformers' steps.
    rounding = 1e-5 if result.precision == "float32" else 1e-3
    base = AutoModelForCausalLM.from_pretrained(request.base_dir)
    assert held_out_nll(base, request) == pytest.approx(result.first_validation_nll, rel=rounding)
    taught = PeftModel.from_pretrained(base, folder)
    assert held_out_nll(taught, request) == pytest.approx(result.best_validation_nll, rel=rounding)
    assert result.best_validation_nll < 0.97 * result.first_validation_nll


def held_out_nll(model, request: TrainRequest) -> float:
    """Return transformers' own loss on the held-out rows, one by one, in nats per answer token."""
    renderer = Renderer.load(request.base_dir)
    rows, _ = read_decisions(request.validation_path, renderer, max_prompt_tokens=200, max_tokens=256)
    summed = 0.0
    for row in rows:
        logits = model(torch.tensor([row.prompt_ids + row.answer_ids])).logits[0]
        said = logits[len(row.prompt_ids) - 1 : -1]
        summed += row.weight * cross_entropy(said, torch.tensor(row.answer_ids), reduction="sum").item()
    return summed / sum(row.weight * len(row.answer_ids) for row in rows)


def test_full_training_leaves_a_checkpoint_in_bfloat16_that_loads_with_its_tokenizer(tmp_path):
    request = request_in(tmp_path, SETTINGS.model_copy(update={"kind": "full", "learning_rate": None}))
    result = train(request, ignore)
    folder = request.out_dir / "checkpoint"
    assert result.learning_rate == pytest.approx(1e-4)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert (folder / "tokenizer.json").read_bytes() == (request.base_dir / "tokenizer.json").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings


def test_training_stops_when_held_out_loss_no_longer_falls_and_keeps_the_best_weights(tmp_path):
    request = request_in(tmp_path, SETTINGS.model_copy(update={"epochs": 40.0, "learning_rate": 0.5, "patience": 2}))
    result = train(request, ignore)
    assert result.steps < result.steps_planned
    assert result.best_step < result.steps
    measured = {
        line["step"]: line["validation_nll"]
        for line in metrics_of(tmp_path)
        if line["event"] == "validation" and line["step"] != 0
    }
    assert result.best_validation_nll == min(measured.values()) == measured[result.best_step]


def test_every_step_is_one_line_of_metrics_and_one_call_of_progress(tmp_path):
    request = request_in(tmp_path)
    seen: list[TrainProgress] = []
    result = train(request, seen.append)
    steps = [line for line in metrics_of(tmp_path) if line["event"] == "step"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [progress.loss for progress in seen] == [line["loss"] for line in steps]
    assert seen[-1].tokens_done == seen[-1].tokens_total == result.tokens == steps[-1]["tokens"]
    assert result.tokens_per_epoch < result.tokens_one_by_one


def test_nothing_to_learn_is_an_operators_error_that_says_why(tmp_path):
    request = request_in(tmp_path, SETTINGS.model_copy(update={"max_tokens": 64}))
    with pytest.raises(OperatorError, match=r"16 rows, left out \{'over_length': 16\}"):
        train(request, ignore)
    assert not (request.out_dir / "adapter").exists()


def test_folder_without_weights_is_an_operators_error(tmp_path):
    request = request_in(tmp_path, base_dir=tmp_path)
    with pytest.raises(OperatorError, match=r"no config\.json and \*\.safetensors"):
        train(request, ignore)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing(schedule):
    settings = TrainTable(schedule=schedule, warmup_share=0.1)
    rates = [learning_rate_at(step, steps=50, peak=1e-3, settings=settings) for step in range(1, 51)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[5] == pytest.approx(1e-3)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 1e-4


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (0.01, 21.0, float("nan"))),
        ("learning_rate", (11.0, float("inf"), float("nan"))),
        ("epochs", (1001.0, float("inf"), float("nan"))),
        ("weight_decay", (11.0, float("inf"), float("nan"))),
        ("clip_norm", (float("inf"), float("nan"))),
        ("seed", (-1, 2**32)),
        ("threads", (1025,)),
        ("processes", (65,)),
    ],
)
def test_numbers_that_no_training_can_be_made_with_are_refused_with_the_settings(name, values):
    for value in values:
        with pytest.raises(ValidationError, match=name):
            TrainTable.model_validate({name: value})


def test_rows_beyond_the_positions_of_the_base_are_left_out_and_counted(tmp_path):
    request = request_in(tmp_path)
    whole = train(request, ignore)
    config_path = request.base_dir / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # The second row of each conversation repeats the first.
    config_path.write_text(json.dumps({**config, "max_position_embeddings": 100}), encoding="utf-8")
    result = train(dataclasses.replace(request, out_dir=tmp_path / "short"), ignore)
    assert (request.longest_row, whole.train_rows_kept) == (100, 16)
    assert result.train_rows_left_out == {"over_length": 16 - result.train_rows_kept}
    assert 0 < result.train_rows_kept < 16


def test_a_training_that_ends_worse_than_it_began_says_so_with_its_figures(tmp_path, caplog):
    train(request_in(tmp_path / "well"), ignore)
    assert not caplog.records
    request = request_in(tmp_path / "badly")
    # Of letters that nothing teaches.
    unlike = dataset_line(100, 100, ["Be kind.", "Where is box 100?", "ZQXJ" * 8])
    request.validation_path.write_text(unlike + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        result = train(request, ignore)
    assert result.best_validation_nll > result.first_validation_nll
    figures = rf"best held-out loss is {result.best_validation_nll:.4f} .* was {result.first_validation_nll:.4f} before"
    assert [re.search(figures, record.getMessage()) is not None for record in caplog.records] == [True]


def test_held_out_rows_that_are_all_left_out_are_warned_of(tmp_path, caplog):
    request = request_in(tmp_path)
    request.validation_path.write_text(dataset_line(1, 1, ["Be kind.", "Where?", " "]) + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert train(request, ignore).best_validation_nll is None
    assert "none of its 1 held-out rows can be read, left out {'no_answer': 1}, so that nothing is validated" in caplog.text
