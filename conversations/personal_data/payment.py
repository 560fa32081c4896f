"""Payment cards and IBANs, however they are grouped; the checksums decide (Luhn, ISO/IEC 7812-1; mod 97, ISO 13616).

In: a text in plain characters. Out: the spans of what checks. A number that fails its checksum is not taken, so that order numbers
stay readable.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from stdnum import iban, luhn, numdb
from stdnum.iso7064 import mod_97_10

from conversations.personal_data.writing import LOOKALIKES, without

# Digits with up to three separators between two of them, newlines among these.
_SEQUENCE = re.compile(r"\d(?:[ \t\r\n._/|·•,:*()-]{0,3}\d){12,}")
_GROUP = re.compile(r"\d+")
_LONG_RUN = re.compile(r"\d{20,}")
_CARD_LENGTHS = range(13, 20)
# Numbers that the card schemes give out, by their first digits and length.
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}(?:\d{3})?|3[47]\d{13}|3(?:0[0-59]|[689]\d)\d{11}|35\d{14}|9792\d{12}"
    r"|(?:50|5[6-9]|6\d)\d{11,17}"
)
_ISSUED_START = re.compile(
    r"(?=(4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|6\d{15}|35\d{14}|3[47]\d{13}|3(?:0[0-59]|[689]\d)\d{11}))"
)
# Fourteen digits that begin with a date are a time stamp.
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
_DECIMAL_BEFORE = re.compile(r"(?<!\d)\d{1,3}[.,]\Z")

_IBAN_START = re.compile(r"[A-Z]{2}[ \t\r\n.-]{0,3}\d[ \t\r\n.-]{0,3}\d", re.IGNORECASE)
_IBAN_SEPARATORS = frozenset(" \t\r\n.-")
_IBAN_WHOLE = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}[A-Z0-9]{11,30}(?![A-Z0-9])", re.IGNORECASE)
_LONGEST_IBAN = 34
_MOST_SEPARATORS = 3


def card_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the card numbers of 13 to 19 digits."""
    for run in _LONG_RUN.finditer(text):
        for start, end in _cards_inside(text, *run.span()):
            text = without(text, start, end)
            yield start, end
    for found in _SEQUENCE.finditer(text):
        groups = [group.span() for group in _GROUP.finditer(text, *found.span())]
        first = 0
        while first < len(groups):
            last = _last_group_of_card(text, groups, first)
            if last is not None:
                yield groups[first][0], groups[last][1]
                first = last + 1
                continue
            inside = list(_cards_inside(text, *groups[first]))
            yield from inside
            rest = (inside[-1][1] if inside else groups[first][1], groups[first][1])
            if rest[0] < rest[1]:
                # What another card's first group may be.
                groups[first] = rest
            else:
                first += 1


def iban_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the account numbers; letters and words may touch them, as in `IBANDE89…` and `…3000EUR`."""
    text = text.translate(LOOKALIKES)
    end_of_last = 0
    for found in _IBAN_START.finditer(text):
        places = _iban_places(text, found.start())
        code = "".join(text[place] for place in places).upper()
        length = _iban_length(code[:2])
        if found.start() < end_of_last or length is None or not iban.is_valid(code[:length], check_country=False):
            continue
        end = places[length - 1] + 1
        is_stuck = found.start() > 0 and text[found.start() - 1].isalpha()
        if not is_stuck or not re.search(r"[.-]", text[found.start() : end]):
            end_of_last = end
            yield found.start(), end_of_last
    for found in _IBAN_WHOLE.finditer(text):
        code = found.group().upper()
        if mod_97_10.is_valid(code[4:] + code[:4]):
            yield found.span()


def _last_group_of_card(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """Return with which group a card ends that begins with the group `first`; the longest one counts."""
    longest: int | None = None
    digits = ""
    for last in range(first, len(groups)):
        digits += text[slice(*groups[last])]
        if len(digits) > _CARD_LENGTHS[-1]:
            break
        if len(digits) in _CARD_LENGTHS and luhn.is_valid(digits) and _is_card_shaped(text, groups, first, last, digits):
            longest = last
    return longest


def _is_card_shaped(text: str, groups: list[tuple[int, int]], first: int, last: int, digits: str) -> bool:
    """Tell whether the groups look like one number: they stand alone, or are even and begin as a scheme's cards do."""
    is_issued = _ISSUED.fullmatch(digits) is not None
    if first == last:
        return is_issued or not (
            _DATE.match(digits) or _DECIMAL_BEFORE.search(text[max(0, groups[first][0] - 5) : groups[first][0]])
        )
    gaps = {text[one[1] : two[0]] for one, two in zip(groups[first:last], groups[first + 1 : last + 1], strict=True)}
    around = {
        text[groups[first - 1][1] : groups[first][0]] if first else None,
        text[groups[last][1] : groups[last + 1][0]] if last + 1 < len(groups) else None,
    }
    sizes = [end - start for start, end in groups[first : last + 1]]
    is_even = (len(set(sizes[:-1])) == 1 and (len(sizes) > 2 or sizes[0] == sizes[1])) or sizes[:-1] == [4, 6]
    is_decimal = last == first + 1 and gaps == {"."}
    is_apart = not gaps & around and not is_decimal and (is_even or all(len(gap) == 1 for gap in gaps))
    if is_issued:
        return is_apart or is_even
    return is_apart and is_even and sizes[0] > 2 and not _DATE.match(digits)


def _cards_inside(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield cards within a run of digits too long for one: anywhere in 20 digits or more, else at the beginning.

    So a card is found that its expiry date and its security code were stuck to.
    """
    is_long = end - start > _CARD_LENGTHS[-1]
    place = start
    while found := _ISSUED_START.search(text, place, end) if is_long else _ISSUED_START.match(text, place, end):
        if end - start > len(found.group(1)) and luhn.is_valid(found.group(1)):
            yield found.span(1)
            place = found.end(1)
        else:
            place = found.start() + 1
        if not is_long:
            return


def _iban_places(text: str, start: int) -> list[int]:
    """Return where the letters and digits stand that may be an account number, 34 at most."""
    places: list[int] = []
    gap = 0
    for place in range(start, len(text)):
        character = text[place]
        if character.isascii() and character.isalnum():
            places.append(place)
            gap = 0
        elif character in _IBAN_SEPARATORS and gap < _MOST_SEPARATORS:
            gap += 1
        else:
            break
        if len(places) == _LONGEST_IBAN:
            break
    return places


@lru_cache(maxsize=1024)
def _iban_length(country: str) -> int | None:
    """Return how long a country's account numbers are, from python-stdnum's copy of the registry."""
    structure = str(numdb.get("iban").info(country)[0][1].get("bban", ""))
    length = sum(int(size) for size in re.findall(r"(\d+)!", structure))
    return 4 + length if length else None
