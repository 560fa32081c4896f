"""A student of Phi-4-mini's architecture, only tiny and untaught: fused projections, partial rotary, tied embeddings, LongRoPE."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

from distill.training.weights.quiet import without_bars
from tests.conversations.made_tokenizers import PHI4_MINI

HEAD, HEADS = 64, 4


def tiny_phi4(folder: Path, *, original: int = 4096, longest: int = 131_072, layers: int = 2, **kept: Any) -> Path:
    """Write the checkpoint; `original` is where LongRoPE's long factors begin, which differ much from the short ones here."""
    PHI4_MINI.write(folder)
    tokenizer = PHI4_MINI.tokenizer()
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    half = int(HEAD * 0.75) // 2
    config = Phi3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HEAD * HEADS,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=longest,
        original_max_position_embeddings=original,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": original,
            "short_factor": [1.0] * half,
            "long_factor": [1.0 + 0.5 * place for place in range(half)],
        },
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=end_of_text, eos_token_id=[end_of_text], pad_token_id=end_of_text
    )
    with without_bars():
        model.save_pretrained(folder, **kept)
    return folder
