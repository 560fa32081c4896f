"""The loss and its gradients are those of TRL's SFTTrainer on the same rows, however the rows are laid out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_student import CONTROL_TOKENS, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conversations.messages import ChatMessage, Role
from conversations.prompt import ChatFormat, Renderer
from distill.training.batches.forest import Forest
from distill.training.batches.layout import Layout
from distill.training.decisions.training_row import TrainingRow
from distill.training.student.learning import LearningStudent
from distill.training.weights.adapters import adapt, adapted_layers

PHI3_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
RANK, ALPHA = 4, 8
# A conversation a tree, and all rows in one.
LAYOUTS = {
    "rows": Layout(200, 16, max_tree_tokens=0, max_joined_tokens=0, one_row=False),
    "trees": Layout(10_000, 16, max_tree_tokens=1000, max_joined_tokens=0, one_row=False),
    "packed trees": Layout(10_000, 16, max_tree_tokens=1000, max_joined_tokens=300, one_row=True),
}


def _tokenizer(control_tokens: tuple[str, ...]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*control_tokens, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control_tokens))
    return tokenizer


def _rows(tokenizer: Tokenizer, chat_format: ChatFormat, folder: Path) -> list[TrainingRow]:
    """Three conversations of two decisions, each on its logged history, and one that stands alone."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    renderer = Renderer.load(folder)
    assert renderer.chat_format is chat_format
    rows = []
    for number, (first, second) in enumerate(
        [("Where is it?", "And when?"), ("Hello", "Who is there?"), ("Help me now", "")]
    ):
        messages = [ChatMessage(Role.SYSTEM, "Be kind."), ChatMessage(Role.USER, first)]
        asked = [messages, [*messages, ChatMessage(Role.ASSISTANT, "No idea."), ChatMessage(Role.USER, second)]]
        for turn, history in enumerate(asked[: 2 if second else 1]):
            prompt = renderer.prompt(history, max_prompt_tokens=400).token_ids
            answer = renderer.answer(f"It is on shelf {number + turn}.")
            rows.append(TrainingRow(f"{number}.{turn}", f"{number}", prompt, answer))
    return rows


def _by_trl(model: Any, rows: list[TrainingRow], tokenizer: Tokenizer, folder: Path) -> torch.Tensor:
    """Return SFTTrainer's loss of the rows in one batch, with its gradients left in the model."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    lines = [
        {"input_ids": [*row.prompt_ids, *row.answer_ids], "labels": [*[-100] * len(row.prompt_ids), *row.answer_ids]}
        for row in rows
    ]
    settings = SFTConfig(
        output_dir=str(folder), bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(lines),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>"
        ),
    )
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(lines))
    loss.backward()
    return loss.detach()


def _by_us(student: LearningStudent, rows: list[TrainingRow], layout: Layout) -> torch.Tensor:
    """Return our loss of the rows as one step of several micro-batches, with its gradients left in the model."""
    forest = Forest(rows)
    trees = layout.trees(forest, [forest.whole(row) for conversation in forest.conversations for row in conversation])
    weight = sum(tree.scored_weight for tree in trees)
    total = torch.zeros(())
    for batch in layout.batches(trees):
        loss = student.loss_sum(batch) / weight
        loss.backward()
        total += loss.detach()
    return total


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("family", "control_tokens", "chat_format"),
    [("llama", CONTROL_TOKENS, ChatFormat.CHATML), ("phi3", PHI3_TOKENS, ChatFormat.PHI3)],
    ids=["llama in chatml", "phi3"],
)
def test_loss_and_gradients_are_trls_on_the_same_rows(tmp_path, family, control_tokens, chat_format, kind, layout):
    from peft import LoraConfig, get_peft_model

    tokenizer = _tokenizer(control_tokens)
    rows = _rows(_tokenizer(control_tokens), chat_format, tmp_path / "tokenizer")
    mine, theirs = tiny_model(family, vocabulary=270), tiny_model(family, vocabulary=270)
    if kind == "lora":
        adapt([mine.requires_grad_(False).get_decoder()], rank=RANK, alpha=ALPHA)
        targets = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        theirs = get_peft_model(theirs, targets)
        for name, layer in adapted_layers(mine).items():
            adapted = theirs.get_submodule(f"base_model.model.{name}")
            torch.nn.init.normal_(layer.lora_b, std=0.1)
            with torch.no_grad():
                adapted.lora_A["default"].weight.copy_(layer.lora_a)
                adapted.lora_B["default"].weight.copy_(layer.lora_b)

    expected = _by_trl(theirs, rows, tokenizer, tmp_path / "trl")
    student = LearningStudent(mine, kind=kind, precision="float32")
    loss = _by_us(student, rows, layout)

    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    their_parameters = dict(theirs.named_parameters())
    assert student.trainable
    for name, parameter in student.trainable.items():
        their_name = f"base_model.model.{name[:-1]}{name[-1].upper()}.default.weight" if kind == "lora" else name
        gradient = their_parameters[their_name].grad
        assert float(gradient.abs().max()) > 1e-4
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=lambda found, name=name: f"{name}: {found}"
        )
