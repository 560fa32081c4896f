"""What people have answered already: operators' answers for a decision, answers that they approved, and replies that people gave
in the conversation.

In: chosen rows and the record. Out: answers that cost nothing and go before any teacher's. An operator's answer is written with
the customer's own data in it, so it gets the placeholders of its conversation here; what the customer never said stays, for verify.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from conversations import turns as log
from conversations.corrections import redacted_as_known
from conversations.decisions import Answer, AnswerAuthor, decisions, newest_answers, newest_approved
from conversations.messages import Author, ChatMessage, Role
from conversations.prompt import SpokenTurn, messages_for_model
from conversations.redaction import Redactor
from conversations.store import Record
from distill.dataset.handbook.articles import Handbook
from distill.dataset.second_pass import second_pass
from distill.dataset.teaching.asking import Answered
from distill.rows import ChosenRow
from distill.settings import DistillSettings, TeacherTable

PEOPLE = "people"


@dataclass(frozen=True)
class Given:
    """An answer that was given for a decision. `answer_id` is its name where it stands in the record already."""

    teacher: str
    author: AnswerAuthor
    text: str
    finish_reason: str
    extra_json: str = ""
    passages: tuple[str, ...] = ()
    licence: Literal["yes", "unknown"] = "yes"
    answered: Answered | None = None
    answer_id: str = ""


class PeoplesAnswers:
    """The answers that people gave, for one run."""

    def __init__(self, record: Record, settings: DistillSettings) -> None:
        self._record, self._settings = record, settings
        self._written: Mapping[str, Answer] = newest_answers(record, AnswerAuthor.OPERATOR)
        self._approved = newest_approved(record)
        rests = any(each.passages for some in self._approved.values() for each in some)
        self._handbook = Handbook.load(settings.handbook.path) if rests and settings.handbook else None
        self._question_turns = (
            {each.decision_id: each.question_turn_id for each in decisions(record)} if self._written else {}
        )

    def given(self, row: ChosenRow) -> Given | None:
        """Return what people answered: an operator's newest answer, else the newest approved one, else an operator's reply."""
        written = self._written.get(row.decision_id)
        if written is not None and (written.content or written.extra_json):
            redacted = self._redacted(row, written)
            return Given(
                teacher=PEOPLE,
                author=AnswerAuthor.OPERATOR,
                text=redacted.content,
                finish_reason="stop",
                extra_json=redacted.extra_json,
                passages=written.passages,
                answer_id=written.answer_id,
            )
        for approved in self._approved.get(row.decision_id, []):
            licence = licence_of_answer(approved, self._settings)
            if licence and self._still_rests(approved):
                return Given(
                    teacher=approved.author_name,
                    author=approved.author,
                    text=approved.content,
                    finish_reason="stop",
                    extra_json=approved.extra_json,
                    passages=approved.passages,
                    licence=licence,
                    answer_id=approved.answer_id,
                )
        if row.logged is not None and row.logged.author is Author.OPERATOR and (row.logged.content or row.logged.extra_json):
            return _logged(row, PEOPLE, "yes")
        return None

    def _redacted(self, row: ChosenRow, written: Answer) -> ChatMessage:
        """Return an operator's answer with the placeholders that the conversation up to its question has."""
        branch: list[log.Turn] = []
        question = self._question_turns.get(row.decision_id)
        if question is not None:
            branch = log.branch_to(log.all_turns(self._record, row.conversation_id), question)
        spoken = [SpokenTurn(turn.role, turn.status, turn.content, turn.extra_json) for turn in branch]
        redactor = Redactor(self._settings.redaction.rules, second_pass(self._settings.redaction))
        messages_for_model(spoken, system_prompt=self._settings.prompt.system, redactor=redactor)
        return redacted_as_known(redactor, ChatMessage(Role.ASSISTANT, written.content, written.extra_json))

    def _still_rests(self, answer: Answer) -> bool:
        """Tell whether the handbook still has what an answer rests on; one that was approved before a change is asked anew."""
        return self._handbook is None or set(answer.passages) <= self._handbook.passages.keys()


def licence_of_answer(answer: Answer, settings: DistillSettings) -> Literal["yes", "unknown"] | None:
    """Return what is known of the licence of an answer in the record, None where nothing of its teacher's may be learnt."""
    of_a_teacher = answer.author is AnswerAuthor.TEACHER or answer.author_name in settings.teachers
    if answer.author is AnswerAuthor.OPERATOR or not of_a_teacher:
        return "yes"
    table = settings.teachers.get(answer.author_name)
    licence = table.licence_allows_training if table else "unknown"
    if licence == "no" or (licence == "unknown" and not settings.teach.allow_unknown_licence):
        return None
    return licence


def logged_answer(row: ChosenRow, name: str, table: TeacherTable) -> Given | None:
    """Return the reply that stands in the log, where its author is one of those that this teacher gives."""
    if row.logged is None or row.logged.author.value not in table.logged_authors:
        return None
    if not (row.logged.content or row.logged.extra_json):
        return None
    return _logged(row, name, licence_of(table))


def licence_of(table: TeacherTable) -> Literal["yes", "unknown"]:
    """Return what is known of a teacher's licence; one that says no is never asked."""
    assert table.licence_allows_training != "no"
    return table.licence_allows_training


def _logged(row: ChosenRow, teacher: str, licence: Literal["yes", "unknown"]) -> Given:
    assert row.logged is not None
    return Given(
        teacher=teacher,
        author=AnswerAuthor.LOGGED,
        text=row.logged.content,
        finish_reason="stop",
        extra_json=row.logged.extra_json,
        licence=licence,
    )
