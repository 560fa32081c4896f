"""Real students, only tiny: random weights, a byte tokenizer with ChatML's control tokens, and rows to train on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
Family = Literal["llama", "phi3"]


def tiny_model(family: Family = "llama", *, vocabulary: int = 260, seed: int = 0) -> Any:
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "llama":
            return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
        return Phi3ForCausalLM(Phi3Config(**sizes, tie_word_embeddings=False, original_max_position_embeddings=512))


def tiny_student(folder: Path, family: Family = "llama", *, seed: int = 0) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*CONTROL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    tiny_model(family, vocabulary=len(vocabulary), seed=seed).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def dataset_line(decision: int, conversation: int, texts: Sequence[str], weight: float = 1.0) -> str:
    roles = ["system"] + ["user", "assistant"] * len(texts)
    return json.dumps(
        {
            "decision_id": f"decision_{decision}",
            "conversation_id": f"conversation_{conversation}",
            "cluster_id": f"cluster_{conversation}",
            "topic": "",
            "weight": weight,
            "teacher": "handbook",
            "labels": {},
            "messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)],
        }
    )


def write_dataset(path: Path, conversations: int, *, first: int = 0) -> Path:
    """Write conversations of two decisions each, the second on the logged history of the first."""
    lines = []
    for number in range(first, first + conversations):
        asked = ["Be kind.", f"Where is box {number}?"]
        lines.append(dataset_line(2 * number, number, [*asked, f"Box {number} is on shelf {number % 7}."]))
        history = [*asked, "No idea.", "And when can I have it?"]
        lines.append(dataset_line(2 * number + 1, number, [*history, f"On day {number % 5}."], weight=0.5))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
