"""The rows that stages hand on as JSON Lines, one frozen model each.

In and out: lines of text. A row says where it comes from; nothing here knows how it was made.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversations.decisions import Verdict
from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role, Split


class RowModel(BaseModel):
    """A line of a stage's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MessageRow(RowModel):
    """One message in the OpenAI chat format; `extra_json` holds its other keys as they came."""

    role: Role
    content: str
    extra_json: str = ""

    @classmethod
    def of(cls, message: ChatMessage) -> "MessageRow":
        """Take a message of the record."""
        return cls(role=message.role, content=message.content, extra_json=message.extra_json)

    def message(self) -> ChatMessage:
        """Return the message as the renderer takes it."""
        return ChatMessage(self.role, self.content, self.extra_json)


class FactRow(RowModel):
    """A fact that a good answer states, and the expressions that show it does."""

    fact_id: str
    says: str
    match: tuple[str, ...]


class LabelsRow(RowModel):
    """What is known of a decision apart from any model: expected facts, or that nothing is known about it."""

    answerable: bool | None = None
    articles: tuple[str, ...] = ()
    facts: tuple[FactRow, ...] = ()


class ChosenRow(RowModel):
    """A decision chosen to be taught. `messages` are redacted and end with the customer's question."""

    decision_id: str
    conversation_id: str
    cluster_id: str
    topic: str
    split: Split
    weight: float = 1.0
    chosen_because: str
    labels: LabelsRow
    messages: tuple[MessageRow, ...]


class AnswerRow(RowModel):
    """A teacher's answer for a decision. `passages` are hashes of the handbook passages that it rests on."""

    decision_id: str
    answer_id: str
    teacher: str
    text: str
    finish_reason: str
    passages: tuple[str, ...]
    request_hash: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_ms: float


class VerdictRow(RowModel):
    """What verify said of an answer."""

    decision_id: str
    answer_id: str
    verdict: Verdict
    reason: str
    detail: str = ""


class DatasetRow(RowModel):
    """One decision of a data set; the last message is the answer to learn, in the test set the teacher's."""

    decision_id: str
    conversation_id: str
    cluster_id: str
    topic: str
    weight: float
    teacher: str
    labels: LabelsRow
    messages: tuple[MessageRow, ...]


class EvaluationRow(RowModel):
    """One answer of one model in an evaluation. Times in milliseconds; `timed` rows were asked one at a time."""

    decision_id: str
    conversation_id: str
    topic: str
    model: Literal["base", "candidate", "released", "teacher"]
    release_id: str
    text: str
    scores: dict[str, float | None]
    timed: bool
    first_token_ms: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    failure: str = Field(default="", description="why there is no answer; empty when there is one")


AnyRow = TypeVar("AnyRow", bound=RowModel)


def read_rows(path: Path, model: type[AnyRow]) -> Iterator[AnyRow]:
    """Yield the rows of a file.

    Raises OperatorError with file and line where one does not fit.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                raise OperatorError(
                    f"{path}:{number}: not a {model.__name__}: {error.errors()[0]['msg']}; "
                    "the file was changed by hand or by another version: run its stage again in a new run"
                ) from None


def rows_text(rows: Iterable[RowModel]) -> str:
    """Return rows as JSON Lines."""
    return "".join(row.model_dump_json() + "\n" for row in rows)
