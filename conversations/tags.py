"""Tags: what people call a conversation, to find it again.

In: a conversation and short words. Out: the same, by conversation. Tagging twice is tagging once.
"""

from collections.abc import Sequence

from conversations.errors import OperatorError
from conversations.messages import utc_now
from conversations.store import Record, Transaction

MAX_TAG_CHARACTERS = 60


def tag(record: Record, conversation_id: str, tags: Sequence[str], *, tagged_by: str) -> None:
    """Give a conversation tags.

    Raises OperatorError for a tag that is empty or long, and where there is no such conversation.
    """
    for each in tags:
        if not is_tag(each):
            raise OperatorError(
                f"the tag {each!r}: expected 1 to {MAX_TAG_CHARACTERS} printable characters without spaces around them"
            )
    with record.write() as transaction:
        if not transaction.query("SELECT 1 FROM conversations WHERE conversation_id = ?", [conversation_id]):
            raise OperatorError(f"no conversation {conversation_id!r} in {record.path}; `conversations search` lists them")
        insert_tags(transaction, conversation_id, tags, tagged_by=tagged_by)


def insert_tags(transaction: Transaction, conversation_id: str, tags: Sequence[str], *, tagged_by: str) -> int:
    """Insert checked tags and return how many are new."""
    return sum(
        transaction.execute(
            "INSERT OR IGNORE INTO conversation_tags VALUES (?, ?, ?, ?)", [conversation_id, each, tagged_by, utc_now()]
        )
        for each in tags
    )


def is_tag(text: str) -> bool:
    """Tell whether people can type and read a tag."""
    return text == text.strip() and 0 < len(text) <= MAX_TAG_CHARACTERS and text.isprintable()


def untag(record: Record, conversation_id: str, tags: Sequence[str]) -> int:
    """Take tags from a conversation and return how many it had of them."""
    with record.write() as transaction:
        return sum(
            transaction.execute(
                "DELETE FROM conversation_tags WHERE conversation_id = ? AND tag = ?", [conversation_id, each]
            )
            for each in tags
        )


def tags_of(record: Record, conversation_id: str) -> list[str]:
    """Return the tags of a conversation in the order of the alphabet."""
    rows = record.query("SELECT tag FROM conversation_tags WHERE conversation_id = ? ORDER BY tag", [conversation_id])
    return [str(row["tag"]) for row in rows]


def every_tag(record: Record) -> list[str]:
    """Return every tag that is in use."""
    return [str(row["tag"]) for row in record.query("SELECT DISTINCT tag FROM conversation_tags ORDER BY tag")]
