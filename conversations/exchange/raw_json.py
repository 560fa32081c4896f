"""JSON read strictly, with the text that each value was written as, so that it can be given back byte for byte.

In: a text. Out: the members of an object, each with its value and its text; or an object's text made of such texts. NaN,
numbers beyond a float, and objects nested too deeply are refused. Knows nothing of conversations.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from conversations.messages import Json

MAX_LEVELS = 64
_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Refused(ValueError):
    """The text is no JSON that can be kept; says why."""


class Repeated(dict[str, Json]):
    """An object in which a key stood twice; the last one counts."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object: its value, the text that it was written as, and where that begins."""

    value: Json
    raw: str
    start: int


def _pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else Repeated(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_pairs)


def parse(text: str) -> Json:
    """Return the value of a whole text. Raises Refused."""
    start = _after_space(text, 0)
    value, end = _value(text, start)
    end = _after_space(text, end)
    if end != len(text):
        raise Refused(f"not JSON: something follows the value at character {end}")
    return value


def members(text: str, start: int = 0) -> tuple[dict[str, Member], int, bool]:
    """Read the object that begins at `start`; return its members, where it ends, and whether a key stood twice.

    Raises Refused.
    """
    found: dict[str, Member] = {}
    count = 0
    at = _after_space(text, start + 1)
    if text[at : at + 1] == "}":
        return found, at + 1, False
    while True:
        if text[at : at + 1] != '"':
            raise Refused(f"not JSON: a key in double quotes is missing at character {at}")
        key, at = _value(text, at)
        at = _after_space(text, at)
        if text[at : at + 1] != ":":
            raise Refused(f"not JSON: a colon is missing at character {at}")
        begin = _after_space(text, at + 1)
        value, end = _value(text, begin)
        found[str(key)] = Member(value, text[begin:end], begin)
        count += 1
        at = _after_space(text, end)
        if text[at : at + 1] == "}":
            return found, at + 1, count > len(found)
        if text[at : at + 1] != ",":
            raise Refused(f"not JSON: a comma or the closing brace is missing at character {at}")
        at = _after_space(text, at + 1)


def element_starts(text: str, start: int) -> list[int]:
    """Return where each element of the array that begins at `start` begins. The array has been parsed before."""
    found: list[int] = []
    at = _after_space(text, start + 1)
    while text[at] != "]":
        found.append(at)
        at = _after_space(text, _value(text, at)[1])
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return found


def object_text(raws: Mapping[str, str]) -> str:
    """Return an object made of the texts of its values, or "" for none."""
    if not raws:
        return ""
    return "{" + ", ".join(f"{json.dumps(sound_text(key), ensure_ascii=False)}: {raw}" for key, raw in raws.items()) + "}"


def on_one_line(text: str) -> str:
    """Return the text of a value as it is, or written anew where line breaks stand between its parts."""
    return json.dumps(json.loads(text), ensure_ascii=False) if "\n" in text or "\r" in text else text


def sound_raw(member: Member) -> str:
    """Return the text of a value as it came, or written anew where half a surrogate pair had to be replaced in it."""
    if not _ESCAPED_SURROGATE.search(member.raw):
        return member.raw
    sound = sound_value(member.value)
    return member.raw if sound == member.value else json.dumps(sound, ensure_ascii=False)


def sound_value(value: Json) -> Json:
    """Return the value with broken surrogates, which no database takes, replaced in every text of it."""
    if isinstance(value, dict):
        return {sound_text(key): sound_value(each) for key, each in value.items()}
    if isinstance(value, list):
        return [sound_value(each) for each in value]
    return sound_text(value) if isinstance(value, str) else value


def sound_text(text: str) -> str:
    """Return the text with each half of a surrogate pair replaced by the replacement character."""
    return text if text.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def may_be_broken(text: str) -> bool:
    """Tell whether a JSON text could hold half a surrogate pair; most could not, and need no second look."""
    return _ESCAPED_SURROGATE.search(text) is not None


def has_repeated_key(values: Iterable[Json], level: int = 1) -> bool:
    """Tell whether a key stands twice anywhere in the values.

    Raises Refused for more levels than a program that reads them after us may take.
    """
    if level > MAX_LEVELS:
        raise Refused(f"nested deeper than {MAX_LEVELS} levels")
    found = False
    for value in values:
        if isinstance(value, dict):
            found |= isinstance(value, Repeated) | has_repeated_key(value.values(), level + 1)
        elif isinstance(value, list):
            found |= has_repeated_key(value, level + 1)
    return found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _value(text: str, at: int) -> tuple[Json, int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise Refused(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Refused("nested too deeply") from None
    except ValueError as error:
        raise Refused(f"not JSON: {error}") from None
    return value, end
