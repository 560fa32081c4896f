"""What backup and retention promise: a copy is whole, the old goes for good, and the young stays."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import bring_in, talk_of

from conversations import backup, checks, erasure, search, turns
from conversations.cli import main
from conversations.errors import OperatorError
from conversations.messages import utc_text
from conversations.store import Record, open_existing


def conversation(name: str, days_old: float) -> dict[str, object]:
    return {
        "id": name,
        "customer_id": f"customer of {name}",
        "created_at": utc_text(datetime.now(UTC) - timedelta(days=days_old)),
        "messages": [{"role": "user", "content": f"the {name} gramophone hums"}],
    }


def command(*arguments: str) -> tuple[int, str, str]:
    """Run the command in this process and return its exit code and what it wrote."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = sys.argv
    sys.argv = ["conversations", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    told = [stream.buffer.getvalue().decode() for stream in (out, error)]  # type: ignore[attr-defined]
    return int(ended.value.code or 0), told[0], told[1]


def left(record: Record) -> set[str]:
    return {each.customer_id.removeprefix("customer of ") for each in search.find(record)}


def test_what_is_too_old_goes_to_the_last_byte_and_what_is_not_stays(record: Record) -> None:
    bring_in(record, conversation("ancient", 800), conversation("old", 400.01), conversation("young", 399.9))
    for path in record.path.parent.glob("*.jsonl"):
        path.unlink()
    assert erasure.expire(record, timedelta(days=400), actor="test", dry_run=True).conversations == 2
    assert left(record) == {"ancient", "old", "young"}
    erased = erasure.expire(record, timedelta(days=400), actor="test")
    assert (erased.conversations, erased.turns) == (2, 2)
    assert left(record) == {"young"}
    assert [row["customer_id"] for row in record.query("SELECT customer_id FROM customers")] == ["customer of young"]
    for path in record.path.parent.iterdir():
        assert b"ancient gramophone" not in path.read_bytes(), path
    assert erasure.expire(record, timedelta(days=400), actor="test").conversations == 0
    assert checks.verify(record).problems == []
    counts = bring_in(record, conversation("ancient", 800))
    assert (counts.conversations, counts.rejected) == (0, 1)


def test_a_conversation_that_went_on_lately_is_not_old(record: Record) -> None:
    bring_in(record, conversation("revived", 800))
    talk = search.find(record)[0].conversation_id
    turns.append_message(record, talk, turns.Role.USER, turns.Author.CUSTOMER, "and it still hums")
    assert erasure.expire(record, timedelta(days=400), actor="test").conversations == 0


def test_many_old_conversations_go_a_piece_at_a_time(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "_EXPIRED_AT_ONCE", 7)
    bring_in(record, *(conversation(f"c{number}", 500) for number in range(30)), conversation("young", 1))
    assert erasure.expire(record, timedelta(days=400), actor="test").conversations == 30
    assert left(record) == {"young"}
    assert checks.verify(record).problems == []


@pytest.mark.parametrize("age", ["", "400", "0d", "-5d", "d", "400x", "1.5y", "999999y"])
def test_an_age_that_is_none_is_refused_with_what_was_expected(record: Record, age: str) -> None:
    code, out, error = command("expire", f"--older-than={age}", "--record", str(record.path))
    assert (code, out) == (2, "")
    assert "expected a number of days, weeks or years, such as 400d, 18w or 2y" in error


def test_a_backup_is_the_record_and_overwrites_nothing(record: Record, tmp_path: Path) -> None:
    talk = talk_of(record, "anna", "my router blinks coral")
    path = tmp_path / "kept" / "monday.db"
    code, out, _ = command("backup", str(path), "--record", str(record.path), "--json")
    assert code == 0 and json.loads(out)["conversations"] == 1
    with open_existing(path) as copy:
        assert checks.verify(copy).problems == []
        assert [turn.content for turn in turns.thread(copy, talk)] == ["my router blinks coral"]
        assert [each.conversation_id for each in search.find(copy, "coral")] == [talk]
    before = path.read_bytes()
    with pytest.raises(OperatorError, match="overwrites nothing"):
        backup.back_up(record, path)
    with pytest.raises(OperatorError, match="overwrites nothing"):
        backup.back_up(record, record.path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir() if "half" in each.name] == []
    assert path.stat().st_mode & 0o077 == 0


def test_a_backup_that_cannot_be_written_leaves_nothing(record: Record, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    code, _, error = command("backup", str(tmp_path / "file" / "monday.db"), "--record", str(record.path))
    assert code == 3 and "monday.db" in error and "Traceback" not in error
    assert checks.verify(record).problems == record.query("SELECT * FROM artefacts") == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "nobody"], 2, "no conversation 'nobody'"),
        (["tag", "nobody", "vip"], 2, "no conversation 'nobody'"),
        (["search", "--since", "soon"], 2, "does not match the format"),
        (["search", "--limit", "0"], 2, "Invalid value for '--limit'"),
        (["backup"], 2, "Missing argument"),
        (["erase"], 2, "Missing option"),
    ],
)
def test_what_a_command_cannot_do_is_one_message(record: Record, arguments: list[str], code: int, told: str) -> None:
    returned, _, error = command(*arguments, "--record", str(record.path))
    assert returned == code and told in error and "Traceback" not in error


@pytest.mark.parametrize("target", ["record.db", "record.db-wal", "monday.db"])
def test_no_export_overwrites_a_record_or_a_backup(record: Record, tmp_path: Path, target: str) -> None:
    talk = talk_of(record, "anna", "my router blinks coral")
    backup.back_up(record, tmp_path / "monday.db")
    code, _, error = command("export", "--out", str(tmp_path / target), "--record", str(record.path))
    assert code == 2 and "an export would overwrite it" in error
    for path in (record.path, tmp_path / "monday.db"):
        with open_existing(path) as kept:
            assert len(turns.thread(kept, talk)) == 1


def test_an_argument_that_is_no_text_is_refused(record: Record) -> None:
    code = "from conversations.cli import main; main()"
    arguments = [b"show", b"\xff", b"--record", str(record.path).encode()]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is not UTF-8" in done.stderr


def test_an_empty_name_is_nobody_and_an_empty_file_is_no_record(record: Record, tmp_path: Path) -> None:
    code, _, error = command("erase", "--customer", "", "--record", str(record.path))
    assert code == 2 and "no customer was named" in error
    (tmp_path / "empty.db").touch()
    code, _, error = command("stats", "--record", str(tmp_path / "empty.db"))
    assert code == 2 and "is empty, and no record" in error and (tmp_path / "empty.db").stat().st_size == 0


def test_verify_answers_in_json_also_where_the_file_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_bytes(b"a letter, not a database" * 100)
    code, out, error = command("verify", "--json", "--record", str(path))
    told = json.loads(out)
    assert code == 2 and told["ok"] is False and "Traceback" not in error
    assert "not a database" in told["problems"][0]
