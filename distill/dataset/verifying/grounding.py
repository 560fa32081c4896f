"""Grounding: whether an answer says what the handbook says, and nothing that it does not.

In: the evidence, with what the passages say that the answer rests on. Out: what contradicts them, or what they do not hold. Precise
rather than broad: a number is compared with its unit, and a denial only with a sentence that is nearly the same.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.dataset.handbook.articles import sentences
from distill.dataset.similarity import words
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.knowledge import Knowledge, Said, content_of
from distill.dataset.verifying.quantities import Quantity, bare_values, links, plain, quantities, without_links
from distill.dataset.verifying.refusals import declines
from distill.rows import Task

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

# How like a handbook's sentence an answer's must be before their difference is a contradiction.
_SAME_STATEMENT_JACCARD = 0.75
_SAME_MATTER_SHARE = 0.5
_MIN_SHARED_WORDS = 2
_MIN_STATEMENT_WORDS = 3
_SUPPORTED_SHARE = 0.6
_SUPPORTED_COSINE = 0.65
_MIN_SUBSTANCE_WORDS = 3
_DEPENDS = re.compile(r"\b(?:if|unless|except|when|until|otherwise|whether|wenn|falls|si|якщо)\b|[?;]", re.IGNORECASE)
_OPPOSITES = tuple(
    (content_of([first]), content_of([second]))
    for first, second in (
        ("before", "after"), ("minimum", "maximum"), ("least", "most"), ("more", "less"), ("allowed", "forbidden"), ("open", "close"),
        ("left", "right"), ("included", "excluded"), ("free", "paid"), ("increase", "decrease"), ("weekdays", "weekends"),
        ("morning", "evening"), ("always", "sometimes"), ("required", "optional"), ("possible", "impossible"), ("lock", "unlock"),
    )
)  # fmt: skip
_COURTESY = content_of(
    words(
        "thank thanks sorry welcome hello hi happy glad help helping let know else anything question questions "
        "further contact reach "
        "feel free understand frustration patience inconvenience apologize apologies day nice great write again "
        "moment check look "
        "sure course certainly absolutely okay yes hope helps need something colleague pass passing person"
    )
)


def contradicts_handbook(evidence: Evidence) -> str | None:
    """Look for a quantity that the handbook gives otherwise, or a sentence that denies or reverses one of its own."""
    if evidence.allowed is None or not _is_grounded(evidence):
        return None
    text = without_links(plain(evidence.answer.text))
    for sentence in map(Said.of, sentences(text)):
        for quantity in sentence.counted:
            other = _given_otherwise(quantity, sentence, evidence.allowed, evidence)
            if other:
                return f"{quantity.said!r}, where the handbook says: {other}"
        denied = _denied(sentence, evidence.allowed)
        if denied:
            return f"{sentence.text[:80]!r}, where the handbook says: {denied}"
    return None


def unsupported_by_handbook(evidence: Evidence) -> str | None:
    """Look for numbers, codes and links, or for whole sentences, that neither the handbook nor the conversation holds."""
    if evidence.allowed is None or not _is_grounded(evidence):
        return None
    for key, link in links(evidence.answer.text).items():
        if key not in evidence.allowed.links and key not in evidence.heard.links:
            return link
    text = without_links(plain(evidence.answer.text))
    loose = next((each.said for each in quantities(text) if not _is_known(each, evidence)), None)
    if loose:
        return loose
    missing = sorted(bare_values(text) - evidence.allowed.values)
    return next((value for value in missing if value not in evidence.heard.values), None)


def unsupported_sentence(evidence: Evidence, passages: Knowledge, embed: Embed) -> str | None:
    """Look for a sentence of substance that no sentence of the passages says, by its words or by its meaning."""
    if not _is_grounded(evidence) or declines(evidence.answer.text, evidence.table.declining_phrases):
        return None
    doubtful = []
    for sentence in sentences(evidence.answer.text):
        substance = content_of(words(sentence)) - _COURTESY
        if len(substance) < _MIN_SUBSTANCE_WORDS or sentence.endswith("?"):
            continue
        known = passages.stems | evidence.heard.stems
        if len(substance & known) / len(substance) < _SUPPORTED_SHARE:
            doubtful.append(sentence)
    if not doubtful:
        return None
    likeness = embed(doubtful) @ embed([each.text for each in passages.sentences]).T
    return next((each for each, best in zip(doubtful, likeness.max(axis=1), strict=True) if best < _SUPPORTED_COSINE), None)


def fits(text: str, passages: Knowledge) -> bool:
    """Tell whether a text says what the passages say, by its words of content."""
    said = content_of(words(text))
    return bool(said) and len(said & passages.stems) / len(said) >= _SUPPORTED_SHARE


def _is_grounded(evidence: Evidence) -> bool:
    return evidence.row.task in (Task.CONVERSATION, Task.QA)


def _is_known(quantity: Quantity, evidence: Evidence) -> bool:
    """Tell whether a quantity stands in the handbook or in the conversation, as it is, in other units or as a "
    "mere number."""
    assert evidence.allowed is not None
    if not quantity.is_claim:
        return True
    known = (evidence.allowed, evidence.heard)
    return any(quantity.key in each.counted or quantity.value in each.values for each in known)


def _given_otherwise(quantity: Quantity, sentence: Said, allowed: Knowledge, evidence: Evidence) -> str | None:
    """Return the handbook's sentence that gives another amount of the same sort in the same matter."""
    if not quantity.is_claim or quantity.key in allowed.counted or quantity.key in evidence.heard.counted:
        return None
    if quantity.value in evidence.heard.values:
        return None
    if quantity.value in allowed.values and (quantity.dimension, quantity.value) not in allowed.units_of:
        return None
    for share, known in allowed.most_like(sentence):
        is_same_matter = share >= _SAME_MATTER_SHARE and len(sentence.stems & known.stems) >= _MIN_SHARED_WORDS
        if is_same_matter and any(each.dimension == quantity.dimension for each in known.counted):
            return known.text
    return None


def _denied(sentence: Said, allowed: Knowledge) -> str | None:
    """Return the handbook's sentence that says the same with the opposite sign, unless another one agrees as well."""
    if len(sentence.stems) < _MIN_STATEMENT_WORDS or _DEPENDS.search(sentence.text):
        return None
    agreed, opposed = 0.0, (0.0, "")
    for _, known in allowed.most_like(sentence):
        likeness = len(sentence.stems & known.stems) / len(sentence.stems | known.stems)
        apart = sentence.stems ^ known.stems
        reversed_ = any(len(apart) == 2 and apart == first | second for first, second in _OPPOSITES)
        if _DEPENDS.search(known.text):
            # What holds under a condition, or is asked, denies nothing; it may well agree.
            agreed = max(agreed, likeness)
        elif sentence.denies is not known.denies or reversed_:
            opposed = max(opposed, (1.0 if reversed_ else likeness, known.text))
        else:
            agreed = max(agreed, likeness)
    return opposed[1] if opposed[0] >= _SAME_STATEMENT_JACCARD and opposed[0] > agreed else None
