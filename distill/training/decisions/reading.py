"""The decisions of a dataset file as token ids, made by the prompt function that the chat uses too.

In: `train.jsonl` or `validation.jsonl` of a run, what teachers believed, and the student's renderer. Out: rows of token ids with
their soft labels, and the count of what was left out and why. Never cuts an answer, never renders by another rule than the
chat's, leaves out no row silently.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from conversations.messages import ChatMessage, Role
from conversations.prompt import PromptTooLong, Renderer, RoleUnknown
from distill.rows import DatasetRow, read_rows
from distill.training.decisions.belief_file import BeliefFile
from distill.training.decisions.beliefs import Alignment
from distill.training.decisions.training_row import TrainingRow

# Raised with every change in what becomes of a row, so that no kept token ids of before are taken for those of now.
READING_VERSION = "3"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows of one file: `rows = kept + sum(left_out)`, by reason.

    `shortened` counts kept rows whose oldest messages did not fit into the prompt, exactly as in the chat.
    `tokens_one_by_one` is what the model reads when every row stands alone; `tokens_scored` is what it is taught to say, of which
    `tokens_with_beliefs` have soft labels.
    """

    rows: int
    kept: int
    shortened: int
    left_out: Mapping[str, int]
    tokens_one_by_one: int
    tokens_scored: int
    tokens_with_beliefs: int


class LeftOut(StrEnum):
    """Why a row is not learnt."""

    NO_ANSWER = "no_answer"
    NO_WEIGHT = "no_weight"
    TOOL_CALL = "tool_call"
    TOOL_CALL_IN_HISTORY = "tool_call_in_history"
    ROLE_UNKNOWN = "role_unknown"
    PROMPT_TOO_LONG = "prompt_too_long"
    OVER_LENGTH = "over_length"


def read_decisions(
    path: Path, renderer: Renderer, *, max_prompt_tokens: int, max_tokens: int, soft_labels: Path | None = None
) -> tuple[list[TrainingRow], RowCounts]:
    """Return the rows of a dataset file and what became of them.

    A prompt is shortened to `max_prompt_tokens` as the chat does it; a row whose prompt and answer together still pass
    `max_tokens` is left out, because half an answer would teach the student not to stop. `soft_labels` is the file of what
    teachers believed, in any order; a row that is not in it is learnt from its words alone.
    Raises OperatorError with file and line where a line is not a dataset row, or a belief not that of its row.
    """
    beliefs = BeliefFile(soft_labels, Alignment(renderer)) if soft_labels else None
    rows: list[TrainingRow] = []
    left_out: Counter[str] = Counter()
    taken_in = shortened = 0
    for decision in read_rows(path, DatasetRow):
        taken_in += 1
        row = _render(decision, renderer, max_prompt_tokens, max_tokens)
        if isinstance(row, LeftOut):
            left_out[row.value] += 1
            continue
        soft = beliefs.of(decision, row[0].answer_ids) if beliefs else None
        rows.append(replace(row[0], soft=soft) if soft else row[0])
        shortened += row[1] > 0
    with_beliefs = sum(row.soft.positions for row in rows if row.soft)
    if beliefs and not with_beliefs:
        log.warning(
            "%s: no token of %s has soft labels: its teachers were others, or cut words otherwise", soft_labels, path
        )
    return rows, RowCounts(
        rows=taken_in,
        kept=len(rows),
        shortened=shortened,
        left_out=dict(sorted(left_out.items())),
        tokens_one_by_one=sum(row.input_tokens for row in rows),
        tokens_scored=sum(len(row.answer_ids) for row in rows),
        tokens_with_beliefs=with_beliefs,
    )


def _render(
    decision: DatasetRow, renderer: Renderer, max_prompt_tokens: int, max_tokens: int
) -> LeftOut | tuple[TrainingRow, int]:
    """Return the row and how many messages its prompt dropped, or why there is no row."""
    messages = [message.message() for message in decision.messages]
    # The renderer writes no tool calls yet: without them the row would teach an empty answer, or one that only promises.
    if messages and messages[-1].extra_json:
        return LeftOut.TOOL_CALL
    if not messages or messages[-1].role is not Role.ASSISTANT or not messages[-1].content.strip():
        return LeftOut.NO_ANSWER
    if any(_belongs_to_a_call(message) for message in messages[:-1]):
        return LeftOut.TOOL_CALL_IN_HISTORY
    if decision.weight <= 0:
        return LeftOut.NO_WEIGHT
    try:
        prompt = renderer.prompt(messages[:-1], max_prompt_tokens=max_prompt_tokens)
    except PromptTooLong:
        return LeftOut.PROMPT_TOO_LONG
    except RoleUnknown:
        return LeftOut.ROLE_UNKNOWN
    row = TrainingRow(
        decision_id=decision.decision_id,
        conversation_id=decision.conversation_id,
        prompt_ids=prompt.token_ids,
        answer_ids=renderer.answer(messages[-1].content),
        weight=decision.weight,
    )
    return LeftOut.OVER_LENGTH if row.input_tokens + 1 > max_tokens else (row, prompt.dropped_messages)


def _belongs_to_a_call(message: ChatMessage) -> bool:
    """Return whether a message calls a tool, and would be rendered as an empty turn, or is the result of a call."""
    keys = json.loads(message.extra_json) if message.extra_json else {}
    return message.role is Role.TOOL or any(keys.get(name) for name in ("tool_calls", "function_call"))
