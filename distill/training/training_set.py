"""All rows of a training as token ids: those it learns, those of earlier runs that it learns again, and those held out.

In: the files that a request names. Out: rows, and what became of the others, by reason. One process makes the token ids and the
others find them kept.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from conversations.errors import OperatorError
from conversations.prompt import Renderer
from distill.run import file_digest
from distill.training.batches.forest import Forest
from distill.training.decisions.cache import kept_rows
from distill.training.decisions.reading import READING_VERSION, RowCounts, read_decisions
from distill.training.decisions.replay import drawn_replay
from distill.training.decisions.training_row import TrainingRow
from distill.training.decisions.vocabulary import check_vocabulary
from distill.training.processes.group import Group
from distill.training.request import TrainRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """Rows of token ids with their counts; `replayable` is out of how many the replayed ones were drawn."""

    own: list[TrainingRow]
    counts: RowCounts
    replayed: list[TrainingRow]
    replayed_counts: RowCounts
    replayable: int
    held_out: list[TrainingRow]
    held_out_counts: RowCounts

    @cached_property
    def forest(self) -> Forest:
        """Return everything that is learnt as one forest."""
        return Forest([*self.own, *self.replayed])


def read_training_set(request: TrainRequest, group: Group) -> TrainingSet:
    """Return the rows of a training; every process of the group must ask.

    Raises OperatorError when there is nothing to learn, or the student has no embedding for a token of its tokenizer.
    """
    check_vocabulary(request.base_dir)
    renderer = Renderer.load(request.base_dir)
    drawn = drawn_replay(request)
    if not group.writes:
        # The first process makes the token ids, and the others find them kept.
        group.wait()
    own, counts = _read_rows(request.train_path, renderer, request, soft_labels=request.beliefs_learnt)
    replayed, replayed_counts = _read_rows(drawn.path, renderer, request)
    # What is held out is measured by its words alone.
    held_out, held_out_counts = _read_rows(request.validation_path, renderer, request)
    if group.writes:
        group.wait()
    if not own:
        raise OperatorError(_nothing_to_learn(request, counts))
    if group.writes and held_out_counts.rows and not held_out:
        log.warning(
            "%s: none of its %d held-out rows can be read, left out %s, so that nothing is validated and nothing ends the training "
            "early; expected at least one within %d tokens",
            request.validation_path,
            held_out_counts.rows,
            dict(held_out_counts.left_out),
            request.longest_row,
        )
    return TrainingSet(own, counts, replayed, replayed_counts, drawn.replayable, held_out, held_out_counts)


def _read_rows(
    path: Path | None, renderer: Renderer, request: TrainRequest, *, soft_labels: Path | None = None
) -> tuple[list[TrainingRow], RowCounts]:
    if path is None:
        return [], RowCounts(
            rows=0, kept=0, shortened=0, left_out={}, tokens_one_by_one=0, tokens_scored=0, tokens_with_beliefs=0
        )
    limits = {"max_prompt_tokens": request.max_prompt_tokens, "max_tokens": request.longest_row}
    decided_by = {
        "reading": READING_VERSION,
        "renderer": renderer.digest,
        "rows": file_digest(path),
        "soft labels": file_digest(soft_labels) if soft_labels else "none",
        **{name: str(limit) for name, limit in limits.items()},
    }
    return kept_rows(
        request.cache_dir, decided_by, lambda: read_decisions(path, renderer, soft_labels=soft_labels, **limits)
    )


def _nothing_to_learn(request: TrainRequest, counts: RowCounts) -> str:
    if not counts.rows:
        return (
            f"{request.train_path}: there is no row in it; expected one decision a line, as `distill assemble` writes them; choose "
            "and teach more conversations in a new run"
        )
    return (
        f"{request.train_path}: no row to learn: {counts.rows} rows, left out {dict(counts.left_out)}; expected "
        f"at least one answer within {request.longest_row} tokens; teach more, or raise [train] max_tokens and [student] "
        "max_model_len, as far as the base has positions"
    )
