"""From a teacher's reply to the student's weights: soft labels are read, learnt, counted, and part of what a training is."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from scripted_teacher import ScriptedTeacher
from small_run import small_run
from spoken_beliefs import believing, spoken, token_of
from test_training_train import SETTINGS, Killed, ignore, killed_at, request_in
from tiny_student import tiny_student
from typer.testing import CliRunner

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from distill.cli import app
from distill.dataset.assembling.soft_labels import beliefs_in
from distill.rows import DatasetRow, SoftLabelRow, read_rows, rows_text
from distill.run import STAGES, Stage
from distill.training.batches.forest import Forest
from distill.training.batches.packing import pack_batch
from distill.training.decisions.reading import read_decisions
from distill.training.request import TrainRequest
from distill.training.student.learning import open_student
from distill.training.train import train

UP_TO_TRAIN = STAGES[: STAGES.index(Stage.TRAIN) + 1]


def write_soft_labels(request: TrainRequest, *, sure: float = 0.6) -> Path:
    """Write what a teacher that speaks in words believed while it gave the answers of the training rows."""
    rows = []
    for row in read_rows(request.train_path, DatasetRow):
        words = [token_of(*word) for word in spoken(row.messages[-1].content, sure=sure)]
        content = [*words, token_of("<|im_end|>", {"<|im_end|>": 0.9})]
        beliefs = beliefs_in(json.dumps({"choices": [{"logprobs": {"content": content}}]}))
        names = {"decision_id": row.decision_id, "conversation_id": row.conversation_id, "answer_id": "", "teacher": "big"}
        rows.append(SoftLabelRow(**names, tokens=beliefs))
    path = request.train_path.with_name("soft_labels.jsonl")
    path.write_text(rows_text(rows), encoding="utf-8")
    return path


def believing_request(folder: Path, **changes) -> TrainRequest:
    request = request_in(folder, SETTINGS.model_copy(update=changes))
    return dataclasses.replace(request, soft_labels_path=write_soft_labels(request))


def adapter(request: TrainRequest) -> bytes:
    return (request.out_dir / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_learns_what_its_teacher_believed_and_says_at_how_many_tokens(tmp_path: Path) -> None:
    text = "Please wait 12 minutes."
    settings = "[train]\nepochs = 1.0\nrank = 4\nmax_tokens = 512\nthreads = 1"
    with (
        ScriptedTeacher(lambda question, before: believing(spoken(text))) as teacher,
        small_run(tmp_path, teacher.base_url, teacher="top_logprobs = 4", more=settings) as small,
    ):
        tiny_student(tmp_path / "no-student")
        run, _ = small.perform(*UP_TO_TRAIN[:-1])
        told = list(read_rows(run.folder / "assemble/soft_labels.jsonl", SoftLabelRow))
        taught = [row for row in read_rows(run.folder / "assemble/train.jsonl", DatasetRow) if row.answer_id]
        assert taught and {row.decision_id for row in taught} <= {row.decision_id for row in told}
        ended = CliRunner().invoke(app, ["train", "--run", run.run_id, "--settings", str(small.settings_file)])
        assert ended.exit_code == 0, ended.output
        result = json.loads((run.folder / "train/training.json").read_text(encoding="utf-8"))["result"]
        # The student reads bytes: four words of the teacher begin where one of its tokens does, and so does the end.
        assert result["tokens_with_soft_labels"] == 5 * len(taught)
        assert result["soft_label_coverage"] == pytest.approx(5 * len(taught) / result["tokens_scored"], abs=1e-4)
        assert f"soft labels at {result['soft_label_coverage']:.1%} of the scored tokens" in ended.output
        card = (run.folder / "train/adapter/README.md").read_text(encoding="utf-8")
        assert f"| soft_label_coverage | {result['soft_label_coverage']:.6g} |" in card
        assert "| soft labels | sha256:" in card


def test_no_weight_on_soft_labels_is_training_without_them_to_the_bit(tmp_path: Path) -> None:
    without = request_in(tmp_path / "without", SETTINGS.model_copy(update={"soft_weight": 0.0}))
    train(without, ignore)
    ignored = believing_request(tmp_path / "ignored", soft_weight=0.0)
    result = train(ignored, ignore)
    learnt = believing_request(tmp_path / "learnt", soft_weight=0.5)
    train(learnt, ignore)
    assert result.tokens_with_soft_labels == 0
    assert adapter(ignored) == adapter(without) != adapter(learnt)


def test_training_with_soft_labels_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = believing_request(tmp_path / "straight")
    expected = train(straight, ignore)
    # Out of the kept token ids, the second time.
    broken = dataclasses.replace(believing_request(tmp_path / "broken"), cache_dir=tmp_path / "kept")
    with pytest.raises(Killed):
        train(broken, killed_at(5))
    result = train(broken, ignore)
    assert expected.soft_label_coverage > 0
    assert dataclasses.replace(result, seconds=0) == dataclasses.replace(expected, seconds=0)
    assert adapter(broken) == adapter(straight)


def test_resume_refuses_other_beliefs(tmp_path: Path) -> None:
    begun = believing_request(tmp_path)
    with pytest.raises(Killed):
        train(begun, killed_at(2))
    write_soft_labels(begun, sure=0.4)
    with pytest.raises(OperatorError, match=r"soft labels was sha256:\w+ and is sha256:"):
        train(begun, ignore)


@pytest.mark.slow
def test_soft_labels_bring_the_student_nearer_to_what_the_teacher_believed_than_its_words_do(tmp_path: Path) -> None:
    nearness = {}
    for soft_weight in (0.0, 1.0):
        request = believing_request(
            tmp_path / str(soft_weight), kind="full", epochs=10.0, soft_weight=soft_weight, patience=99
        )
        request = dataclasses.replace(
            request, validation_path=None, settings=request.settings.model_copy(update={"learning_rate": 3e-3})
        )
        train(request, ignore)
        rows, _ = read_decisions(
            request.train_path,
            Renderer.load(request.base_dir),
            max_prompt_tokens=200,
            max_tokens=256,
            soft_labels=request.soft_labels_path,
        )
        forest = Forest(rows)
        batch = pack_batch(
            list(forest.trees(map(forest.whole, range(len(rows))), max_tree_tokens=400, max_joined_tokens=0)), pad_id=0
        )
        known = batch.targets.soft_ids is not None and (batch.targets.soft_ids >= 0).any(dim=1)
        targets = dataclasses.replace(batch.targets, weights=batch.targets.weights * known)
        believing = request.settings.model_copy(update={"soft_weight": 1.0})
        student = open_student(request.out_dir / "checkpoint", believing, device=torch.device("cpu"))
        with torch.no_grad():
            nearness[soft_weight] = float(student.loss_sum(dataclasses.replace(batch, targets=targets)))
    assert nearness[1.0] < 0.95 * nearness[0.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda line: line.replace(b'{"decision_id"', b'{ "decision_id"'), r"soft_labels\.jsonl:1: .*begin with its decision_id"),
        (lambda line: line.replace(b'"tokens"', b'"words"'), r"soft_labels\.jsonl:1: not a SoftLabelRow"),
        (lambda line: line.replace(b'"said":"Qm94"', b'"said":"Ym94"'), r"jsonl:1: .*do not spell the answer of decision_0"),
    ],
)  # fmt: skip
def test_beliefs_that_are_not_those_of_the_rows_are_an_operators_error_with_file_and_line(tmp_path, change, told) -> None:
    request = believing_request(tmp_path)
    assert request.soft_labels_path
    content = request.soft_labels_path.read_bytes()
    assert change(content) != content
    request.soft_labels_path.write_bytes(change(content))
    with pytest.raises(OperatorError, match=told):
        train(request, ignore)
