"""How texts are cut for the search index, so that every script and sign can be found.

In: a text. Out: the text as the index reads it: characters of scripts that put no spaces between words stand alone, and a
picture such as an emoji becomes a word. SQLite calls this while it writes the index, and a query goes through it too. What it
returns for a text must never change without a migration that builds the index anew.
"""

import re
import unicodedata

# Thai and Lao, Burmese, Khmer, Chinese and Japanese, Korean.
_STANDS_ALONE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
# Pictures, and the rarer Chinese characters: SQLite's table of characters is older than many of them, so their number stands
# for them, behind a private character that the index takes for a letter.
_NUMBERED = re.compile("[\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\U00020000-\U0003ffff]")
_MARK = "\uf8ff"


def search_words(text: str) -> str:
    """Return the text as the index reads it. Plain text comes back as it is."""
    if text.isascii():
        return text
    # Letters that have several forms in one: ß and ss, the ligature of fi, full width, Georgian capitals.
    plain = unicodedata.normalize("NFKC", text).casefold()
    alone = _STANDS_ALONE.sub(r" \g<0> ", plain)
    return _NUMBERED.sub(lambda found: f" {_MARK}{ord(found.group()):x} ", alone)


def is_indexed(word: str) -> bool:
    """Tell whether the index holds anything of a word; bare signs such as `--` it does not."""
    return any(unicodedata.category(character)[0] in "LN" or character == _MARK for character in search_words(word))
