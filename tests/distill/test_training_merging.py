"""What a merge promises when something is damaged, when the disk fails, and when two are made at once; and of its card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_student import tiny_student, write_dataset
from transformers import AutoModelForCausalLM

from conversations.errors import OperatorError, OutsideError
from conversations.messages import Json
from conversations.prompt import Renderer
from conversations.serving import RopeFactors, Serving, digest_of_weights
from distill.training.decisions.reading import read_decisions
from distill.training.decisions.training_row import TrainingRow
from distill.training.weights.adapters import adapt, adapted_layers, save_adapters
from distill.training.weights.card import base_model_of, licence_of, model_card
from distill.training.weights.change import read_changes
from distill.training.weights.folder import note_serving
from distill.training.weights.merging import check_written, merge_adapter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and an adapter that changes it, as a training leaves them."""
    folder = tmp_path_factory.mktemp("made")
    base, adapter = tiny_student(folder / "base"), folder / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapt(model.model.layers, rank=4, alpha=8)
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    save_adapters(model, adapter, base_name="base", first_layer=0, layer_count=2)
    note_serving(base, adapter, kind="lora", max_model_len=512, rank=4, dtype="float32", base_digest=digest_of_weights(base))
    return folder


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a base and an adapter that may be damaged."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made" / "base", tmp_path / "made" / "adapter"


@pytest.fixture(scope="module")
def rows(made: Path) -> list[TrainingRow]:
    path = write_dataset(made / "rows.jsonl", 2)
    return read_decisions(path, Renderer.load(made / "base"), max_prompt_tokens=400, max_tokens=512)[0]


def merge(pair: tuple[Path, Path], out: Path, rows: list[TrainingRow]) -> None:
    merge_adapter(*pair, out, rows, max_model_len=512, card="")


def flip_a_bit(path: Path, name: str) -> None:
    tensors = load_file(path)
    tensors[name].view(torch.int16).view(-1)[-1] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"], ids=["a changed weight", "an unchanged one"]
)
def test_a_written_weight_that_is_not_the_rounded_sum_is_told_however_small_the_difference(
    pair: tuple[Path, Path], tmp_path: Path, rows: list[TrainingRow], name: str
) -> None:
    out = tmp_path / "merged"
    merge(pair, out, rows)
    files, changes = [pair[0] / "model.safetensors"], read_changes(pair[1])
    check_written(files, changes, out)
    whole = (out / "model.safetensors").read_bytes()
    flip_a_bit(out / "model.safetensors", name)
    with pytest.raises(OutsideError, match=f"not what was computed.*{name}"):
        check_written(files, changes, out)
    (out / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(OutsideError, match="not what was computed"):
        check_written(files, changes, out)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def keep(path: Path, *without: str) -> None:
    tensors = {name: tensor for name, tensor in load_file(path).items() if not any(each in name for each in without)}
    save_file(tensors, path, metadata={"format": "pt"})


def set_config(path: Path, **values: Json) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def renew_digest(base: Path, adapter: Path) -> None:
    note_serving(base, adapter, kind="lora", max_model_len=512, rank=4, dtype="float32", base_digest=digest_of_weights(base))


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DAMAGED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a cut adapter": (lambda base, adapter: cut(adapter / WEIGHTS), rf"{WEIGHTS}: it cannot be read"),
    "a cut base": (
        lambda base, adapter: cut(base / "model.safetensors"),
        r"model\.safetensors: cannot be read as safetensors",
    ),
    "no JSON": (lambda base, adapter: (adapter / CONFIG).write_text("{"), f"{CONFIG}: it is no JSON"),
    "a list": (lambda base, adapter: (adapter / CONFIG).write_text("[]"), f"{CONFIG}: it holds no object"),
    "no rank": (lambda base, adapter: set_config(adapter / CONFIG, r=None), "r = None"),
    "another rank": (lambda base, adapter: set_config(adapter / CONFIG, r=8), "says r = 8"),
    "A without B": (lambda base, adapter: keep(adapter / WEIGHTS, "1.mlp.up_proj.lora_B"), "no part of a pair"),
    "no pair": (lambda base, adapter: keep(adapter / WEIGHTS, "lora"), "holds no pair"),
    "a base without a layer": (lambda base, adapter: keep(base / "model.safetensors", "1.mlp.up_proj"), "has no weight"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_base_or_adapter_is_refused_by_its_file_before_anything_is_written(
    pair: tuple[Path, Path], tmp_path: Path, rows: list[TrainingRow], what: str
) -> None:
    spoil, says = DAMAGED[what]
    spoil(*pair)
    renew_digest(*pair)
    with pytest.raises(OperatorError, match=says):
        merge(pair, tmp_path / "out" / "merged", rows)
    assert not (tmp_path / "out").exists()


def test_a_place_below_a_file_is_refused(pair: tuple[Path, Path], tmp_path: Path, rows: list[TrainingRow]) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(OperatorError, match="no folder can be made there"):
        merge(pair, tmp_path / "file" / "merged", rows)


class Meanwhile(list[TrainingRow]):
    """Rows during whose reading another merge comes to its end."""

    place: Path

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.place.mkdir()
        (self.place / "model.safetensors").write_bytes(b"another merge")
        return super().__getitem__(index)


def test_a_merge_does_not_write_over_what_came_meanwhile_and_leaves_no_half_folder(
    pair: tuple[Path, Path], tmp_path: Path, rows: list[TrainingRow]
) -> None:
    meanwhile = Meanwhile(rows)
    meanwhile.place = tmp_path / "out" / "merged"
    with pytest.raises(OperatorError, match="has come there while"):
        merge(pair, meanwhile.place, meanwhile)
    assert [path.name for path in meanwhile.place.parent.iterdir()] == ["merged"]
    assert (meanwhile.place / "model.safetensors").read_bytes() == b"another merge"


def card(base: Path, **digests: str) -> str:
    serving = Serving(
        kind="lora",
        base=base.name,
        base_digest="sha256:1",
        tokenizer_digest="sha256:2",
        prompt_digest="3",
        max_model_len=512,
        rope_factors=RopeFactors.NONE,
        rank=4,
        dtype="float32",
    )
    return model_card(
        serving=serving,
        base_model=base_model_of(base),
        licence=licence_of(base),
        digests=digests,
        teachers={},
        settings={},
        figures={},
    )


def test_a_card_is_read_whole_whatever_names_are_in_it(tmp_path: Path) -> None:
    base = tmp_path / "student: #1 | a\nb"
    base.mkdir()
    told = card(base, **{"rows | all": "one\ntwo|three"})
    assert yaml.safe_load(told.split("---\n")[1])["base_model"] == base.name
    assert "| rows \\| all | one two\\|three |" in told
    assert "# A student of student: #1 | a b\n" in told


def test_a_card_names_the_base_and_its_licence_as_the_hub_does_where_the_folder_knows(tmp_path: Path) -> None:
    (tmp_path / "origin.json").write_text('{"model": "HuggingFaceTB/SmolLM2", "license": "apache-2.0"}', encoding="utf-8")
    told = card(tmp_path)
    assert 'base_model: "HuggingFaceTB/SmolLM2"' in told and 'license: "apache-2.0"' in told
    # The card of a student is the card of a base once it is trained further.
    (tmp_path / "origin.json").unlink()
    (tmp_path / "README.md").write_text(told, encoding="utf-8")
    assert licence_of(tmp_path) == "apache-2.0"
    (tmp_path / "origin.json").write_text("{", encoding="utf-8")
    with pytest.raises(OperatorError, match="no JSON"):
        licence_of(tmp_path)
