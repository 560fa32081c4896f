"""Honest refusals: a question that the handbook does not answer is taught as "I don't know" with the offer of a person.

In: decisions whose answer verify rejected for saying what the handbook does not. Out: those of them that the handbook has no
answer to, no more than their share. It teaches nothing of its own: the words are the settings'. Test decisions are never touched.
"""

import hashlib
from collections.abc import Iterable, Sequence

from conversations.language import language_of
from distill.dataset.handbook.answering import DECLINED, HandbookTeacher
from distill.dataset.handbook.articles import Handbook
from distill.dataset.similarity import load_embedder
from distill.dataset.verifying.reasons import Against
from distill.rows import ChosenRow
from distill.settings import DistillSettings, handbook_vectors

TEACHER = "honest refusal"
UNSUPPORTED = frozenset({Against.UNSUPPORTED_BY_HANDBOOK, Against.CONTRADICTS_HANDBOOK})


def honest_refusals(
    settings: DistillSettings, rows: Iterable[ChosenRow], *, answered: int, declined: int
) -> tuple[set[str], int]:
    """Return the decisions to be taught as not known, and how many more there were.

    `answered` and `declined` count the accepted answers: all that decline stay within [verify] max_declined_share of them.
    """
    text = settings.assemble.unknown_answer
    candidates = sorted(
        (row for row in rows if _is_understood(row, text, settings)),
        key=lambda row: hashlib.sha256(row.decision_id.encode()).digest(),
    )
    if not text or settings.handbook is None or not candidates:
        return set(), 0
    share = settings.verify.max_declined_share
    # declined / (declined + answered) <= share
    room = len(candidates) if share >= 1 else max(0, int(answered * share / (1 - share)) - declined)
    unknown = _unknown(
        candidates, HandbookTeacher(Handbook.load(settings.handbook.path), load_embedder(), handbook_vectors(settings))
    )
    return set(unknown[:room]), len(unknown[room:])


def _is_understood(row: ChosenRow, text: str, settings: DistillSettings) -> bool:
    """Tell whether the customer reads the language in which the settings decline."""
    if not settings.verify.same_language or not row.language:
        return True
    return row.language == (language_of(text) or row.language)


def _unknown(rows: Sequence[ChosenRow], teacher: HandbookTeacher) -> list[str]:
    return [
        row.decision_id for row in rows if teacher.answer([message.message() for message in row.messages]).text == DECLINED
    ]
