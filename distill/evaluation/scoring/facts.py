"""What an answer says: facts stated, facts got wrong, questions declined.

In: one answer, the labels of its decision, the question and the handbook. Out: numbers between 0 and 1 for the metrics that apply.

Fact accuracy of an answer is hits / (expected + wrong): the expected facts that it states, over all expected facts plus the
wrong things that it states (the threat score of forecasting, also called critical success index or Jaccard index). An answer
that lists every fact of the handbook scores near nothing, and a fact whose value the customer has said is not expected, so
copying the question gains nothing.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distill.evaluation.scoring.metric import Metric
from distill.rows import FactRow, LabelsRow

# A number with what belongs to it (4.5, 1,200, 10:30), or a code such as LT-38. Not the "1." of a list.
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,:]\d+)*(?![\w])")
_UNIT_NUMBER = re.compile(
    r"(?<![\w.,])(\d+(?:[.,:]\d+)*)(?=(?:st|nd|rd|th|s|ms|h|am|pm|gb|mb|kb|ghz|mhz|m|cm|km|min|w)\b)", re.I
)
_CODE = re.compile(r"\b[A-Z]{1,5}-\d+[A-Z0-9]*\b")
_LIST_MARK = re.compile(r"(?m)^\s*(?:\d+[.)]|[-*•])\s+")
_SMALL_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve
    thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_TENS = {"twenty": "20", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "ninety": "90"}
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_SMALL_NUMBERS.split())} | _TENS
# "one" and "two" are said of anything ("one moment", "two options"); below three a word is no claim.
_SMALLEST_WORD_NUMBER = 3


@dataclass(frozen=True)
class Yardstick:
    """What answers are held against: every fact of the handbook, the text of each article, and the words that decline."""

    facts: Mapping[str, FactRow]
    article_texts: Mapping[str, str]
    declining_phrases: tuple[str, ...]


def fact_scores(answer: str, *, labels: LabelsRow, question: str, yardstick: Yardstick) -> dict[Metric, float]:
    """Score one answer by the metrics that its labels allow. `question` holds every message of the customer up to the answer."""
    if labels.answerable is None:
        return {}
    declined = float(declines(answer, yardstick.declining_phrases))
    wrong = wrong_statements(answer, labels=labels, question=question, yardstick=yardstick)
    if not labels.answerable:
        return {
            Metric.UNANSWERABLE_DECLINED_RATE: declined,
            Metric.UNANSWERABLE_WRONG_FACT_RATE: float(bool(wrong)),
        }
    scores = {Metric.DECLINED_RATE: declined, Metric.WRONG_FACT_RATE: float(bool(wrong))}
    if labels.facts:
        hits = sum(states(answer, fact) for fact in labels.facts)
        scores[Metric.FACT_ACCURACY] = hits / (len(labels.facts) + len(wrong))
    return scores


def states(answer: str, fact: FactRow) -> bool:
    """Tell whether an answer states a fact."""
    text = normalise(answer)
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in fact.match)


def declines(answer: str, phrases: Iterable[str]) -> bool:
    """Tell whether an answer says that it does not know."""
    text = normalise(answer).casefold()
    return any(normalise(phrase).casefold() in text for phrase in phrases)


def wrong_statements(answer: str, *, labels: LabelsRow, question: str, yardstick: Yardstick) -> tuple[str, ...]:
    """Return the concrete things an answer states that neither the right articles nor the customer say.

    Concrete are numbers, codes, and the facts of other articles.
    """
    allowed = normalise(" ".join([question, *(yardstick.article_texts.get(name, "") for name in labels.articles)]))
    known = concrete_values(allowed)
    wrong = [value for value in sorted(concrete_values(answer)) if value not in known]
    for fact_id, fact in yardstick.facts.items():
        if fact_id.partition(".")[0] in labels.articles:
            continue
        # A fact that is a number has been counted as one.
        if states(answer, fact) and not states(allowed, fact) and not concrete_values(fact.says):
            wrong.append(fact_id)
    return tuple(wrong)


def concrete_values(text: str) -> frozenset[str]:
    """Return the numbers and codes that a text states, written one way (4,50 and 4.50 and 4.5 are the same)."""
    plain = _LIST_MARK.sub("", normalise(text))
    values = set(_CODE.findall(plain))
    plain = _CODE.sub(" ", plain)
    values |= {_one_way(found.group()) for found in _NUMBER.finditer(plain)}
    values |= {_one_way(found.group(1)) for found in _UNIT_NUMBER.finditer(plain)}
    for word in re.findall(r"[a-z]+", plain.lower()):
        number = _NUMBER_WORDS.get(word)
        if number is not None and int(number) >= _SMALLEST_WORD_NUMBER:
            values.add(number)
    return frozenset(values)


def normalise(text: str) -> str:
    """Return a text in one writing: NFKC, straight quotes, plain hyphens, single spaces within lines."""
    plain = unicodedata.normalize("NFKC", text)
    plain = re.sub("[\u2018\u2019\u02bc]", "'", plain)
    plain = re.sub("[\u2010-\u2015\u2212]", "-", plain)
    return re.sub(r"[^\S\n]+", " ", plain)


def _one_way(number: str) -> str:
    decimal = re.fullmatch(r"(\d+)[.,](\d{1,2})", number)
    if decimal:
        fraction = decimal.group(2).rstrip("0")
        return f"{int(decimal.group(1))}.{fraction}" if fraction else str(int(decimal.group(1)))
    digits = number.replace(",", "").replace(".", "")
    return str(int(digits)) if digits.isdigit() else number
