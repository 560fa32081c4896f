"""Finding conversations: by words and by what is known of them, page by page.

In: whatever a person types, and filters that combine. Out: conversations with the piece of text that was found. No input
breaks it: quotes, operators and emoji are words like others. Words are looked up in an index that knows the conversation by
its number (see `entry.TURNS_PER_CONVERSATION`), so a million turns are searched without reading them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

from conversations.entry import TURNS_PER_CONVERSATION
from conversations.errors import OperatorError
from conversations.messages import ConversationState, TurnStatus, Vote, storable_text, utc_text
from conversations.searchable import is_indexed, search_words
from conversations.store import Cell, Record, Row, Snapshot

MAX_QUERY_CHARACTERS = 500
MAX_SNIPPET_CHARACTERS = 160
_CHARACTERS_BEFORE_FOUND = 40
_SHORTEST_BEGINNING = 3
_LAST_LETTERS = re.compile(r"[^\W_]+\Z")
_FEW = 3000
Condition: TypeAlias = tuple[str, list[Cell]]


@dataclass(frozen=True)
class Filters:
    """What the conversations must have, beside the words. All that are given must hold.

    `since` and `until` are days in UTC on which a conversation may have begun, both included.
    """

    status: TurnStatus | None = None
    release_id: str | None = None
    vote: Vote | None = None
    channel: str | None = None
    state: ConversationState | None = None
    language: str | None = None
    tag: str | None = None
    since: date | None = None
    until: date | None = None
    has_disagreement: bool = False
    is_flagged: bool = False


@dataclass(frozen=True)
class Found:
    """One conversation in a list. `cursor` names its place: pass it as `after` for what follows."""

    conversation_id: str
    customer_id: str
    channel: str
    state: str
    language: str
    turns: int
    snippet: str
    release_id: str | None
    votes_up: int
    votes_down: int
    created_at_utc: str
    updated_at_utc: str
    cursor: str


def find(
    record: Record, query: str = "", filters: Filters | None = None, *, after: str = "", limit: int = 50
) -> list[Found]:
    """Return conversations in which one message says every word of the query.

    A word of three letters or more finds longer ones that begin with it. Raises OperatorError for a cursor that is none.

    With words the newest come first, by their entry into the record; without, the latest changed. What comes in while a person
    turns the pages is neither shown twice nor moves what follows.
    """
    words = _words(query)
    wanted = filters or Filters()
    with record.snapshot() as now:
        if words:
            return list(_with_words(now, words, wanted, after, limit))
        return [
            _found(row, _first_words(now, row), _cursor(row))
            for row in _latest_changed(now, _conditions(now, wanted), after, limit)
        ]


def _with_words(now: Snapshot, words: list[str], filters: Filters, after: str, limit: int) -> Iterator[Found]:
    """Walk over the messages that say the words, the newest first, until there are enough conversations."""
    match = _match(words)
    signs = [word for word in words if not is_indexed(word)]
    if match:
        number, source = "s.rowid", "turn_search s" + (" JOIN turns t ON t.turn_seq = s.rowid" if signs else "")
        where: list[Condition] = [("turn_search MATCH ?", [match])]
    else:
        number, source, where = "t.turn_seq", "turns t", [("t.status NOT IN ('pending', 'streaming')", [])]
    where += [("instr(t.content, ?) > 0", [sign]) for sign in signs]
    conditions = _conditions(now, filters)
    before = _place(after, has_words=True)
    if before is not None:
        where.append((f"{number} < ?", [before[1] * TURNS_PER_CONVERSATION]))
    if conditions:
        where.append(_of_wanted(now, number, conditions))
    span = _span(now, filters)
    if span is not None:
        where.append(
            (f"{number} BETWEEN ? AND ?", [span[0] * TURNS_PER_CONVERSATION, (span[1] + 1) * TURNS_PER_CONVERSATION - 1])
        )
    inside, parameters = _joined(where)
    last_seq, found = None, 0
    for row in now.rows(f"SELECT {number} AS turn_seq FROM {source} WHERE {inside} ORDER BY {number} DESC", parameters):
        seq = int(row["turn_seq"] or 0) // TURNS_PER_CONVERSATION
        if seq == last_seq:
            continue
        if found == limit:
            return
        last_seq, found = seq, found + 1
        head = next(now.rows("SELECT * FROM conversations WHERE conversation_seq = ?", [seq]))
        said = next(now.rows("SELECT content FROM turns WHERE turn_seq = ?", [row["turn_seq"]]))
        yield _found(head, _around(str(said["content"]), words[0]), f"|{seq}")


def _of_wanted(now: Snapshot, number: str, conditions: list[Condition]) -> Condition:
    """Return the condition that a turn is of a conversation with what is wanted: looked up in a list where that is short."""
    wanted, values = _joined(conditions)
    seq = f"{number} / {TURNS_PER_CONVERSATION}"
    few = now.rows(f"SELECT conversation_seq AS seq FROM conversations c WHERE {wanted} LIMIT ?", [*values, _FEW + 1])
    numbers = [int(row["seq"] or 0) for row in few]
    if len(numbers) <= _FEW:
        return f"{seq} IN (SELECT value FROM json_each(?))", [json.dumps(numbers)]
    return f"EXISTS (SELECT 1 FROM conversations c WHERE c.conversation_seq = {seq} AND {wanted})", values


def _span(now: Snapshot, filters: Filters) -> tuple[int, int] | None:
    """Return the lowest and highest number of the conversations that began on the wanted days, which mostly came in together."""
    days, values = _joined(_days(filters))
    if not values:
        return None
    row = next(
        now.rows(
            f"SELECT MIN(conversation_seq) AS low, MAX(conversation_seq) AS high FROM conversations c WHERE {days}", values
        )
    )
    return (int(row["low"] or 0), int(row["high"] or 0))


def _latest_changed(now: Snapshot, conditions: list[Condition], after: str, limit: int) -> Iterator[Row]:
    before = _place(after, has_words=False)
    place: list[Condition] = [("(c.updated_at_utc, c.conversation_seq) < (?, ?)", [*before])] if before else []
    where, parameters = _joined([*conditions, *place])
    return now.rows(
        f"SELECT c.* FROM conversations c WHERE {where} ORDER BY c.updated_at_utc DESC, c.conversation_seq DESC LIMIT ?",
        [*parameters, limit],
    )


def _joined(conditions: list[Condition]) -> Condition:
    return " AND ".join(each for each, _ in conditions) or "1", [value for _, values in conditions for value in values]


def _conditions(now: Snapshot, filters: Filters) -> list[Condition]:
    """Return the filters as conditions on a conversation `c`.

    Closed sets are written out, because SQLite takes a partial index only where it can see the value.
    """
    found: list[Condition] = []
    if filters.status:
        # The second half says nothing new to a reader; it lets SQLite take the index of such turns.
        unusual = "" if filters.status is TurnStatus.COMPLETE else " AND status <> 'complete'"
        found.append(_turn_with(now, f"status = '{TurnStatus(filters.status).value}'{unusual}", []))
    if filters.release_id:
        found.append(_turn_with(now, "release_id = ?", [storable_text(filters.release_id)]))
    if filters.vote:
        found.append(("c.votes_up > 0" if filters.vote is Vote.UP else "c.votes_down > 0", []))
    for column, value in (("channel", filters.channel), ("state", filters.state), ("language", filters.language)):
        if value:
            found.append((f"c.{column} = ?", [storable_text(str(value))]))
    if filters.tag:
        found.append(
            (
                "c.conversation_id IN (SELECT conversation_id FROM conversation_tags WHERE tag = ?)",
                [storable_text(filters.tag)],
            )
        )
    if filters.has_disagreement:
        found.append(("c.has_disagreement = 1", []))
    if filters.is_flagged:
        found.append(("c.flagged_reason IS NOT NULL", []))
    return [*found, *_days(filters)]


def _days(filters: Filters) -> list[Condition]:
    found: list[Condition] = []
    if filters.since:
        found.append(("c.created_at_utc >= ?", [_midnight(filters.since)]))
    if filters.until and filters.until < date.max:
        found.append(("c.created_at_utc < ?", [_midnight(filters.until + timedelta(days=1))]))
    return found


def _turn_with(now: Snapshot, condition: str, values: list[Cell]) -> Condition:
    """Return the condition that a turn of the conversation is so: by a list of such turns where that is short."""
    many = sum(1 for _ in now.rows(f"SELECT 1 FROM turns WHERE {condition} LIMIT ?", [*values, _FEW + 1])) > _FEW
    if many:
        return f"EXISTS (SELECT 1 FROM turns t WHERE t.conversation_id = c.conversation_id AND {condition})", values
    return f"c.conversation_id IN (SELECT conversation_id FROM turns WHERE {condition})", values


def _midnight(day: date) -> str:
    return utc_text(datetime(day.year, day.month, day.day, tzinfo=UTC))


def _words(query: str) -> list[str]:
    return storable_text(query[:MAX_QUERY_CHARACTERS]).split()


def _match(words: list[str]) -> str:
    """Return the words as the index takes them: each quoted, so that it is a phrase and never an operator.

    The star finds longer words too; the two letters of "re" would begin a tenth of all words.
    """
    found: list[str] = []
    for word in filter(is_indexed, words):
        quoted = '"' + search_words(word).strip().replace('"', '""') + '"'
        last = _LAST_LETTERS.search(word)
        found.append(quoted + "*" * (last is not None and len(last.group()) >= _SHORTEST_BEGINNING))
    return " ".join(found)


_CURSOR = re.compile(r"(?P<updated>[^|]*)\|(?P<seq>[0-9]{1,12})")


def _place(cursor: str, *, has_words: bool) -> tuple[str, int] | None:
    """Return where a page begins. Raises OperatorError for what is no cursor of such a search."""
    if not cursor:
        return None
    found = _CURSOR.fullmatch(cursor)
    if found is None or has_words == bool(found["updated"]):
        raise OperatorError(
            f"{cursor[:60]!r} is no place in this list; give the `cursor` of the last one shown by the same search"
        )
    return storable_text(found["updated"]), int(found["seq"])


def _cursor(row: Row) -> str:
    return f"{row['updated_at_utc']}|{row['conversation_seq']}"


def _found(row: Row, snippet: str, cursor: str) -> Found:
    return Found(
        conversation_id=str(row["conversation_id"]),
        customer_id=str(row["customer_id"]),
        channel=str(row["channel"]),
        state=str(row["state"]),
        language=str(row["language"]),
        turns=int(row["turn_count"] or 0),
        snippet=snippet,
        release_id=None if row["release_id"] is None else str(row["release_id"]),
        votes_up=int(row["votes_up"] or 0),
        votes_down=int(row["votes_down"] or 0),
        created_at_utc=str(row["created_at_utc"]),
        updated_at_utc=str(row["updated_at_utc"]),
        cursor=cursor,
    )


def _first_words(now: Snapshot, row: Row) -> str:
    """Return what the customer said first."""
    first = int(row["conversation_seq"] or 0) * TURNS_PER_CONVERSATION
    said = now.rows(
        "SELECT substr(content, 1, ?) AS words FROM turns WHERE turn_seq BETWEEN ? AND ? AND role = 'user' ORDER BY turn_seq LIMIT 1",
        [MAX_SNIPPET_CHARACTERS, first, first + TURNS_PER_CONVERSATION - 1],
    )
    return str(next(said, {"words": ""})["words"])


def _around(content: str, word: str) -> str:
    """Return the piece of a message where a word stands."""
    place = content.casefold().find(word.casefold())
    if place <= MAX_SNIPPET_CHARACTERS // 2:
        return content[:MAX_SNIPPET_CHARACTERS]
    before = content[place - _CHARACTERS_BEFORE_FOUND : place]
    # From the beginning of a word, where there is one.
    start = place - len(before.partition(" ")[2] or before)
    return f"… {content[start:]}"[:MAX_SNIPPET_CHARACTERS]
