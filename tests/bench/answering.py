"""Greedy answers of a student without a server: many prompts side by side on a CPU or a GPU.

In: a checkpoint folder, an adapter or none, and prompts as token ids. Out: the token ids of each answer. For benchmarks and
tests alone: customers, and the stage `evaluate`, are answered by vLLM.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def greedy_answers(
    base_dir: Path,
    adapter_dir: Path | None,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    device: str,
    batch_size: int,
) -> list[list[int]]:
    """Return the likeliest answer to each prompt, without its stop token, in the order of the prompts.

    Computed in float32, so that padding and neighbours change nothing but the last bits. An answer that reaches
    `max_new_tokens` ends there.
    """
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, local_files_only=True, dtype=torch.float32, attn_implementation="sdpa"
    )
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, adapter_dir).merge_and_unload()
    model.to(device).eval()
    answers: list[list[int]] = [[] for _ in prompts]
    # Prompts of like length side by side need little padding.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            found = _answer_together(model, [prompts[place] for place in places], frozenset(stop_ids), max_new_tokens)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
    return answers


def _answer_together(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    """Answer one batch: prompts end at the same column, and what is before them is masked."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    token_ids = torch.tensor(padded, device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    stops = torch.tensor(sorted(stop_ids), device=device)
    said: list[torch.Tensor] = []
    over = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = None
    for _ in range(max_new_tokens):
        out = model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        token_ids = out.logits[:, -1].argmax(-1, keepdim=True)
        said.append(token_ids[:, 0])
        over |= torch.isin(token_ids[:, 0], stops)
        if bool(over.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [_up_to_stop(answer, stop_ids) for answer in torch.stack(said, dim=1).tolist()] if said else [[] for _ in prompts]


def _up_to_stop(token_ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    end = next((place for place, token_id in enumerate(token_ids) if token_id in stop_ids), len(token_ids))
    return token_ids[:end]
