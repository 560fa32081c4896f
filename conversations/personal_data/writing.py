"""The ways of writing one character: full-width, Arabic-Indic and circled digits, dashes, no-break spaces, invisible characters.

In: a text as a customer wrote it. Out: the same in plain characters, for the recognisers to read, and the way back to the places
in the text itself. Nobody is ever shown the plain form.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

# Stands where something was found already; no pattern reads across it.
TAKEN = "\x00"
# Variation selectors and the frame of a keycap, which turn a digit into a picture of it.
_DECORATION = frozenset("\ufe0e\ufe0f\u20e3")
# Cyrillic letters in the place of Latin ones, as a Ukrainian keyboard puts them into a code: УА for UA.
LOOKALIKES: Mapping[int, int] = str.maketrans("АВСЕНІКМОРТХУасеіорху", "ABCEHIKMOPTXUaceiopxu")


@dataclass(frozen=True)
class Writing:
    """A text in plain characters. `places` are where they stand in the original; None where nothing moved."""

    plain: str
    places: tuple[int, ...] | None

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the original of a span of the plain text, which must not be empty."""
        if self.places is None:
            return start, end
        return self.places[start], self.places[end - 1] + 1


def read(text: str) -> Writing:
    """Return the text in plain characters; linear in its length."""
    if text.isascii():
        return Writing(text, None)
    plain: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if one := _plain(character):
            plain.append(one)
            places.append(place)
    return Writing("".join(plain), tuple(places))


def without(text: str, start: int, end: int) -> str:
    """Return the text, as long as before, with a span marked as taken."""
    return text[:start] + TAKEN * (end - start) + text[end:]


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """Return the plain form of a character, which is one character long, or empty for one that cannot be seen."""
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Cf" or character in _DECORATION:
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or character == "\N{MINUS SIGN}":
        return "-"
    if category in ("Zs", "Zl", "Zp"):
        return " "
    if character in "。｡":
        return "."
    folded = unicodedata.normalize("NFKC", character)
    return folded if len(folded) == 1 else character
