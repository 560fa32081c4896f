"""LongRoPE while a student learns: the factors that its server will use, whatever the length of a row.

In: a loaded model and the factors. Out: the same model, whose rotation no longer changes from one forward pass to the next.
"""

from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from conversations.serving import RopeFactors


def pin_rope(model: PreTrainedModel, factors: RopeFactors) -> None:
    """Fix the factors of a model with LongRoPE. transformers would choose by the longest position of each pass."""
    if factors is RopeFactors.NONE:
        return
    rotary = model.get_decoder().rotary_emb
    original = model.config.rope_parameters["original_max_position_embeddings"]
    length = original + 1 if factors is RopeFactors.LONG else original
    frequencies, scaling = ROPE_INIT_FUNCTIONS["longrope"](model.config, rotary.inv_freq.device, seq_len=length)
    rotary.inv_freq.copy_(frequencies)
    # Some models scale the two sets apart; transformers does not know of it, and vLLM does.
    rotary.attention_scaling = model.config.rope_parameters.get(f"{factors}_mscale", scaling)
    # Under this name the forward pass turns positions by the frequencies as they stand.
    rotary.rope_type = f"longrope held {factors}"
