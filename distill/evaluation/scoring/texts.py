"""How near an answer is to texts that are right: exact match, F1 of words, BLEU, ROUGE, chrF, a label, a final number.

In: an answer and the right answers, or the teacher's. Out: numbers from 0 to 1. Of several right answers the best one counts, but
for BLEU, which is defined on all of them together. The libraries that define a measure compute it: sacrebleu for BLEU and chrF,
rouge-score for ROUGE. None of them is loaded before it is needed.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from distill.dataset.verifying.tasks import final_number, label_of
from distill.evaluation.scoring.facts import normalise

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")
# rouge-score stems longer words only.
_LONGEST_UNSTEMMED = 3


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 where an answer is one of the right ones, in SQuAD's normal form (Rajpurkar et al. 2016), else 0."""
    return _best(answer, references, lambda said, right: float(squad_form(said) == squad_form(right)))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of the words of an answer and of a right one, in SQuAD's normal form (Rajpurkar et al. 2016).

    Of two texts one of which has no words left, both must have none (SQuAD 2.0).
    """
    return _best(answer, references, _f1)


def _f1(said: str, right: str) -> float:
    ours, theirs = squad_form(said).split(), squad_form(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    # 2pr / (p + r), with p = shared / ours and r = shared / theirs.
    return 2 * shared / (len(ours) + len(theirs))


def squad_form(text: str) -> str:
    """Return a text in lower case without punctuation, English articles and needless spaces, as SQuAD's own script makes it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def nli_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return 1 where an answer is the right label and nothing else, else 0."""
    return _best(answer, references, lambda said, right: float(label_of(said) == label_of(right)))


def math_accuracy(answer: str, references: Sequence[str]) -> float | None:
    """Return 1 where an answer ends in the right number, else 0; None where no right answer has a number."""
    right = {number for each in references if (number := final_number(each)) is not None}
    return float(final_number(answer) in right) if right else None


def bleu(answer: str, references: Sequence[str]) -> float:
    """Return BLEU of one sentence with effective order (Papineni et al. 2002, as sacrebleu computes it), 0 to 1.

    For reading rows; a report gives the BLEU of the whole test set too, which is not the mean of these.
    """
    from sacrebleu.metrics import BLEU

    # A root of whole numbers may pass 1 by a rounding.
    return min(1.0, float(BLEU(effective_order=True).sentence_score(answer, list(references)).score) / 100)


def rouge(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """Return the best F of ROUGE-1 and of ROUGE-L, with stemming (Lin 2004, as rouge-score computes it), 0 to 1."""
    found = [_rouge_scorer().score(normalise(right), normalise(answer)) for right in references]
    return (
        max((float(each["rouge1"].fmeasure) for each in found), default=0.0),
        max((float(each["rougeL"].fmeasure) for each in found), default=0.0),
    )


def likeness(answer: str, reference: str) -> float:
    """Return chrF between an answer and the teacher's, 0 to 1 (Popović 2015, as sacrebleu computes it)."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(answer, [reference]).score) / 100


def _best(answer: str, references: Sequence[str], measure: Callable[[str, str], float]) -> float:
    return max((measure(answer, right) for right in references), default=0.0)


@cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], tokenizer=_RougeWords())


class _RougeWords:
    """Words as rouge-score's own tokenizer makes them of English, and words at all of other writing, which that one drops."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        return [
            str(self._stemmer.stem(word)) if len(word) > _LONGEST_UNSTEMMED and word.isascii() else word
            for word in _WORD.findall(text.lower())
        ]
