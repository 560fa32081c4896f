"""A fresh record for each test, and what fills it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conversations import turns
from conversations.exchange import imports
from conversations.messages import Author, Role
from conversations.store import Record


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def lines_in(path: Path, *lines: object) -> Path:
    """Write lines, those that are no text as JSON."""
    path.write_text(
        "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines), encoding="utf-8"
    )
    return path


def bring_in(record: Record, *lines: object) -> imports.ImportCounts:
    """Import lines."""
    return imports.import_files(record, [lines_in(record.path.with_name("in.jsonl"), *lines)])


def talk_of(record: Record, customer_id: str, *said: str) -> str:
    """Let a customer say something in a new chat and return the conversation's name."""
    talk = turns.create_conversation(record, customer_id=customer_id, channel="chat").conversation_id
    for words in said:
        turns.append_message(record, talk, Role.USER, Author.CUSTOMER, words)
    return talk
