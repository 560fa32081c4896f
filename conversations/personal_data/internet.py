"""E-mail and IP addresses, also as people hide or break them: `jo (at) example (dot) com`, `192[.]168[.]1[.]1`.

In: a text in plain characters. Out: spans. A version number such as 4.12.7.1 reads like an IPv4 address; the words beside it tell.
"""

import ipaddress
import re
from collections.abc import Iterator

# Each pattern begins at a boundary and is bounded, so that a long run of letters costs no more than its length.
_LABEL = r"[^\W_](?:[\w-]{0,62})"
_TLD = r"(?:xn--[\w-]{2,59}|[^\W\d_]{2,24})"
_DOMAIN = re.compile(
    rf"(?:{_LABEL}\.){{1,8}}{_TLD}(?![^\W_])|\[[0-9a-fA-F:.]{{2,45}}\]|\[IPv6:[0-9a-fA-F:.]{{2,45}}\]", re.UNICODE
)
_LOCAL_CHARACTER = re.compile(r"[\w.+%'*!#$&^{|}~-]")
_QUOTED_LOCAL = re.compile(r'"[^"\r\n]{1,64}"\Z')
_LONGEST_LOCAL = 320
# The user of a code host's address is no person.
_NO_PERSON = frozenset({"git"})

_AT = r"(?:%40|&#0?64;|&commat;|[\[({<][aа][\])}>]|\s{0,2}[\[({<]\s?(?:at|@|ат|ет|собака|равлик)\s?[\])}>]\s{0,2})"
_DOT = r"(?:\s{0,2}[\[({<]\s?(?:dot|\.|крапка|точка)\s?[\])}>]\s{0,2}|\s(?:dot|крапка|точка)\s)"
_PART = r"[^\W_][\w-]{0,62}"
_HIDDEN = re.compile(
    rf"(?<![\w.+%-])[\w+][\w.+%-]{{0,63}}(?:{_AT}{_PART}(?:(?:{_DOT}|\.){_PART}){{0,4}}(?:{_DOT}|\.){_TLD}"
    rf"|\s(?:at|собака|равлик)\s{_PART}(?:(?:{_DOT}|\.){_PART}){{0,4}}{_DOT}{_TLD}"
    rf"|\s?@{_PART}(?:(?:{_DOT}|\.){_PART}){{0,4}}{_DOT}{_TLD}"
    rf"|(?:\s@\s?|@\s){_PART}(?:(?:\.|\s\.\s){_PART}){{0,4}}(?:\.|\s\.\s){_TLD})(?![^\W_])",
    re.IGNORECASE,
)

# "john.doe AT gmail.com": the domain is written in full, so "look AT example.com" must be told from it by the name before.
_SPELT_AT = re.compile(
    rf"(?<![\w.+%-])(?P<name>[^\W\d_](?:[\w.+-]{{0,62}}[^\W_])?)\s{{1,2}}(?P<at>at)\s{{1,2}}(?P<domain>(?:{_LABEL}\.){{1,4}}{_TLD})(?![^\W_])",
    re.IGNORECASE,
)
_MAIL_PROVIDER = re.compile(
    r"(?:g(?:oogle)?mail|(?:hot|rocket|y|fast|zoho|proton)mail|yahoo|outlook|live|msn|icloud|me|mac|aol|gmx|web|mail|email|proton|pm|ukr|i"
    r"|meta|bigmir|yandex|inbox|btinternet|comcast|t-online|orange|wp|seznam|libero)\.(?:com|net|org|me|ua|co\.uk|uk|de|fr|es|it|pl|cz|ru)",
    re.IGNORECASE,
)
# What stands before "AT gmail.com" in talk of the site.
_NO_NAME = re.compile(
    r"look(?:s|ed|ing)?|star(?:e|ing)|log(?:ged|ging|in)?|sign(?:ed|ing|in)?|arriv\w+|happen\w*|host\w*|work\w*|accounts?|address\w*|"
    r"(?:e?mail|message|mailbox|inbox|page|problem|server|site|user|team)(?:s|e[sd])?|support|help|contact|register\w*|available|open\w*|"
    r"all|any\w*|every\w*|some\w*|people|i|me|you|us|we|it|them|th(?:at|ere|ese|ey|is|ose)|here|is|are|was|were|be|been|in|on|off|out|up|"
    r"down|back|again|now|only|just|not|see|seen|find|found|get|go|check",
    re.IGNORECASE,
)

_POINT = r"(?:\.|\[\.\]|\(\.\))"
_IP_V4 = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_POINT}\d{{1,3}}){{3}}(?!\d|\.\d)")
_IP_V6 = re.compile(r"(?<![0-9a-fA-F:.])[0-9a-fA-F:]{0,40}:[0-9a-fA-F:]{0,40}(?:(?:\.\d{1,3}){3})?(?:%[\w.-]{1,16})?")
_BYTES = re.compile(r"(?:[0-9a-f]{2}:){7}[0-9a-f]{2}", re.IGNORECASE)
_VERSION_WORD = (
    r"versions?|ver|v|firmware|fw|releases?|build|revision|rev|drivers?|updated?|upgraded?|downgraded?|patch(?:ed)?|software|sw|"
    r"kernel|bios|uefi|section|sections|chapter|clause|paragraph|oid|верс\w*|прошив\w*|реліз\w*|збірк\w*|оновл\w*|оновив|оновила|"
    r"драйвер\w*|розділ\w*|пункт\w*"
)
# A program has a version and runs at an address: "Windows 6.1.0.7", "the app 10.0.0.5 is down".
_PROGRAM_WORD = r"app|sdk|android|ios|windows|chrome|chromium|firefox|safari|застосун\w*|додат\w*"
# What may stand between such a word and the number: "version number is: 4.12.7.1", "upgraded from".
_BETWEEN = (
    r"[\s.:=#№/\"'(-]|\b(?:number|no|is|was|to|from|of|the|it|номер|до|з|на|це)\b"
    r"|\d+(?:\.\d+)+\s?(?:to\b|and\b|до\b|і\b|та\b|->|→|,)"
)
_VERSION_BEFORE = re.compile(
    rf"(?<!\w)(?:{_VERSION_WORD})(?:{_BETWEEN}|\b(?:{_PROGRAM_WORD})\b){{0,8}}(?:\d{{1,2}}:)?\Z", re.IGNORECASE
)
_PROGRAM_BEFORE = re.compile(rf"(?<!\w)(?:{_PROGRAM_WORD})(?:{_BETWEEN}){{0,6}}(?:\d{{1,2}}:)?\Z", re.IGNORECASE)
# Of 127/8 what machines call themselves; Chrome 127 has a version 127.0.…
_PRIVATE_NETWORKS = tuple(
    ipaddress.IPv4Network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/23")
)
_VERSION_AFTER = re.compile(
    r"[\s\"')]{1,2}(?:version|firmware|release|build|update|верс|прошив|реліз|збірк|оновлен)", re.IGNORECASE
)
# A package or a user agent: `libfoo-1.2.3.4`, `Chrome/1.2.3.4`, `1.2.3.4.tar.gz`, `1.2.3.4-1ubuntu2`.
_PACKAGE_BEFORE = re.compile(r"[^\W\d_][\w+]*[-_/~]\Z")
_PACKAGE_AFTER = re.compile(r"[a-z_]|\.[a-z]|[~+]\w|-\d+[a-z]|-\w+\.[a-z]")
_STUCK_BEFORE = re.compile(r"[^\W\d_]\Z")
_STUCK_ADDRESS_BEFORE = re.compile(r"(?:ip|ipv4|host|addr|address|адреса?)\Z", re.IGNORECASE)
_ADDRESS_BEFORE = re.compile(r"(?:ip|host|addr|address|server|client|node|https?:/|ftp:/|ssh)[-_/]\Z", re.IGNORECASE)
_JOINS_VERSIONS = re.compile(r"\s?(?:to|and|or|,|/|-+>?|→|then|до|на|і|та|або)?\s?", re.IGNORECASE)
_VERSION_REACH = 40


def email_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the e-mail addresses."""
    end_of_last = 0
    for at in re.finditer("@", text):
        domain = _DOMAIN.match(text, at.end())
        if domain is None:
            continue
        quoted = _QUOTED_LOCAL.search(text, max(end_of_last, at.start() - 66), at.start())
        start = quoted.start() if quoted else at.start()
        while (
            not quoted and start > max(end_of_last, at.start() - _LONGEST_LOCAL) and _LOCAL_CHARACTER.match(text[start - 1])
        ):
            start -= 1
        while start < at.start() and not quoted and not (text[start].isalnum() or text[start] in "_+"):
            start += 1
        if start < at.start() and text[start : at.start()] not in _NO_PERSON:
            end_of_last = domain.end()
            yield start, domain.end()
    yield from (found.span() for found in _HIDDEN.finditer(text))
    yield from (
        found.span() for found in _SPELT_AT.finditer(text) if _is_spelt_address(*found.group("name", "at", "domain"))
    )


def ip_v6_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the IPv6 addresses, without their port or prefix length."""
    for found in _IP_V6.finditer(text):
        span = _ip_v6_span(text, *found.span())
        if span:
            yield span


def ip_v4_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the IPv4 addresses, without their port or prefix length."""
    version_end: int | None = None
    for found in _IP_V4.finditer(text):
        if any(int(octet) > 255 for octet in re.findall(r"\d+", found.group())):
            continue
        follows_version = version_end is not None and _JOINS_VERSIONS.fullmatch(text[version_end : found.start()])
        if follows_version or is_version(text, *found.span()):
            version_end = found.end()
        else:
            yield found.span()


def is_version(text: str, start: int, end: int) -> bool:
    """Tell whether four numbers with dots between them are a version, by the words and signs that touch them."""
    before = text[max(0, start - _VERSION_REACH) : start]
    after = text[end : end + _VERSION_REACH]
    is_package = _PACKAGE_BEFORE.search(before) and not _ADDRESS_BEFORE.search(before)
    is_stuck = _STUCK_BEFORE.search(before) and not _STUCK_ADDRESS_BEFORE.search(before)
    return bool(
        is_stuck
        or is_package
        or _PACKAGE_AFTER.match(after)
        or _VERSION_BEFORE.search(before)
        or _VERSION_AFTER.match(after)
        or (_PROGRAM_BEFORE.search(before) and not _is_private(text[start:end]))
    )


def _is_private(written: str) -> bool:
    """Tell whether an IPv4 address is one that anybody uses at home or at work, which few versions look like."""
    address = ipaddress.IPv4Address(".".join(str(int(octet)) for octet in re.findall(r"\d+", written)))
    return any(address in network for network in _PRIVATE_NETWORKS)


def _is_spelt_address(name: str, at: str, domain: str) -> bool:
    """Tell whether "NAME at DOMAIN" is an address and no talk of a site: by a name such as john.doe, or by a mail provider."""
    is_provider = _MAIL_PROVIDER.fullmatch(domain) is not None
    if re.match(r"v\d", name, re.IGNORECASE):
        return False
    if re.search(r"[._]", name):
        return is_provider or at == "AT"
    return is_provider and at == "AT" and _NO_NAME.fullmatch(name) is None


def _ip_v6_span(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return the address in a run of its characters: without the colon of `IP:` before and of the sentence after."""
    if text.startswith(":", start) and not text.startswith("::", start):
        start += 1
    elif start and (text[start - 1].isalnum() or text[start - 1] == "_"):
        # The "6:" of "IPv6:" reads like a part of the address.
        start = text.find(":", start, end) + 1
        if text.startswith(":", start) and not text.startswith("::", start):
            return None
    if end < len(text) and (text[end].isalnum() or text[end] == "_"):
        return None
    while end > start and (text[end - 1] in ".-" or (text[end - 1] == ":" and text[end - 2 : end] != "::")):
        end -= 1
    written = text[start:end]
    has_address = written.count(":") > 1 and any(character.isdigit() for character in written)
    if not has_address or _BYTES.fullmatch(written):
        return None
    try:
        ipaddress.IPv6Address(written)
    except ValueError:
        return None
    return start, end
