"""How texts are cut for the search index, so that every script and sign can be found.

In: a text. Out: the same text with spaces around each sign that is a word of its own: characters of scripts that put no spaces
between words, and emoji. SQLite calls this while it writes the index, and a query goes through it too. What it returns for a
text must never change without a migration that builds the index anew.
"""

import re

# Thai and Lao, Burmese, Khmer, Chinese and Japanese, Korean, the rarer Chinese characters; then emoji and other pictures.
_WORD_OF_ITS_OWN = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3005-\u3007\u3021-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
    "\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
)


def search_words(text: str) -> str:
    """Return the text as the index reads it. Plain text comes back as it is."""
    return text if text.isascii() else _WORD_OF_ITS_OWN.sub(r" \g<0> ", text)
