"""The benchmarks' own generator says what the model finds likeliest, whoever stands beside a prompt."""

import torch
from tiny_student import tiny_student
from transformers import AutoModelForCausalLM

from tests.bench.answering import greedy_answers


def test_greedy_answers_are_the_likeliest_tokens_whatever_stands_beside_a_prompt(tmp_path):
    base = tiny_student(tmp_path / "student")
    prompts = [[5, 6, 7, 8, 9, 10, 11], [40, 41], [90, 17, 33], [200] * 20]
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    alone = []
    for prompt in prompts:
        said: list[int] = []
        for _ in range(12):
            with torch.no_grad():
                said.append(int(model(torch.tensor([prompt + said])).logits[0, -1].argmax()))
        alone.append(said)
    asked = {"max_new_tokens": 12, "device": "cpu"}
    for batch_size in (1, 3, 4):
        assert greedy_answers(base, None, prompts, stop_ids=(2,), batch_size=batch_size, **asked) == alone
    # An answer ends before its first stop token.
    stop = alone[0][5]
    cut = greedy_answers(base, None, prompts, stop_ids=(stop,), batch_size=4, **asked)
    assert cut == [said[: said.index(stop)] if stop in said else said for said in alone]
