"""Names of people from a list that the operator keeps, such as the customers of the company's address book.

In: a text in plain characters. Out: the spans of listed names as whole words. It does not guess: a name that is not listed, and a
form of it that is not listed (Олена, Олени), stays.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

_WORD = re.compile(r"[^\W\d_]+(?:['’ʼ-][^\W\d_]+)*")


class NameList:
    """Finds the names of a list; the time depends on the text, not on how many names are listed."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first_word: dict[str, list[tuple[str, ...]]] = {}
        for name in names:
            words = tuple(_WORD.findall(name))
            if words:
                self._by_first_word.setdefault(words[0].casefold(), []).append(words)
        for listed in self._by_first_word.values():
            listed.sort(key=len, reverse=True)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the names, the longest at each place.

        A name of several words is found in any case; one word alone only as it is listed or in capitals, because names such
        as Mark and May are words too.
        """
        if not self._by_first_word:
            return
        words = list(_WORD.finditer(text))
        place = 0
        while place < len(words):
            for name in self._by_first_word.get(words[place].group().casefold(), ()):
                if _stands_at(words, place, name, text):
                    yield words[place].start(), words[place + len(name) - 1].end()
                    place += len(name) - 1
                    break
            place += 1


def _stands_at(words: list[re.Match[str]], place: int, name: tuple[str, ...], text: str) -> bool:
    said = words[place : place + len(name)]
    if len(said) < len(name):
        return False
    if len(name) == 1:
        return said[0].group() in (name[0], name[0].upper())
    gaps = (text[one.end() : two.start()] for one, two in pairwise(said))
    return all(gap.strip(" .") == "" for gap in gaps) and all(
        one.group().casefold() == other.casefold() for one, other in zip(said, name, strict=True)
    )
