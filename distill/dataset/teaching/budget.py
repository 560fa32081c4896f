"""What asking a teacher may cost: an estimate before anybody is called, and a reservation before each request leaves.

In: the record, the settings, requests. Out: figures, reservations in the record, or a refusal of the teacher's licence.
A reservation assumes the most that a request can cost, so that a cap is never passed, whatever the concurrency.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

from conversations import decisions
from conversations.errors import OperatorError
from conversations.messages import ChatMessage
from conversations.prompt import Renderer
from conversations.store import Record
from distill.dataset.choose import plan_decisions
from distill.dataset.handbook.articles import Handbook
from distill.dataset.teaching.teacher import Request, is_on_this_machine, make_request
from distill.rows import ChosenRow
from distill.settings import DistillSettings, TeacherTable

_TOKENS_PER_WORD = 1.4
_TOKENS_PER_MESSAGE = 4
_GUESSED_COMPLETION_TOKENS = 120
_MIN_REPLIES_TO_LEARN_FROM = 20
# Every tokenizer in use makes fewer tokens than half the bytes of ordinary text.
_BYTES_PER_TOKEN_AT_LEAST = 2

log = logging.getLogger(__name__)


def chosen_teacher(settings: DistillSettings) -> TeacherTable:
    """Return the table of the teacher that [teach] names.

    Raises OperatorError when there is none, or its licence does not allow training on its answers.
    """
    name = settings.teach.teacher
    table = settings.teachers.get(name)
    place = f"{settings.settings_file} [teachers.{name}]"
    if table is None:
        known = ", ".join(sorted(settings.teachers)) or "none"
        raise OperatorError(f"{settings.settings_file} [teach]: teacher = {name!r} is not in [teachers]; known are: {known}")
    if table.licence_allows_training == "no":
        raise OperatorError(
            f"{place}: its licence does not allow training on its answers; expected a teacher whose licence does; name another"
        )
    if table.licence_allows_training == "unknown" and not settings.teach.allow_unknown_licence:
        raise OperatorError(
            f"{place}: whether its licence allows training on its answers is unknown; find out and set "
            "licence_allows_training, or set [teach] allow_unknown_licence = true and answer for it"
        )
    free = table.prompt_usd_per_million == 0 and table.completion_usd_per_million == 0
    if free and not is_on_this_machine(table):
        log.warning("%s: %s is not on this machine and has no price; the cap in dollars cannot hold", place, table.base_url)
    return table


def estimate(record: Record, settings: DistillSettings) -> Mapping[str, Mapping[str, int | float]]:
    """Return, by teacher, what a cycle would ask and what that may cost; calls nobody.

    Decisions whose answers are in the record already are counted apart: they cost nothing.
    """
    name = settings.teach.teacher
    # What it would cost may be asked before the licence is accepted.
    accepted = settings.teach.model_copy(update={"allow_unknown_licence": True})
    table = chosen_teacher(settings.model_copy(update={"teach": accepted}))
    plan = plan_decisions(record, settings, with_topics=False)
    digest = Handbook.load(settings.handbook.path).digest if settings.handbook else ""
    # With passages the hash depends on a search that a dry run does not make; such requests count as new.
    to_ask = [
        row
        for row in plan.rows
        if table.handbook_passages
        or decisions.find_reply(record, _plain_request(row, settings, digest).request_hash) is None
    ]
    renderer = Renderer.load(settings.student.base) if (settings.student.base / "tokenizer.json").is_file() else None
    prompt_tokens = sum(_count(_spoken(row, settings), renderer) for row in to_ask)
    completion_tokens = round(len(to_ask) * min(table.max_answer_tokens, _usual_completion(record, name)))
    return {
        name: {
            "decisions": len(to_ask),
            "already_answered": len(plan.rows) - len(to_ask),
            "prompt_tokens": prompt_tokens,
            "completion_tokens_estimate": completion_tokens,
            "cost_usd_estimate": round(cost_usd(table, prompt_tokens, completion_tokens), 6),
        }
    }


def cost_usd(table: TeacherTable, prompt_tokens: int, completion_tokens: int) -> float:
    """Return what so many tokens cost, in US dollars."""
    return (prompt_tokens * table.prompt_usd_per_million + completion_tokens * table.completion_usd_per_million) / 1e6


def most_it_costs(table: TeacherTable, request: Request) -> float:
    """Return the most that a request can cost, in US dollars."""
    texts = [message.content + message.extra_json for message in request.messages]
    texts += [passage.title + passage.text for passage in request.passages]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    tokens = size // _BYTES_PER_TOKEN_AT_LEAST + 2 * _TOKENS_PER_MESSAGE * (len(texts) + 1)
    return cost_usd(table, tokens, request.max_tokens)


def reserve(record: Record, settings: DistillSettings, run_id: str, request: Request) -> str | None:
    """Reserve money and a call for a request about to leave; None when a cap would be passed."""
    return decisions.reserve_spending(
        record,
        run_id,
        settings.teach.teacher,
        most_it_costs(settings.teachers[settings.teach.teacher], request),
        max_cost_usd=settings.teach.max_cost_usd,
        max_calls=settings.teach.max_calls,
    )


def _plain_request(row: ChosenRow, settings: DistillSettings, handbook_digest: str) -> Request:
    return make_request(
        row.decision_id,
        [message.message() for message in row.messages],
        name=settings.teach.teacher,
        table=settings.teachers[settings.teach.teacher],
        instruction=settings.teach.instruction,
        handbook_digest=handbook_digest,
    )


def _spoken(row: ChosenRow, settings: DistillSettings) -> list[str]:
    return [*(message.content + message.extra_json for message in row.messages), *_nonempty(settings.teach.instruction)]


def _nonempty(text: str) -> Iterator[str]:
    if text:
        yield text


def _count(texts: Sequence[str], renderer: Renderer | None) -> int:
    """Count tokens with the student's tokenizer, which is near enough to any teacher's, or by words."""
    if renderer is None:
        return round(sum(_TOKENS_PER_MESSAGE + len(text.split()) * _TOKENS_PER_WORD for text in texts))
    return sum(_TOKENS_PER_MESSAGE + len(renderer.answer(text)) for text in texts)


def _usual_completion(record: Record, teacher: str) -> float:
    """Return how many tokens this teacher's answers take, by its answers so far."""
    replies, tokens = decisions.usual_completion(record, teacher)
    return tokens if replies >= _MIN_REPLIES_TO_LEARN_FROM and tokens else _GUESSED_COMPLETION_TOKENS


def spoken_of(row: ChosenRow) -> list[ChatMessage]:
    """Return the messages of a chosen decision."""
    return [message.message() for message in row.messages]
