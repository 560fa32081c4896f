"""What an erasure promises: afterwards no byte of the person is on the disk, whoever has written a copy."""

import json
import random
import threading
import time
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, SmallRun, conversation, small_run

from conversations import (
    audit,
    backup,
    checks,
    decisions,
    erased_files,
    erasure,
    lineage,
    releases,
    replies,
    rollouts,
    search,
    shadows,
    turns,
    votes,
)
from conversations.decisions import AnswerAuthor
from conversations.errors import OutsideError
from conversations.exchange import exports, imports
from conversations.exchange.exports import ExportFormat
from conversations.messages import Author, Role
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.rollouts import RolloutKind
from conversations.shadows import ShadowAnswer
from conversations.store import Record, open_existing
from conversations.votes import Choice
from distill.run import Stage

PHRASES = ("the heirloom gramophone hums", "ask for Wilhelmina at the back door", "wilhelmina-17")
TOLD = {
    **conversation(30, f"Why does {PHRASES[0]} whenever the lamp on my box glows coral?"),
    "customer_id": PHRASES[2],
    "labels": {"note": PHRASES[1]},
    "tags": ["vip"],
    "feedback": [{"message": 1, "value": "down", "reason": PHRASES[1]}],
}


def bytes_with(folder: Path, *phrases: str) -> list[str]:
    """Return the files in which one of the phrases stands, whatever the files are."""
    return sorted(
        path.name
        for path in folder.rglob("*")
        if path.is_file() and any(phrase.encode() in path.read_bytes() for phrase in phrases)
    )


def lived(small: SmallRun) -> tuple[str, str]:
    """Let the person chat, be taught from, be released from, exported and backed up; return the run and the release."""
    small.import_conversations([TOLD])
    (small.folder / "conversations.jsonl").unlink()
    talk = turns.create_conversation(small.record, customer_id=PHRASES[2], channel="chat").conversation_id
    turns.append_message(small.record, talk, Role.USER, Author.CUSTOMER, f"And {PHRASES[1]}, please, my line is dead.")
    run, _ = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE)
    # Training wrote which decisions the weights have seen; a report page shows single cases.
    own = [
        each.decision_id
        for each in decisions.decisions(small.record)
        if PHRASES[0] in turns.turn(small.record, each.question_turn_id).content
    ]
    decisions.add_answer(
        small.record, own[0], author=AnswerAuthor.OPERATOR, author_name="olga", content=f"Tell her: {PHRASES[1]}"
    )
    lineage.note_use(small.record, run.run_id, {own[0]: decisions.Split.TRAIN})
    (run.folder / "report.html").write_text(f"<p data-decision={own[0]}>{PHRASES[0]}</p>", encoding="utf-8")
    (run.folder / "evaluate").mkdir()
    (run.folder / "evaluate" / ".rows.jsonl.half").write_text(
        json.dumps({"decision_id": own[0], "text": PHRASES[0]}), encoding="utf-8"
    )
    release = Release(
        "student-1", run.run_id, "tiny", ReleaseKind.LORA, "/w", "sha256:1", {}, "2026-01-01", ReleaseState.CANDIDATE
    )
    releases.register(small.record, release, actor="test", reason="test")
    told = turns.thread(small.record, talk)[0].turn_id
    shadow = rollouts.start(small.record, RolloutKind.SHADOW, "student-1", share=1, actor="test", reason="test")
    shadows.keep(
        small.record,
        ShadowAnswer(shadow.rollout_id, told, "student-1", f"Do {PHRASES[1]}.", None, 1.0, 2.0, 3, 4, False, 0.5),
    )
    decisions.add_answer(
        small.record, own[0], author=AnswerAuthor.STUDENT, author_name="student-1", content=f"I say {PHRASES[1]}"
    )
    pair = votes.next_pair(small.record, voted_by="olga", chance=random.Random(1))
    assert pair is not None
    votes.vote(
        small.record,
        decision_id=pair.decision_id,
        left_answer_id=pair.left.answer_id,
        right_answer_id=pair.right.answer_id,
        choice=Choice.LEFT,
        voted_by="olga",
    )
    for each in ExportFormat:
        exports.export_file(small.record, small.folder / f"out.{each}", each)
    backup.back_up(small.record, small.folder / "backups" / "monday.db")
    return run.run_id, "student-1"


@pytest.fixture
def small(tmp_path: Path):
    with (
        ScriptedTeacher(lambda question, before: Act(text="Coral light: please wait 12 minutes.")) as teacher,
        small_run(tmp_path, teacher.base_url) as made,
    ):
        yield made


def test_no_byte_of_a_person_is_left_and_who_learned_from_them_is_told(small: SmallRun) -> None:
    run_id, release_id = lived(small)
    there = bytes_with(small.folder, *PHRASES)
    assert {
        "record.db-wal",
        "monday.db",
        "decisions.jsonl",
        "report.html",
        "out.chat",
        "out.csv",
        "out.sharegpt",
        ".rows.jsonl.half",
    } <= set(there)
    erased = erasure.erase_customer(small.record, PHRASES[2], actor="test")
    assert (erased.conversations, erased.turns) == (2, 3)
    assert erased.answers >= 2 and erased.files >= 8
    assert (erased.runs, erased.releases) == ((run_id,), (release_id,))
    assert bytes_with(small.folder, *PHRASES) == []
    assert small.record.query("SELECT 1 FROM shadow_answers") == votes.votes(small.record) == []
    assert checks.verify(small.record).problems == []
    assert PHRASES[2] not in json.dumps([each.detail_json + each.target for each in audit.newest(small.record, 100)])
    # The others are where they were.
    assert len(search.find(small.record)) == len(QUESTIONS)
    assert len((small.folder / "out.chat").read_bytes().splitlines()) == len(QUESTIONS)


def test_an_erased_person_does_not_come_back_by_an_import_a_backup_or_a_data_set(small: SmallRun) -> None:
    lived(small)
    erasure.erase_customer(small.record, PHRASES[2], actor="test")
    path = small.folder / "again.jsonl"
    path.write_text(json.dumps(TOLD) + "\n" + json.dumps({**TOLD, "customer_id": "somebody else"}) + "\n", encoding="utf-8")
    with open_existing(small.folder / "backups" / "monday.db") as restored:
        for record in (small.record, restored):
            counts = imports.import_files(record, [path])
            assert (counts.conversations, counts.rejected) == (0, 2), counts
            assert checks.verify(record).problems == []
    _, manifests = small.perform(Stage.CHOOSE)
    assert manifests[0].counts.accepted == len(QUESTIONS)


def test_an_erasure_that_was_killed_is_told_by_verify_and_finished_by_the_next(
    small: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived(small)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(erased_files, "_erase_lines", killed)
        erasure.erase_customer(small.record, PHRASES[2], actor="test")
    assert search.find(small.record, "gramophone") == []
    assert bytes_with(small.folder / "runs", *PHRASES)
    assert any("an erasure was killed" in problem for problem in checks.verify(small.record).problems)
    erasure.erase_customer(small.record, PHRASES[2], actor="test")
    assert bytes_with(small.folder, *PHRASES) == []
    assert checks.verify(small.record).problems == []


def test_a_backup_that_was_moved_away_is_named(small: SmallRun) -> None:
    lived(small)
    moved = (small.folder / "backups" / "monday.db").rename(small.folder / "elsewhere.db")
    erased = erasure.erase_customer(small.record, PHRASES[2], actor="test")
    assert [Path(path).name for path in erased.unreached] == ["monday.db"]
    with Record(moved) as found:
        erasure.erase_customer(found, PHRASES[2], actor="test")
    assert bytes_with(small.folder, *PHRASES) == []


def test_bytes_that_a_reader_still_holds_are_told_until_they_are_gone(
    small: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived(small)
    monkeypatch.setattr("conversations.store.WAIT_SECONDS", 0.2)
    with Record(small.record.path) as other:
        with other.snapshot() as held:
            assert held.count("turns")
            with pytest.raises(OutsideError, match="deleted bytes are still in the file"):
                erasure.erase_customer(small.record, PHRASES[2], actor="test")
        assert any("an erasure was killed" in problem for problem in checks.verify(small.record).problems)
        erasure.erase_customer(small.record, PHRASES[2], actor="test")
    assert bytes_with(small.folder, *PHRASES) == []
    assert checks.verify(small.record).problems == []


def test_a_backup_that_comes_back_forgets_what_was_erased_meanwhile(small: SmallRun) -> None:
    lived(small)
    place = small.folder / "backups" / "monday.db"
    moved = place.rename(small.folder / "elsewhere.db")
    erasure.erase_customer(small.record, PHRASES[2], actor="test")
    moved.rename(place)
    assert bytes_with(small.folder, *PHRASES)
    assert erasure.erase_customer(small.record, "customer-1", actor="test").conversations == 1
    assert bytes_with(small.folder, *PHRASES) == []
    with open_existing(place) as restored:
        assert checks.verify(restored).problems == []


def test_a_customer_who_came_back_keeps_what_they_said_since(small: SmallRun) -> None:
    lived(small)
    erasure.erase_customer(small.record, PHRASES[2], actor="test")
    talk = turns.create_conversation(small.record, customer_id=PHRASES[2], channel="chat").conversation_id
    turns.append_message(small.record, talk, Role.USER, Author.CUSTOMER, "I am back, with another box.")
    backup.back_up(small.record, small.folder / "backups" / "tuesday.db")
    erasure.erase_customer(small.record, "customer-1", actor="test")
    with open_existing(small.folder / "backups" / "tuesday.db") as restored:
        for record in (small.record, restored):
            assert [turn.content for turn in turns.thread(record, talk)] == ["I am back, with another box."]
            assert checks.verify(record).problems == []


def test_a_reply_that_two_customers_share_stays_with_the_other(small: SmallRun) -> None:
    lived(small)
    own, other = (
        next(
            each
            for each in decisions.decisions(small.record)
            if words in turns.turn(small.record, each.question_turn_id).content
        )
        for words in (PHRASES[0], QUESTIONS[1])
    )
    reply = replies.TeacherReply("shared", own.decision_id, "big", "{}", 1, 1, 0.0, 1.0)
    replies.save_reply(small.record, reply)
    for each in (own, other):
        decisions.add_answer(
            small.record,
            each.decision_id,
            author=AnswerAuthor.TEACHER,
            author_name="second",
            content="Wait.",
            request_hash="shared",
        )
    erasure.erase_customer(small.record, PHRASES[2], actor="test")
    kept = replies.find_reply(small.record, "shared")
    assert kept is not None and kept.decision_id == other.decision_id
    assert checks.verify(small.record).problems == []


def test_an_export_that_was_moved_or_changed_is_named_and_left_alone(small: SmallRun) -> None:
    lived(small)
    (small.folder / "out.chat").rename(small.folder / "moved.jsonl")
    (small.folder / "out.csv").write_text("my own notes", encoding="utf-8")
    erased = erasure.erase_customer(small.record, PHRASES[2], actor="test")
    assert {Path(path).name for path in erased.unreached} == {"out.chat", "out.csv"}
    assert (small.folder / "out.csv").read_text(encoding="utf-8") == "my own notes"
    assert bytes_with(small.folder, *PHRASES) == ["moved.jsonl"]


def test_a_chat_goes_on_while_somebody_else_is_erased(small: SmallRun) -> None:
    lived(small)
    talk = turns.create_conversation(small.record, customer_id="bo", channel="chat").conversation_id
    slowest, stop = [0.0], threading.Event()

    def chat() -> None:
        while not stop.is_set():
            began = time.monotonic()
            turns.append_message(small.record, talk, Role.USER, Author.CUSTOMER, "still there?")
            slowest[0] = max(slowest[0], time.monotonic() - began)

    chatting = threading.Thread(target=chat)
    chatting.start()
    erasure.erase_customer(small.record, PHRASES[2], actor="test")
    stop.set()
    chatting.join()
    assert turns.all_turns(small.record, talk)
    assert slowest[0] < 10
