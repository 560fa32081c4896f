"""A teacher on this machine: its whole belief and how it relates tokens are learnt, and one that does not fit is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from test_training_beliefs_in_batches import rows_with_beliefs
from test_training_train import SETTINGS, ignore, request_in
from tiny_student import tiny_model, tiny_student
from torch.nn.functional import log_softmax
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from distill.settings import LocalTeacherTable
from distill.training.batches.forest import Forest
from distill.training.batches.packing import Batch, pack_batch
from distill.training.decisions.reading import read_decisions
from distill.training.losses.head import Mixture
from distill.training.losses.lesson import Lesson
from distill.training.losses.local_teacher import LocalTeacher, check_same_tokenizer, open_local_teacher, student_watch
from distill.training.student.forward import Forward
from distill.training.student.learning import LearningStudent
from distill.training.train import train


def teacher_model(vocabulary: int = 260):
    """Wider and deeper than the student, with other heads."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
                num_key_value_heads=3, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            )
        )  # fmt: skip
    return sharpened(model)


def sharpened(model):
    """A model that has an opinion: as drawn, all its tokens are about as likely, and related alike."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(3 if "embed" in name or "lm_head" in name else 8)
    return model


def batch_of(rows, *, joined: int) -> list[Batch]:
    forest = Forest(rows)
    parts = [forest.whole(row) for conversation in forest.conversations for row in conversation]
    if joined:
        return [pack_batch(list(forest.trees(parts, max_tree_tokens=joined, max_joined_tokens=joined)), pad_id=0)]
    return [pack_batch(list(forest.trees([part], max_tree_tokens=1, max_joined_tokens=0)), pad_id=0) for part in parts]


def projected(model, token_ids: torch.Tensor, layer: int) -> list[torch.Tensor]:
    """Queries, keys and values of a layer by transformers' own states, with a head for each query head. Each: (length, width)."""
    states = model(token_ids, output_hidden_states=True).hidden_states[layer - 1][0]
    block, config = model.model.layers[layer - 1], model.config
    normed = block.input_layernorm(states)
    width = config.hidden_size // config.num_attention_heads
    if hasattr(block.self_attn, "qkv_proj"):
        shared = config.num_key_value_heads * width
        query, key, value = block.self_attn.qkv_proj(normed).split((config.hidden_size, shared, shared), dim=1)
    else:
        query, key, value = (getattr(block.self_attn, f"{name}_proj")(normed) for name in "qkv")
    times = config.num_attention_heads // config.num_key_value_heads

    def repeated(each: torch.Tensor) -> torch.Tensor:
        heads = each.split(width, dim=1)
        return torch.cat([head for head in heads for _ in range(times)], dim=1)

    return [query, repeated(key), repeated(value)]


def relations_one_by_one(student, teacher, rows, *, layers: tuple[int, int], heads: int) -> torch.Tensor:
    """MiniLM's relations of each row alone, token by token, over the tokens before it and itself."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.answer_ids])
        ours = projected(student, ids, layers[0])
        with torch.no_grad():
            theirs = projected(teacher, ids, layers[1])
        for place in range(len(row.answer_ids)):
            at = len(row.prompt_ids) - 1 + place
            for mine, other in zip(ours, theirs, strict=True):
                for head in range(heads):
                    relation = []
                    for states in (mine, other):
                        cut = states.chunk(heads, dim=1)[head][: at + 1]
                        relation.append(log_softmax(cut @ cut[at] / cut.shape[1] ** 0.5, dim=0))
                    divergence = (relation[1].exp() * (relation[1] - relation[0])).sum()
                    total = total + row.weight * divergence / heads
    return total


def whole_beliefs_one_by_one(student, teacher, rows) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.answer_ids])
        here = slice(len(row.prompt_ids) - 1, -1)
        ours = log_softmax(student(ids).logits[0][here], dim=1)
        with torch.no_grad():
            theirs = log_softmax(teacher(ids).logits[0][here], dim=1)
        total = total + row.weight * (theirs.exp() * (theirs - ours)).sum()
    return total


@pytest.mark.parametrize("joined", [0, 200], ids=["rows alone", "one tree"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_belief_and_relations_of_a_local_teacher_are_those_of_its_rows_one_by_one(family, joined):
    rows = [dataclasses.replace(row, soft=None) for row in rows_with_beliefs()]
    table = LocalTeacherTable(
        path=Path("teacher"), logits_weight=1.0, relations_weight=0.25, relation_heads=4, teacher_layer=2, student_layer=2
    )
    model, plain, teacher = sharpened(tiny_model(family)), sharpened(tiny_model(family)), teacher_model()
    student = LearningStudent(
        model,
        kind="full",
        precision="float32",
        lesson=Lesson(
            Mixture(whole_weight=1.0),
            LocalTeacher(Forward(teacher, by_layers=False), table),
            student_watch(model, table, first_layer=0),
            0.25,
            4,
        ),
    )
    loss = torch.stack([student.loss_sum(batch) for batch in batch_of(rows, joined=joined)]).sum()
    related = relations_one_by_one(plain, teacher, rows, layers=(2, 2), heads=4)
    believed = whole_beliefs_one_by_one(plain, teacher, rows)
    assert related.item() > 1
    expected = believed + 0.25 * related
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn():
    table = LocalTeacherTable(path=Path("teacher"), relations_weight=1.0, teacher_layer=2, student_layer=2)
    model = tiny_model()
    student = LearningStudent(
        model,
        kind="full",
        precision="float32",
        lesson=Lesson(
            Mixture(whole_weight=1.0),
            LocalTeacher(Forward(tiny_model(), by_layers=True), table),
            student_watch(model, table, first_layer=0),
            1.0,
            table.relation_heads,
        ),
    )
    (batch,) = batch_of(rows_with_beliefs(), joined=200)
    loss = student.loss_sum(batch)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert max(float(each.grad.abs().max()) for each in model.parameters()) < 1e-4
    assert student.nll_sum(batch).item() > 1


def with_teacher(folder: Path, **keys):
    request = request_in(folder)
    teacher = folder / "teacher"
    teacher_model(
        vocabulary=len(json.loads((folder / "student/tokenizer.json").read_text())["model"]["vocab"])
    ).save_pretrained(teacher)
    shutil.copyfile(folder / "student" / "tokenizer.json", teacher / "tokenizer.json")
    table = LocalTeacherTable(path=teacher, **keys)
    return dataclasses.replace(request, settings=SETTINGS.model_copy(update={"local_teacher": table, "epochs": 6.0}))


def divergence(model, teacher, request) -> float:
    rows, counts = read_decisions(
        request.validation_path, Renderer.load(request.base_dir), max_prompt_tokens=200, max_tokens=256
    )
    with torch.no_grad():
        return float(whole_beliefs_one_by_one(model, teacher, rows)) / counts.tokens_scored


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_with_a_local_teacher_comes_nearer_to_it_and_goes_by_its_digest(tmp_path, kind):
    request = with_teacher(tmp_path, logits_weight=1.0, relations_weight=0.1, relation_heads=4)
    rate = 1e-2 if kind == "lora" else 3e-3
    settings = request.settings.model_copy(update={"kind": kind, "learning_rate": rate, "patience": 100})
    request = dataclasses.replace(request, settings=settings)
    result = train(request, ignore)
    assert result.last_loss is not None and result.first_loss is not None
    assert result.last_loss < 0.8 * result.first_loss
    card = (request.out_dir / result.weights / "README.md").read_text(encoding="utf-8")
    assert "| local teacher | sha256:" in card and str(tmp_path) not in card
    # The folder may move; another teacher is another training.
    table = request.settings.local_teacher
    moved = table.path.rename(tmp_path / "moved")
    there = table.model_copy(update={"path": moved})
    moved_request = dataclasses.replace(request, settings=settings.model_copy(update={"local_teacher": there}))
    assert train(moved_request, ignore) == result
    teacher_model(vocabulary=259).save_pretrained(moved)
    tiny_model(vocabulary=259, seed=9).save_pretrained(moved)
    with pytest.raises(OperatorError, match=r"local teacher was sha256:\w+ and is sha256:"):
        train(moved_request, ignore)


def test_a_teacher_with_other_tokens_is_refused_with_those_that_differ(tmp_path):
    ours, theirs = tiny_student(tmp_path / "ours"), tiny_student(tmp_path / "theirs")
    check_same_tokenizer(ours, theirs)
    held = json.loads((theirs / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = held["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (theirs / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(OperatorError, match=r"2 token ids mean something else .*: \d+ is 'a' and 'b', \d+ is 'b' and 'a'"):
        check_same_tokenizer(ours, theirs)
    (theirs / "tokenizer.json").unlink()
    with pytest.raises(OperatorError, match=r"tokenizer\.json: no such file"):
        check_same_tokenizer(ours, theirs)


def test_a_teacher_behind_an_api_is_told_from_one_on_this_machine(tmp_path):
    with pytest.raises(OperatorError, match=r"path = '.*gpt-4': no checkpoint folder is there.*top_logprobs"):
        check_same_tokenizer(tiny_student(tmp_path / "ours"), tmp_path / "gpt-4")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"relation_heads": 5}, r"relation_heads is 5, and the projections of the teacher are 48 wide"),
        ({"relation_heads": 6}, r"relation_heads is 6, and the projections of the student are 32 wide"),
        ({"teacher_layer": 4}, r"teacher_layer is 4, and the teacher has 3 layers"),
        ({"student_layer": 3}, r"student_layer is 3, and the student has 2 layers"),
        ({"student_layer": 1, "last_layers": 1}, r"student_layer is 1, and the student's first 1 layers are frozen"),
        ({"logits_weight": 0.0, "relations_weight": 0.0}, r"both 0, so that it would teach nothing"),
    ],
)
def test_settings_that_do_not_fit_the_two_models_are_refused_with_the_numbers(tmp_path, keys, told):
    last_layers = keys.pop("last_layers", None)
    request = with_teacher(tmp_path, **{"relations_weight": 1.0, **keys})
    settings = request.settings.model_copy(update={"last_layers": last_layers})
    with pytest.raises(OperatorError, match=told):
        train(dataclasses.replace(request, settings=settings), ignore)


def test_another_vocabulary_size_or_family_is_refused(tmp_path):
    ours, theirs = tiny_student(tmp_path / "ours"), tiny_student(tmp_path / "theirs")
    student = tiny_model(vocabulary=259)
    tiny_model(vocabulary=264).save_pretrained(theirs)
    table = LocalTeacherTable(path=theirs)
    with pytest.raises(OperatorError, match=r"output head has 264 entries and the student's 259"):
        open_local_teacher(table, student=Forward(student, by_layers=True), student_dir=ours, max_model_len=512)
    (theirs / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(OperatorError, match="cannot be loaded as a teacher"):
        open_local_teacher(table, student=Forward(student, by_layers=True), student_dir=ours, max_model_len=512)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(OperatorError, match=r"the teacher.*'gpt2'"):
        LocalTeacher(Forward(other, by_layers=False), LocalTeacherTable(path=theirs, relations_weight=1.0))
