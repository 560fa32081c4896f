"""Keys to things: API keys and tokens by their makers' forms, private keys, passwords behind their name, long random strings.

In: a text in plain characters. Out: spans. UUIDs, git commits and file checksums are ordinary technical talk and stay, unless a word
such as "token" stands before them: a secret and a checksum of the same length cannot be told apart otherwise.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

# By the maker's prefix. Each begins at a boundary and its tail is one run of characters.
_BY_PREFIX = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk|ak|xai|gsk|fw|pplx|nvapi|r8|npm|pypi|hf|ghp|gho|ghu|ghs|ghr|github_pat|glpat|gldt|glrt|glptt|lin_api|ntn|secret"
    r"|shpat|shpss|shpca|dop_v1|doo_v1|dckr_pat|whsec|tskey|figd|sntrys|sq0atp|sq0csp|EAAA|phc|sbp|vercel|rnd|dp\.pt|hvs|atlasv1"
    r"|xox[a-z]|xapp|key|api|tok|live|test)[-_](?P<tail>[\w-]{16,512})"
    r"|(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ANVA|ABIA|ACCA)[0-9A-Z]{16}(?![A-Za-z0-9])"
    r"|AIza[\w-]{35}|ya29\.[\w.-]{20,512}|1//[\w-]{20,512}|GOCSPX-[\w-]{20,64}|SG\.[\w-]{16,64}\.[\w-]{16,128}"
    r"|(?:AC|SK)[0-9a-f]{32}(?![0-9a-f])|eyJ[\w-]{8,4096}\.[\w-]{4,8192}(?:\.[\w-]{0,2048}){0,3}|\d{8,10}:AA[\w-]{30,40}"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{40,70})"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"[\s\\n]{0,8}(?:(?!-----)[A-Za-z0-9+/=:,.()\s\\-]){0,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
_IN_ADDRESS = re.compile(r"://[^\s/:@\x00]{0,64}:(?P<secret>[^\s/@\x00]{1,256})@")
_IN_HEADER = re.compile(r"(?<![A-Za-z0-9])(?:bearer|basic)[\s:]{1,3}(?P<secret>[\w.~+/=-]{8,4096})", re.IGNORECASE)
_IN_WEBHOOK = re.compile(
    r"(?:hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot)(?P<secret>[\w/:-]{16,200})"
)

_CLEAR_LABEL = (
    r"(?:pass[ _-]?(?:word|wd|phrase|code)|passwd|pwd|psk|(?:api|access|secret|private|encryption|licen[cs]e|recovery|account|auth|"
    r"security|signing|shared|app)[ _-]?key|apikey|secret|(?:client|app|api|shared)[ _-]?secret|(?:access|auth|api|bearer|refresh|bot|"
    r"session|personal access)?[ _-]?token|credentials?|парол\w{1,3}|токен\w{0,2}|секрет\w{0,2}|(?:api|апі)[ -]?ключ\w{0,2}|"
    r"ключ\w{0,2} (?:api|апі|доступу)|"
    # German, Spanish, French, Polish, Portuguese, Dutch, Italian; the key of a wireless network.
    r"passwort|kennwort|contrase(?:n\u0303?|ñ)as?|(?<!palabra )clave|mots? de passe|has[lł]o|senha|wachtwoord|parola|"
    r"(?:wi-?fi|wlan|wpa[23]?|network)[ _-]?(?:key|ключ|schl(?:ü|u\u0308|ue)ssel)|"
    r"ключ\w{0,2} (?:(?:від|до|от|к) )?(?:wi-?fi|вай-?фа\w{1,2}|мереж\w))"
)
_LABELLED = re.compile(
    rf"(?<![^\W_])(?P<label>{_CLEAR_LABEL}|key|ключ|pass|auth)[\"'`]?(?P<says>(?:\s{{0,2}}(?::=|=>|->|[:=]|-)|\s(?:is|was|це|є|ist|es|est|è|é|jest)|\s)\s{{0,2}})"
    r"(?P<quote>[\"'`«“]?)(?P<secret>[^\s\"'`«»“”\x00]{6,512})",
    re.IGNORECASE,
)
_VAGUE_LABELS = frozenset({"key", "ключ", "pass", "auth"})
_LABEL_BEFORE = re.compile(rf"(?<![^\W_])(?:{_CLEAR_LABEL})(?![^\W_])", re.IGNORECASE)
_KEY_BEFORE = re.compile(r"(?<![^\W_])(?:key|ключ)\W{1,3}\Z", re.IGNORECASE)
_LABEL_AFTER = re.compile(
    rf"[\s,]{{1,2}}(?:(?:is|was|this|that|it|it's|my|the|our|your|це|мій|наш|ваш|-|—)\s){{1,4}}{_CLEAR_LABEL}", re.IGNORECASE
)
_CHECKSUM_BEFORE = re.compile(r"sha-?\d|md5|checksum|hash|digest|commit|хеш|контрольн", re.IGNORECASE)
_LABEL_REACH = 48
_LONG_HEX = re.compile(r"(?<![\w-])(?:0x)?[0-9a-f]{32,512}(?![\w-])", re.IGNORECASE)
_LONG = re.compile(r"(?<![\w+/.-])[\w+/-]{32,4096}={0,2}(?![\w+/])")
_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE)
_CHECKSUM = re.compile(
    r"(?<![0-9a-z])(?=[0-9]{0,127}[a-f])(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{56}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})"
    r"(?![0-9a-z])",
    re.IGNORECASE,
)
# How often a random string changes between capital, small letter, digit and sign, a name made of words does not.
_CHANGES_A_CHARACTER = 0.34
_SYMBOL_INSIDE = re.compile(r"\w[!@#$%^&*+=~?]+\w|[!#$%^&*~]$")
_ENDING = ".,;:!?)]}>"


def key_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the keys, tokens and passwords."""
    yield from (found.span() for found in _PRIVATE_KEY.finditer(text))
    yield from (found.span("secret") for found in _IN_ADDRESS.finditer(text))
    yield from (found.span("secret") for found in _IN_WEBHOOK.finditer(text))
    for found in _BY_PREFIX.finditer(text):
        if found["tail"] is None or _is_mixed(found["tail"]):
            yield found.span()
    for found in _IN_HEADER.finditer(text):
        if _is_mixed(found["secret"]):
            yield found.start("secret"), found.start("secret") + len(found["secret"].rstrip(_ENDING))
    yield from _labelled_spans(text)
    for found in _LONG_HEX.finditer(text):
        before = text[max(0, found.start() - _LABEL_REACH) : found.start()]
        is_called_key = _LABEL_BEFORE.search(before) or _KEY_BEFORE.search(before) or _LABEL_AFTER.match(text, found.end())
        if is_called_key and not _CHECKSUM_BEFORE.search(before):
            yield found.span()
    for found in _LONG.finditer(text):
        if _is_random(found.group()):
            yield found.span()


def checksum_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield UUIDs and hexadecimal checksums, whose digits are no card's; they are nobody's data and stay."""
    yield from (found.span() for found in _UUID.finditer(text))
    yield from (found.span() for found in _CHECKSUM.finditer(text))


def _labelled_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield what follows "password:" and its like, where it reads as a secret and not as the next word of a sentence."""
    for found in _LABELLED.finditer(text):
        secret = found["secret"].rstrip(_ENDING)
        if len(secret) < len(found["secret"]) and _SYMBOL_INSIDE.search(found["secret"].rstrip(".,;:")):
            secret = found["secret"].rstrip(".,;:")
        is_vague = found["label"].casefold() in _VAGUE_LABELS
        is_assigned = any(sign in found["says"] for sign in ":=")
        if is_vague and not (is_assigned and len(secret) >= 12 and _is_mixed(secret)):
            continue
        if not found["says"].strip() and not _is_letters_and_digits(secret):
            continue
        if len(secret) >= 6 and _reads_as_secret(secret, is_assigned=is_assigned, is_quoted=bool(found["quote"])):
            yield found.start("secret"), found.start("secret") + len(secret)


def _reads_as_secret(secret: str, *, is_assigned: bool, is_quoted: bool) -> bool:
    has_digit = any(character.isdigit() for character in secret)
    has_letter = any(character.isalpha() for character in secret)
    if has_letter and (has_digit or _SYMBOL_INSIDE.search(secret)):
        return True
    if not has_letter:
        return is_assigned and sum(character.isdigit() for character in secret) >= 6
    is_capital_inside = any(character.isupper() for character in secret[1:]) and not secret.isupper()
    return is_quoted or (is_assigned and is_capital_inside)


def _is_letters_and_digits(secret: str) -> bool:
    """Tell whether a word holds two letters and two digits at least, which no word of a sentence does."""
    return sum(each.isalpha() for each in secret) > 1 and sum(each.isdigit() for each in secret) > 1


def _is_mixed(text: str) -> bool:
    """Tell whether a string is more than small words with hyphens: it has a digit, or capitals inside small letters."""
    has_case = any(a.islower() and b.isupper() for a, b in pairwise(text))
    return has_case or any(character.isdigit() for character in text) or text.endswith("=")


def _is_random(text: str) -> bool:
    """Tell whether a long string of capitals, small letters and digits is random, by how often it changes between them."""
    kinds = ["A" if each.isupper() else "a" if each.islower() else "0" if each.isdigit() else "-" for each in text]
    if not {"A", "a", "0"} <= set(kinds):
        return False
    changes = sum(one != other for one, other in pairwise(kinds))
    return changes >= _CHANGES_A_CHARACTER * len(text)
