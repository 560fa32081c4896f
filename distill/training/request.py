"""What a training is asked to do: which student learns which rows, with which settings, and where the result goes.

In and out: values. Of files it reads the base's configuration alone, and it loads no library.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from distill.settings import TrainTable


@dataclass(frozen=True)
class StartingPoint:
    """The release whose weights learn on, instead of the base's."""

    release_id: str
    weights_path: Path
    weights_digest: str


@dataclass(frozen=True)
class TrainRequest:
    """What is to be trained on what, and where the result goes.

    `max_prompt_tokens` is the chat's and `max_model_len` the server's. `replay_path` holds dataset rows of earlier runs,
    `soft_labels_path` what teachers believed; None where there are none. `start` is None for the base. Token ids are kept in
    `cache_dir` under the digest of all that decides them.
    """

    base_dir: Path
    train_path: Path
    validation_path: Path | None
    out_dir: Path
    metrics_path: Path
    settings: TrainTable
    max_prompt_tokens: int
    max_model_len: int = 2048
    replay_path: Path | None = None
    soft_labels_path: Path | None = None
    start: StartingPoint | None = None
    cache_dir: Path | None = None

    @property
    def beliefs_learnt(self) -> Path | None:
        """Return the file of what teachers believed, where there is one and the settings give it a weight."""
        path = self.soft_labels_path
        return path if path and self.settings.soft_weight and path.is_file() and path.stat().st_size else None

    @property
    def longest_row(self) -> int:
        """Return how many tokens a prompt and its answer may have: never more than the server takes, or than the base has positions.

        Beyond that, a student with LongRoPE's short factors would learn positions that it is never asked for, and any other one
        positions that its base has never seen.
        """
        config = json.loads((self.base_dir / "config.json").read_text(encoding="utf-8"))
        positions = config.get("max_position_embeddings") or self.max_model_len
        return min(self.settings.max_tokens, self.max_model_len, positions)
