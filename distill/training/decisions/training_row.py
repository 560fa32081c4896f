"""One decision as token ids, with what its teacher believed at each token of the answer.

In: what `reading` rendered. Out: values that batches are made of. Knows no text and no tensor.
"""

from dataclasses import dataclass

import numpy as np

# What a teacher believed at one token: token ids of the student with their log-probabilities in nats; empty where nothing is known.
Belief = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's most likely tokens at each token of an answer, in the student's vocabulary.

    token_ids: (answer tokens, choices) int32, -1 where there is no choice. log_probabilities: the same shape, float32, in nats,
    -inf where there is none. A position without any choice is learnt from the answer's word alone.
    """

    token_ids: np.ndarray
    log_probabilities: np.ndarray

    @property
    def positions(self) -> int:
        """Return at how many tokens of the answer the teacher's belief is known."""
        return int((self.token_ids >= 0).any(axis=1).sum())

    def at(self, place: int) -> Belief:
        """Return what the teacher believed at a token of the answer."""
        said = self.token_ids[place] >= 0
        token_ids, log_probabilities = self.token_ids[place][said], self.log_probabilities[place][said]
        return tuple(zip(token_ids.tolist(), log_probabilities.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """One decision as token ids: the prompt up to the opening of the answer; the answer with its end-of-turn token."""

    decision_id: str
    conversation_id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    weight: float = 1.0
    soft: SoftLabels | None = None

    @property
    def input_tokens(self) -> int:
        """Return how many tokens the model reads for this row: all but the last, which is only predicted."""
        return len(self.prompt_ids) + len(self.answer_ids) - 1
