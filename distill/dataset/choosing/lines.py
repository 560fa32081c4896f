"""A line of a data set's file as a conversation: chat messages, or a task's question and its answer.

In: the bytes of a line and the task. Out: a conversation with a system prompt that says the task, or LineRejected with the reason.
A line that is read twice gives the same conversation under the same name. Knows no record.

| task | keys |
|---|---|
| conversation | `messages` (OpenAI chat) or `conversations` (ShareGPT) |
| qa | `question`; `context` (a text or a list); `answer`, or `answers` (a list, or an object with the list `text`) |
| summarization | `document`, `text` or `article`; `summary` or `highlights` |
| nli | `premise`, `hypothesis`; `label` (a word, or 0 entailment, 1 neutral, 2 contradiction, -1 none) |
| math | `question` or `problem`; `answer` or `solution` |

Any line may carry `id`, `customer_id`, `created_at`, `language`, and `topic`, `category` or `subject`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from conversations.exchange.formats import ImportedConversation, parse_line, said_in
from conversations.exchange.line_facts import LineRejected
from conversations.messages import Consent, Json, content_hash
from distill.rows import Task

SYSTEM_PROMPTS: Mapping[Task, str] = {
    Task.QA: "Answer the question. Where a context is given, answer out of it alone.",
    Task.SUMMARIZATION: "Summarise the document in a few sentences. Say nothing that it does not say.",
    Task.NLI: ("Say how the hypothesis stands to the premise. Answer with one word: entailment, neutral or contradiction."),
    Task.MATH: "Solve the problem step by step, and end with the answer.",
}
_NLI_LABELS = ("entailment", "neutral", "contradiction")
_ABOUT = ("id", "customer_id", "created_at", "language")
_TOPICS = ("topic", "category", "subject")


@dataclass(frozen=True)
class Example:
    """A conversation out of a file. `other_answers` are right answers beside the one that stands in it."""

    conversation: ImportedConversation
    topic: str
    other_answers: tuple[str, ...] = ()


def read_example(content: bytes, task: Task) -> Example:
    """Read one line.

    Raises LineRejected with the reason when it cannot be taken.
    """
    fields = _object(content)
    other: tuple[str, ...] = ()
    if task is not Task.CONVERSATION:
        asked, answers = _asked(fields, task)
        messages: list[Json] = [
            {"role": "system", "content": SYSTEM_PROMPTS[task]},
            {"role": "user", "content": asked},
        ]
        if answers:
            messages.append({"role": "assistant", "content": answers[0]})
        about: dict[str, Json] = {name: fields[name] for name in _ABOUT if name in fields}
        content, other = json.dumps({**about, "messages": messages}).encode(), tuple(answers[1:])
    found = parse_line(content)
    topic = next((value for name in _TOPICS if isinstance(value := fields.get(name), str) and value.strip()), task.value)
    said = [said_in(message) for message in found.messages]
    # Made of the words, so that a file that was put in another order, or in two parts, adds nothing.
    name = content_hash([task.value, found.customer_id or "", found.tools_json, *said]).removeprefix("sha256:")[:32]
    conversation = replace(
        found, source_id=f"dataset {name}", consent=Consent.YES, labels={}, thumbs={}, details={}, tags=(), repairs=()
    )
    return Example(conversation, topic.strip(), other)


def _object(content: bytes) -> dict[str, Json]:
    try:
        value = json.loads(content, parse_constant=_no_number)
    except ValueError as error:
        raise LineRejected(f"is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise LineRejected(f"is {type(value).__name__}; expected an object")
    return value


def _no_number(name: str) -> Json:
    raise ValueError(f"{name} is no number of JSON")


def _asked(fields: Mapping[str, Json], task: Task) -> tuple[str, list[str]]:
    """Return what the student is asked and every right answer."""
    match task:
        case Task.QA:
            context = "\n\n".join(_texts(fields, ("context",)))
            question = _text(fields, ("question",))
            return (f"{context}\n\nQuestion: {question}" if context else question), _texts(fields, ("answer", "answers"))
        case Task.SUMMARIZATION:
            return _text(fields, ("document", "text", "article")), _texts(fields, ("summary", "highlights"))
        case Task.NLI:
            premise, hypothesis = _text(fields, ("premise",)), _text(fields, ("hypothesis",))
            return f"Premise: {premise}\nHypothesis: {hypothesis}", _label(fields)
        case Task.MATH:
            return _text(fields, ("question", "problem")), _texts(fields, ("answer", "solution"))
        case Task.CONVERSATION:
            raise AssertionError("a conversation is read as it is")


def _text(fields: Mapping[str, Json], names: Sequence[str]) -> str:
    found = _texts(fields, names)
    if not found:
        raise LineRejected(f"has no text under {' or '.join(f'`{name}`' for name in names)}")
    if len(found) > 1:
        raise LineRejected(f"has {len(found)} texts under {' or '.join(f'`{name}`' for name in names)}; expected one")
    return found[0]


def _texts(fields: Mapping[str, Json], names: Sequence[str]) -> list[str]:
    """Return the texts under the first name that is there: one, a list, or the list `text` of an object; numbers are texts."""
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, dict):
        value = value.get("text")
    texts: list[str] = []
    for each in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise LineRejected(f"`{'` or `'.join(names)}` holds {type(each).__name__}; expected text")
        if isinstance(each, float) and not math.isfinite(each):
            raise LineRejected(f"`{'` or `'.join(names)}` holds {each}; expected a number that JSON can say")
        if str(each).strip():
            texts.append(str(each).strip())
    return list(dict.fromkeys(texts))


def _label(fields: Mapping[str, Json]) -> list[str]:
    value = fields.get("label")
    if value is None or value == -1:
        return []
    if isinstance(value, str) and value.strip().lower() in _NLI_LABELS:
        return [value.strip().lower()]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_NLI_LABELS):
        return [_NLI_LABELS[value]]
    raise LineRejected(f"`label` is {value!r}; expected one of {', '.join(_NLI_LABELS)}, or 0, 1, 2, or -1 for none")
