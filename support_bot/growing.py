"""An answer while it grows: its text, what it has cost so far, and a bell for whoever watches.

In: pieces of a stream. Out: the text until now and its measures. Writes nothing, and asks nobody.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from conversations.messages import TurnStatus
from conversations.turns import ReplyMeasures
from support_bot.completion import Piece


@dataclass
class Growing:
    """An answer on its way; lives until its turn is closed. `text` is the customer's, `said` is the model's, with placeholders."""

    conversation_id: str
    customer_id: str
    question_turn_id: str = ""
    turn_id: str | None = None
    release_id: str = ""
    token_ids: Sequence[int] = ()
    said: str = ""
    text: str = ""
    is_open: bool = True
    ends_as: TurnStatus = TurnStatus.INTERRUPTED
    started_monotonic: float = field(default_factory=time.monotonic)
    first_token_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprob_sum: float = 0.0
    logprob_count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Wake whoever watches."""
        self.changed.set()
        self.changed = asyncio.Event()

    def grow(self, text: str) -> None:
        """Append text, without white space at the very beginning."""
        more = text if self.text else text.lstrip()
        if not more:
            return
        if self.first_token_ms is None:
            self.first_token_ms = self.elapsed_ms()
        self.text += more
        self.tell()

    def take(self, piece: Piece, shown: str) -> None:
        """Append a piece as the customer sees it, and note what it tells of its cost."""
        self.said += piece.text
        self.logprob_sum += sum(piece.token_logprobs)
        self.logprob_count += len(piece.token_logprobs)
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.completion_tokens = piece.completion_tokens or self.completion_tokens
        self.grow(shown)

    def elapsed_ms(self) -> float:
        """Return the milliseconds since the question came."""
        return (time.monotonic() - self.started_monotonic) * 1000

    def measures(self) -> ReplyMeasures:
        """Return what the answer took until now."""
        return ReplyMeasures(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            first_token_ms=self.first_token_ms,
            latency_ms=self.elapsed_ms(),
            mean_token_logprob=self.logprob_sum / self.logprob_count if self.logprob_count else None,
        )
