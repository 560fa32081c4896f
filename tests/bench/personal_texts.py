"""Texts with personal data planted in them, and ordinary ones without, in English and Ukrainian.

In: a seed. Out: the same texts every time. Every value is invented: drawn at random and given its checksum here, by arithmetic of this
module's own, so that the recognisers are not measured by themselves.
"""

import base64
import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import phonenumbers

from tests.bench.ordinary_texts import ordinary_sentences

__all__ = ["REGIONS", "Planted", "iban_length", "ordinary_sentences", "planted_texts"]

REGIONS = ("GB", "DE", "US", "UA")
_FOREIGN = ("FR", "PL", "IT", "ES", "NL", "IN", "BR", "JP", "AU", "TR")
# Account numbers by country: digits (n), letters (a) or both (c) after the check digits, from the public IBAN registry.
_IBANS = {
    "DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "NL": "a4n10", "PL": "n24", "UA": "n6c19", "NO": "n11", "MT": "a4n5c18", "ES": "n20",
    "IT": "a1n10c12", "BE": "n12", "CH": "n5c12", "AT": "n16", "SE": "n20", "DK": "n14", "FI": "n14", "IE": "a4n14", "PT": "n21",
    "CZ": "n20", "SK": "n20", "HU": "n24", "RO": "a4c16", "BG": "a4n6c8", "HR": "n17", "LT": "n16", "LV": "a4c13", "EE": "n16",
    "GR": "n7c16", "TR": "n6c16", "SA": "n2c18", "AE": "n19", "MD": "c20", "GE": "a2n16", "LU": "n3c13", "CY": "n8c16",
}  # fmt: skip
_CARDS = (("4", 16), ("4", 13), ("4", 19), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("34", 15), ("37", 15), ("305", 14),
          ("36", 14), ("6011", 16), ("65", 16), ("3528", 16), ("62", 16), ("62", 19), ("5018", 16), ("6304", 16), ("6759", 18),
          ("2200", 16), ("9792", 16))  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A text and the one personal value in it."""

    text: str
    kind: str
    value: str


_ENGLISH = (
    "My {word} is {}.",
    "my {word} is {} thanks",
    "{}",
    "Please note: {} ({word})",
    "{word}: {}",
    "{word} {}, can you check?",
    "Hi, I wrote it down as {} but your page refuses it",
    "You still have the old {word} {} on file; delete it",
    "is ({}) right?",
    'The {word} "{}" is mine, why do you ask twice?',
    "Use {}; it is the only {word} I have.",
    "Last time you took {}, remember?",
    "{word}={}",
    "I gave {} to your colleague yesterday at 10:45",
    "Order 20459981, {word} {}, delivered 12.11.2024",
    "- {}\n- nothing else",
    "See below.\n{}\nThank you, and have a nice day",
    "What happens with {} once I leave?",
    "*{}*",
    "Is {} still active?\n\nBest",
)
_UKRAINIAN = (
    "Мій {word}: {}.",
    "ось {word} {} дякую",
    "Перевірте, будь ласка, {}",
    "{word} — {}, чому не працює?",
    "Я вже писав вам {} вчора о 10:45",
    "Добрий день! {word} {}. Коли чекати відповіді?",
    "У вас записано {}, а я його змінила",
    "«{}» це мій {word}",
    "{word}:{}",
    "Замовлення 20459981, {word} {}, доставка 12.11.2024",
    "Видаліть {} з бази",
    "Чи {} ще дійсний?",
)
_WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "EMAIL": (("email", "e-mail address", "mail"), ("мейл", "пошта", "електронна адреса")),
    "PHONE": (("phone", "phone number", "mobile", "tel."), ("телефон", "номер телефону", "моб.", "тел.")),
    "CARD": (("card", "card number", "credit card"), ("картка", "номер картки")),
    "IBAN": (("IBAN", "iban", "bank account"), ("IBAN", "рахунок")),
    "IP": (("IP", "ip address", "router's address", "server"), ("IP", "айпі", "адреса роутера", "сервер")),
    "KEY": (("key", "API key", "token", "credentials"), ("ключ", "токен", "ключ API")),
}


def planted_texts(seed: int, of_each_kind: int) -> Iterator[Planted]:
    """Yield texts with one value each, as many of each kind, in a fixed order."""
    draw = random.Random(seed)
    makers: Mapping[str, Callable[[random.Random], str]] = {
        "EMAIL": _email, "PHONE": _phone, "CARD": _card, "IBAN": _iban, "IP": _ip, "KEY": _key,
    }  # fmt: skip
    for kind, make in makers.items():
        english, ukrainian = _WORDS[kind]
        for _ in range(of_each_kind):
            is_english = draw.random() < 0.6
            template = draw.choice(_ENGLISH if is_english else _UKRAINIAN)
            value = make(draw)
            word = draw.choice(english if is_english else ukrainian)
            yield Planted(template.replace("{word}", word).replace("{}", value), kind, value)


def iban_length(country: str) -> int | None:
    """Return how long a country's account numbers are, for the countries of this module."""
    structure = _IBANS.get(country)
    return 4 + sum(size for _, size in _parts(structure)) if structure else None


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(count))


def _characters(draw: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(draw.choice(alphabet) for _ in range(count))


def _card(draw: random.Random) -> str:
    prefix, length = draw.choice(_CARDS)
    digits = prefix + _digits(draw, length - len(prefix) - 1)
    total = sum(sum(divmod(int(each) * (2 - place % 2), 10)) for place, each in enumerate(reversed(digits)))
    digits += str(-total % 10)
    style = draw.random()
    if style < 0.3:
        return digits
    size = (4, 6, 9) if length in (14, 15) else (4,) * 5
    groups, rest = [], digits
    for each in size:
        groups, rest = [*groups, rest[:each]], rest[each:]
    separator = draw.choice([" ", " ", "-", ".", "\u00a0", "\u202f", "\u2011", "–", "  ", "\n", " - ", "_", "/"])
    grouped = separator.join(each for each in groups if each)
    if style < 0.85:
        return grouped
    if style < 0.9:
        return draw.choice([" ", "-"]).join(digits[place : place + 2] for place in range(0, length, 2))
    if style < 0.95:
        return "".join(chr(ord("０") + int(each)) for each in digits)
    return "".join(chr(ord("٠") + int(each)) for each in digits)


def _parts(structure: str) -> list[tuple[str, int]]:
    sizes = structure.replace("n", " n").replace("a", " a").replace("c", " c").split()
    return [(each[0], int(each[1:])) for each in sizes]


def _iban(draw: random.Random) -> str:
    country = draw.choice(list(_IBANS))
    alphabets = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}
    account = "".join(_characters(draw, size, alphabets[sort]) for sort, size in _parts(_IBANS[country]))
    number = int("".join(str(int(each, 36)) for each in account + country + "00"))
    code = f"{country}{98 - number % 97:02d}{account}"
    style = draw.random()
    if style < 0.35:
        return code
    if style < 0.45:
        return code.lower()
    if style < 0.85:
        separator = draw.choice([" ", " ", " ", "\u00a0", "-", "\n", "."])
        return separator.join(code[place : place + 4] for place in range(0, len(code), 4))
    cut = draw.randrange(5, len(code) - 2)
    return f"{code[:2]} {code[2:cut]} {code[cut:]}"


def _ip(draw: random.Random) -> str:
    octets = ".".join(str(draw.randrange(256)) for _ in range(4))
    groups = [f"{draw.randrange(65536):x}" for _ in range(8)]
    return draw.choice(
        [
            octets,
            octets,
            octets,
            f"192.168.{draw.randrange(256)}.{draw.randrange(1, 255)}",
            f"10.0.{draw.randrange(9)}.1",
            octets.replace(".", "[.]"),
            ":".join(groups),
            ":".join(groups).upper(),
            f"2001:db8::{groups[0]}",
            f"fe80::{groups[1]}:1%eth0",
            f"::ffff:{octets}",
            "::1",
            f"{groups[2]}:{groups[3]}::8",
        ]
    )


def _email(draw: random.Random) -> str:
    first = draw.choice(
        ["jo", "anna", "o'brien", "olena", "petro.shevchenko", "j.r.marsh", "max_muster", "олена", "zoë", "b2b-sales"]
    )
    domain = draw.choice(
        [
            "example.com",
            "mail.example.co.uk",
            "example.com.ua",
            "ukr.example.net",
            "xn--80ak6aa92e.com",
            "приклад.укр",
            "bücher.example",
            "very-long-company-name.example.org",
            "ex.io",
            "sub.sub2.example.museum",
            "EXAMPLE.COM",
        ]
    )
    local = first + draw.choice(["", "", str(draw.randrange(99)), "+tag", ".work", "%shop"])
    style = draw.random()
    if style < 0.8:
        return f"{local}@{domain}"
    return draw.choice(
        [
            f'"{first} smith"@{domain}',
            f"{local}＠{domain}",
            f"{local} (at) {domain}",
            f"{local} [at] example [dot] com",
            f"{local} at example dot com",
            f"{local} собака example крапка com",
            f"{local}@[192.168.4.7]",
            f"{local}@ example.com",
            "x" * 80 + f"@{domain}",
            f"{local}\u200b@{domain}",
        ]
    )


def _phone(draw: random.Random) -> str:
    is_home = draw.random() < 0.75
    region = draw.choice(REGIONS if is_home else _FOREIGN)
    sort = draw.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
    example = phonenumbers.example_number_for_type(region, sort)
    while True:
        tail = 10 ** draw.choice([2, 3, 4])
        number = phonenumbers.PhoneNumber(
            country_code=example.country_code,
            national_number=example.national_number // tail * tail + draw.randrange(tail),
            italian_leading_zero=example.italian_leading_zero,
        )
        if phonenumbers.is_valid_number(number):
            break
    written = phonenumbers.PhoneNumberFormat
    plus = phonenumbers.format_number(number, written.E164)
    spaced = phonenumbers.format_number(number, written.INTERNATIONAL)
    styles = [plus, spaced, spaced, spaced.replace(" ", "-"), spaced.replace(" ", "."), "00" + plus[1:], "00" + spaced[1:],
              spaced.replace(" ", "\u00a0"), spaced.replace("-", "\u2011")]  # fmt: skip
    if is_home:
        national = phonenumbers.format_number(number, written.NATIONAL)
        styles += [
            national,
            national,
            national,
            national.replace(" ", "-"),
            national + " ext. 12",
            national.replace(" ", ""),
        ]
    return draw.choice(styles)


def _key(draw: random.Random) -> str:
    def some(count: int) -> str:
        return _characters(draw, count)

    hexadecimal = string.digits + "abcdef"
    token = base64.urlsafe_b64encode(draw.randbytes(30)).decode()
    pem = base64.b64encode(draw.randbytes(90)).decode()
    return draw.choice(
        [
            f"sk-{some(48)}",
            f"sk-proj-{some(40)}",
            f"sk-ant-api03-{some(60)}-AA",
            f"sk_live_{some(24)}",
            f"rk_test_{some(24)}",
            f"pk_live_{some(24)}",
            f"whsec_{some(32)}",
            f"ghp_{some(36)}",
            f"gho_{some(36)}",
            f"github_pat_{some(22)}_{some(59)}",
            "AKIA" + _characters(draw, 16, string.ascii_uppercase + string.digits),
            f"hf_{some(34)}",
            f"glpat-{some(20)}",
            "ASIA" + _characters(draw, 16, string.ascii_uppercase + string.digits),
            f"npm_{some(36)}",
            f"AIza{some(35)}",
            f"xoxb-{_digits(draw, 12)}-{_digits(draw, 12)}-{some(24)}",
            f"xoxp-{_digits(draw, 12)}-{some(32)}",
            f"ya29.{some(60)}",
            f"pypi-AgEIcHlwaS5vcmc{some(60)}",
            f"SG.{some(22)}.{some(43)}",
            f"eyJhbGciOiJIUzI1NiJ9.eyJz{some(40)}.{some(43)}",
            f"AC{_characters(draw, 32, hexadecimal)}",
            f"{_digits(draw, 9)}:AA{some(33)}",
            f"GOCSPX-{some(28)}",
            some(40),
            token,
            f"-----BEGIN PRIVATE KEY-----\n{pem[:64]}\n{pem[64:]}\n-----END PRIVATE KEY-----",
            f"dop_v1_{_characters(draw, 64, hexadecimal)}",
        ]
    )
