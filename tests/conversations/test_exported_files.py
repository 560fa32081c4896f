"""What exported files promise: harmless in a spreadsheet, redacted where asked, learnable where said, forgotten on demand."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lines_for_tests import bring_in, exported

from conversations.errors import OutsideError
from conversations.exchange import exports
from conversations.exchange.exports import ExportFormat
from conversations.exchange.lines_out import CSV_COLUMNS, harmless_cell
from conversations.redaction import RedactionRules
from conversations.store import Record
from conversations.tombstones import name_hash

QUESTION = {"role": "user", "content": "Where is my refund? jo.marsh@example.com"}
ANSWER = {"role": "assistant", "content": "Please wait."}
JO = {"id": "c-jo", "customer_id": "jo.marsh@example.com", "messages": [QUESTION, ANSWER]}
AL = {"id": "c-al", "customer_id": "al", "messages": [{"role": "user", "content": "My cable is broken"}, ANSWER, QUESTION]}


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def gone(conversation_ids: set[str], sources: Iterable[tuple[str, str]] = ()) -> exports.Gone:
    """Return what an erasure has just removed from a record in which nothing has gone before."""
    names = {*conversation_ids, *(source_id for source_id, _ in sources)}
    graves = {name_hash("conversation", name) for name in names}
    return exports.Gone(conversation_ids, set(sources), graves, lambda *_: False)


RUN_BY_SPREADSHEETS = "=1+1|+1|-1|@SUM(A1)|\t=1|\r=1|\n=1|  =1|\"=1|'=1|\u201c=1|\u00a0=1|\ufeff=1|＝1|＋1|－1|＠a"


@pytest.mark.parametrize("cell", RUN_BY_SPREADSHEETS.split("|"))
def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(cell: str) -> None:
    assert harmless_cell(cell) == "'" + cell


@given(st.text(max_size=20))
def test_no_cell_begins_like_a_formula_and_words_stay_as_they_are(cell: str) -> None:
    found = harmless_cell(cell)
    assert found in (cell, "'" + cell)
    assert not found.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert harmless_cell("word " + cell) == "word " + cell


def test_a_spreadsheet_has_a_row_a_turn_with_line_ends_kept_and_formulas_neutralised(record: Record, tmp_path: Path) -> None:
    lines = 'a "quoted"\r\nsecond\nthird, with 退款'
    told = [{"role": "user", "content": lines}, {"role": "assistant", "content": "=HYPERLINK(1)"}]
    bring_in(record, tmp_path / "in.jsonl", {"id": "@id", "messages": told})
    exports.export_file(record, tmp_path / "out.csv", ExportFormat.CSV)
    content = (tmp_path / "out.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["content"] for row in rows] == [lines, "'=HYPERLINK(1)"]
    assert rows[0]["source_id"] == "'@id"


def test_fine_tuning_examples_end_with_an_answer_and_have_only_the_documented_keys(record: Record, tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    whole = {
        "id": "w",
        "consent": True,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {**QUESTION, "timestamp": 5},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            {**ANSWER, "mood": "calm"},
            {"role": "assistant", "content": "Sorry."},
            {"role": "user", "content": "thanks a lot"},
        ],
        "feedback": [{"message": 5, "value": "down"}],
    }
    no_answer = {"id": "n", "messages": [QUESTION]}
    refused = {**JO, "consent": False}
    disliked = {**AL, "feedback": [{"message": 1, "value": "down"}]}
    unnamed = {"id": "u", "messages": [QUESTION, {"role": "tool", "content": "1"}, ANSWER]}
    bring_in(record, tmp_path / "in.jsonl", whole, no_answer, refused, disliked, unnamed)
    told = exports.export_file(record, tmp_path / "out.jsonl", ExportFormat.FINE_TUNING)
    (line,) = (json.loads(each) for each in (tmp_path / "out.jsonl").read_text("utf-8").splitlines())
    assert line == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            ANSWER,
            {"role": "assistant", "content": "Sorry.", "weight": 0},
        ],
        "tools": whole["tools"],
        "parallel_tool_calls": False,
    }
    assert (told.conversations, told.turns) == (1, 6)
    assert told.left_out == {
        "conversations: a tool's result does not name its call": 1,
        "conversations: consent is no": 1,
        "conversations: every answer was voted down or broken off": 1,
        "conversations: no answer": 1,
    }


@pytest.mark.parametrize("export_format", ExportFormat)
def test_a_redacted_export_names_nobody(record: Record, tmp_path: Path, export_format: ExportFormat) -> None:
    extra = {"seller": "jo.marsh@example.com", "labels": {"mail": "jo.marsh@example.com"}, "tags": ["jo.marsh@example.com"]}
    tools = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "jo.marsh@example.com"}}]}
    line = {**JO, **extra, "id": "jo.marsh@example.com 1", "messages": [QUESTION, tools, ANSWER]}
    bring_in(record, tmp_path / "in.jsonl", line)
    exports.export_file(record, tmp_path / "out", export_format, redaction=RedactionRules())
    content = (tmp_path / "out").read_text("utf-8")
    assert "marsh" not in content and "<EMAIL_1>" in content
    assert json.loads((tmp_path / "out.manifest.json").read_text("utf-8"))["redacted"] is True


@pytest.mark.parametrize("export_format", ExportFormat)
def test_a_person_is_taken_out_of_an_exported_file(record: Record, tmp_path: Path, export_format: ExportFormat) -> None:
    bring_in(record, tmp_path / "in.jsonl", JO, AL)
    out = tmp_path / "out"
    exports.export_file(record, out, export_format)
    jo = {str(row["conversation_id"]) for row in record.query("SELECT * FROM conversations WHERE source_id = 'c-jo'")}
    (tmp_path / ".out.half").write_text("what a killed export left")
    assert exports.forget(out, gone({"somebody else"}, {("c-xx", "xx")}))
    assert exports.forget(out, gone(jo, {("c-jo", JO["customer_id"])}))
    assert not exports.forget(out, gone(jo, {("c-jo", JO["customer_id"])}))
    with Record(tmp_path / "only_al.db") as other:
        bring_in(
            other,
            tmp_path / "al.jsonl",
            {**AL, "created_at": record.query("SELECT created_at_utc AS at FROM conversations")[1]["at"]},
        )
        exports.export_file(other, tmp_path / "wanted", export_format)
    assert out.read_bytes() == (tmp_path / "wanted").read_bytes()
    manifest, wanted = (json.loads((tmp_path / f"{name}.manifest.json").read_text("utf-8")) for name in ("out", "wanted"))
    assert manifest.pop("forgotten") == 1
    assert manifest == wanted
    assert not list(tmp_path.glob(".*half"))


@pytest.mark.parametrize("export_format", ExportFormat)
def test_a_file_whose_lines_cannot_be_told_apart_is_removed_whole(
    record: Record, tmp_path: Path, export_format: ExportFormat
) -> None:
    bring_in(record, tmp_path / "in.jsonl", JO, AL)
    out = tmp_path / "out"
    exports.export_file(record, out, export_format)
    out.write_bytes(
        out.read_bytes().replace(b'"messages"', b'"m"').replace(b'"id"', b'"x"').replace(b'"conversation_id"', b'"x"')
    )
    assert exports.forget(out, gone({"anybody"}))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_a_fine_tuning_file_without_its_index_is_removed_whole(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", JO, AL)
    exports.export_file(record, tmp_path / "out", ExportFormat.FINE_TUNING)
    (tmp_path / "out.index").unlink()
    assert exports.forget(tmp_path / "out", gone({"anybody"})) and not (tmp_path / "out").exists()


def test_every_export_is_noted_where_an_erasure_looks(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", JO)
    exports.export_file(record, tmp_path / "out.jsonl")
    told = exports.export_file(record, tmp_path / "out.jsonl")
    content = (tmp_path / "out.jsonl").read_bytes()
    (row,) = record.query("SELECT path, kind, run_id, holds_text, digest, bytes FROM artefacts")
    assert dict(row) == {
        "path": str(tmp_path / "out.jsonl"),
        "kind": "export",
        "run_id": None,
        "holds_text": 1,
        "digest": "sha256:" + hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    assert told.digest == row["digest"] and os.stat(tmp_path / "out.jsonl").st_mode & 0o077 == 0


@pytest.mark.slow
def test_what_a_killed_export_left_is_noted_and_can_be_forgotten(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", *({**JO, "id": f"c-{number}"} for number in range(3000)))
    command = [sys.executable, "-c", "from conversations.cli import main; main()", "export", "--record", str(record.path)]
    half = tmp_path / ".out.half"
    running = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.DEVNULL)
    while running.poll() is None and not half.exists():
        time.sleep(0.001)
    running.kill()
    running.wait()
    assert half.exists() and not (tmp_path / "out").exists()
    assert [row["path"] for row in record.query("SELECT path FROM artefacts")] == [str(tmp_path / "out")]
    assert exports.forget(tmp_path / "out", gone({"anybody"}))
    assert not half.exists()


def test_an_export_that_fails_leaves_neither_a_part_nor_a_note(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", JO)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutsideError):
        exports.export_file(record, tmp_path / "file" / "out.jsonl")
    assert record.query("SELECT * FROM artefacts") == []


def test_the_export_command_keeps_its_contract(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", JO)
    command = [
        sys.executable,
        "-c",
        "from conversations.cli import main; main()",
        "export",
        "--json",
        "--record",
        str(record.path),
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "o"), "--format", "csv", "--redacted"], capture_output=True, check=True
    )
    told = json.loads(done.stdout)
    assert (told["format"], told["redacted"], told["conversations"], told["turns"]) == ("csv", True, 1, 2)
    assert exported(record, tmp_path / "chat.jsonl")[0].startswith('{"id": "c-jo", "customer_id": "jo.marsh@example.com"')
