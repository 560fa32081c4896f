"""Numbers with what they count, written one way, so that 24 hours and a day are the same and 12 minutes and 12 hours are not.

In: text. Out: quantities, bare values and links as they can be compared. English, German, French, Spanish and Ukrainian units
are known. Knows nothing of answers or handbooks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9]*_\d+>")
_LIST_MARK = re.compile(r"^\s*\d{1,2}[.)]\s", re.MULTILINE)
# Counting, not claiming: steps of an instruction, and a saying.
_COUNTING = re.compile(r"\b(?:step|option|point|part|schritt|étape|etape|paso|крок)\s+\d{1,2}\b|\b24/7\b", re.IGNORECASE)
_VALUE = re.compile(r"\b[A-Z]+-?\d+\b|\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_GROUPED_WITH_DOTS = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+")
_LINK = re.compile(r"\b(?:https?://|www\.)[^\s<>()\[\]\"'`|]+", re.IGNORECASE)
_SCHEME = re.compile(r"\A(?:https?://)?(?:www\.)?", re.IGNORECASE)

_MINUTES = {
    1 / 60: "second seconds sec secs sekunde sekunden seconde secondes segundo segundos секунда секунди секунд",
    1: "minute minutes min mins minuten minuto minutos хвилина хвилини хвилину хвилин",
    60: "hour hours hr hrs h stunde stunden heure heures hora horas година години годину годин",
    1440: "day days tag tage tagen jour jours día días dia dias день дні днів дня",
    10080: "week weeks woche wochen semaine semaines semana semanas тиждень тижні тижнів",
    20160: "fortnight fortnights",
}
_MONTHS = {
    1: "month months monat monate monaten mois mes meses місяць місяці місяців місяця",
    12: "year years jahr jahre jahren ans année années año años рік роки років року",
}
_MONEY = {
    "EUR": "€ euro euros eur євро",
    "USD": "$ dollar dollars usd",
    "GBP": "£ pound pounds gbp",
    "UAH": "₴ грн гривня гривні гривень uah",
}
_OTHERS = {
    ("percent", 1.0): "% percent prozent відсоток відсотки відсотків pct",
    ("megabytes", 1.0): "mb megabyte megabytes",
    ("megabytes", 1000.0): "gb gigabyte gigabytes",
    ("megabytes", 1e6): "tb terabyte terabytes",
    ("megabits a second", 1.0): "mbit/s mbps mbit megabit megabits",
    ("megabits a second", 1000.0): "gbit/s gbps gbit gigabit gigabits",
}


@dataclass(frozen=True)
class _Unit:
    """A unit: what sort of thing it counts, its name within money, and how many of the smallest unit it is."""

    dimension: str
    name: str
    factor: float


_UNITS: dict[str, _Unit] = {
    **{word: _Unit("minutes", "", factor) for factor, told in _MINUTES.items() for word in told.split()},
    **{word: _Unit("months", "", float(factor)) for factor, told in _MONTHS.items() for word in told.split()},
    **{word: _Unit("money", currency, 1.0) for currency, told in _MONEY.items() for word in told.split()},
    **{word: _Unit(dimension, "", factor) for (dimension, factor), told in _OTHERS.items() for word in told.split()},
}
_NUMBER_WORDS = {
    word: place
    for told in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn",
        "- - deux trois quatre cinq - sept huit neuf dix onze douze",
        "- - dos tres cuatro cinco seis siete ocho nueve diez once doce",
        "- - два три чотири п'ять шість сім вісім дев'ять десять",
    )
    for place, word in enumerate(told.split())
    if word != "-"
} | {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "ninety": 90}
_ARTICLES = ("a", "an", "one", "ein", "eine", "einen", "einer", "un", "une", "una", "один", "одна", "одну")
# A word below this counts anything ("give me two minutes"); only digits and larger words are claims.
_SMALLEST_CLAIMED_WORD = 3

_ALTERNATIVES = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_COUNTED = re.compile(
    r"(?P<sign>[€$£₴])\s?(?P<signed>\d+(?:[.,]\d+)*)"
    r"|(?<![\w.,])(?P<number>\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?)(?:st|nd|rd|th|\.)?[\s-]{0,2}"
    rf"(?:(?:business|working|calendar|full|more)[\s-])?(?P<unit>{_ALTERNATIVES})(?![\w])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """An amount in its dimension's smallest unit; `said` is how it was written, `is_claim` false for "a day"."""

    dimension: str
    name: str
    amount: float
    value: str
    said: str
    is_claim: bool

    @property
    def key(self) -> tuple[str, str, float]:
        """What makes two quantities the same."""
        return self.dimension, self.name, self.amount


def plain(text: str) -> str:
    """Return a text without what holds digits and claims nothing: placeholders, marks of lists, numbers of steps."""
    return _COUNTING.sub(" ", _LIST_MARK.sub("", _PLACEHOLDER.sub(" ", text.replace("’", "'"))))


def quantities(text: str) -> list[Quantity]:
    """Return the quantities of a plain text, in order."""
    return [found for found, _, _ in _counted(text)]


def bare_values(text: str) -> set[str]:
    """Return the numbers and codes of a plain text that count nothing known, written one way."""
    rest, end_of_last = [], 0
    for _, start, end in _counted(text):
        rest.append(text[end_of_last:start])
        end_of_last = end
    return values(" ".join([*rest, text[end_of_last:]]))


def values(text: str) -> set[str]:
    """Return numbers and codes, written one way: 6,35 and 6.35 are the same, and so are LT-38 and LT38."""
    return {_as_plain_number(each.replace("-", "")) for each in _VALUE.findall(text)}


def word_values(text: str) -> set[str]:
    """Return what is counted in words, as digits."""
    return {
        str(_NUMBER_WORDS[word])
        for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold())
        if word in _NUMBER_WORDS
    }


def links(text: str) -> dict[str, str]:
    """Return the addresses of web pages in a text: written one way, and as they stand."""
    found = (each.rstrip(".,;:!?*_") for each in _LINK.findall(text))
    return {_SCHEME.sub("", each).rstrip("/").casefold(): each for each in found}


def without_links(text: str) -> str:
    """Return a text without the addresses of web pages, whose digits are no claims."""
    return _LINK.sub(" ", text)


def _counted(text: str) -> Iterator[tuple[Quantity, int, int]]:
    for found in _COUNTED.finditer(text):
        said = found.group()
        unit = _UNITS[(found["sign"] or found["unit"]).casefold()]
        written = found["signed"] or found["number"].casefold()
        if written[0].isdigit():
            value, is_claim = _as_plain_number(written), True
        elif written in _NUMBER_WORDS:
            value = str(_NUMBER_WORDS[written])
            is_claim = _NUMBER_WORDS[written] >= _SMALLEST_CLAIMED_WORD
        elif written in _ARTICLES:
            value, is_claim = "1", False
        else:
            continue
        try:
            amount = round(float(value) * unit.factor, 6)
        except ValueError:
            continue
        yield Quantity(unit.dimension, unit.name, amount, value, said, is_claim), found.start(), found.end()


def _as_plain_number(value: str) -> str:
    """Return 9,000 as 9000, 1.234,50 as 1234.5, 6,35 as 6.35, 12.0 as 12; a lone 1.000 may be either and stays."""
    if _GROUPED.fullmatch(value):
        value = value.replace(",", "")
    elif _GROUPED_WITH_DOTS.fullmatch(value):
        value = value.replace(".", "").replace(",", ".")
    else:
        value = value.replace(",", ".")
    whole, point, decimals = value.partition(".")
    return value if not point or len(decimals) > 2 else f"{whole}.{decimals}".rstrip("0").rstrip(".")
