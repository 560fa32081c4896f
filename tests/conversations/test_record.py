"""What the record promises: nothing is lost, a failure is a status, a release is held, a run is one at a time."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conversations import audit, checks, erasure, releases, rollouts, runs, search, spending, turns
from conversations.errors import OperatorError, OutsideError
from conversations.exchange import exports, imports
from conversations.messages import Author, Role, TurnStatus, Vote, utc_text
from conversations.processes import process_token
from conversations.releases import Load, Release, ReleaseKind, ReleaseState, ServerState
from conversations.store import Record, open_existing


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def asked(record: Record, words: str = "my router blinks violet") -> tuple[str, str]:
    conversation = turns.create_conversation(record, customer_id="anna", channel="chat")
    turn = turns.append_message(record, conversation.conversation_id, Role.USER, Author.CUSTOMER, words)
    return conversation.conversation_id, turn.turn_id


def based(record: Record) -> str:
    return releases.register_base(record, base="tiny", weights_path="/nowhere", weights_digest="sha256:" + "ab" * 32)


def candidate(record: Record, name: str) -> str:
    release = Release(
        name, None, "tiny", ReleaseKind.LORA, str(record.path.parent), "sha256:1", {}, "2026-01-01", ReleaseState.CANDIDATE
    )
    releases.register(record, release, actor="test", reason="test")
    return name


def begin(record: Record, conversation_id: str, question_id: str, release_id: str) -> turns.Turn:
    return turns.begin_reply(
        record, conversation_id, question_turn_id=question_id, release_id=release_id, prompt_version="1", decoding={}
    )


def written_by(record: Record, token: str, *, begun: datetime | None = None) -> None:
    """Let the open reply be one of another process."""
    with record.write() as transaction:
        transaction.execute("UPDATE turns SET process_token = ? WHERE status = 'pending'", [token])
        if begun is not None:
            transaction.execute("DROP TRIGGER IF EXISTS turns_keep_their_place")
            transaction.execute("UPDATE turns SET created_at_utc = ? WHERE status = 'pending'", [utc_text(begun)])


def run_python(code: str, *arguments: str, speaks: bool = False) -> subprocess.Popen[bytes]:
    out = subprocess.PIPE if speaks else subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=out)


def test_no_read_then_write_of_several_processes_is_lost(record: Record) -> None:
    code = """
import sys
from pathlib import Path
from conversations.store import Record, open_existing
record = Record(Path(sys.argv[1]))
for _ in range(50):
    with record.write() as t:
        n = int(t.query("SELECT value FROM record_facts WHERE name = 'counter'")[0]["value"])
        t.execute("UPDATE record_facts SET value = ? WHERE name = 'counter'", [str(n + 1)])
"""
    with record.write() as transaction:
        transaction.execute("INSERT INTO record_facts VALUES ('counter', '0')")
    writing = [run_python(code, str(record.path)) for _ in range(4)]
    assert [each.wait(120) for each in writing] == [0] * 4
    assert record.fact("counter") == "200"


def test_a_reply_stands_in_the_record_before_its_first_token_and_only_one_at_a_time(record: Record) -> None:
    conversation_id, question_id = asked(record)
    reply = begin(record, conversation_id, question_id, based(record))
    assert (reply.status, reply.content) == (TurnStatus.PENDING, "")
    written_by(record, process_token(os.getppid()))
    with pytest.raises(turns.ReplyInProgress):
        begin(record, conversation_id, question_id, based(record))


def test_a_reply_that_this_process_left_open_is_interrupted_by_the_next_one(record: Record) -> None:
    conversation_id, question_id = asked(record)
    begin(record, conversation_id, question_id, based(record))
    second = begin(record, conversation_id, question_id, based(record))
    statuses = [turn.status for turn in turns.all_turns(record, conversation_id)[1:]]
    assert (statuses, second.status) == ([TurnStatus.INTERRUPTED, TurnStatus.PENDING], TurnStatus.PENDING)


@pytest.mark.parametrize("closed_by", ["the next reply", "the next start"])
def test_an_answer_on_another_machine_is_waited_for_as_long_as_any_may_take_and_then_interrupted(
    record: Record, closed_by: str
) -> None:
    conversation_id, question_id = asked(record)
    begin(record, conversation_id, question_id, based(record))
    now = datetime.now(UTC)
    written_by(record, "another-machine:1:1.000", begun=now - timedelta(hours=turns.ANSWER_HOURS) + timedelta(minutes=1))
    assert turns.interrupt_orphans(record) == 0
    with pytest.raises(turns.ReplyInProgress):
        begin(record, conversation_id, question_id, based(record))
    written_by(record, "another-machine:1:1.000", begun=now - timedelta(hours=turns.ANSWER_HOURS, minutes=1))
    if closed_by == "the next start":
        assert turns.interrupt_orphans(record) == 1
    else:
        begin(record, conversation_id, question_id, based(record))
    assert turns.all_turns(record, conversation_id)[1].status is TurnStatus.INTERRUPTED


def test_a_retry_is_a_branch_beside_the_first_answer(record: Record) -> None:
    conversation_id, question_id = asked(record)
    base = based(record)
    first = begin(record, conversation_id, question_id, base)
    turns.finish_reply(record, first.turn_id, status=TurnStatus.FAILED, content="", failure_code="unreachable")
    second = begin(record, conversation_id, question_id, base)
    turns.finish_reply(record, second.turn_id, status=TurnStatus.COMPLETE, content="hold the pin")
    assert [turn.turn_id for turn in turns.thread(record, conversation_id)] == [question_id, second.turn_id]
    assert [turn.status for turn in turns.all_turns(record, conversation_id)][1] is TurnStatus.FAILED


def test_an_answer_of_a_killed_process_is_interrupted_and_one_of_a_living_process_is_not(record: Record) -> None:
    conversation_id, question_id = asked(record)
    base = based(record)
    code = """
import sys, time
from pathlib import Path
from conversations import turns
from conversations.store import Record, open_existing
record = Record(Path(sys.argv[1]))
r = turns.begin_reply(record, sys.argv[2], question_turn_id=sys.argv[3], release_id=sys.argv[4], prompt_version="1", decoding={})
turns.save_partial(record, r.turn_id, "half an ans", first_token_ms=1.0)
print("ready", flush=True)
time.sleep(60)
"""
    speaking = run_python(code, str(record.path), conversation_id, question_id, base, speaks=True)
    assert speaking.stdout is not None and speaking.stdout.readline() == b"ready\n"
    assert turns.interrupt_orphans(record) == 0
    os.kill(speaking.pid, signal.SIGKILL)
    speaking.wait()
    speaking.stdout.close()
    assert turns.interrupt_orphans(record) == 1
    last = turns.thread(record, conversation_id)[-1]
    assert (last.status, last.content) == (TurnStatus.INTERRUPTED, "half an ans")


def test_a_second_thumb_replaces_the_first(record: Record) -> None:
    conversation_id, question_id = asked(record)
    turns.vote_on(record, question_id, "anna", Vote.UP)
    turns.vote_on(record, question_id, "anna", Vote.DOWN)
    assert turns.thread(record, conversation_id)[0].vote is Vote.DOWN
    assert record.query("SELECT COUNT(*) AS n FROM feedback")[0]["n"] == 1


def test_a_promotion_changes_new_conversations_only_and_a_rollback_moves_open_ones(record: Record) -> None:
    base = based(record)
    better = candidate(record, "student-1")
    releases.promote(record, better, actor="gate", reason="better")
    assert rollouts.release_for(record, "a conversation", None) == better
    assert rollouts.release_for(record, "a conversation", base) == base
    assert releases.roll_back(record, actor="operator", reason="complaints") == base
    assert rollouts.release_for(record, "a conversation", better) == base
    assert releases.release(record, better).state is ReleaseState.ROLLED_BACK
    with pytest.raises(OperatorError, match="no earlier release"):
        releases.roll_back(record, actor="operator", reason="again")


def test_a_release_name_is_never_used_twice(record: Record) -> None:
    candidate(record, "student-1")
    with pytest.raises(OperatorError, match="never used twice"):
        candidate(record, "student-1")


def test_only_a_ready_server_that_was_heard_of_lately_has_a_release(record: Record) -> None:
    base = based(record)
    announce = {"server_id": "s", "base_url": "http://127.0.0.1:1", "base": "tiny"}
    releases.announce_server(record, **announce, state=ServerState.READY)
    releases.note_load(record, Load("s", base, True, ""))
    assert [server.server_id for server in releases.servers_with(record, base)] == ["s"]
    releases.announce_server(record, **announce, state=ServerState.DOWN)
    assert releases.servers_with(record, base) == []


def test_many_clicks_ask_for_one_run(record: Record) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: runs.request_run(record, requested_by="o").request_id, range(16)))
    assert len(found) == 1


def test_a_second_run_is_refused_while_one_lives_and_taken_up_when_it_died(record: Record) -> None:
    code = """
import sys, time
from pathlib import Path
from conversations import runs
from conversations.store import Record, open_existing
runs.begin_run(Record(Path(sys.argv[1])), run_id="run_a", path="/p", settings_digest="d")
print("ready", flush=True)
time.sleep(60)
"""
    running = run_python(code, str(record.path), speaks=True)
    assert running.stdout is not None and running.stdout.readline() == b"ready\n"
    with pytest.raises(OutsideError, match="run_a"):
        runs.begin_run(record, run_id="run_b", path="/p", settings_digest="d")
    running.kill()
    running.wait()
    running.stdout.close()
    assert runs.run(record, "run_a").state is runs.RunState.INTERRUPTED
    assert runs.begin_run(record, run_id="run_a", path="/p", settings_digest="d").state is runs.RunState.RUNNING


def test_a_cap_on_money_holds_under_many_threads(record: Record) -> None:
    runs.begin_run(record, run_id="run_a", path="/p", settings_digest="d")

    def reserve(_: int) -> bool:
        return spending.reserve(record, "run_a", "teacher", [(0.1, 10)], spending.Caps(0.55, 100)) != (None,)

    with ThreadPoolExecutor(16) as pool:
        granted = sum(pool.map(reserve, range(40)))
    assert granted == 5
    assert spending.spent(record, "run_a").usd <= 0.55


LINE = {
    "id": "c-1",
    "customer_id": "jo",
    "messages": [
        {"role": "user", "content": "Where is my refund, I wrote from jo.marsh@example.com"},
        {"role": "assistant", "content": "Please wait."},
    ],
    "consent": True,
    "feedback": [{"message": 1, "value": "down"}],
}


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text(
        "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines), encoding="utf-8"
    )
    return path


def test_importing_twice_adds_nothing_a_grown_conversation_is_extended_and_a_differing_one_kept(
    record: Record, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "a.jsonl", LINE)
    assert imports.import_files(record, [file]).conversations == 1
    assert imports.import_files(record, [file]).already_present == 1
    grown = {**LINE, "messages": [*LINE["messages"], {"role": "user", "content": "Still nothing!"}]}
    counts = imports.import_files(record, [write_lines(tmp_path / "b.jsonl", grown)])
    assert (counts.conversations, counts.turns) == (0, 1)
    other = {**LINE, "messages": [{"role": "user", "content": "Something else entirely"}]}
    counts = imports.import_files(record, [write_lines(tmp_path / "c.jsonl", other)])
    assert (counts.conversations, counts.flagged) == (1, 1)


def test_bad_lines_are_named_and_the_good_ones_go_in(record: Record, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", "{broken", '{"messages": []}', '{"messages": [{"role": "user"}]}', LINE, "")
    counts = imports.import_files(record, [file])
    assert (counts.conversations, counts.rejected, counts.repaired) == (1, 3, 1)
    assert [(problem.line, problem.verdict) for problem in counts.problems] == [
        (1, "reject"),
        (2, "reject"),
        (3, "reject"),
        (5, "repair"),
    ]


def test_an_export_can_be_imported_and_exported_to_the_same_bytes(record: Record, tmp_path: Path) -> None:
    imports.import_files(record, [write_lines(tmp_path / "a.jsonl", LINE)])
    exports.export_file(record, tmp_path / "one.jsonl")
    with Record(tmp_path / "other.db") as other:
        imports.import_files(other, [tmp_path / "one.jsonl"])
        exports.export_file(other, tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_erasing_a_customer_leaves_no_byte_and_keeps_them_out(record: Record, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", LINE)
    imports.import_files(record, [file])
    erased = erasure.erase_customer(record, "jo", actor="test")
    assert (erased.conversations, erased.turns) == (1, 2)
    for each in (record.path, record.path.with_name(record.path.name + "-wal")):
        assert not each.exists() or b"jo.marsh" not in each.read_bytes()
    counts = imports.import_files(record, [file])
    assert (counts.conversations, counts.rejected) == (0, 1)
    assert "erased" in counts.problems[0].reason


@pytest.mark.parametrize(
    "query", ['"', "", "* AND (", "NEAR(", "🙂", "退款", "re'fund", "\x00", "\ud800", "-refund", "a" * 5000]
)
def test_no_query_breaks_the_search(record: Record, tmp_path: Path, query: str) -> None:
    imports.import_files(record, [write_lines(tmp_path / "a.jsonl", LINE)])
    assert isinstance(search.find(record, query), list)


def test_search_finds_words_within_a_script_without_spaces_and_filters_combine(record: Record, tmp_path: Path) -> None:
    chinese = {"id": "zh", "messages": [{"role": "user", "content": "我想申请退款谢谢"}]}
    imports.import_files(record, [write_lines(tmp_path / "a.jsonl", LINE, chinese)])
    assert len(search.find(record, "退款")) == 1
    assert len(search.find(record, "refund", search.Filters(vote=Vote.DOWN))) == 1
    assert search.find(record, "refund", search.Filters(vote=Vote.UP)) == []


def test_a_changed_turn_and_a_changed_audit_entry_are_named(record: Record) -> None:
    asked(record)
    based(record)
    assert checks.verify(record).problems == []
    with sqlite3.connect(record.path) as meddling:
        meddling.execute("DROP TRIGGER turns_stay_as_said")
        meddling.execute("UPDATE turns SET content = 'other words'")
        meddling.execute("DROP TRIGGER audit_is_never_changed")
        meddling.execute("UPDATE audit SET actor = 'nobody' WHERE audit_seq = 1")
    meddling.close()
    problems = checks.verify(record).problems
    assert any("does not match its hash" in problem for problem in problems)
    assert audit.first_broken_entry(record) is not None


def test_the_audit_cannot_be_changed_in_passing(record: Record) -> None:
    based(record)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"), record.write() as transaction:
        transaction.execute("DELETE FROM audit")


def test_a_reader_sees_what_was_committed_while_a_writer_writes(record: Record) -> None:
    inside = threading.Event()
    done = threading.Event()

    def write() -> None:
        with record.write() as transaction:
            transaction.execute("INSERT INTO customers VALUES ('x', 'now')")
            inside.set()
            done.wait(5)

    writer = threading.Thread(target=write)
    writer.start()
    inside.wait(5)
    started = time.monotonic()
    assert record.query("SELECT * FROM customers") == []
    assert time.monotonic() - started < 1
    done.set()
    writer.join()
    assert len(record.query("SELECT * FROM customers")) == 1


def test_an_export_to_a_folder_is_refused_and_leaves_nothing(record: Record, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    with pytest.raises(OperatorError, match="is a folder"):
        exports.export_file(record, tmp_path)
    assert set(tmp_path.rglob("*")) == before and not (tmp_path.parent / f".{tmp_path.name}.half").exists()


def test_a_mistyped_record_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="there is no record"):
        open_existing(tmp_path / "reocrd.db")
    assert list(tmp_path.iterdir()) == []


def test_a_problem_names_its_line_in_digits(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n" * 1233 + "{\n", encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from conversations.cli import main; main()",
            "import",
            str(path),
            "--record",
            str(record.path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "many.jsonl:1234: " in done.stderr
