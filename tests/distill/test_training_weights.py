"""What trained weights promise: merged they answer as unmerged, they say how they must be served, and positions turn as served."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_student import tiny_student, write_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from conversations.serving import RopeFactors, read_serving, rope_factors
from distill.settings import TrainTable
from distill.training.decisions.reading import read_decisions
from distill.training.fingerprint import digest_of_base
from distill.training.request import TrainRequest
from distill.training.result import TrainResult
from distill.training.student.learning import open_student
from distill.training.train import train
from distill.training.weights.merging import merge_adapter
from distill.training.weights.rope import pin_rope
from tests.distill.tiny_phi4 import tiny_phi4

WORDS = torch.arange(3, 200)[None] % 250
SETTINGS = TrainTable(rank=4, alpha=8, epochs=2, rows_per_step=4, learning_rate=0.02, threads=1, merged=True)


def trained(base: Path, folder: Path, settings: TrainTable = SETTINGS, max_model_len: int = 2048) -> TrainResult:
    folder.mkdir(exist_ok=True)
    request = TrainRequest(
        base_dir=base,
        train_path=write_dataset(folder / "train.jsonl", 6),
        validation_path=write_dataset(folder / "validation.jsonl", 5, first=6),
        out_dir=folder / "train",
        metrics_path=folder / "metrics.jsonl",
        settings=settings,
        max_prompt_tokens=400,
        max_model_len=max_model_len,
    )
    return train(request, lambda _: None)


def logits(folder: Path, words: torch.Tensor = WORDS) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=words).logits
    return found


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_phi4(tmp_path_factory.mktemp("phi4") / "tiny-phi4")


@pytest.fixture(scope="module")
def taught(phi4: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    folder = tmp_path_factory.mktemp("taught")
    return trained(phi4, folder), folder / "train"


def test_a_merged_student_answers_as_the_unmerged_one_and_otherwise_than_its_base(
    phi4: Path, taught: tuple[TrainResult, Path]
) -> None:
    result, folder = taught
    assert result.merged is not None
    assert result.merged["prompts"] == 8
    assert result.merged["max_logit_difference"] <= 1e-3
    assert result.merged["same_token"] > 0.9
    assert (logits(folder / "merged") - logits(phi4)).abs().max() > 0.5


def test_a_merged_student_is_whole_in_bfloat16_with_tied_embeddings_tokenizer_and_every_stop(
    phi4: Path, taught: tuple[TrainResult, Path]
) -> None:
    folder = taught[1] / "merged"
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|endoftext|>")}
    assert set(model.generation_config.eos_token_id) == ends == set(Renderer.load(folder).stop_ids)
    assert Renderer.load(folder).digest == Renderer.load(phi4).digest
    assert not list(taught[1].glob(".*"))


def test_weights_say_how_they_are_to_be_served_and_name_no_place(phi4: Path, taught: tuple[TrainResult, Path]) -> None:
    result, folder = taught
    adapter, merged = read_serving(folder / "adapter"), read_serving(folder / "merged")
    assert adapter is not None and merged is not None
    assert (adapter.kind, adapter.rank, adapter.max_model_len, adapter.rope_factors) == ("lora", 4, 2048, "short")
    assert (merged.kind, merged.rank, merged.dtype) == ("merged", None, "bfloat16")
    assert adapter.prompt_digest == Renderer.load(phi4).digest
    assert result.rope_factors == "short"
    for path in folder.rglob("*"):
        assert not path.is_file() or str(phi4.parent).encode() not in path.read_bytes(), path


def test_the_card_tells_base_teachers_digests_and_service_to_hubs_and_people(taught: tuple[TrainResult, Path]) -> None:
    adapter, merged = ((taught[1] / name / "README.md").read_text(encoding="utf-8") for name in ("adapter", "merged"))
    assert (
        'library_name: peft\npipeline_tag: text-generation\nbase_model: "tiny-phi4"\nbase_model_relation: adapter' in adapter
    )
    assert "library_name: transformers" in merged and "base_model_relation: finetune" in merged
    for told in (
        "| base | sha256:",
        "| train rows | sha256:",
        "| handbook | 12 rows",
        "| rope_factors | short |",
        "| version of torch |",
    ):
        assert told in adapter and told in merged
    assert "max_logit_difference" in merged
    assert "| kind | lora |\n| base |" in adapter and "| dtype | float32 |" in adapter
    assert "| kind | merged |\n| base |" in merged and "| dtype | bfloat16 |" in merged
    assert "| kind | lora |\n| base |" not in merged and "| dtype | float32 |" not in merged


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_full_checkpoint_says_how_it_is_served_and_has_every_stop(tmp_path: Path, family: str) -> None:
    base = tiny_student(tmp_path / "base", "llama" if family == "llama" else "phi3")
    trained(base, tmp_path / "run", SETTINGS.model_copy(update={"kind": "full", "learning_rate": 1e-3}))
    folder = tmp_path / "run" / "train" / "checkpoint"
    serving = read_serving(folder)
    assert serving is not None and (serving.kind, serving.rank, serving.rope_factors) == ("full", None, "none")
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert set(Renderer.load(base).stop_ids) <= set(generation["eos_token_id"])


def test_a_base_in_several_files_is_merged_file_by_file(tmp_path: Path) -> None:
    base = tiny_phi4(tmp_path / "base", max_shard_size="200KB")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 3
    trained(base, tmp_path / "run")
    merged = tmp_path / "run" / "train" / "merged"
    assert sorted(path.name for path in merged.glob("*.safetensors")) == shards
    assert torch.isfinite(logits(merged)).all()


def rows_of(folder: Path, base: Path) -> list:
    return read_decisions(folder / "validation.jsonl", Renderer.load(base), max_prompt_tokens=400, max_tokens=2048)[0]


def change_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")


def other_base(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def quantise(base: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda base, adapter: other_base(base), "holds other weights"),
        (lambda base, adapter: quantise(base), r"quantised \(gptq\)"),
        (lambda base, adapter: change_config(adapter, use_dora=True), "use_dora"),
        (lambda base, adapter: (adapter / "adapter_model.safetensors").unlink(), "a full checkpoint needs no merging"),
    ],
    ids=["another base", "a 4-bit base", "another method", "no adapter"],
)
def test_what_cannot_be_merged_is_refused_and_leaves_no_folder(
    tmp_path: Path, spoil: Callable[[Path, Path], None], says: str
) -> None:
    base = tiny_student(tmp_path / "base")
    trained(base, tmp_path, SETTINGS.model_copy(update={"merged": False}))
    adapter, out = tmp_path / "train" / "adapter", tmp_path / "merged"
    rows = rows_of(tmp_path, base)
    spoil(base, adapter)
    if "quantised" in says:
        (adapter / "serving.json").unlink()
    with pytest.raises(OperatorError, match=says):
        merge_adapter(base, adapter, out, rows, max_model_len=2048, card="")
    assert not out.exists()


def test_a_merge_that_would_answer_otherwise_is_refused(tmp_path: Path) -> None:
    base = tiny_student(tmp_path / "base")
    trained(base, tmp_path, SETTINGS.model_copy(update={"merged": False}))
    adapter = tmp_path / "train" / "adapter"
    # Now the files can be read in two ways: PEFT adapts the first layer alone, and the weights are those of both.
    change_config(adapter, layers_to_transform=[0])
    with pytest.raises(OperatorError, match="logits differ by"):
        merge_adapter(base, adapter, tmp_path / "out", rows_of(tmp_path, base), max_model_len=2048, card="")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "longest", "factors"),
    [
        ({}, 100_000, RopeFactors.NONE),
        ({"rope_parameters": {"rope_type": "default"}}, 100_000, RopeFactors.NONE),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 4096, RopeFactors.SHORT),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4097, RopeFactors.LONG),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, 65, RopeFactors.LONG),
    ],
)
def test_the_factors_follow_from_the_longest_context_that_is_served(
    config: dict, longest: int, factors: RopeFactors
) -> None:
    assert rope_factors(config, longest, place=Path("config.json")) is factors


def test_longrope_without_the_length_it_begins_at_is_refused() -> None:
    with pytest.raises(OperatorError, match="no original_max_position_embeddings"):
        rope_factors({"rope_scaling": {"rope_type": "longrope"}}, 10, place=Path("config.json"))


def test_while_learning_positions_turn_by_the_servers_factors_whatever_the_length_of_a_row(tmp_path: Path) -> None:
    base = tiny_phi4(tmp_path / "base", original=64, longest=512)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    # transformers alone chooses by the length of the row: short up to 64 tokens, long beyond.
    with torch.no_grad():
        short_alone, long_alone = (model(input_ids=WORDS[:, :length]).logits[:, :60] for length in (64, 65))
        assert (short_alone - long_alone).abs().max() > 0.05
        for factors, alone in ((RopeFactors.SHORT, short_alone), (RopeFactors.LONG, long_alone)):
            held = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
            pin_rope(held, factors)
            for length in (60, 64, 65, 120):
                assert torch.allclose(held(input_ids=WORDS[:, :length]).logits[:, :60], alone, atol=1e-4)


def test_a_student_that_is_served_short_learns_no_row_beyond_what_the_server_takes(tmp_path: Path) -> None:
    base = tiny_phi4(tmp_path / "base", original=50, longest=512)
    short = trained(base, tmp_path / "short", SETTINGS.model_copy(update={"merged": False}), max_model_len=50)
    assert short.rope_factors == "short"
    assert short.train_rows_left_out["over_length"] == 6
    long = trained(base, tmp_path / "long", SETTINGS.model_copy(update={"merged": False}), max_model_len=51)
    assert long.rope_factors == "long"
    with pytest.raises(OperatorError, match="rope factors was short and is long"):
        trained(base, tmp_path / "short", SETTINGS.model_copy(update={"merged": False}), max_model_len=51)


def break_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda base: break_config(base, architectures=["BertModel"]), "BertModel, which is no causal language model"),
        (lambda base: break_config(base, quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
        (lambda base: (base / "model-00002-of-00005.safetensors").unlink(), "missing: model-00002-of-00005.safetensors"),
        (lambda base: (base / "config.json").unlink(), "no config.json"),
        (lambda base: (base / "config.json").write_text("[", encoding="utf-8"), "config.json is no JSON"),
    ],
    ids=["no causal model", "quantised", "a missing file", "no configuration", "damaged configuration"],
)
def test_a_folder_that_holds_no_student_to_train_is_one_clear_error(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    base = tiny_phi4(tmp_path / "base", max_shard_size="900KB")
    assert len(list(base.glob("*.safetensors"))) == 5
    assert digest_of_base(base) and open_student(base, SETTINGS, device=torch.device("cpu"))
    spoil(base)
    with pytest.raises(OperatorError, match=says):
        digest_of_base(base)
