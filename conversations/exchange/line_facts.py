"""What a line of a log tells beside its messages: whose conversation it is, when, how it was labelled, judged and agreed to.

In: the parsed values of our own keys. Out: plain values, and a sentence in `repairs` for each that could not be taken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from conversations.exchange.raw_json import sound_value
from conversations.messages import Author, ChatMessage, Consent, Json, Role, TurnStatus, Vote, utc_text
from conversations.tags import MAX_TAG_CHARACTERS, is_tag

MAX_NAME_CHARACTERS = 100_000
_SURROGATES = re.compile("[\ud800-\udfff]")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,3}")
_STATUSES = (TurnStatus.COMPLETE, TurnStatus.STOPPED, TurnStatus.INTERRUPTED)


class LineRejected(Exception):
    """The line cannot become a conversation; the text says why."""


@dataclass(frozen=True)
class Thumb:
    """A customer's thumb on an answer, and why."""

    vote: Vote
    reason: str = ""


@dataclass(frozen=True)
class TurnDetail:
    """How a turn came to be, where that differs from a message that was imported whole."""

    author: Author
    status: TurnStatus
    created_at_utc: str | None
    release_id: str | None


def name(about: Mapping[str, Json], key: str, repairs: list[str]) -> str | None:
    """Return the conversation's or the customer's name as text. Raises LineRejected for what names nobody."""
    value = about.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise LineRejected(f"`{key}` is {type(value).__name__}; expected text")
    text = str(value)
    # A broken name would name somebody else once repaired.
    if _SURROGATES.search(text):
        raise LineRejected(f"`{key}` has a broken surrogate")
    if "\x00" in text:
        raise LineRejected(f"`{key}` has a NUL at character {text.index(chr(0))}; leave it out")
    if len(text) > MAX_NAME_CHARACTERS:
        raise LineRejected(f"`{key}` has {len(text)} characters; {MAX_NAME_CHARACTERS} are allowed")
    if isinstance(value, int):
        repairs.append(f"{key} given as a number")
    return text


def created_at(about: Mapping[str, Json], repairs: list[str]) -> str | None:
    """Return when the conversation began, in UTC; a number counts seconds since 1970."""
    return _past(about.get("created_at"), "created_at", repairs)


def consent(about: Mapping[str, Json]) -> Consent:
    """Return whether the customer agreed. Raises LineRejected for what is neither yes nor no."""
    value = about.get("consent")
    if value is None or value == "unknown":
        return Consent.UNKNOWN
    if value is True or value == "yes":
        return Consent.YES
    if value is False or value == "no":
        return Consent.NO
    raise LineRejected(f"`consent` is {str(value)[:40]!r}; expected true or false")


def labels(about: Mapping[str, Json], repairs: list[str]) -> Mapping[str, Json]:
    """Return the labels, an object."""
    value = about.get("labels", {})
    if isinstance(value, dict):
        sound = sound_value(value)
        assert isinstance(sound, dict)
        if sound != value:
            repairs.append("labels: broken surrogates replaced")
        return sound
    repairs.append(f"labels {str(value)[:40]!r} left out: expected an object")
    return {}


def language(about: Mapping[str, Json], repairs: list[str]) -> str:
    """Return the language's code as the line tells it, or ""."""
    value = about.get("language")
    if value is None or (isinstance(value, str) and _LANGUAGE.fullmatch(value)):
        return str(value or "")
    repairs.append(f"language {str(value)[:40]!r} left out: expected a code such as 'en' or 'pt-BR'")
    return ""


def tags(about: Mapping[str, Json], repairs: list[str]) -> tuple[str, ...]:
    """Return the tags, each once."""
    value = about.get("tags")
    given = value if isinstance(value, list) else [] if value is None else [value]
    good = [each for each in given if isinstance(each, str) and is_tag(each.strip())]
    if len(good) < len(given):
        repairs.append(f"{len(given) - len(good)} tags left out: expected texts of 1 to {MAX_TAG_CHARACTERS} characters")
    return tuple(dict.fromkeys(each.strip() for each in good))


def thumbs(about: Mapping[str, Json], moved: Mapping[int, int], repairs: list[str]) -> dict[int, Thumb]:
    """Return the thumbs by position; `moved` maps positions of the line to those that are kept."""
    found: dict[int, Thumb] = {}
    for each in _objects(about, "feedback", repairs):
        place, value, reason = _place(each, moved), each.get("value"), each.get("reason", "")
        if place is not None and value in ("up", "down") and isinstance(reason, str) and not _SURROGATES.search(reason):
            found[place] = Thumb(Vote(str(value)), reason.replace("\x00", ""))
        else:
            repairs.append(f"feedback {str(each)[:60]!r} left out: expected a message's position and up or down")
    return found


def turn_details(
    about: Mapping[str, Json], moved: Mapping[int, int], messages: Sequence[ChatMessage], repairs: list[str]
) -> dict[int, TurnDetail]:
    """Return how turns came to be, by position, as an export of a record tells it."""
    found: dict[int, TurnDetail] = {}
    for each in _objects(about, "turns", repairs):
        place = _place(each, moved)
        detail = _detail(each, messages[place].role, repairs) if place is not None else None
        if place is not None and detail is not None:
            found[place] = detail
        else:
            repairs.append(f"turns {str(each)[:60]!r} left out: expected a message's position, its author and status")
    return found


def _detail(each: Mapping[str, Json], role: Role, repairs: list[str]) -> TurnDetail | None:
    usual = Author.CUSTOMER if role is Role.USER else Author.IMPORTED
    author, status, release_id = each.get("author", usual), each.get("status", "complete"), each.get("release_id")
    if author not in tuple(Author) or status not in _STATUSES or (status != "complete" and role is not Role.ASSISTANT):
        return None
    if (author == Author.CUSTOMER) != (role is Role.USER):
        return None
    known = release_id if isinstance(release_id, str) and not _SURROGATES.search(release_id) else None
    created = _past(each.get("created_at"), f"turns: created_at of message {each['message']}", repairs)
    return TurnDetail(Author(str(author)), TurnStatus(str(status)), created, known)


def _objects(about: Mapping[str, Json], key: str, repairs: list[str]) -> list[dict[str, Json]]:
    value = about.get(key, [])
    given = value if isinstance(value, list) else [value]
    objects = [each for each in given if isinstance(each, dict)]
    if len(objects) < len(given):
        repairs.append(f"{key} {str(value)[:60]!r} left out in part: expected a list of objects")
    return objects


def _place(each: Mapping[str, Json], moved: Mapping[int, int]) -> int | None:
    place = each.get("message")
    return moved.get(place) if isinstance(place, int) and not isinstance(place, bool) else None


def _past(value: Json, name: str, repairs: list[str]) -> str | None:
    """Return a time that has been, in UTC."""
    moment = _moment(value)
    if value is not None and moment is None:
        repairs.append(f"{name} {str(value)[:40]!r} left out: expected an ISO 8601 time")
    if moment is not None and moment > utc_text(datetime.now(UTC) + timedelta(days=1)):
        # It would stand first in every list, and never be old enough to expire.
        repairs.append(f"{name} {str(value)[:40]!r} left out: it lies in the future")
        return None
    return moment


def _moment(value: Json) -> str | None:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return utc_text(datetime.fromtimestamp(value, UTC))
        if not isinstance(value, str):
            return None
        moment = datetime.fromisoformat(value)
        return utc_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        return None
