"""Many conversations with all their turns, read a page at a time: two queries a page, whatever the log's size.

In: the record. Out: frozen values, the oldest conversation first. A page is read when it is asked for, so that a log of any length
takes the same memory and no long transaction is held.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from conversations.messages import Consent
from conversations.store import Record, Row
from conversations.turns import TURN_COLUMNS, Conversation, Turn, conversation_of, turn_of

_PAGE = 500


@dataclass(frozen=True)
class Dialogue:
    """A conversation with every turn of it, branches included, oldest first.

    `tools_json` and `extra_json` are texts as they came: the tools, and an object of every other key of the imported line.
    """

    conversation: Conversation
    tools_json: str
    extra_json: str
    turns: tuple[Turn, ...]


def every_dialogue(record: Record) -> Iterator[Dialogue]:
    """Yield every conversation of the record, the oldest first."""
    after = ("", "")
    while True:
        rows = record.query(
            "SELECT * FROM conversations WHERE (created_at_utc, conversation_id) > (?, ?) "
            f"ORDER BY created_at_utc, conversation_id LIMIT {_PAGE}",
            after,
        )
        if not rows:
            return
        yield from _with_turns(record, rows)
        after = (str(rows[-1]["created_at_utc"]), str(rows[-1]["conversation_id"]))


def dialogues(record: Record, conversation_ids: Sequence[str]) -> Iterator[Dialogue]:
    """Yield the named conversations, each page of them the oldest first; one that is gone is not among them."""
    for start in range(0, len(conversation_ids), _PAGE):
        names = conversation_ids[start : start + _PAGE]
        yield from _with_turns(
            record,
            record.query(
                f"SELECT * FROM conversations WHERE conversation_id IN ({_marks(names)}) "
                "ORDER BY created_at_utc, conversation_id",
                names,
            ),
        )


def without_consent(record: Record, allowed: Collection[Consent]) -> frozenset[str]:
    """Return the conversations whose customers do not, or no longer, agree in one of the allowed ways that they are learnt from."""
    rows = record.query(
        f"SELECT conversation_id FROM conversations WHERE consent NOT IN ({_marks(list(allowed))})", sorted(allowed)
    )
    return frozenset(str(row["conversation_id"]) for row in rows)


def _with_turns(record: Record, rows: Sequence[Row]) -> Iterator[Dialogue]:
    names = [str(row["conversation_id"]) for row in rows]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for row in record.query(
        f"SELECT {TURN_COLUMNS} FROM turns t WHERE t.conversation_id IN ({_marks(names)}) ORDER BY t.turn_seq", names
    ):
        turns[str(row["conversation_id"])].append(turn_of(row))
    for row in rows:
        talk = conversation_of(row)
        yield Dialogue(talk, str(row["tools_json"]), str(row["extra_json"]), tuple(turns[talk.conversation_id]))


def _marks(names: Sequence[str]) -> str:
    return ", ".join("?" * len(names))
