"""What `conversations verify` promises: whatever was changed behind the record's back, the first row of it is named."""

import random
import re
import sqlite3

import pytest
from conftest import bring_in, talk_of

from conversations import (
    artefacts,
    checks,
    decisions,
    editions,
    erasure,
    releases,
    rollouts,
    runs,
    shadows,
    tags,
    turns,
    votes,
)
from conversations.artefacts import ArtefactKind
from conversations.decisions import AnswerAuthor, Decision
from conversations.messages import Split, Vote
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.rollouts import RolloutKind
from conversations.searchable import search_words
from conversations.shadows import ShadowAnswer
from conversations.store import Record
from conversations.votes import Choice


def filled(record: Record) -> str:
    """Fill every table that is checked and return the name of the first conversation."""
    bring_in(
        record,
        {
            "id": "i-1",
            "tools": [{"type": "function"}],
            "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
        },
    )
    talk = talk_of(record, "anna", "my router blinks coral", "and the cat sleeps")
    turn_id = turns.thread(record, talk)[0].turn_id
    turns.vote_on(record, turn_id, "anna", Vote.DOWN)
    tags.tag(record, talk, ["vip"], tagged_by="test")
    runs.begin_run(record, run_id="run", path="/nowhere", settings_digest="d")
    decisions.put_decisions(record, [Decision("d1", talk, turn_id, None, "c", Split.TEST, "t", "h", "run", "coverage")])
    decisions.add_answer(record, "d1", author=AnswerAuthor.TEACHER, author_name="big", content="hold the pin")
    decisions.add_answer(record, "d1", author=AnswerAuthor.STUDENT, author_name="small", content="hold it")
    editions.next_edition(record, "run", {"d1": "{}"})
    releases.register_base(record, base="tiny", weights_path="/nowhere", weights_digest="sha256:" + "ab" * 32)
    releases.register(
        record,
        Release("s1", None, "tiny", ReleaseKind.LORA, "/w", "sha256:1", {}, "2026-01-01", ReleaseState.CANDIDATE),
        actor="test",
        reason="test",
    )
    shadow = rollouts.start(record, RolloutKind.SHADOW, "s1", share=1, actor="test", reason="test")
    shadows.keep(record, ShadowAnswer(shadow.rollout_id, turn_id, "s1", "hold", None, 1.0, 2.0, 3, 4, False, 0.5))
    pair = votes.next_pair(record, voted_by="olga", chance=random.Random(1))
    assert pair is not None
    votes.vote(
        record,
        decision_id="d1",
        left_answer_id=pair.left.answer_id,
        right_answer_id=pair.right.answer_id,
        choice=Choice.LEFT,
        voted_by="olga",
    )
    path = record.path.with_name("rows.jsonl")
    path.write_text("one\n", encoding="utf-8")
    artefacts.note(record, [artefacts.described(path, ArtefactKind.EXPORT)])
    return talk


def test_a_record_as_it_was_written_has_nothing_wrong(record: Record) -> None:
    filled(record)
    result = checks.verify(record)
    assert result.problems == []
    assert result.checked["turns"] == result.checked["search_rows"] == 4
    assert (
        result.checked["conversations"],
        result.checked["feedback"],
        result.checked["answers"],
        result.checked["editions"],
    ) == (2, 1, 2, 1)
    assert (result.checked["blind_votes"], result.checked["shadow_answers"]) == (1, 1)


_TAKEN_OUT_OF_INDEX = (
    "INSERT INTO turn_search(turn_search, rowid, words) SELECT 'delete', turn_seq, content FROM turns WHERE content = 'two'"
)
_LAST_ENTRY = "DELETE FROM audit WHERE audit_seq = (SELECT MAX(audit_seq) FROM audit)"
_ANOTHERS_THUMB = "INSERT INTO customers VALUES ('bo', 'n'); UPDATE feedback SET customer_id = 'bo'"
MEDDLING = {
    "a word of a turn": (
        "UPDATE turns SET content = 'cat' WHERE content LIKE '%cat%'",
        "turn turn_.*: its content does not match its hash",
    ),
    "a turn's parent": (
        "UPDATE turns SET parent_turn_id = NULL WHERE content LIKE '%cat%'",
        "turn turn_.*: stands at position 1; expected 0",
    ),
    "a circle of parents": (
        "UPDATE turns SET parent_turn_id = (SELECT turn_id FROM turns t WHERE t.content LIKE '%cat%') WHERE content LIKE '%coral'",
        "turn turn_.*: does not follow an earlier turn",
    ),
    "a turn taken out": (
        "DELETE FROM turns WHERE content LIKE '%cat%'",
        "conversation conversation_.*: turn_count is 2; its rows give 1",
    ),
    "an imported turn taken out": ("DELETE FROM turns WHERE content = 'two'", "what was imported does not match its hash"),
    "a count": ("UPDATE conversations SET turn_count = 7 WHERE customer_id = 'anna'", "turn_count is 7; its rows give 2"),
    "a thumb": ("DELETE FROM feedback", "votes_down is 1; its rows give 0"),
    "a thumb of somebody else": (
        "INSERT INTO customers VALUES ('bo', 'n'); UPDATE feedback SET customer_id = 'bo'",
        "is of 'bo', whose conversation it is not",
    ),
    "an answer": ("UPDATE answers SET content = 'pull the plug'", "answer answer_.*: its content does not match its hash"),
    "a blind vote": (
        "UPDATE blind_votes SET right_answer_id = left_answer_id",
        "blind vote vote_.*: is not about two answers to its decision",
    ),
    "a shadow's answer": (
        "UPDATE shadow_answers SET release_id = (SELECT release_id FROM releases WHERE kind = 'base')",
        "shadow answer to turn_.*: is not of the release that rollout_.* tries",
    ),
    "a canary's rules": ("UPDATE rollouts SET rules_json = '{'", "rollouts rollout_.*: rules_json is no JSON"),
    "an edition": ("DELETE FROM edition_decisions", "edition 1: its rows do not match its hash"),
    "a reference": (
        "UPDATE turns SET conversation_id = 'gone' WHERE content = 'two'",
        "turns row .*: refers to a missing row of conversations",
    ),
    "an audit entry": (
        "UPDATE audit SET actor = 'nobody' WHERE audit_seq = 1",
        "audit entry 1: its content does not match its hash",
    ),
    "the last audit entry": (_LAST_ENTRY, "the last one that was written is missing"),
    "a row of the index": (_TAKEN_OUT_OF_INDEX, "turn turn_.*: is not in the search index"),
    "words of the index": (
        f"{_TAKEN_OUT_OF_INDEX}; "
        "INSERT INTO turn_search(rowid, words) SELECT turn_seq, 'three' FROM turns WHERE content = 'two'",
        "turn turn_.*: the index holds other words than it says",
    ),
    "JSON of a turn": ("UPDATE turns SET extra_json = '{' WHERE content = 'two'", "turns turn_.*: extra_json is no JSON"),
    "JSON of tools": (
        "UPDATE conversations SET tools_json = '{' WHERE source_id = 'i-1'",
        "conversations .*: tools_json is no JSON",
    ),
    "JSON of labels": ("UPDATE conversations SET labels_json = 'x'", "conversations .*: labels_json is no JSON"),
    "a hash taken away": (
        "UPDATE conversations SET content_hash = '' WHERE source_id = 'i-1'",
        "was imported and has no hash",
    ),
    "the salt": ("DELETE FROM record_facts WHERE name = 'split_salt'", "the salt of the splits is missing"),
    "a tombstone": (
        "DELETE FROM tombstones WHERE kind = 'customer'",
        "tombstones: the one of audit entry .* is missing; the person could come back",
    ),
    "a trigger": ("DROP TRIGGER tombstones_are_kept", "schema: 'tombstones_are_kept' is missing"),
    "a table of somebody else": ("CREATE TABLE bookmarks (url TEXT)", "schema: 'bookmarks' is not ours"),
    "the counter of conversations": ("UPDATE counters SET value = 1", "counter conversation_seq: is 1; 2 is given already"),
}


@pytest.mark.parametrize("what", MEDDLING)
def test_what_was_changed_behind_the_records_back_is_named(record: Record, what: str) -> None:
    filled(record)
    erasure.erase_customer(record, "nobody", actor="test")
    script, told = MEDDLING[what]
    meddling = sqlite3.connect(record.path)
    meddling.create_function("search_words", 1, search_words, deterministic=True)
    guards = meddling.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in guards:
        meddling.execute(f"DROP TRIGGER {name}")
    for statement in script.split("; "):
        # A trigger that is gone already cannot be dropped again: that case is its own absence.
        if not statement.startswith("DROP TRIGGER"):
            meddling.execute(statement)
    for name, sql in guards:
        if f"DROP TRIGGER {name}" != script:
            meddling.execute(sql)
    meddling.commit()
    meddling.close()
    problems = "\n".join(checks.verify(record).problems)
    assert re.search(told, problems), problems


def test_a_file_that_was_changed_is_named_and_one_that_was_moved_away_is_not(record: Record) -> None:
    filled(record)
    path = record.path.with_name("rows.jsonl")
    path.write_text("two\n", encoding="utf-8")
    assert [problem for problem in checks.verify(record).problems if "rows.jsonl: was changed" in problem]
    path.unlink()
    assert checks.verify(record).problems == []
