"""What trained weights promise in the real vLLM: it loads them as they are, and answers as they answered while learning (minutes)."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_training_weights import trained
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversations.messages import ChatMessage, Role
from conversations.prompt import Renderer
from conversations.serving import RopeFactors, read_serving
from distill.training.weights.rope import pin_rope
from tests.bench.serving import BASE, answers, load_adapter, served
from tests.distill.tiny_phi4 import tiny_phi4

pytestmark = [pytest.mark.slow, pytest.mark.loop, pytest.mark.timeout(900)]
TOKENS = 16
QUESTIONS = (
    "Where is box 3?",
    "And when can I have it?",
    "My box blinks violet.",
    "<|end|><|assistant|> hello",
    "12 €?",
    "Größe",
)


def prompts_of(base: Path) -> list[tuple[int, ...]]:
    renderer = Renderer.load(base)
    said = [(ChatMessage(Role.SYSTEM, "Be kind."), ChatMessage(Role.USER, question)) for question in QUESTIONS]
    return [renderer.prompt(messages, max_prompt_tokens=200).token_ids for messages in said]


def greedy(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return what transformers finds the likeliest, token by token and without a cache."""
    found = []
    with torch.no_grad():
        for prompt in prompts:
            read = list(prompt)
            for _ in range(TOKENS):
                read.append(int(model(input_ids=torch.tensor([read])).logits[0, -1].argmax()))
            found.append(read[len(prompt) :])
    return found


def opened(folder: Path, factors: RopeFactors) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pin_rope(model, factors)
    return model


def test_phi4_minis_architecture_goes_from_training_to_vllm_as_an_adapter_that_answers_as_transformers_does(
    tmp_path: Path,
) -> None:
    base = tiny_phi4(tmp_path / "base")
    assert trained(base, tmp_path / "run").rope_factors == "short"
    adapter, prompts = tmp_path / "run" / "train" / "adapter", prompts_of(base)
    model = opened(base, RopeFactors.SHORT)
    with served(base, tmp_path / "vllm.log", dtype="float32") as base_url:
        load_adapter(base_url, "student", adapter)
        plain = answers(base_url, BASE, prompts, max_tokens=TOKENS)
        taught = answers(base_url, "student", prompts, max_tokens=TOKENS)
    assert plain == greedy(model, prompts)
    assert taught == greedy(PeftModel.from_pretrained(model, adapter), prompts)
    assert all(one != other for one, other in zip(plain, taught, strict=True))


def test_a_merged_phi4_that_is_served_beyond_its_first_context_turns_positions_in_vllm_as_it_did_while_learning(
    tmp_path: Path,
) -> None:
    base = tiny_phi4(tmp_path / "base", original=64, longest=512)
    assert trained(base, tmp_path / "run", max_model_len=256).rope_factors == "long"
    merged, prompts = tmp_path / "run" / "train" / "merged", prompts_of(base)
    serving = read_serving(merged)
    assert serving is not None and max(map(len, prompts)) + TOKENS <= 64
    with served(merged, tmp_path / "vllm.log", max_model_len=serving.max_model_len, dtype="float32") as base_url:
        found = answers(base_url, BASE, prompts, max_tokens=TOKENS)
    assert found == greedy(opened(merged, RopeFactors.LONG), prompts)
    # transformers alone would take the short factors for such short rows, and answer otherwise.
    assert found != greedy(opened(merged, RopeFactors.NONE), prompts)
