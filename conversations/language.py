"""Which language a customer writes, so that operators can look at one language at a time.

In: what the customer has said so far. Out: an ISO 639-1 code, or "" where the words are too few to tell. Runs on this machine
with the naive Bayes model of the package py3langid; the model is loaded with the first text, in about half a second.
"""

import logging
from functools import lru_cache
from typing import Protocol

MIN_CHARACTERS = 12
MIN_PROBABILITY = 0.6
# Enough to tell, and a bound on the time that a very long message takes.
_READ_CHARACTERS = 300
# The model knows 97; the rare ones win on slang and log lines. These are the languages of most support desks.
_LANGUAGES = (
    "ar", "bg", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "lt",
    "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip

_log = logging.getLogger(__name__)


class _Identifier(Protocol):
    def classify(self, text: str) -> tuple[str, float]: ...


def language_of(text: str) -> str:
    """Return the language's code, or "" where the text is too short or could be one of several."""
    start = " ".join(text[:_READ_CHARACTERS].split())
    letters = sum(map(str.isalpha, start))
    # A sign of Chinese or Japanese says as much as a word.
    dense = sum(character > "\u2e7f" for character in start)
    if letters < MIN_CHARACTERS and dense < 3:
        return ""
    try:
        code, probability = _identifier().classify(start)
    except OSError as error:
        # The package unpacks its model into a temporary file first. What a customer says is kept all the same.
        _log.warning("the language of a conversation stays unknown: the model cannot be loaded: %s", error)
        return ""
    return code if probability >= MIN_PROBABILITY else ""


@lru_cache(maxsize=1)
def _identifier() -> _Identifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(_LANGUAGES))
    return identifier  # type: ignore[no-any-return]
