"""How conversations and turns are entered: their numbers, their places, and the hash of what was said.

In: an open transaction and plain values. Out: rows. Whoever begins a chat, goes on with one or imports a log comes through here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conversations.errors import OperatorError
from conversations.messages import OPEN_STATUSES, Author, Role, TurnStatus, check_storable, content_hash
from conversations.store import Cell, Transaction

# A turn's number is its conversation's number times this, and its place: the search index tells one from the other.
TURNS_PER_CONVERSATION = 1 << 20
_PLACE = f"""SELECT c.turn_count, c.updated_at_utc, p.turn_id AS parent_turn_id, COALESCE(p.position + 1, 0) AS next_position,
    COALESCE(newest.turn_seq + 1, c.conversation_seq * {TURNS_PER_CONVERSATION}) AS next_seq
FROM conversations c
LEFT JOIN turns newest ON newest.turn_seq = (SELECT MAX(turn_seq) FROM turns t WHERE t.conversation_id = c.conversation_id)
LEFT JOIN turns p ON p.turn_id = COALESCE(:parent_turn_id, newest.turn_id) AND p.conversation_id = c.conversation_id
WHERE c.conversation_id = :conversation_id"""


@dataclass(frozen=True)
class SaidTurn:
    """A turn that was finished elsewhere and comes in whole."""

    turn_id: str
    role: Role
    author: Author
    status: TurnStatus
    content: str
    extra_json: str
    release_id: str | None
    created_at_utc: str


def insert_customer(transaction: Transaction, customer_id: str, created_at_utc: str) -> None:
    """Note a customer, once."""
    transaction.execute("INSERT OR IGNORE INTO customers VALUES (?, ?)", [customer_id, created_at_utc])


def insert_conversation(
    transaction: Transaction, *, conversation_id: str, customer_id: str, created_at_utc: str, more: Mapping[str, Cell]
) -> int:
    """Insert a conversation, and its customer where they are new; return its number in the order of entry."""
    insert_customer(transaction, customer_id, created_at_utc)
    transaction.execute("UPDATE counters SET value = value + 1 WHERE name = 'conversation_seq'")
    conversation_seq = int(transaction.query("SELECT value FROM counters WHERE name = 'conversation_seq'")[0]["value"] or 0)
    transaction.insert(
        "conversations",
        {
            "conversation_id": conversation_id,
            "conversation_seq": conversation_seq,
            "customer_id": customer_id,
            "created_at_utc": created_at_utc,
            "updated_at_utc": created_at_utc,
            **more,
        },
    )
    return conversation_seq


def insert_turn(
    transaction: Transaction,
    *,
    conversation_id: str,
    turn_id: str,
    role: Role,
    author: Author,
    status: TurnStatus,
    content: str,
    created_at_utc: str,
    extra_json: str = "",
    parent_turn_id: str | None = None,
    more: Mapping[str, Cell] | None = None,
) -> None:
    """Insert a turn behind its parent, or behind the newest turn of the conversation.

    Raises OperatorError for a text that the record could not give back as it came, and where the conversation or the parent
    is not there.
    """
    check_storable(content)
    found = transaction.query(_PLACE, {"conversation_id": conversation_id, "parent_turn_id": parent_turn_id})
    if not found:
        raise OperatorError(f"no conversation {conversation_id!r}; it may have been erased")
    place = found[0]
    if parent_turn_id is not None and place["parent_turn_id"] is None:
        raise OperatorError(
            f"no turn {parent_turn_id!r} in the conversation {conversation_id!r}; a turn follows one of its own"
        )
    if int(place["turn_count"] or 0) >= TURNS_PER_CONVERSATION:
        raise OperatorError(f"the conversation {conversation_id!r} has {TURNS_PER_CONVERSATION} turns; begin another")
    transaction.insert(
        "turns",
        {
            "turn_seq": place["next_seq"],
            "turn_id": turn_id,
            "conversation_id": conversation_id,
            "parent_turn_id": place["parent_turn_id"],
            "position": place["next_position"],
            "role": role,
            "author": author,
            "status": status,
            "content": content,
            "extra_json": extra_json,
            "content_hash": turn_hash(role, content, extra_json),
            "created_at_utc": created_at_utc,
            "finished_at_utc": created_at_utc if status not in OPEN_STATUSES else None,
            **(more or {}),
        },
    )
    if created_at_utc > str(place["updated_at_utc"]):
        transaction.execute(
            "UPDATE conversations SET updated_at_utc = ? WHERE conversation_id = ?", [created_at_utc, conversation_id]
        )


def insert_said_turns(transaction: Transaction, conversation_id: str, said: Sequence[SaidTurn]) -> None:
    """Insert finished turns one behind the other, the first behind the newest turn of the conversation.

    The caller has checked the texts, and that they are no more than TURNS_PER_CONVERSATION allows.
    """
    place = transaction.query(_PLACE, {"conversation_id": conversation_id, "parent_turn_id": None})[0]
    seq, position = int(place["next_seq"] or 0), int(place["next_position"] or 0)
    parents = [place["parent_turn_id"], *(each.turn_id for each in said)]
    transaction.insert_many(
        "turns",
        [
            {
                "turn_seq": seq + number,
                "turn_id": each.turn_id,
                "conversation_id": conversation_id,
                "parent_turn_id": parents[number],
                "position": position + number,
                "role": each.role,
                "author": each.author,
                "status": each.status,
                "content": each.content,
                "extra_json": each.extra_json,
                "content_hash": turn_hash(each.role, each.content, each.extra_json),
                "release_id": each.release_id,
                "created_at_utc": each.created_at_utc,
                "finished_at_utc": each.created_at_utc,
            }
            for number, each in enumerate(said)
        ],
    )
    latest = max(each.created_at_utc for each in said)
    if latest > str(place["updated_at_utc"]):
        transaction.execute(
            "UPDATE conversations SET updated_at_utc = ? WHERE conversation_id = ?", [latest, conversation_id]
        )


def turn_hash(role: Role, content: str, extra_json: str) -> str:
    """Return the content hash of a turn."""
    return content_hash([role.value, content, extra_json])
