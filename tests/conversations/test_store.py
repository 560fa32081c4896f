"""What the file promises: every version leads to the newest, many may come at once, and each refusal says what to do."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from conversations import checks, entry, erasure, search, turns
from conversations.errors import OperatorError, OutsideError
from conversations.messages import MAX_MESSAGE_CHARACTERS, Author, Role
from conversations.schema import record_migrations
from conversations.store import Record, open_existing

STEPS = [step.name for step in record_migrations.pending(Database(memory=True))]
OPEN = "import sys; from pathlib import Path; from conversations.store import Record; Record(Path(sys.argv[1])).close()"


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def first_version(path: Path) -> Path:
    """Make a record as the first version left it: two customers, a retry, a thumb, an answer, an edition, a run's file."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    record_migrations.apply(Database(connection), stop_before=STEPS[1])
    insert = connection.execute
    for name in ("anna", "bo"):
        insert("INSERT INTO customers VALUES (?, '2026-01-01')", [name])
        insert(
            "INSERT INTO conversations (conversation_id, customer_id, channel, state, consent, created_at_utc, updated_at_utc) "
            "VALUES (?, ?, 'chat', 'bot', 'yes', '2026-01-01', '2026-01-02')",
            [f"talk-{name}", name],
        )
    said = [
        ("t1", "talk-anna", None, 0, "user", "customer", "complete", "Wo ist 退款?"),
        ("t2", "talk-bo", None, 0, "user", "customer", "complete", "hello there"),
        ("t3", "talk-anna", "t1", 1, "assistant", "student", "failed", ""),
        ("t4", "talk-anna", "t1", 1, "assistant", "student", "complete", "Hold the pin 🙂"),
        ("t5", "talk-bo", "t2", 1, "assistant", "student", "streaming", "half an ans"),
    ]
    for turn_id, talk, parent, position, role, author, status, content in said:
        insert(
            "INSERT INTO turns (turn_id, conversation_id, parent_turn_id, position, role, author, status, content, content_hash, "
            "created_at_utc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '2026-01-01')",
            [turn_id, talk, parent, position, role, author, status, content, entry.turn_hash(Role(role), content, "")],
        )
    insert("INSERT INTO feedback VALUES ('t4', 'anna', 'down', '', '2026-01-01')")
    insert(
        "INSERT INTO runs (run_id, state, path, settings_digest, started_at_utc, heartbeat_at_utc) "
        "VALUES ('run', 'complete', '/nowhere', 'd', 'n', 'n')"
    )
    insert("INSERT INTO decisions VALUES ('d1', 'talk-anna', 't1', 't4', 'c', 'test', 'topic', 'h', 'run', 'coverage', 'n')")
    for number, (kind, text) in enumerate((("teacher", "one"), ("operator", "two"))):
        insert(
            "INSERT INTO answers (answer_id, decision_id, version, author_kind, author_name, content, content_hash, answered_at_utc) "
            "VALUES (?, 'd1', 1, ?, ?, ?, ?, 'n')",
            [f"a{number}", kind, kind, text, checks.content_hash(text)],
        )
    insert("INSERT INTO editions VALUES (1, 'digest', 'run', 'n')")
    insert("INSERT INTO edition_decisions VALUES (1, 'd1', '{}')")
    insert("INSERT INTO artefacts VALUES ('/nowhere/rows.jsonl', 'run', 'choose', 1, 'd', 1, 'n')")
    connection.commit()
    connection.close()
    return path


def test_a_record_of_the_first_version_becomes_the_newest_with_every_row(tmp_path: Path) -> None:
    with Record(first_version(tmp_path / "record.db")) as record:
        assert checks.verify(record).problems == []
        assert [turn.turn_id for turn in turns.all_turns(record, "talk-anna")] == ["t1", "t3", "t4"]
        assert [turn.turn_id for turn in turns.thread(record, "talk-anna")] == ["t1", "t4"]
        for words in ("退", "🙂", "pin"):
            assert [found.conversation_id for found in search.find(record, words)] == ["talk-anna"]
        found = search.find(record, filters=search.Filters(has_disagreement=True))
        assert [(each.turns, each.votes_down) for each in found] == [(3, 1)]
        assert turns.create_conversation(record, customer_id="bo", channel="chat").conversation_id.startswith(
            "conversation_"
        )
        assert erasure.erase_customer(record, "anna", actor="test").answers == 2
        assert checks.verify(record).problems == []


def test_a_newest_record_is_opened_without_being_written(record: Record) -> None:
    before = record.query("SELECT * FROM _sqlite_migrations")
    with Record(record.path) as again:
        assert again.query("SELECT * FROM _sqlite_migrations") == before


@pytest.mark.parametrize("begin", [None, first_version], ids=["blank", "first version"])
def test_eight_processes_may_migrate_at_once(tmp_path: Path, begin) -> None:
    path = tmp_path / "record.db"
    if begin:
        begin(path)
    starting = [subprocess.Popen([sys.executable, "-c", OPEN, str(path)]) for _ in range(8)]
    assert [each.wait(60) for each in starting] == [0] * 8
    with Record(path) as record:
        assert checks.verify(record).problems == []


@pytest.mark.parametrize("after_instructions", [300, 3000, 12000])
def test_a_migration_that_is_killed_leaves_the_version_before(tmp_path: Path, after_instructions: int) -> None:
    path = first_version(tmp_path / "record.db")
    code = """
import os, signal, sqlite3, sys
from conversations.schema import migrate
from conversations.searchable import search_words
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.create_function("search_words", 1, search_words, deterministic=True)
left = [int(sys.argv[2])]
def tick():
    left[0] -= 100
    if left[0] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
connection.set_progress_handler(tick, 100)
migrate(connection)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(path), str(after_instructions)], check=False)
    assert killed.returncode == -signal.SIGKILL
    connection = sqlite3.connect(path)
    assert [row[0] for row in connection.execute("SELECT name FROM _sqlite_migrations")] == STEPS[:1]
    connection.close()
    with Record(path) as record:
        assert checks.verify(record).problems == []


def test_a_record_of_a_newer_version_is_refused_and_not_touched(record: Record) -> None:
    with record.write() as transaction:
        transaction.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('record', 'm999_later', 'n')"
        )
    record.close()
    with pytest.raises(OperatorError, match=r"newer version .*m999_later.*install that version"):
        Record(record.path)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is a letter and no database at all\n" * 40, b"SQLite format 3\x00" + b"\xff" * 4096]
)
def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    if not content:
        # An empty file is a blank record, as SQLite sees it.
        Record(path).close()
        return
    with pytest.raises(OperatorError, match=r"letter\.txt"):
        Record(path)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(OperatorError, match="something else"):
        Record(path)
    assert path.read_bytes() == before


def test_a_damaged_record_is_an_operators_error(record: Record) -> None:
    talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
    for number in range(300):
        turns.append_message(record, talk, Role.USER, Author.CUSTOMER, f"my router blinks {number}")
    record.compact()
    record.close()
    content = bytearray(record.path.read_bytes())
    content[8192 : len(content) - 8192] = b"\xa5" * (len(content) - 16384)
    record.path.write_bytes(content)
    with pytest.raises(OperatorError, match=r"damaged|malformed|cannot be opened"), Record(record.path) as damaged:
        checks.verify(damaged)


def test_a_disk_that_takes_no_more_loses_nothing_that_was_said(record: Record) -> None:
    talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
    code = """
import resource, signal, sys
from pathlib import Path
from conversations import turns
from conversations.errors import OutsideError
from conversations.messages import Author, Role
from conversations.store import Record
record = Record(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))
for number in range(1000):
    try:
        turns.append_message(record, sys.argv[2], Role.USER, Author.CUSTOMER, "x" * 20_000)
    except OutsideError as error:
        print(number, error, flush=True)
        break
"""
    done = subprocess.run([sys.executable, "-c", code, str(record.path), talk], capture_output=True, text=True, check=True)
    kept, _, told = done.stdout.partition(" ")
    assert "nothing of this change was kept" in told
    assert len(turns.all_turns(record, talk)) == int(kept) > 0
    turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "and now there is room again")
    assert checks.verify(record).problems == []


def test_a_record_that_cannot_be_written_to_can_be_read_and_refuses_changes(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    with Record(folder / "record.db") as record:
        turns.create_conversation(record, customer_id="anna", channel="chat")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    code = """
import os, sys
from pathlib import Path
from conversations import checks, search
from conversations.errors import OperatorError
from conversations.store import Record
# The permissions of a file do not bind root; what is imported late may not be readable for anybody else.
Record(Path(sys.argv[2])).close()
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with Record(Path(sys.argv[1]), to_read=True) as record:
    print(len(search.find(record)), checks.verify(record).problems)
    try:
        with record.write():
            pass
    except OperatorError as error:
        print(error)
try:
    Record(Path(sys.argv[1]))
except OperatorError as error:
    print(error)
"""
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / "record.db"), str(tmp_path / "other.db")],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        folder.chmod(0o755)
    told = done.stdout.splitlines()
    assert told[0] == "1 []", done.stderr
    assert "cannot be written to" in told[1] and "cannot be written to" in told[2]


def test_writers_of_one_process_are_served_in_the_order_they_came(record: Record) -> None:
    served: list[int] = []
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with record.write():
            inside.set()
            go.wait(10)

    def write(number: int) -> None:
        with record.write():
            served.append(number)

    holding = threading.Thread(target=hold)
    holding.start()
    inside.wait(10)
    writers = []
    for number in range(20):
        writer = threading.Thread(target=write, args=[number])
        writer.start()
        writers.append(writer)
        while len(record._turnstile._waiting) <= number:
            pass
    go.set()
    for each in [holding, *writers]:
        each.join(10)
    assert served == list(range(20))


def test_a_transaction_inside_a_transaction_is_our_bug_and_is_told_at_once(record: Record) -> None:
    with pytest.raises(RuntimeError, match="inside a transaction"), record.write(), record.write():
        pass
    with record.write():
        pass


def test_a_writer_that_waits_too_long_is_told_that_another_process_holds_the_record(record: Record, monkeypatch) -> None:
    monkeypatch.setattr("conversations.schema.WAIT_SECONDS", 0.2)
    holding = sqlite3.connect(record.path, isolation_level=None)
    holding.execute("BEGIN IMMEDIATE")
    with pytest.raises(OutsideError, match="another process holds the record"), record.write():
        pass
    holding.execute("ROLLBACK")
    holding.close()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("half \ud83d", "half a surrogate pair at character 5"),
        ("a\x00b", "NUL at character 1"),
        ("x" * (MAX_MESSAGE_CHARACTERS + 1), "characters; 8000000 are allowed"),
    ],
    ids=["surrogate", "NUL", "long"],
)
def test_a_text_that_cannot_be_given_back_is_refused_and_nothing_is_written(record: Record, text: str, told: str) -> None:
    talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
    with pytest.raises(OperatorError, match=told):
        turns.append_message(record, talk, Role.USER, Author.CUSTOMER, text)
    assert turns.all_turns(record, talk) == []
    assert checks.verify(record).problems == []


def test_no_turn_follows_itself_or_a_turn_of_another_conversation(record: Record) -> None:
    talks = [turns.create_conversation(record, customer_id=name, channel="chat").conversation_id for name in ("anna", "bo")]
    first = turns.append_message(record, talks[0], Role.USER, Author.CUSTOMER, "one")
    with pytest.raises(OperatorError, match="follows one of its own"):
        turns.begin_reply(record, talks[1], question_turn_id=first.turn_id, release_id="r", prompt_version="1", decoding={})
    with pytest.raises(sqlite3.IntegrityError, match="never changes"), record.write() as transaction:
        transaction.execute("UPDATE turns SET parent_turn_id = turn_id")


def test_turns_keep_their_order_when_the_clock_goes_backwards(record: Record) -> None:
    talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
    for moment in ("2999-01-01", "2026-01-02", "1970-01-01"):
        with record.write() as transaction:
            entry.insert_turn(
                transaction,
                conversation_id=talk,
                turn_id=f"turn {moment}",
                role=Role.USER,
                author=Author.CUSTOMER,
                status=turns.TurnStatus.COMPLETE,
                content=moment,
                created_at_utc=moment,
            )
    turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "now")
    assert [turn.content for turn in turns.thread(record, talk)] == ["2999-01-01", "2026-01-02", "1970-01-01", "now"]
    assert turns.conversation(record, talk).updated_at_utc == "2999-01-01"
    assert checks.verify(record).problems == []


def test_the_file_is_its_owners_alone(record: Record) -> None:
    assert record.path.stat().st_mode & 0o077 == 0


def test_a_copy_is_whole_while_others_write(record: Record, tmp_path: Path) -> None:
    stop = threading.Event()

    def chat() -> None:
        talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
        while not stop.is_set():
            turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "my router blinks")

    chatting = threading.Thread(target=chat)
    chatting.start()
    try:
        for number in range(5):
            record.copy_to(tmp_path / f"copy-{number}.db")
            with open_existing(tmp_path / f"copy-{number}.db") as copy:
                assert checks.verify(copy).problems == []
    finally:
        stop.set()
        chatting.join()


def test_nobody_outside_this_package_writes_sql() -> None:
    root = Path(__file__).parents[2]
    statement = re.compile(r"\b(SELECT|INSERT INTO|UPDATE \w+ SET|DELETE FROM|PRAGMA)\b|import sqlite3|sqlite_utils")
    found = [
        f"{path.relative_to(root)}: {match.group()}"
        for room in ("support_bot", "distill")
        for path in (root / room).rglob("*.py")
        if (match := statement.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []
