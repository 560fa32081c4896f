"""What an operator is told of an answer just saved is what becomes of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from conversations import decisions, runs, turns
from conversations.corrections import correct
from conversations.decisions import Decision
from conversations.messages import Author, Role, Split
from conversations.redaction import RedactionRules
from conversations.store import Record
from support_bot.console.word import what_becomes_of


@pytest.mark.parametrize(
    ("split", "text", "told"),
    [
        (Split.TRAIN, "Unplug it.", "Saved as version 1 of your answer; the next run learns it."),
        (Split.TRAIN, "Write to eve@example.org.", "the next run learns it."),
        (Split.TRAIN, "Write to help@ours.example.", "not the customer's: help@ours.example. The run leaves the answer out"),
        (Split.TEST, "Unplug it.", "your answer is never learnt"),
    ],
)
def test_what_is_told_of_a_saved_answer_is_what_becomes_of_it(tmp_path: Path, split: Split, text: str, told: str) -> None:
    with Record(tmp_path / "record.db") as record:
        talk = turns.create_conversation(record, customer_id="eve", channel="chat").conversation_id
        asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "I am eve@example.org")
        runs.begin_run(record, run_id="run-1", path="run", settings_digest="x")
        made = Decision("decision-1", talk, asked.turn_id, None, "c", Split.TRAIN, "t", "h", "run-1", "coverage")
        decisions.put_decisions(record, [replace(made, split=split)])
        written = correct(record, "decision-1", text, operator="ann", rules=RedactionRules())
        assert told in what_becomes_of(record, written, RedactionRules())
