"""What an erasure promises about files that it shares with others: none is missed, whoever else is at work and whatever was away."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import bring_in

from conversations import artefacts, backup, checks, erased_files, erasure
from conversations.artefacts import ArtefactKind
from conversations.errors import OperatorError
from conversations.exchange import exports
from conversations.exchange.exports import ExportFormat
from conversations.redaction import RedactionRules
from conversations.store import Record, open_existing


class Killed(BaseException):
    """As if by kill -9."""


def said_by(name: str, source_id: str | None = None) -> dict[str, object]:
    messages = [{"role": "user", "content": f"the {name} gramophone hums"}, {"role": "assistant", "content": "Please wait."}]
    return {"id": source_id or f"c-{name}", "customer_id": name, "messages": messages}


def killed(*_: object) -> None:
    raise Killed


@pytest.fixture
def full(record: Record) -> Record:
    bring_in(record, *(said_by(name) for name in ("anna", "ben", "cleo")))
    record.path.with_name("in.jsonl").unlink()
    return record


def files_that_name(record: Record, name: str) -> list[str]:
    return sorted(
        each.name for each in record.path.parent.iterdir() if f"the {name} gramophone".encode() in each.read_bytes()
    )


def erase(record: Record, name: str) -> erasure.Erased:
    return erasure.erase_customer(record, name, actor="test")


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def has_no_row_of(record: Record, name: str) -> bool:
    return not record.query("SELECT 1 FROM conversations WHERE customer_id = ?", [name])


def test_names_that_another_erasure_notes_meanwhile_are_not_forgotten(full: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    exports.export_file(full, full.path.with_name("out.jsonl"))
    forget = erased_files.forget

    def forget_while_ben_goes(path: Path, gone: exports.Gone) -> bool:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(erasure, "_finish", killed)
            erase(full, "ben")
        return forget(path, gone)

    with monkeypatch.context() as patched:
        patched.setattr(erased_files, "forget", forget_while_ben_goes)
        erase(full, "anna")
    assert any("an erasure was killed" in problem for problem in checks.verify(full).problems)
    assert erase(full, "nobody").files == 1
    assert files_that_name(full, "anna") == files_that_name(full, "ben") == []
    assert checks.verify(full).problems == []


def test_erasures_come_to_the_files_one_at_a_time(full: Record) -> None:
    out = full.path.with_name("out.jsonl")
    exports.export_file(full, out)
    told: list[erasure.Erased] = []
    erasing = [threading.Thread(target=lambda name=name: told.append(erase(full, name))) for name in ("anna", "ben")]
    with artefacts.alone(full):
        for each in erasing:
            each.start()
        wait_until(lambda: has_no_row_of(full, "anna") and has_no_row_of(full, "ben"))
        assert len(out.read_bytes().splitlines()) == 3
    for each in erasing:
        each.join()
    assert [each.conversations for each in told] == [1, 1]
    assert len(out.read_bytes().splitlines()) == 1
    assert checks.verify(full).problems == []


def test_an_erasure_reaches_a_backup_that_was_being_written(full: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_to = Record.copy_to
    erasing = threading.Thread(target=erase, args=(full, "anna"))

    def copy_while_anna_goes(record: Record, path: Path) -> None:
        copy_to(record, path)
        erasing.start()
        wait_until(lambda: has_no_row_of(full, "anna"))

    monkeypatch.setattr(Record, "copy_to", copy_while_anna_goes)
    backup.back_up(full, full.path.with_name("monday.db"))
    erasing.join()
    assert files_that_name(full, "anna") == []
    with open_existing(full.path.with_name("monday.db")) as copy:
        assert checks.verify(copy).problems == []


def test_a_backup_from_between_the_rows_and_the_files_keeps_no_name(full: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(erasure, "_finish", killed)
        erase(full, "anna")
    path = full.path.with_name("monday.db")
    backup.back_up(full, path)
    assert b"anna" in path.read_bytes()
    erase(full, "nobody")
    assert b"anna" not in path.read_bytes()
    with open_existing(path) as copy:
        assert checks.verify(copy).problems == []


def test_a_half_written_export_goes_when_somebody_is_erased_and_only_then(full: Record) -> None:
    out = full.path.with_name("out.jsonl")
    artefacts.note(full, [artefacts.announced(out, ArtefactKind.EXPORT)])
    artefacts.half_written(out).write_text("the anna gramophone", encoding="utf-8")
    assert erase(full, "nobody").files == 0
    assert files_that_name(full, "anna")[0] == ".out.jsonl.half"
    assert erase(full, "anna").files == 1
    assert files_that_name(full, "anna") == full.query("SELECT * FROM artefacts") == []


def test_what_a_killed_backup_left_goes_with_the_next_erasure(full: Record) -> None:
    killed = "import os; os.replace = lambda *_: os._exit(9); from conversations.cli import main; main()"
    path = full.path.with_name("monday.db")
    done = subprocess.run([sys.executable, "-c", killed, "backup", str(path), "--record", str(full.path)], check=False)
    assert done.returncode == 9 and ".monday.db.half" in files_that_name(full, "anna")
    erased = erase(full, "anna")
    assert (erased.files, erased.unreached) == (1, ())
    assert [each.name for each in path.parent.iterdir() if "monday" in each.name] == []
    assert full.query("SELECT * FROM artefacts") == []


def test_a_backup_has_the_digest_that_was_told(full: Record) -> None:
    path = full.path.with_name("monday.db")
    told = backup.back_up(full, path)
    assert told.digest == artefacts.file_digest(path)
    assert (told.digest, told.bytes) == tuple(full.query("SELECT digest, bytes FROM artefacts")[0].values())
    with open_existing(path):
        pass
    assert told.digest == artefacts.file_digest(path)


@pytest.mark.parametrize("redaction", [None, RedactionRules()], ids=["whole", "redacted"])
@pytest.mark.parametrize("export_format", ExportFormat)
def test_an_export_that_comes_back_forgets_who_was_erased_meanwhile(
    full: Record, export_format: ExportFormat, redaction: RedactionRules | None
) -> None:
    out = full.path.with_name("out")
    exports.export_file(full, out, export_format, redaction=redaction)
    moved = out.rename(full.path.with_name("elsewhere"))
    for name in ("anna", "nobody"):
        assert erase(full, name).unreached == (str(out),)
    moved.rename(out)
    assert files_that_name(full, "anna") == ["out"]
    assert erase(full, "ben").unreached == ()
    assert files_that_name(full, "anna") == files_that_name(full, "ben") == []
    assert files_that_name(full, "cleo")[0] == "out"
    assert checks.verify(full).problems == []


def test_a_customer_whose_conversation_has_the_id_of_an_erased_one_stays_in_an_export(record: Record) -> None:
    bring_in(record, said_by("anna", "1"), said_by("ben", "1"), said_by("cleo"))
    out = record.path.with_name("out.jsonl")
    exports.export_file(record, out)
    for name in ("anna", "cleo"):
        erase(record, name)
    assert [json.loads(line)["customer_id"] for line in out.read_bytes().splitlines()] == ["ben"]


def test_a_backup_that_cannot_be_opened_is_named_and_stops_nothing(full: Record) -> None:
    paths = [full.path.with_name(f"{day}.db") for day in ("friday", "monday", "sunday", "tuesday")]
    for path in paths:
        backup.back_up(full, path)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(b"a letter, not a database" * 100)
    with open_existing(paths[2]) as newer, newer.write() as transaction:
        transaction.execute("INSERT INTO _sqlite_migrations VALUES (999, 'record', 'm999_of_tomorrow', '')")
    with pytest.raises(OperatorError):
        open_existing(paths[2])
    assert erase(full, "anna").unreached == tuple(str(path) for path in paths[:3])
    assert files_that_name(full, "anna") == ["sunday.db"]
    assert checks.verify(full).problems == []
