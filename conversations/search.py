"""Finding conversations: by words and by what is known of them, page by page.

In: whatever a person types, and filters that combine. Out: conversations with the piece of text that was found. No input
breaks it: quotes, operators and emoji are words like others. Words are looked up in an index that knows the conversation by
its number (see `turns.TURNS_PER_CONVERSATION`), so a million turns are searched without reading them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

from conversations.messages import ConversationState, TurnStatus, Vote, storable_text, utc_text
from conversations.searchable import is_indexed, search_words
from conversations.store import Cell, Record, Row
from conversations.turns import TURNS_PER_CONVERSATION

MAX_QUERY_CHARACTERS = 500
MAX_SNIPPET_CHARACTERS = 160
_CHARACTERS_BEFORE_FOUND = 40
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
    """Return conversations in which one message says every word of the query; a word finds longer ones that begin with it.

    With words the newest come first, by their entry into the record; without, the latest changed. What comes in while a person
    turns the pages is neither shown twice nor moves what follows.
    """
    words = _words(query)
    conditions = _conditions(filters or Filters())
    if words:
        return list(_with_words(record, words, conditions, after, limit))
    rows = _latest_changed(record, conditions, after, limit)
    return [_found(record, row, [], f"{row['updated_at_utc']}|{row['conversation_seq']}") for row in rows]


def _with_words(record: Record, words: list[str], conditions: list[Condition], after: str, limit: int) -> Iterator[Found]:
    match = _match(words)
    signs = [word for word in words if not is_indexed(word)]
    source = "turn_search s JOIN turns t ON t.turn_seq = s.rowid" if match and signs else "turn_search s"
    number = "s.rowid"
    if not match:
        source, number = "turns t", "t.turn_seq"
    where: list[Condition] = (
        [("turn_search MATCH ?", [match])] if match else [("t.status NOT IN ('pending', 'streaming')", [])]
    )
    where += [("instr(t.content, ?) > 0", [sign]) for sign in signs]
    before = _seq_of(after)
    if before is not None:
        where.append((f"{number} < ?", [before * TURNS_PER_CONVERSATION]))
    inner, parameters = _joined(where)
    kept, more = _joined([(f"c.conversation_seq = found.seq AND {each}", values) for each, values in conditions])
    exists = f"WHERE EXISTS (SELECT 1 FROM conversations c WHERE {kept})" if conditions else ""
    rows = record.query(
        f"SELECT DISTINCT found.seq AS seq FROM (SELECT {number} / {TURNS_PER_CONVERSATION} AS seq FROM {source} "
        f"WHERE {inner} ORDER BY {number} DESC) found {exists} LIMIT ?",
        [*parameters, *more, limit],
    )
    for row in rows:
        head = record.one("SELECT * FROM conversations c WHERE conversation_seq = ?", [row["seq"]])
        if head is not None:
            yield _found(record, head, words, f"|{row['seq']}")


def _latest_changed(record: Record, conditions: list[Condition], after: str, limit: int) -> list[Row]:
    seq = _seq_of(after)
    place: list[Condition] = []
    if seq is not None:
        place = [("(c.updated_at_utc, c.conversation_seq) < (?, ?)", [storable_text(after.rpartition("|")[0]), seq])]
    where, parameters = _joined([*conditions, *place])
    return record.query(
        f"SELECT c.* FROM conversations c WHERE {where} ORDER BY c.updated_at_utc DESC, c.conversation_seq DESC LIMIT ?",
        [*parameters, limit],
    )


def _joined(conditions: list[Condition]) -> Condition:
    return " AND ".join(each for each, _ in conditions) or "1", [value for _, values in conditions for value in values]


def _conditions(filters: Filters) -> list[Condition]:
    """Return the filters as conditions on a conversation `c`.

    Closed sets are written out, because SQLite takes a partial index only where it can see the value.
    """
    found: list[Condition] = []
    if filters.status:
        found.append((_turn_with(f"t.status = '{TurnStatus(filters.status).value}'"), []))
    if filters.release_id:
        found.append((_turn_with("t.release_id = ?"), [filters.release_id]))
    if filters.vote:
        found.append(("c.votes_up > 0" if filters.vote is Vote.UP else "c.votes_down > 0", []))
    for column, value in (("channel", filters.channel), ("state", filters.state), ("language", filters.language)):
        if value:
            found.append((f"c.{column} = ?", [str(value)]))
    if filters.tag:
        found.append(("c.conversation_id IN (SELECT conversation_id FROM conversation_tags WHERE tag = ?)", [filters.tag]))
    if filters.since:
        found.append(("c.created_at_utc >= ?", [_midnight(filters.since)]))
    if filters.until and filters.until < date.max:
        found.append(("c.created_at_utc < ?", [_midnight(filters.until + timedelta(days=1))]))
    if filters.has_disagreement:
        found.append(("c.has_disagreement = 1", []))
    return found


def _turn_with(condition: str) -> str:
    return f"EXISTS (SELECT 1 FROM turns t WHERE t.conversation_id = c.conversation_id AND {condition})"


def _midnight(day: date) -> str:
    return utc_text(datetime(day.year, day.month, day.day, tzinfo=UTC))


def _words(query: str) -> list[str]:
    return storable_text(query[:MAX_QUERY_CHARACTERS]).split()


def _match(words: list[str]) -> str:
    """Return the words as the index takes them: each quoted, so that it is a phrase and never an operator."""
    return " ".join('"' + search_words(word).strip().replace('"', '""') + '"*' for word in words if is_indexed(word))


def _seq_of(cursor: str) -> int | None:
    number = cursor.rpartition("|")[2]
    # More digits than any number has would not fit into the database either.
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 13 else None


def _found(record: Record, row: Row, words: list[str], cursor: str) -> Found:
    return Found(
        conversation_id=str(row["conversation_id"]),
        customer_id=str(row["customer_id"]),
        channel=str(row["channel"]),
        state=str(row["state"]),
        language=str(row["language"]),
        turns=int(row["turn_count"] or 0),
        snippet=_snippet(record, row, words),
        release_id=None if row["release_id"] is None else str(row["release_id"]),
        votes_up=int(row["votes_up"] or 0),
        votes_down=int(row["votes_down"] or 0),
        created_at_utc=str(row["created_at_utc"]),
        updated_at_utc=str(row["updated_at_utc"]),
        cursor=cursor,
    )


def _snippet(record: Record, row: Row, words: list[str]) -> str:
    """Return the piece around the first word that was found, or what the customer said first."""
    parameters: list[Cell] = [int(row["conversation_seq"] or 0) * TURNS_PER_CONVERSATION]
    parameters.append(int(parameters[0] or 0) + TURNS_PER_CONVERSATION - 1)
    match = _match(words)
    if match:
        hit = record.one(
            "SELECT t.content FROM turn_search s JOIN turns t ON t.turn_seq = s.rowid "
            "WHERE turn_search MATCH ? AND s.rowid BETWEEN ? AND ? ORDER BY s.rowid DESC LIMIT 1",
            [match, *parameters],
        )
    else:
        hit = record.one(
            "SELECT content FROM turns WHERE turn_seq BETWEEN ? AND ? AND role = 'user' ORDER BY turn_seq LIMIT 1",
            parameters,
        )
    content = str(hit["content"]) if hit else ""
    place = content.casefold().find(words[0].casefold()) if words else -1
    start = max(0, place - _CHARACTERS_BEFORE_FOUND) if place > MAX_SNIPPET_CHARACTERS // 2 else 0
    return content[start : start + MAX_SNIPPET_CHARACTERS]
