"""The second, heavier look for personal data: Presidio's recognisers over what the first pass has left.

In: the texts of a conversation, in `choose`, and the answers to be learnt, in `verify`. Out: spans of what the chat's own recognisers
overlook. It never runs in the chat, so the chat cannot put back what only this pass finds: such spans get kinds that the chat does
not know (`PERSON`, `SSN`, `EMAIL2`), and `verify` refuses answers that use them. Works without a network.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from conversations.errors import OperatorError
from conversations.personal_data.internet import is_version
from conversations.personal_data.phones import is_something_else
from conversations.personal_data.recognise import RedactionRules, Span
from conversations.redaction import SecondPass
from conversations.settings import RedactionTable

# Presidio's name of each sort, and ours.
ENTITIES = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "CRYPTO": "WALLET",
    "US_SSN": "SSN",
    "US_ITIN": "TAXNUMBER",
    "US_PASSPORT": "PASSPORT",
    "UK_PASSPORT": "PASSPORT",
    "UK_NINO": "INSURANCENUMBER",
    "IT_FISCAL_CODE": "TAXNUMBER",
    "ES_NIF": "TAXNUMBER",
    "PERSON": "PERSON",
}
_TEXTS_REMEMBERED = 20_000

Analyse = Callable[[str], Iterator[tuple[int, int, str]]]


def second_pass(table: RedactionTable) -> SecondPass | None:
    """Return the second pass as the settings want it, or None where they want none; the first call takes seconds.

    Raises OperatorError as `check_second_pass`.
    """
    if not table.second_pass:
        return None
    check_second_pass(table)
    return _opened(table.rules.kinds, table.regions, table.spacy_model)


def check_second_pass(table: RedactionTable) -> None:
    """Make sure, without loading anything, that what the second pass needs is installed.

    Raises OperatorError when Presidio or the named spaCy model is not.
    """
    if not table.second_pass:
        return
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise OperatorError(
            "[redaction] second_pass = true: the package presidio-analyzer is not installed; install support-bot[distill], or set "
            "second_pass = false to send what the first pass leaves"
        )
    model = table.spacy_model
    is_there = Path(model).is_dir() if "/" in model else model.isidentifier() and importlib.util.find_spec(model) is not None
    if model and not is_there:
        raise OperatorError(
            f"[redaction] spacy_model = {model!r}: no such spaCy model is installed; install its package on this machine "
            "(spaCy's documentation lists them), name a folder that holds one, or leave the key out to look for no names"
        )


@lru_cache(maxsize=4)
def _opened(kinds_of_chat: frozenset[str], regions: tuple[str, ...], spacy_model: str) -> SecondPass:
    """Load Presidio, once for each way of setting it up; it brings spaCy, and torch where that is installed."""
    from distill.dataset.presidio_engine import open_analyser

    analyse = open_analyser(tuple(ENTITIES), regions, spacy_model)
    names = {entity: _unknown_to_chat(kind, kinds_of_chat) for entity, kind in ENTITIES.items()}

    @lru_cache(maxsize=_TEXTS_REMEMBERED)
    def spans(text: str) -> tuple[Span, ...]:
        return tuple(Span(start, end, names[entity]) for start, end, entity in _sure(text, analyse(text)))

    return spans


def _unknown_to_chat(kind: str, kinds_of_chat: frozenset[str]) -> str:
    """Return the kind, with a number behind it where the chat has one of that name; so the chat's numbering stays what it is."""
    number = 2
    name = kind
    while name in kinds_of_chat:
        name, number = f"{kind}{number}", number + 1
    return name


def _sure(text: str, found: Iterator[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Leave out what the words beside it say is a version or an order number; Presidio does not look for those words."""
    for start, end, entity in found:
        is_other = (
            entity == "IP_ADDRESS" and (is_version(text, start, end) or not any(map(str.isdigit, text[start:end])))
        ) or (entity == "PHONE_NUMBER" and is_something_else(text, start))
        if not is_other:
            yield start, end, entity


def is_known_to_chat(kind: str, rules: RedactionRules) -> bool:
    """Tell whether the chat finds this kind itself, and so can put its placeholders back."""
    return kind in rules.kinds
