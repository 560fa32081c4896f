"""Leaks: an answer that tells what was never said in its own conversation, of a person.

In: answers with their evidence, and the rows that the student has learned. Out: what an answer gives away, or None. Two things are
looked for: personal data, by the recognisers that redact and verify; and the words of another customer, a run of eight that stands
in a customer's message of the training rows and neither in an answer that was taught, nor in the handbook, nor in the answer's own
prompt. Reads every training row once, and holds in memory what the answers say, not what the rows do.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from conversations.messages import Role
from distill.dataset.handbook.study import TEACHER as HANDBOOK_ITSELF
from distill.dataset.similarity import words
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.forms import personal_data
from distill.rows import DatasetRow

STOLEN_RUN_WORDS = 8

WordRun = tuple[str, ...]


def leak_in(evidence: Evidence, stolen: frozenset[WordRun]) -> str | None:
    """Return what an answer gives away of a person; `stolen` is what `stolen_runs` found for all answers."""
    kind = personal_data_in(evidence)
    if kind is not None:
        return kind
    said = [run for run in word_runs(evidence.answer.text) if run in stolen]
    if not said:
        return None
    own = set(word_runs(evidence.asked))
    return next((" ".join(run) for run in said if run not in own), None)


def personal_data_in(evidence: Evidence) -> str | None:
    """Return the kind of the first personal data in an answer that neither the company prints nor its own conversation holds."""
    # Conversations are redacted, but files of examples may hold such things in the open.
    return personal_data(replace(evidence, own_words=f"{evidence.own_words}\n{evidence.asked}"))


def stolen_runs(answers: Iterable[str], learned: Iterable[DatasetRow], printed: Iterable[str]) -> frozenset[WordRun]:
    """Return the runs of words in answers that only customers have said, as far as the student has learned.

    `learned` are the training rows, whose last message is what was taught; `printed` is what the company itself says.
    """
    suspected = {run for answer in answers for run in word_runs(answer)}
    of_customers: set[WordRun] = set()
    of_ours = {run for text in printed for run in word_runs(text) if run in suspected}
    seen: set[int] = set()
    for is_customers, text in _said_in(learned):
        # Every row of a conversation holds its earlier turns again.
        if hash((is_customers, text)) in seen:
            continue
        seen.add(hash((is_customers, text)))
        found = (run for run in word_runs(text) if run in suspected)
        (of_customers if is_customers else of_ours).update(found)
    return frozenset(of_customers - of_ours)


def _said_in(rows: Iterable[DatasetRow]) -> Iterator[tuple[bool, str]]:
    """Yield what customers say in rows and what is ours to say, with whether it is a customer's."""
    for row in rows:
        # The questions of a handbook's study are its own sentences.
        is_study = row.teacher == HANDBOOK_ITSELF
        yield False, row.messages[-1].content
        for message in row.messages[:-1]:
            if message.role in (Role.USER, Role.SYSTEM):
                yield message.role is Role.USER and not is_study, message.content


def word_runs(text: str) -> list[WordRun]:
    """Return every run of eight words of a text, without case and punctuation."""
    said: Sequence[str] = words(text)
    return [tuple(said[start : start + STOLEN_RUN_WORDS]) for start in range(len(said) - STOLEN_RUN_WORDS + 1)]
