"""The rows that stages hand on as JSON Lines, one frozen model each.

In and out: lines of text. A row says where it comes from; nothing here knows how it was made.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from conversations.decisions import AnswerAuthor, Verdict
from conversations.errors import OperatorError
from conversations.messages import Author, ChatMessage, Role, Split


class Task(StrEnum):
    """What a data set teaches: conversations of the record, or what files hold."""

    CONVERSATION = "conversation"
    QA = "qa"
    SUMMARIZATION = "summarization"
    NLI = "nli"
    MATH = "math"


# How much a decision counts in a loss, beside 1 for a common one.
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


def _check_log_probability(value: float) -> float:
    # Not the other way round: a value that is no number is not above anything.
    if not value <= _ROUNDING_NATS:
        raise ValueError(f"a log-probability of {value!r}; expected at most 0")
    return value


# Teachers round in half precision, and may so pass 0 a little.
_ROUNDING_NATS = 1e-3
LogProbability = Annotated[float, AfterValidator(_check_log_probability)]


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


def last_question(messages: Sequence[MessageRow]) -> str:
    """Return the customer's last message; empty where there is none."""
    return next((each.content for each in reversed(messages) if each.role is Role.USER), "")


class FactRow(RowModel):
    """A fact that a good answer states, and the expressions that show it does."""

    fact_id: str
    says: str
    match: tuple[str, ...]


class LabelsRow(RowModel):
    """What is known of a decision apart from any model: expected facts, or that nothing is known about it.

    `reference` is the right answer of a data set's file; `replies` are what people answered here.
    """

    answerable: bool | None = None
    articles: tuple[str, ...] = ()
    facts: tuple[FactRow, ...] = ()
    reference: str = ""
    replies: tuple[str, ...] = ()


class OfferedRow(RowModel):
    """What stood in the request beside the messages: JSON texts as they were logged, redacted; empty where there were none."""

    tools_json: str = ""
    tool_choice_json: str = ""
    response_format_json: str = ""


class LoggedReply(RowModel):
    """The reply that stands in the log, redacted. Only an operator's is surely a person's."""

    author: Author
    content: str
    extra_json: str = ""


class ChosenRow(RowModel):
    """A decision chosen to be taught. `messages` are redacted and end with the customer's question.

    `chosen_because` is the strongest of `signals`; `turn_depth` counts the customer's messages up to the question, from 1.
    """

    decision_id: str
    conversation_id: str
    cluster_id: str
    topic: str
    split: Split
    weight: Weight = 1.0
    chosen_because: str
    signals: tuple[str, ...] = ()
    task: Task = Task.CONVERSATION
    language: str = ""
    turn_depth: int = 1
    labels: LabelsRow
    offered: OfferedRow = OfferedRow()
    logged: LoggedReply | None = None
    messages: tuple[MessageRow, ...]

    @property
    def question(self) -> str:
        """What the customer asked last; a tool's result may stand behind it."""
        return last_question(self.messages)


class AnswerRow(RowModel):
    """An answer for a decision. `passages` are hashes of the handbook passages that it rests on.

    `author` says whether a teacher, the log or an operator gave it, `teacher` names it; `extra_json` holds its tool calls.
    `agreement` is how alike the answers of several teachers are, 0 to 1; empty where one alone was asked.
    """

    decision_id: str
    answer_id: str
    teacher: str
    author: AnswerAuthor = AnswerAuthor.TEACHER
    text: str
    extra_json: str = ""
    finish_reason: str
    passages: tuple[str, ...]
    request_hash: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_ms: float
    licence: Literal["yes", "unknown"] = "yes"
    agreement: float | None = None


class VerdictRow(RowModel):
    """What verify said of an answer, and who said it: the rules, the judge or an operator."""

    decision_id: str
    answer_id: str
    verdict: Verdict
    reason: str
    detail: str = ""
    by: Literal["rules", "judge", "operator"] = "rules"


class DatasetRow(RowModel):
    """One decision of a data set; the last message is the answer to learn, in the test set the teacher's."""

    decision_id: str
    conversation_id: str
    cluster_id: str
    topic: str
    weight: Weight
    teacher: str
    task: Task = Task.CONVERSATION
    language: str = ""
    turn_depth: int = 1
    labels: LabelsRow
    offered: OfferedRow = OfferedRow()
    answer_id: str = ""
    passages: tuple[str, ...] = ()
    licence: Literal["yes", "unknown"] = "yes"
    messages: tuple[MessageRow, ...]

    @property
    def question(self) -> str:
        """What the customer asked last; a tool's result may stand behind it."""
        return last_question(self.messages)


SOFT_LABELS_FILE = "soft_labels.jsonl"


class TokenBelief(RowModel):
    """One token that a teacher said, and its most likely tokens there with their log-probabilities in nats, the likeliest first.

    Tokens are bytes, because a character may be cut in two; the end of the answer is the empty one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    said: bytes
    choices: tuple[tuple[bytes, LogProbability], ...]


class SoftLabelRow(RowModel):
    """What a teacher believed while it gave the answer of a dataset row, token by token."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    decision_id: str
    conversation_id: str
    answer_id: str
    teacher: str
    tokens: tuple[TokenBelief, ...]


class EvaluationRow(RowModel):
    """One answer of one model in an evaluation. Times in milliseconds; `timed` rows were asked one at a time."""

    decision_id: str
    conversation_id: str
    topic: str
    task: Task = Task.CONVERSATION
    turn_depth: int = 1
    model: Literal["base", "candidate", "released", "teacher"]
    release_id: str
    text: str
    scores: dict[str, float | None]
    timed: bool
    first_token_ms: float | None
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str = Field(default="", description="why the answer ended, as its server says; empty: unsaid")
    failure: str = Field(default="", description="why there is no answer; empty when there is one")


AnyRow = TypeVar("AnyRow", bound=RowModel)


def read_rows(path: Path, model: type[AnyRow]) -> Iterator[AnyRow]:
    """Yield the rows of a file.

    Raises OperatorError where there is no such file, and with file and line where one does not fit or is not UTF-8.
    """
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        raise rows_gone(path) from None
    with lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                raise OperatorError(
                    f"{path}:{number}: not a {model.__name__}: {first_problem(error)}; "
                    "the file was changed by hand or by another version: run its stage again in a new run"
                ) from None


def rows_gone(path: Path) -> OperatorError:
    """Return what to raise for a file of rows that is not there."""
    return OperatorError(
        f"{path}: no such file; expected the rows that a stage of this run has written; restore it, or run its stage again in a "
        "new run"
    )


def first_problem(error: ValidationError) -> str:
    """Return what is wrong with a row first, and where in it."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def rows_text(rows: Iterable[RowModel]) -> str:
    """Return rows as JSON Lines."""
    return "".join(row.model_dump_json() + "\n" for row in rows)
