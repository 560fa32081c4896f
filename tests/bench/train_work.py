"""What one way of training is asked to do, and the shapes of students with random weights.

In and out: values. Loads no library before rows are asked for, so that a command line is read at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.training.decisions.training_row import TrainingRow

PHI_4_MINI = {
    "vocab_size": 200_064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
    "num_key_value_heads": 8, "max_position_embeddings": 4096, "tie_word_embeddings": True, "bos_token_id": 199_999,
    "eos_token_id": 199_999, "pad_token_id": 199_999,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
}  # fmt: skip
TINY = PHI_4_MINI | {
    "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SHAPES = {"phi-4-mini-random": PHI_4_MINI, "tiny": TINY}


@dataclass(frozen=True)
class Work:
    """What one process measures. `conversations` by number of turns; `batch` is TRL's, in rows."""

    way: str
    model: str
    device: str
    dtype: str
    conversations: dict[str, int]
    rank: int = 16
    rows_a_step: int = 16
    batch: int = 4
    token_budget: int | None = None
    kind: str = "lora"
    checkpointing: bool = False
    times: int = 1

    @property
    def student(self) -> Path | None:
        """Return the folder of a real student, or None for one with random weights."""
        return None if self.model in SHAPES else Path(self.model)

    def rows(self, turns: int) -> "list[TrainingRow]":
        """Return what is learnt."""
        from tests.bench.train_rows import rows_of

        vocabulary = SHAPES.get(self.model, TINY)["vocab_size"]
        assert isinstance(vocabulary, int)
        return rows_of(turns, self.conversations[str(turns)], student=self.student, vocabulary=vocabulary)
