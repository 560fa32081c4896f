"""Telephone numbers: international ones, those of the configured countries, and what a person calls a telephone number.

In: a text in plain characters. Out: spans. phonenumbers decides. A number in a country's own form cannot be told from an order
number by itself, so how sure a number must be depends on how it is written and on the words before it:

- with a plus or 00 and a country code: any possible number of the world;
- in a configured country's form: valid there, and no word such as "order" before it;
- grouped as Americans, Britons and Ukrainians do: that grouping, or a valid number of theirs in its own grouping;
- after a word such as "tel" or "моб": seven to fifteen digits that are no date and no amount.
"""

import re
from collections.abc import Iterator, Sequence

import phonenumbers
from phonenumbers import Leniency

# The countries whose grouped numbers are found without being configured: those of the languages that are promised.
_USUAL_REGIONS = ("UA", "GB", "US")
_NUMBER = re.compile(r"(?<![\w+])[+(]{0,2}\d(?:[ ()./-]{0,3}\d){6,18}(?!\w)")
_LONG_RUN = re.compile(r"\d(?:[ ().\t/-]{0,4}\d){6}")
_WITHOUT_PLUS = re.compile(r"(?<![\w+.-])00[1-9](?:[ ()./-]{0,3}\d){7,14}(?!\d)")
_STUCK_PLUS = re.compile(r"\+[ (]{0,2}\d(?:[ ()./-]{0,3}\d){6,14}(?!\d)")
# As it was dialled in Ukraine: an eight before the zero.
_WITH_EIGHT = re.compile(r"(?<![\w+.-])8[ -]?\(?0(?:[ ()-]{0,2}\d){9}(?!\d)")
# How Americans, Britons and Ukrainians group their numbers, also those that nobody was given, as in films: (555) 123-4567.
_USUAL_SHAPE = re.compile(
    r"(?<![\w+.-])(?:(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}|\(?0\d{2}\)?[ -]\d{3}[ -]?\d{2}[ -]?\d{2}"
    r"|\(?0\d{2}\)?[ -]\d{4}[ -]\d{4}"
    r"|\(?0\d{3}\)?[ -]\d{3}[ -]\d{4}|\(?0\d{4}\)?[ -]\d{6}|\(?0\d{4}\)?[ -]\d{3}[ -]\d{3}|07\d{9})(?![\w]|[.-]\d)"
)
_CALL_WORDS = re.compile(
    r"(?<![^\W_])(?:(?:tele|cell|i|smart)?phones?|mobiles?|cell|tel|telephone|fax|call(?:ed|ing|s|back)?|ring|dial(?:ing)?|text(?:ed)?|sms|"
    r"whats ?app|viber|telegram|signal|reach(?:ed)? (?:me|us|him|her)|hotline|landline|contact number|"
    r"тел|телефон\w{0,3}|моб|мобільн\w{1,3}|дзвон\w{1,4}|зателефону\w{1,4}|подзвон\w{1,4}|передзвон\w{1,4}|набер\w{1,4}|"
    r"номер телефону|вайбер\w{0,2}|вацап\w{0,2}|ватсап\w{0,2}|факс\w{0,2}|смс)(?![^\W_])",
    re.IGNORECASE,
)
_OTHER_WORDS = re.compile(
    r"(?<![^\W_])(?:orders?|invoices?|tickets?|case|cases|ref|reference|account|accounts|tracking|parcel|shipment|serial|sn|s/n|imei|"
    r"confirmation|booking|reservation|contract|policy|customer|client|member(?:ship)?|id|code|errors?|models?|versions?|sku|part|item|"
    r"isbn|ean|article|no\.? of|transaction|payment|amount|total|meter|reading|vin|build|№|"
    r"замовлен\w{1,3}|рахун\w{1,4}|накладн\w{1,3}|посилк\w{1,3}|ттн|догов[оі]р\w{0,3}|квитанц\w{1,3}|заявк\w{1,3}|звернен\w{1,3}|код\w{0,3}|"
    r"помилк\w{1,3}|модел\w{1,3}|верс\w{1,3}|артикул\w{0,3}|серійн\w{1,3}|номер (?:замовлення|рахунку|договору)|"
    r"сум\w{1,3}|оплат\w{1,3})"
    r"(?![^\W_])",
    re.IGNORECASE,
)
_DATE_OR_AMOUNT = re.compile(
    r"\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d\d(?![./-]?\d)|(?:19|20)\d\d[./-]\d{1,2}[./-]\d{1,2}(?![./-]?\d)"
    r"|\d{1,3}(?:[ .]\d{3}){2,}[.,]\d\d(?!\d)"
    r"|\d{1,3}(?:\.\d{1,3}){3}(?!\d)|(?:19|20)\d\d ?- ?(?:19|20)\d\d(?!\d)"
)
# Four numbers, the second a nought, as browsers count; and more of them after a name and a slash: `Chrome/121.0.6167.160`.
_VERSION = re.compile(
    r"\d{1,3}\.0\.\d{1,5}\.\d{1,5}(?!\.?\d)|(?<=[^\W\d_]/)\d{1,3}(?:\.\d{1,2})?\.\d(?:\.(?:0|[1-9]\d{0,6})){1,3}(?!\.?\d)"
)
_DECIMAL = re.compile(r"\d{1,3}[.,]\d+")
_BARE_DATE = re.compile(r"(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|[12]\d|3[01])(?:19|20)\d\d|(?:19|20)\d\d[01]\d[0-3]\d")
# A number without any gap that is shorter than this is a phone's only where a word says so.
_FEWEST_BARE_DIGITS = 9
# Some countries have shorter ones, which cannot be told from a house number.
_FEWEST_DIGITS = 7
_WORD_REACH = 40
_GAP_REACH = 28


def phone_spans(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the telephone numbers; `regions` are the countries whose own forms are looked for. Spans may overlap."""
    if not _LONG_RUN.search(text):
        return
    if "+" in text:
        # A plus makes it a phone number although nobody was given it: people make numbers up, and mistype them.
        yield from _matches(text, None, Leniency.POSSIBLE)
        yield from (found.span() for found in _STUCK_PLUS.finditer(text) if _is_international(found.group()))
    for found in _WITHOUT_PLUS.finditer(text):
        if _is_international("+" + found.group()[2:]):
            yield found.span()
    for found in _WITH_EIGHT.finditer(text):
        if _is_international("+3" + found.group()) and not is_something_else(text, found.start()):
            yield found.span()
    yield from (found.span() for found in _USUAL_SHAPE.finditer(text) if not _reads_otherwise(text, *found.span()))
    for region in regions:
        for start, end in _matches(text, region, Leniency.VALID):
            if not _reads_otherwise(text, start, end):
                yield start, end
    for region in _USUAL_REGIONS:
        for start, end in _matches(text, region, Leniency.STRICT_GROUPING):
            is_grouped = len(re.findall(r"\d+", text[start:end])) > 2
            if is_grouped and not _reads_otherwise(text, start, end):
                yield start, end
    for found in _NUMBER.finditer(text):
        if _is_called_so(text, *found.span()):
            yield found.span()


def _matches(text: str, region: str | None, leniency: int) -> Iterator[tuple[int, int]]:
    for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=leniency):
        if sum(character.isdigit() for character in match.raw_string) >= _FEWEST_DIGITS:
            yield match.start, match.end


def _is_international(written: str) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(written, None)))
    except phonenumbers.NumberParseException:
        return False


def is_something_else(text: str, start: int) -> bool:
    """Tell whether a word just before a number says that it is an order's, an invoice's or the like, and none that it is a phone's."""
    before = text[max(0, start - _WORD_REACH) : start]
    other = _last_end(_OTHER_WORDS, before)
    return other is not None and other > (_last_end(_CALL_WORDS, before) or -1)


def _reads_otherwise(text: str, start: int, end: int) -> bool:
    """Tell whether a number that could be a country's phone number is more likely a date, an amount, a version or an order's."""
    written = text[start:end]
    is_short = written.isdigit() and len(written) < _FEWEST_BARE_DIGITS
    is_other_number = _BARE_DATE.fullmatch(written) or _DECIMAL.fullmatch(written) or _DATE_OR_AMOUNT.match(text, start)
    is_version = _VERSION.match(text, start)
    return bool(is_short or is_other_number or is_version or is_something_else(text, start))


def _is_called_so(text: str, start: int, end: int) -> bool:
    """Tell whether a word for a telephone stands just before a number, with no other number and no other thing's word between."""
    before = text[max(0, start - _WORD_REACH) : start]
    called = _last_end(_CALL_WORDS, before)
    if called is None or is_something_else(text, start) or _DATE_OR_AMOUNT.match(text, start):
        return False
    gap = before[called:]
    if _VERSION.match(text, start) and gap != "/":
        return False
    digits = sum(character.isdigit() for character in text[start:end])
    return len(gap) <= _GAP_REACH and not re.search(r"[\d\n]|[.!?]\s", gap.lstrip(". ")) and _FEWEST_DIGITS <= digits <= 15


def _last_end(words: re.Pattern[str], text: str) -> int | None:
    ends = [found.end() for found in words.finditer(text)]
    return ends[-1] if ends else None
