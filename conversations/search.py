"""Finding conversations: by words and by what is known of their turns, page by page.

In: whatever a person types, and filters that combine. Out: conversations with the piece of text that was found. No input
breaks it: quotes, operators and emoji are words like others.
"""

from dataclasses import dataclass

from conversations.messages import TurnStatus, Vote
from conversations.store import Cell, Record

MAX_QUERY_CHARACTERS = 500
# Thai and Lao, Burmese, Khmer, Chinese and Japanese, Korean, the rarer Chinese characters.
_SCRIPTS_WITHOUT_SPACES = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u2e80", "\u9fff"),
    ("\uac00", "\ud7af"),
    ("\U00020000", "\U0003ffff"),
)


@dataclass(frozen=True)
class Filters:
    """What the conversations must have, beside the words. All that are given must hold."""

    status: TurnStatus | None = None
    release_id: str | None = None
    vote: Vote | None = None
    channel: str | None = None


@dataclass(frozen=True)
class Found:
    """One conversation in a list. `cursor` names its place: pass it as `after` for what follows."""

    conversation_id: str
    customer_id: str
    channel: str
    state: str
    turns: int
    snippet: str
    release_id: str | None
    votes_up: int
    votes_down: int
    updated_at_utc: str
    cursor: str


def find(
    record: Record, query: str = "", filters: Filters | None = None, *, after: str = "", limit: int = 50
) -> list[Found]:
    """Return conversations, the latest changed first, in which every word of the query is said."""
    where, parameters = _conditions(query, filters or Filters())
    if after:
        updated, _, conversation_id = after.partition("|")
        where.append("(c.updated_at_utc, c.conversation_id) < (?, ?)")
        parameters += [updated, conversation_id]
    rows = record.query(
        f"""SELECT c.*,
            (SELECT COUNT(*) FROM turns t WHERE t.conversation_id = c.conversation_id) AS turns,
            (SELECT COUNT(*) FROM feedback f JOIN turns t USING (turn_id)
              WHERE t.conversation_id = c.conversation_id AND f.vote = 'up') AS votes_up,
            (SELECT COUNT(*) FROM feedback f JOIN turns t USING (turn_id)
              WHERE t.conversation_id = c.conversation_id AND f.vote = 'down') AS votes_down,
            (SELECT t.content FROM turns t WHERE t.conversation_id = c.conversation_id AND t.role = 'user'
              ORDER BY t.turn_seq LIMIT 1) AS first_words
        FROM conversations c WHERE {" AND ".join(where) or "1"}
        ORDER BY c.updated_at_utc DESC, c.conversation_id DESC LIMIT ?""",
        [*parameters, limit],
    )
    return [
        Found(
            conversation_id=str(row["conversation_id"]),
            customer_id=str(row["customer_id"]),
            channel=str(row["channel"]),
            state=str(row["state"]),
            turns=int(row["turns"] or 0),
            snippet=str(row["first_words"] or "")[:160],
            release_id=None if row["release_id"] is None else str(row["release_id"]),
            votes_up=int(row["votes_up"] or 0),
            votes_down=int(row["votes_down"] or 0),
            updated_at_utc=str(row["updated_at_utc"]),
            cursor=f"{row['updated_at_utc']}|{row['conversation_id']}",
        )
        for row in rows
    ]


def _conditions(query: str, filters: Filters) -> tuple[list[str], list[Cell]]:
    where: list[str] = []
    parameters: list[Cell] = []
    inside = "c.conversation_id IN (SELECT t.conversation_id FROM turns t {})"
    # Lone surrogates cannot be bound to a statement.
    sound = query[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode("utf-8").replace("\x00", " ")
    words = sound.split()
    indexed = [word for word in words if _is_indexed(word)]
    if indexed:
        where.append(inside.format("JOIN turn_search s ON s.rowid = t.turn_seq WHERE turn_search MATCH ?"))
        # A quoted word is a phrase to the index, which cuts it as it cut the texts; the star finds longer words too.
        parameters.append(" ".join('"' + word.replace('"', '""') + '"*' for word in indexed))
    for word in words:
        if not _is_indexed(word):
            where.append(inside.format("WHERE instr(t.content, ?) > 0"))
            parameters.append(word)
    for value, condition in (
        (filters.status, "WHERE t.status = ?"),
        (filters.release_id, "WHERE t.release_id = ?"),
        (filters.vote, "JOIN feedback f USING (turn_id) WHERE f.vote = ?"),
    ):
        if value:
            where.append(inside.format(condition))
            parameters.append(str(value))
    if filters.channel:
        where.append("c.channel = ?")
        parameters.append(filters.channel)
    return where, parameters


def _is_indexed(word: str) -> bool:
    """Tell whether the index knows such words: not bare signs and emoji, nor scripts that put no spaces between words."""
    return any(map(str.isalnum, word)) and not any(
        first <= character <= last for character in word for first, last in _SCRIPTS_WITHOUT_SPACES
    )
