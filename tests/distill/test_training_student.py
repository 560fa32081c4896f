"""A student is trained as the function that it serves, in as little memory as there is, or is refused."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from tiny_student import tiny_model, tiny_student
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from conversations.errors import OperatorError
from distill.settings import TrainTable
from distill.training.batches.forest import Forest
from distill.training.batches.layout import BLOCK_TOKENS, Layout, MaskForm
from distill.training.decisions.training_row import TrainingRow
from distill.training.student.activations import bytes_per_token, must_be_computed_twice
from distill.training.student.attention import NAME, register
from distill.training.student.forward import Forward, proven_forward
from distill.training.student.learning import LearningStudent, open_student, student_of
from distill.training.weights.adapters import adapted_layers

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYOUT = Layout(1000, 1000, max_tree_tokens=1000, max_joined_tokens=0, one_row=False)


def _rows() -> list[TrainingRow]:
    trunk = tuple(range(10, 30))
    return [
        TrainingRow("a.1", "a", trunk, (90, 91, 2)),
        TrainingRow("a.2", "a", (*trunk, 50, 51, 52), (93, 94, 2), 0.5),
        TrainingRow("b.1", "b", trunk[:7], (95, 96, 97, 2), 2.0),
    ]


def _batch(layout: Layout = LAYOUT):
    forest = Forest(_rows())
    [batch] = layout.batches(layout.trees(forest, [forest.whole(number) for number in range(3)]))
    return batch


def _by_the_model_itself(model):
    total = torch.zeros(())
    for row in _rows():
        logits = model(torch.tensor([row.prompt_ids + row.answer_ids])).logits[0]
        predicted = logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        total -= row.weight * predicted.gather(1, torch.tensor(row.answer_ids).unsqueeze(1)).sum()
    return total


@pytest.mark.parametrize(
    "model",
    [
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, embedding_multiplier=4.0, logits_scaling=1.0)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256)),
    ],
    ids=["embeddings that are scaled", "learned positions"],
)
def test_a_decoder_unlike_llamas_is_run_by_its_own_forward_and_learns_its_own_loss(model):
    model = model()
    forward = proven_forward(model, Path("other"), by_blocks=False, half=False)
    assert not forward.by_layers
    student = LearningStudent(model, kind="full", precision="float32", forward=forward)
    batch = _batch()
    assert batch.subtree_ends is not None
    torch.testing.assert_close(student.loss_sum(batch), _by_the_model_itself(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [lambda: tiny_model("llama"), lambda: tiny_model("phi3"), lambda: GemmaForCausalLM(GemmaConfig(**SIZES))],
    ids=["llama", "phi3", "gemma"],
)
def test_a_decoder_laid_out_as_llamas_is_run_layer_by_layer(model):
    assert proven_forward(model(), Path("tiny"), by_blocks=False, half=False).by_layers


@pytest.mark.parametrize(
    "model",
    [
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0)),
        lambda: MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)),
    ],
    ids=["scaled logits", "capped logits", "no attention"],
)
def test_a_model_of_another_function_than_its_head_on_its_decoder_is_refused(model):
    with pytest.raises(OperatorError, match=r"^students/odd: a \w+ cannot be trained here: .*set \[student\] base"):
        proven_forward(model(), Path("students/odd"), by_blocks=False, half=False)


def test_rows_that_a_student_would_not_see_whole_are_refused(tmp_path):
    base = tiny_student(tmp_path / "student", "phi3")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"sliding_window": 100}), encoding="utf-8")
    with pytest.raises(OperatorError, match=r"max_tokens is 102, .* only the last 100 tokens .* to at most 101$"):
        open_student(base, TrainTable(max_tokens=102), device=CPU)
    open_student(base, TrainTable(max_tokens=101), device=CPU)


def test_a_student_without_linear_layers_is_refused_adapters():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=2048))
    with pytest.raises(OperatorError, match=r"^other: a GPT2LMHeadModel has no linear layer .* kind = \"full\""):
        student_of(model, TrainTable(), base_dir=Path("other"))


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_gradients_are_bit_for_bit_the_same_where_activations_are_computed_twice(family, kind):
    gradients, kept = [], []
    for twice in (False, True):
        torch.manual_seed(1)
        model = tiny_model(family)
        student = student_of(model, TrainTable(kind=kind, gradient_checkpointing=twice), base_dir=Path("tiny"))
        for name, parameter in student.trainable.items():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(parameter, std=0.1)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t.numel()), t)[1], lambda t: t):
            loss = student.loss_sum(_batch())
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in student.trainable.items()})
        kept.append(sum(saved))
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < kept[0] / 2


def test_activations_are_computed_twice_where_they_would_not_fit_or_the_settings_say_so():
    model = tiny_model()
    # 2 layers of 2 norms, and of 2 d + 2 q + 2 k + 4 f elements: d = q = 32, k = 16, f = 64. A GPU's norms keep float32.
    of_a_token = bytes_per_token(model.config, element_size=2, on_gpu=False)
    assert of_a_token == 2 * 2 * (2 * 32 + 2 * 32 + 2 * 32 + 2 * 16 + 4 * 64)
    on_a_gpu = bytes_per_token(model.config, element_size=2, on_gpu=True)
    assert on_a_gpu == 2 * (2 * 4 * 32 + 2 * (2 * 32 + 3 * 32 + 2 * 16 + 4 * 64))
    too_many = 2 * psutil.virtual_memory().total // of_a_token
    assert not must_be_computed_twice(model, TrainTable(), 2048)
    assert must_be_computed_twice(model, TrainTable(), too_many)
    assert not must_be_computed_twice(model, TrainTable(gradient_checkpointing=False), too_many)
    assert must_be_computed_twice(model, TrainTable(gradient_checkpointing=True), 2048)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.slow
def test_attention_by_blocks_and_tree_by_tree_gives_what_dense_attention_gives():
    register()
    packed = Layout(1000, 1000, max_tree_tokens=1000, max_joined_tokens=0, one_row=True, row_multiple=BLOCK_TOKENS)
    model = tiny_model("phi3")
    losses = {}
    model.set_attn_implementation(NAME)
    forms: tuple[MaskForm, ...] = ("dense", "trees", "blocks")
    for masks in forms:
        forward = Forward(model, by_layers=True, masks=masks)
        with torch.no_grad():
            losses[masks] = LearningStudent(model, kind="full", precision="float32", forward=forward).loss_sum(
                _batch(packed)
            )
    torch.testing.assert_close(losses["blocks"], losses["dense"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["trees"], losses["dense"], rtol=1e-5, atol=1e-5)


def test_a_rank_stabilised_adapter_is_scaled_by_the_root_of_its_rank_and_says_so(tmp_path):
    model = tiny_model()
    student = student_of(model, TrainTable(rank=16, alpha=8, rank_stabilised=True), base_dir=tmp_path)
    some = next(iter(adapted_layers(model).values()))
    assert some.scale == 8 / 4
    torch.nn.init.normal_(some.lora_b)
    student.save(tmp_path / "adapter", base_name="tiny")
    with_peft = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    read = torch.tensor([[1, 5, 9, 30]])
    torch.testing.assert_close(with_peft(read).logits, model(read).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_base_that_was_made_with_dropout_learns_without_it(tmp_path: Path, family: str) -> None:
    base = tiny_student(tmp_path / "student", family)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    dropping = dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), 0.5)
    (base / "config.json").write_text(json.dumps({**config, **dropping}), encoding="utf-8")
    student = open_student(base, TrainTable(rank=4), device=torch.device("cpu"))
    forest = Forest([TrainingRow("1", "a", tuple(range(3, 40)), (41, 42, 2))])
    layout = student.layout(None)
    (batch,) = layout.batches(layout.trees(forest, [forest.whole(0)]))
    assert torch.equal(student.loss_sum(batch), student.loss_sum(batch))
