"""What can be read of a teacher's raw reply, and what is wrong with it.

In: the body as it came. Out: the answer, or the kind of fault that makes it none. A reply that lies about its cost is told from
one that does not; nothing here repairs an answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversations.messages import Json, storable_text
from distill.dataset.teaching.requests import Request
from distill.settings import TeacherTable


class Fault(StrEnum):
    """What a teacher did that it should not. The first ones leave no answer; the others are counted and the answer stays."""

    INVALID_JSON = "invalid_json"
    STREAM_UNASKED = "stream_unasked"
    ERROR_IN_REPLY = "error_in_reply"
    NO_CHOICES = "no_choices"
    OTHER_SHAPE = "other_shape"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION_LOST = "connection_lost"
    OTHER_REQUEST = "other_request"
    NO_USAGE = "no_usage"
    WRONG_USAGE = "wrong_usage"
    USAGE_ABOVE_LIMIT = "usage_above_limit"
    TOOL_CALLS_UNASKED = "tool_calls_unasked"
    SEVERAL_CHOICES = "several_choices"
    REFUSED_REQUEST = "refused_request"
    BATCH_FAILED = "batch_failed"
    BATCH_EXPIRED = "batch_expired"


@dataclass(frozen=True)
class Usage:
    """The tokens that a reply says it took; `cached_tokens` of the prompt were in the provider's cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What is read of a reply. `faults` are counted; the answer stands all the same, and `verify` rules on it."""

    text: str
    extra_json: str
    finish_reason: str
    usage: Usage | None
    handbook_passages: tuple[str, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def truncated(self) -> bool:
        """Tell whether the limit on its length cut the answer off."""
        return self.finish_reason == "length"

    @property
    def is_empty(self) -> bool:
        """Tell whether the teacher said nothing and called no tool."""
        return not self.text and not self.extra_json


class _Details(BaseModel):
    model_config = ConfigDict(extra="ignore")
    cached_tokens: int | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: str = ""
    text: str = ""


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Json]] | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    message: _Said
    finish_reason: str | None = None


class _Completion(BaseModel):
    model_config = ConfigDict(extra="ignore")
    choices: list[_Choice] = Field(min_length=1)
    usage: Json = None
    handbook_passages: tuple[str, ...] = ()


def read_reply(body: str, request: Request) -> Reply | Fault:
    """Read a raw reply to a request, or say why it holds no answer."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return Fault.STREAM_UNASKED if body.lstrip().startswith("data:") else Fault.INVALID_JSON
    if not isinstance(found, dict):
        return Fault.OTHER_SHAPE
    if found.get("error") and not found.get("choices"):
        return Fault.ERROR_IN_REPLY
    if not found.get("choices"):
        return Fault.NO_CHOICES
    try:
        return _read(_Completion.model_validate(found), request)
    except ValidationError:
        return Fault.OTHER_SHAPE
    except RecursionError:
        return Fault.INVALID_JSON


def _read(completion: _Completion, request: Request) -> Reply:
    said = completion.choices[0].message
    faults = []
    text = storable_text(_text_of(said)).strip()
    usage = _usage_of(completion.usage, request, text)
    if isinstance(usage, Fault):
        faults.append(usage)
    elif is_above_limit(usage, request):
        faults.append(Fault.USAGE_ABOVE_LIMIT)
    if said.tool_calls and not request.offers_tools:
        faults.append(Fault.TOOL_CALLS_UNASKED)
    if len(completion.choices) > 1:
        faults.append(Fault.SEVERAL_CHOICES)
    calls: dict[str, Json] = {"tool_calls": list(said.tool_calls)} if said.tool_calls else {}
    return Reply(
        text=text,
        extra_json=json.dumps(_storable(calls), ensure_ascii=False) if calls else "",
        finish_reason=storable_text(completion.choices[0].finish_reason or "unknown"),
        usage=None if isinstance(usage, Fault) else usage,
        handbook_passages=tuple(map(storable_text, completion.handbook_passages)),
        faults=tuple(faults),
    )


def _text_of(said: _Said) -> str:
    """Return the answer; what the teacher says instead where it refuses; empty when it said nothing."""
    content = said.content
    if isinstance(content, list):
        content = "".join(part.text for part in content if part.type in ("text", "output_text"))
    return (content or said.refusal or "").strip()


def _storable(value: Json) -> Json:
    """Return a value with all its texts as the record can hold them."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {storable_text(key): _storable(each) for key, each in value.items()}
    return value


# No model reads or writes as much for one request; what says so is broken and not a bill.
_MOST_TOKENS = 10_000_000
# Every tokenizer cuts at spaces or oftener, but for single phrases, and none has many tokens as long as this.
_WORDS_PER_TOKEN = 2
_BYTES_PER_TOKEN = 32


def _usage_of(told: Json, request: Request, text: str) -> Usage | Fault:
    """Return the usage, or what is wrong with it: none, less than the text takes, or what no request can take.

    What the total has beyond prompt and completion is thinking, and billed as completion.
    """
    if told is None:
        return Fault.NO_USAGE
    try:
        usage = _Usage.model_validate(told)
    except ValidationError:
        return Fault.WRONG_USAGE
    cached = (usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None) or 0
    completion = max(usage.completion_tokens, (usage.total_tokens or 0) - usage.prompt_tokens)
    least = max(len(text.split()) // _WORDS_PER_TOKEN, len(text.encode("utf-8")) // _BYTES_PER_TOKEN)
    is_possible = (
        0 < usage.prompt_tokens <= _MOST_TOKENS
        and usage.completion_tokens >= 0
        and least <= completion <= _MOST_TOKENS
        and 0 <= cached <= usage.prompt_tokens
    )
    return Usage(usage.prompt_tokens, completion, cached) if is_possible else Fault.WRONG_USAGE


def is_above_limit(usage: Usage, request: Request) -> bool:
    """Tell whether a request took more than it should be able to take, which a provider may bill all the same."""
    return usage.prompt_tokens > most_prompt_tokens(request) or usage.completion_tokens > request.max_tokens


# What a chat template adds to each message and to the whole, generously.
_TOKENS_PER_MESSAGE = 16


def most_prompt_tokens(request: Request) -> int:
    """Return more tokens than the request's prompt can have: a token stands for a byte at least."""
    return len(request.body.encode("utf-8", "replace")) + _TOKENS_PER_MESSAGE * (request.body.count('"role":') + 4)


def cost_usd(table: TeacherTable, usage: Usage, *, share: float = 1.0) -> float:
    """Return what a usage costs, in US dollars; `share` is that of a batch."""
    cached_price = table.cached_prompt_usd_per_million
    for_cached = table.prompt_usd_per_million if cached_price is None else cached_price
    micro = (
        (usage.prompt_tokens - usage.cached_tokens) * table.prompt_usd_per_million
        + usage.cached_tokens * for_cached
        + usage.completion_tokens * table.completion_usd_per_million
    )
    return micro * share / 1e6


def error_of(body: str) -> Mapping[str, Json]:
    """Return the error object of a failed request's body, empty where it has none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}
