"""The rows of what was chosen: each decision's messages, redacted with its whole conversation, and what stood beside them.

In: names and places of decisions; their conversations are read again, and no others, because looking for personal data takes most
of the time. Out: one row each. Nothing that was said leaves here unredacted.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from conversations.decisions import Answer, AnswerAuthor, newest_answers
from conversations.dialogues import Dialogue, dialogues
from conversations.exchange.raw_json import members
from conversations.messages import Author, ChatMessage, Json, Role, Split
from conversations.prompt import SpokenTurn, messages_for_model
from conversations.redaction import Redactor, SecondPass
from conversations.store import Record
from conversations.turns import Turn
from distill.dataset.choosing.candidates import decision_id_of, exchanges, heard, next_question
from distill.dataset.choosing.signals import OF_PEOPLE, Signal
from distill.dataset.handbook.articles import Handbook
from distill.rows import ChosenRow, FactRow, LabelsRow, LoggedReply, MessageRow, OfferedRow
from distill.settings import DistillSettings


@dataclass(frozen=True)
class Wanted:
    """A decision whose row is to be made: where it stands, and what was decided of it."""

    decision_id: str
    conversation_id: str
    question_turn_id: str
    cluster_id: str
    topic: str
    split: Split
    signals: tuple[Signal, ...]


@dataclass(frozen=True)
class _Means:
    """What every row is made with."""

    settings: DistillSettings
    handbook: Handbook | None
    operators_answers: Mapping[str, Answer]
    second_pass: SecondPass | None


def chosen_rows(
    record: Record,
    settings: DistillSettings,
    decisions: Iterable[Wanted],
    second_pass: SecondPass | None,
) -> Iterator[ChosenRow]:
    """Yield the row of each decision, conversation by conversation; one that an erasure took meanwhile has none."""
    handbook = Handbook.load(settings.handbook.path) if settings.handbook else None
    means = _Means(settings, handbook, newest_answers(record, AnswerAuthor.OPERATOR), second_pass)
    wanted: dict[str, dict[str, Wanted]] = {}
    for each in decisions:
        wanted.setdefault(each.conversation_id, {})[each.decision_id] = each
    for dialogue in dialogues(record, list(wanted)):
        yield from _rows_of(dialogue, wanted[dialogue.conversation.conversation_id], means)


def _rows_of(dialogue: Dialogue, wanted: Mapping[str, Wanted], means: _Means) -> Iterator[ChosenRow]:
    missing = dict(wanted)
    # All on one branch as a rule. A question that a retry has meanwhile put aside is read on its own.
    for tip in (None, *(each.question_turn_id for each in wanted.values())):
        if not missing or (tip is not None and decision_id_of(tip) not in missing):
            continue
        if tip is None or any(turn.turn_id == tip for turn in dialogue.turns):
            for row in _rows_on(heard(dialogue.turns, tip), dialogue, missing, means):
                del missing[row.decision_id]
                yield row


def _rows_on(branch: Sequence[Turn], dialogue: Dialogue, wanted: Mapping[str, Wanted], means: _Means) -> Iterator[ChosenRow]:
    every = list(exchanges(branch))
    found = [each for each in every if decision_id_of(each.last.turn_id) in wanted]
    if not found:
        return
    # What people noted of a question is about the answer that the customer got in the end, not about calls of tools on the way.
    final = {each.user_turn: each.place for each in every}
    # What nobody chose need not be read, and placeholders are numbered as they come.
    branch = branch[: next_question(branch, found[-1].place)]
    redactor = Redactor(means.settings.redaction.rules, means.second_pass)
    redacted, _ = messages_for_model(
        [SpokenTurn(turn.role, turn.status, turn.content, turn.extra_json) for turn in branch],
        system_prompt=means.settings.prompt.system,
        redactor=redactor,
    )
    # Where the conversation brought no system prompt, the configured one stands before its first turn.
    shift = len(redacted) - len(branch)
    messages = tuple(MessageRow.of(message) for message in redacted)
    offered = _offered(dialogue, redactor)
    for exchange in found:
        name = decision_id_of(exchange.last.turn_id)
        decision = wanted[name]
        end = next_question(branch, exchange.place)
        logged = _logged(branch[exchange.place + 1 : end], redacted[exchange.place + shift + 1 : end + shift])
        written = means.operators_answers.get(name)
        replies = [logged.content] if logged is not None and logged.author is Author.OPERATOR else []
        replies += [redactor.redact(written.content)] if written else []
        history = messages[: exchange.place + shift + 1]
        labels = LabelsRow()
        if final[exchange.user_turn] == exchange.place:
            labels = _labels(dialogue.conversation.labels, exchange.user_turn, history, means.handbook)
        yield ChosenRow(
            decision_id=name,
            conversation_id=dialogue.conversation.conversation_id,
            cluster_id=decision.cluster_id,
            topic=decision.topic,
            split=decision.split,
            weight=means.settings.choose.person_weight if OF_PEOPLE & {*decision.signals} else 1.0,
            chosen_because=decision.signals[0],
            signals=decision.signals,
            language=dialogue.conversation.language,
            turn_depth=exchange.user_turn + 1,
            labels=labels.model_copy(update={"replies": tuple(replies)}),
            offered=offered,
            logged=logged,
            messages=history,
        )


def _logged(turns: Sequence[Turn], redacted: Sequence[ChatMessage]) -> LoggedReply | None:
    """Return the reply in the log: all that a person wrote before the customer spoke again, or else what came next."""
    by_people = [
        message.content
        for turn, message in zip(turns, redacted, strict=True)
        if turn.author is Author.OPERATOR and turn.role is Role.ASSISTANT and turn.content
    ]
    if by_people:
        return LoggedReply(author=Author.OPERATOR, content="\n".join(by_people))
    if not turns or turns[0].role is not Role.ASSISTANT:
        return None
    return LoggedReply(author=turns[0].author, content=redacted[0].content, extra_json=redacted[0].extra_json)


def _offered(dialogue: Dialogue, redactor: Redactor) -> OfferedRow:
    """Return what stood in the request beside the messages, each text as it came where nothing in it is personal."""
    beside = members(dialogue.extra_json)[0] if dialogue.extra_json else {}
    texts = {key: beside[key].raw if key in beside else "" for key in ("tool_choice", "response_format")}
    return OfferedRow(
        tools_json=redactor.redact_json(dialogue.tools_json),
        tool_choice_json=redactor.redact_json(texts["tool_choice"]),
        response_format_json=redactor.redact_json(texts["response_format"]),
    )


def _labels(
    labels: Mapping[str, Json], user_turn: int, messages: Sequence[MessageRow], handbook: Handbook | None
) -> LabelsRow:
    """Return what a person wrote down about this question; facts that the customer has said are not expected."""
    noted = labels.get("turns")
    for each in noted if isinstance(noted, list) else []:
        if not isinstance(each, dict) or each.get("user_turn") != user_turn:
            continue
        articles, facts, answerable = each.get("articles"), each.get("facts"), each.get("answerable")
        known = handbook.facts if handbook else {}
        named = [known[str(name)] for name in (facts if isinstance(facts, list) else []) if str(name) in known]
        asked = "\n".join(message.content for message in messages if message.role is Role.USER)
        return LabelsRow(
            answerable=answerable if isinstance(answerable, bool) else None,
            articles=tuple(str(name) for name in (articles if isinstance(articles, list) else [])),
            facts=tuple(fact for fact in named if not _says(asked, fact)),
        )
    return LabelsRow()


def _says(text: str, fact: FactRow) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in fact.match)
