"""What a cycle would ask, and what that may cost, before anybody is called.

In: the record and the settings. Out: figures by teacher. What people have answered and what was paid for before costs nothing and is
told apart. It sends nothing and writes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from conversations.messages import Author, Split
from conversations.prompt import Renderer
from conversations.replies import find_reply, usual_completion
from conversations.store import Record
from distill.dataset.choose import plan_decisions
from distill.dataset.choosing.files import plan_from_files
from distill.dataset.teaching.budget import teachers_of
from distill.dataset.teaching.people import PeoplesAnswers, logged_answer
from distill.dataset.teaching.replies import Usage, cost_usd
from distill.dataset.teaching.requests import Request
from distill.dataset.teaching.several import Teachers
from distill.rows import ChosenRow, Task
from distill.settings import DistillSettings, TeacherTable

_TOKENS_PER_WORD = 1.4
_TOKENS_PER_MESSAGE = 4
_GUESSED_COMPLETION_TOKENS = 120
# Its instructions and rubric, and its ruling with one sentence of reason.
_TOLD_TO_JUDGE = 180
_SAID_BY_JUDGE = 30
# In `evaluate`, of one held-out decision: a grade for base, candidate, released student and teacher, and the candidate beside the
# last two in both orders.
_RULINGS_OF_EVALUATION = 4 + 2 * 2
_MIN_REPLIES_TO_LEARN_FROM = 8
# Passages are searched for so many questions; for the rest, what those took is assumed.
_SEARCHED_AT_MOST = 2000


@dataclass(frozen=True)
class Estimate:
    """What one teacher would be asked and cost, and which decisions cost nothing, and why."""

    decisions: int
    already_answered: int
    answered_by_people: int
    prompt_tokens: int
    completion_tokens_estimate: int
    cost_usd_estimate: float

    def figures(self) -> dict[str, int | float]:
        """Return the figures as the command prints them."""
        return dict(asdict(self))


def estimate(record: Record, settings: DistillSettings) -> Mapping[str, Estimate]:
    """Return, by teacher, what a cycle would ask and what that may cost; calls nobody.

    A fallback is expected to be asked nothing, unless a teacher that only repeats the log stands before it. The judge stands
    under its name with "as judge", without what the handbook tells it.
    Raises OperatorError as `teachers_of` does, but for a licence that is still to be accepted.
    """
    # What it would cost may be asked before the licence is accepted.
    accepted = settings.teach.model_copy(update={"allow_unknown_licence": True})
    settings = settings.model_copy(update={"teach": accepted})
    tables = teachers_of(settings)
    rows = _rows(record, settings)
    people = PeoplesAnswers(record, settings) if settings.teach.people_first else None
    teachers = Teachers(settings, tables, {}, people, None)
    left = [row for row in rows if teachers.by_people(row) is None]
    counter = TokenCounter(settings)
    found: dict[str, Estimate] = {}
    for name in dict.fromkeys((settings.teach.teacher, *settings.teach.best_of, *settings.teach.fallback)):
        if tables[name].kind == "logged":
            continue
        asked = _asked_of(name, left, settings, teachers)
        found[name] = _estimate_of(name, tables[name], asked, record, settings, teachers, counter, len(rows) - len(left))
    if settings.judge is not None:
        found[f"{settings.judge.teacher} as judge"] = _judging(rows, left, settings, counter, found)
    return found


def replies_in_log(record: Record, settings: DistillSettings) -> Mapping[str, int]:
    """Return how many answers each teacher that repeats the log would give; calls nobody."""
    rows = _rows(record, settings)
    logged = {name: table for name, table in settings.teachers.items() if table.kind == "logged"}
    named = dict.fromkeys((settings.teach.teacher, *settings.teach.fallback))
    return {
        name: sum(logged_answer(row, name, logged[name]) is not None for row in rows) for name in named if name in logged
    }


def above_caps(settings: DistillSettings, found: Mapping[str, Estimate]) -> list[str]:
    """Say which caps the estimate is above; nothing where it is above none."""
    teach = settings.teach
    usd = sum(each.cost_usd_estimate for each in found.values())
    calls = sum(each.decisions for each in found.values())
    tokens = sum(each.prompt_tokens + each.completion_tokens_estimate for each in found.values())
    told = []
    if usd > teach.max_cost_usd:
        told.append(f"about ${usd:.4f} is above max_cost_usd = {teach.max_cost_usd:g}")
    if calls > teach.max_calls:
        told.append(f"about {calls} calls are above max_calls = {teach.max_calls}")
    if teach.max_tokens is not None and tokens > teach.max_tokens:
        told.append(f"about {tokens} tokens are above max_tokens = {teach.max_tokens}")
    return told


def _rows(record: Record, settings: DistillSettings) -> Sequence[ChosenRow]:
    if settings.datasets is not None:
        return plan_from_files(record, settings).rows
    return plan_decisions(record, settings, with_topics=False).rows


def _judging(
    rows: Sequence[ChosenRow],
    left: Sequence[ChosenRow],
    settings: DistillSettings,
    counter: "TokenCounter",
    found: Mapping[str, Estimate],
) -> Estimate:
    """Return what the judge would be asked: a grade for each of several answers, and both orders of each pair compared.

    left: the rows that no person has answered. What `evaluate` asks is counted for the decisions that are held out now; those of
    an earlier edition come on top.
    """
    judge, teach = settings.judge, settings.teach
    assert judge is not None
    table, first = settings.teachers[judge.teacher], settings.teachers[teach.teacher]
    several = len({teach.teacher, *teach.best_of}) if teach.best_of else 0
    of_best = several + 2 * (several - 1) if several else 0
    answer = max(
        (each.completion_tokens_estimate / each.decisions for each in found.values() if each.decisions),
        default=_GUESSED_COMPLETION_TOKENS,
    )
    calls, prompt, evaluated = 0, 0.0, 0
    by_teachers = {row.decision_id for row in left}
    for row in rows:
        is_evaluated = (
            row.split is Split.TEST and row.task is Task.CONVERSATION and evaluated < settings.evaluate.judged_decisions
        )
        evaluated += is_evaluated
        is_compared = (
            judge.reject_worse_than_logged
            and row.split is not Split.TEST
            and row.logged is not None
            and row.logged.author in (Author.OPERATOR, Author.IMPORTED)
            and not (first.kind == "logged" and logged_answer(row, teach.teacher, first) is not None)
        )
        taught = of_best + 2 * is_compared if row.decision_id in by_teachers else 0
        of_row = taught + _RULINGS_OF_EVALUATION * is_evaluated
        calls += of_row
        prompt += of_row * (sum(counter.of_text(each.content) for each in row.messages) + 2 * answer + _TOLD_TO_JUDGE)
    completion = calls * _SAID_BY_JUDGE
    cost = cost_usd(table, Usage(round(prompt), completion))
    return Estimate(calls, 0, 0, round(prompt), completion, round(cost, 6))


def _asked_of(name: str, rows: Sequence[ChosenRow], settings: DistillSettings, teachers: Teachers) -> list[ChosenRow]:
    """Return the decisions that surely come to a teacher: a fallback stands behind a model that answers."""
    teach = settings.teach
    if name in teach.best_of:
        return list(rows)
    chain = (teach.teacher, *teach.fallback)
    before = chain[: chain.index(name)]
    stands_behind_a_model = any(settings.teachers[other].kind != "logged" for other in before)
    if stands_behind_a_model or (teach.best_of and name != teach.teacher):
        return []
    return [row for row in rows if not teachers.is_in_log_before(name, row)]


def _estimate_of(
    name: str,
    table: TeacherTable,
    rows: Sequence[ChosenRow],
    record: Record,
    settings: DistillSettings,
    teachers: Teachers,
    counter: "TokenCounter",
    by_people: int,
) -> Estimate:
    step = max(1, len(rows) // _SEARCHED_AT_MOST) if table.handbook_passages else 1
    looked_at = rows[::step]
    if table.handbook_passages:
        teachers.library.prepare(looked_at)
    requests = [teachers.request(name, row) for row in looked_at]
    scale = len(rows) / max(1, len(looked_at))
    new = {each.request_hash: each for each in requests if find_reply(record, each.request_hash) is None}
    decisions = round(len(new) * scale)
    prompt = round(sum(map(counter.of_request, new.values())) * scale)
    usual = _usual_completion(record, name, rows, counter)
    completion = round(decisions * min(table.max_answer_tokens, usual))
    share = table.batch_price_share if settings.teach.transport == "batch" else 1.0
    return Estimate(
        decisions=decisions,
        already_answered=len(rows) - decisions,
        answered_by_people=by_people,
        prompt_tokens=prompt,
        completion_tokens_estimate=completion,
        cost_usd_estimate=round(cost_usd(table, Usage(prompt, completion), share=share), 6),
    )


def _usual_completion(record: Record, teacher: str, rows: Sequence[ChosenRow], counter: "TokenCounter") -> float:
    """Return how many tokens this teacher's answers take: by its answers so far, else by the replies in the log."""
    replies, tokens = usual_completion(record, teacher)
    if replies >= _MIN_REPLIES_TO_LEARN_FROM and tokens:
        return tokens
    logged = [row.logged.content for row in rows[:_SEARCHED_AT_MOST] if row.logged is not None and row.logged.content]
    if len(logged) >= _MIN_REPLIES_TO_LEARN_FROM:
        return sum(map(counter.of_text, logged)) / len(logged)
    return _GUESSED_COMPLETION_TOKENS


class TokenCounter:
    """Counts tokens with the student's tokenizer, which is near enough to any teacher's, or by words where it has none."""

    def __init__(self, settings: DistillSettings) -> None:
        base = settings.student.base
        self._renderer = Renderer.load(base) if (base / "tokenizer.json").is_file() else None

    def of_text(self, text: str) -> float:
        """Return about how many tokens a text has."""
        if self._renderer is None:
            return len(text.split()) * _TOKENS_PER_WORD
        return len(self._renderer.answer(text)) - 1

    def of_request(self, request: Request) -> float:
        """Return about how many tokens the prompt of a request has, tools and schema included."""
        sent = [each.content + each.extra_json for each in request.messages]
        return sum(map(self.of_text, (*sent, request.beside))) + _TOKENS_PER_MESSAGE * (len(sent) + 1)
