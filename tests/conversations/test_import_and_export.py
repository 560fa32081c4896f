"""What import and export promise: nothing twice, nothing lost, nothing half, byte for byte."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lines_for_tests import bring_in, contents, exported, line_texts, write

from conversations import checks, entry, erasure, turns
from conversations.errors import OperatorError
from conversations.exchange import exports, imports, line_files
from conversations.messages import Author, Consent, Role, TurnStatus, Vote
from conversations.store import Record

USER = {"role": "user", "content": "My router blinks violet and nothing loads"}
ANSWER = {"role": "assistant", "content": "Hold the button for ten seconds."}
LINE = {"id": "c-1", "customer_id": "jo", "messages": [USER, ANSWER]}
IDS = st.sampled_from(["a", "b", "c", "ж"])
several_lines = st.lists(line_texts(IDS), min_size=1, max_size=5)
unhurried = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


@unhurried
@given(several_lines)
def test_importing_any_lines_twice_adds_nothing(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, Record(Path(folder) / "r.db") as record:
        first = bring_in(record, Path(folder) / "in.jsonl", *lines)
        assert first.rejected == 0
        before = contents(record)
        second = bring_in(record, Path(folder) / "in.jsonl", *lines)
        assert (second.conversations, second.turns, second.already_present) == (0, 0, len(lines))
        assert contents(record) == before
        assert checks.verify(record).problems == []


@unhurried
@given(several_lines)
def test_an_export_of_any_lines_goes_into_an_empty_record_and_comes_out_with_the_same_bytes(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Record(folder / "one.db") as one, Record(folder / "two.db") as two:
            bring_in(one, folder / "in.jsonl", *lines)
            exports.export_file(one, folder / "one.jsonl")
            counts = imports.import_files(two, [folder / "one.jsonl"])
            assert counts.rejected == 0
            exports.export_file(two, folder / "two.jsonl")
            hashes = [
                sorted(str(row["content_hash"]) for row in each.query("SELECT content_hash FROM conversations"))
                for each in (one, two)
            ]
        assert (folder / "one.jsonl").read_bytes() == (folder / "two.jsonl").read_bytes()
        assert hashes[0] == hashes[1]


@unhurried
@given(line_texts(st.just("grows")), st.data())
def test_a_conversation_that_grew_is_extended_from_any_state_to_any_later_one(line: str, data: st.DataObject) -> None:
    whole = json.loads(line)
    whole["messages"] = [{**each, "content": (each["content"] or "") + "."} for each in whole["messages"]]
    count = len(whole["messages"])
    cuts = data.draw(st.lists(st.integers(1, count), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder, Record(Path(folder) / "r.db") as record:
        longest = 0
        for cut in cuts:
            counts = bring_in(record, Path(folder) / "in.jsonl", {**whole, "messages": whole["messages"][:cut]})
            assert (counts.conversations, counts.turns) == (longest == 0, max(0, cut - longest))
            longest = max(longest, cut)
        assert contents(record)["conversations"] == 1
        assert contents(record)["turns"] == longest


def test_tools_calls_and_further_keys_come_out_as_they_were_written(record: Record, tmp_path: Path) -> None:
    tools = '[ {"type":"function",  "function":{"name":"z","parameters":{"b":1.50,"a":1E5,"\\u00e9":null}}} ]'
    calls = '[{"id":"1","type":"function","function":{"name":"z","arguments":"{ \\"n\\" :01}"}}]'
    choice = '{"type" : "function"}'
    line = (
        f'{{"tool_choice":{choice},"id":"t","tools":{tools},"messages":[{{"role":"user","content":"hi there"}},'
        f'{{"tool_calls":{calls},"role":"assistant","content":null}},'
        '{"role":"tool","tool_call_id":"1","content":"{\\"status\\": 1}"}],"parallel_tool_calls":false}'
    )
    assert bring_in(record, tmp_path / "in.jsonl", line).rejected == 0
    found = exported(record, tmp_path / "out.jsonl")[0]
    for kept in (f'"tools": {tools}', f'"tool_calls": {calls}', f'"tool_choice": {choice}', '"parallel_tool_calls": false'):
        assert kept in found
    assert '"content": null' in found and '"tool_call_id": "1"' in found
    with record.write() as transaction:
        transaction.execute("UPDATE conversations SET content_hash = 'of an earlier version'")
    respelled = json.dumps(json.loads(line), sort_keys=True)
    counts = bring_in(record, tmp_path / "in.jsonl", respelled)
    assert (counts.conversations, counts.turns, counts.already_present) == (0, 0, 1)


def test_other_tools_under_the_same_words_are_another_version(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", {**LINE, "tools": [{"name": "a"}]})
    counts = bring_in(record, tmp_path / "in.jsonl", {**LINE, "tools": [{"name": "b"}]})
    assert (counts.conversations, counts.flagged) == (1, 1)


def test_every_version_and_every_earlier_state_is_known_again(record: Record, tmp_path: Path) -> None:
    other = {**LINE, "messages": [USER, {**ANSWER, "content": "No idea."}]}
    grown = {**other, "messages": [*other["messages"], USER]}
    states = [LINE, other, grown, {**LINE, "messages": [USER]}]
    counts = bring_in(record, tmp_path / "in.jsonl", *states)
    assert (counts.conversations, counts.turns, counts.already_present) == (2, 5, 1)
    again = bring_in(record, tmp_path / "in.jsonl", *reversed(states))
    assert (again.conversations, again.turns, again.already_present) == (0, 0, 4)


def test_a_conversation_that_went_on_here_is_not_imported_again(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", {**LINE, "messages": [USER, ANSWER, USER]})
    conversation_id = str(record.query("SELECT conversation_id FROM conversations")[0]["conversation_id"])
    turns.append_message(record, conversation_id, Role.USER, Author.CUSTOMER, "and now it is off")
    first = turns.all_turns(record, conversation_id)[0]
    with record.write() as transaction:
        entry.insert_turn(
            transaction,
            conversation_id=conversation_id,
            turn_id="retry",
            role=Role.ASSISTANT,
            author=Author.STUDENT,
            status=TurnStatus.COMPLETE,
            content="Another answer",
            created_at_utc="2030-01-01",
            parent_turn_id=first.turn_id,
        )
    before = contents(record)
    counts = bring_in(record, tmp_path / "in.jsonl", LINE, {**LINE, "messages": [USER]})
    assert (counts.conversations, counts.turns, counts.already_present) == (0, 0, 2)
    # What the retry says is the visible thread now, and grows under its own names.
    counts = bring_in(
        record, tmp_path / "b.jsonl", {**LINE, "messages": [USER, {**ANSWER, "content": "Another answer"}, USER]}
    )
    assert (counts.conversations, counts.turns, contents(record)["turns"]) == (0, 1, before["turns"] + 1)


def test_a_conversation_grows_past_a_reply_that_failed_here_and_waits_for_one_that_is_open(
    record: Record, tmp_path: Path
) -> None:
    conversation_id = chat_with_every_status(record)
    told = json.loads(exported(record, tmp_path / "out.jsonl")[0])
    told["messages"] += [ANSWER]
    counts = bring_in(record, tmp_path / "in.jsonl", told)
    assert (counts.conversations, counts.turns) == (0, 1)
    asked = turns.append_message(record, conversation_id, Role.USER, Author.CUSTOMER, "and now?")
    turns.begin_reply(
        record, conversation_id, question_turn_id=asked.turn_id, release_id="student-1", prompt_version="1", decoding={}
    )
    told["messages"] += [{"role": "user", "content": "and now?"}, ANSWER]
    counts = bring_in(record, tmp_path / "in.jsonl", told)
    assert (counts.turns, counts.rejected) == (0, 1)
    assert "an answer is being written" in counts.problems[0].reason


def test_an_export_that_comes_back_into_its_own_record_adds_nothing(record: Record, tmp_path: Path) -> None:
    begun = turns.create_conversation(record, customer_id="anna", channel="chat", consent=Consent.YES)
    question = turns.append_message(record, begun.conversation_id, Role.USER, Author.CUSTOMER, "my router blinks violet")
    turns.append_message(record, begun.conversation_id, Role.ASSISTANT, Author.OPERATOR, "hold the pin")
    turns.vote_on(record, question.turn_id, "anna", Vote.UP, "kind")
    bring_in(record, tmp_path / "in.jsonl", LINE)
    before = contents(record)
    exports.export_file(record, tmp_path / "out.jsonl")
    counts = imports.import_files(record, [tmp_path / "out.jsonl"])
    assert (counts.conversations, counts.turns, counts.already_present, counts.flagged) == (0, 0, 2, 0)
    assert contents(record) == before


def chat_with_every_status(record: Record) -> str:
    begun = turns.create_conversation(record, customer_id="anna", channel="chat", consent=Consent.NO)
    with record.write() as transaction:
        transaction.execute(
            "INSERT INTO releases (release_id, base, kind, weights_path, weights_digest, created_at_utc) "
            "VALUES ('student-1', 'tiny', 'base', '/w', 'd', 'now')"
        )
    for status in (TurnStatus.COMPLETE, TurnStatus.STOPPED, TurnStatus.INTERRUPTED, TurnStatus.FAILED):
        asked = turns.append_message(record, begun.conversation_id, Role.USER, Author.CUSTOMER, "my router blinks violet")
        reply = turns.begin_reply(
            record,
            begun.conversation_id,
            question_turn_id=asked.turn_id,
            release_id="student-1",
            prompt_version="1",
            decoding={},
        )
        text = "" if status is TurnStatus.FAILED else f"an answer that is {status}"
        turns.finish_reply(record, reply.turn_id, status=status, content=text)
    with record.write() as transaction:
        transaction.execute("INSERT INTO conversation_tags VALUES (?, 'late', 'operator', 'now')", [begun.conversation_id])
    return begun.conversation_id


def test_stopped_and_interrupted_answers_stay_so_in_another_record(record: Record, tmp_path: Path) -> None:
    chat_with_every_status(record)
    told = exports.export_file(record, tmp_path / "one.jsonl")
    assert told.left_out == {"turns that failed": 1}
    with Record(tmp_path / "other.db") as other:
        imports.import_files(other, [tmp_path / "one.jsonl"])
        exports.export_file(other, tmp_path / "two.jsonl")
        rows = other.query("SELECT status, author FROM turns WHERE role = 'assistant' ORDER BY turn_seq")
        head = other.query("SELECT consent, language FROM conversations")[0]
    assert [row["status"] for row in rows] == ["complete", "stopped", "interrupted"]
    assert {row["author"] for row in rows} == {"student"}
    assert (head["consent"], head["language"]) == ("no", "en")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_recorded_no_is_not_overruled_by_an_older_file(record: Record, tmp_path: Path) -> None:
    bring_in(record, tmp_path / "in.jsonl", {**LINE, "consent": True})
    bring_in(record, tmp_path / "in.jsonl", {**LINE, "messages": [USER], "consent": False})
    counts = bring_in(record, tmp_path / "in.jsonl", {**LINE, "consent": True})
    assert record.query("SELECT consent FROM conversations")[0]["consent"] == "no"
    assert "consent stays no" in counts.problems[0].reason


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (False, None), (None, False)])
def test_a_no_counts_for_every_version_of_the_same_customers_conversation(
    record: Record, tmp_path: Path, first: bool | None, second: bool | None
) -> None:
    other = [USER, {**ANSWER, "content": "No idea."}]
    bring_in(record, tmp_path / "in.jsonl", {**LINE, "consent": True, "customer_id": "eve"}, {**LINE, "consent": first})
    counts = bring_in(record, tmp_path / "in.jsonl", {**LINE, "messages": other, "consent": second})
    rows = record.query("SELECT customer_id, consent FROM conversations ORDER BY conversation_seq")
    assert [(row["customer_id"], row["consent"]) for row in rows] == [("eve", "yes"), ("jo", "no"), ("jo", "no")]
    told = {True: "consent stays no", False: "to no", None: ""}[second]
    assert "kept as a version" in counts.problems[0].reason and told in counts.problems[0].reason


def test_a_yes_counts_for_the_version_that_it_was_said_of(record: Record, tmp_path: Path) -> None:
    other = [USER, {**ANSWER, "content": "No idea."}]
    bring_in(record, tmp_path / "in.jsonl", LINE, {**LINE, "messages": other, "consent": True})
    rows = record.query("SELECT consent FROM conversations ORDER BY conversation_seq")
    assert [row["consent"] for row in rows] == ["unknown", "yes"]


def test_language_and_tags_are_taken_over_and_told_from_the_words_where_none_is_given(
    record: Record, tmp_path: Path
) -> None:
    given_language = {**LINE, "language": "uk", "tags": ["late", "late", "", 5, "x" * 61]}
    counts = bring_in(record, tmp_path / "in.jsonl", given_language, {**LINE, "id": "c-2", "language": "Klingon!"})
    rows = record.query("SELECT language FROM conversations ORDER BY conversation_seq")
    assert [row["language"] for row in rows] == ["uk", "en"]
    assert [row["tag"] for row in record.query("SELECT tag FROM conversation_tags")] == ["late"]
    assert [problem.reason for problem in counts.problems] == [
        "3 tags left out: expected texts of 1 to 60 characters",
        "language 'Klingon!' left out: expected a code such as 'en' or 'pt-BR'",
    ]


def test_sharegpt_of_llama_factory_goes_in_and_out(record: Record, tmp_path: Path) -> None:
    tools = '[{"name": "order",  "parameters": {}}]'
    call = '{"name": "order", "arguments": {"n":  1.0}}'
    line = {
        "id": "s",
        "system": "Be kind.",
        "tools": tools,
        "conversations": [
            {"from": "human", "value": "Where is my order?"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "shipped"},
            {"from": "gpt", "value": "On its way."},
        ],
    }
    assert bring_in(record, tmp_path / "in.jsonl", line).rejected == 0
    messages = json.loads(exported(record, tmp_path / "chat.jsonl")[0])["messages"]
    assert [each["role"] for each in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "order", "arguments": '{"n":  1.0}'}
    assert messages[3]["tool_call_id"] == messages[2]["tool_calls"][0]["id"]
    assert json.loads(exported(record, tmp_path / "s.jsonl", exports.ExportFormat.SHAREGPT)[0]) == line


def test_a_line_without_end_is_skipped_and_the_next_one_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"a" * 5000 + b"\n" + b"b" * 100 + b"\r\n" + b"c" * 101)
    found = list(line_files.lines_of(path, max_line_bytes=100))
    assert [(line.number, len(line.content), bool(line.refused)) for line in found] == [
        (1, 0, True),
        (2, 100, False),
        (3, 0, True),
    ]
    assert "5001 bytes" in found[0].refused


def test_problems_are_kept_up_to_a_bound_and_counted_beyond_it(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" * (imports.MAX_PROBLEMS + 5) + b"{\n")
    counts = imports.import_files(record, [path])
    assert (counts.repaired, counts.rejected, counts.problems_left_out) == (imports.MAX_PROBLEMS + 5, 1, 5)
    assert counts.problems[-1].verdict == "reject"


@pytest.mark.slow
def test_ten_times_as_many_conversations_take_the_same_memory(tmp_path: Path) -> None:
    peaks: list[tuple[int, int]] = []
    for count in (300, 300, 3000):
        path = write(tmp_path / "in.jsonl", *({**LINE, "id": f"c-{number}"} for number in range(count)))
        with Record(tmp_path / f"record-{len(peaks)}.db") as record:
            tracemalloc.start()
            imports.import_files(record, [path])
            import_peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            exports.export_file(record, tmp_path / "out.jsonl")
            peaks.append((import_peak, tracemalloc.get_traced_memory()[1]))
            tracemalloc.stop()
    # The first one also loads the model that tells languages apart.
    for small, large in zip(peaks[1], peaks[2], strict=True):
        assert large < small * 3


def test_no_file_goes_in_when_one_of_them_is_missing(record: Record, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no such file"):
        imports.import_files(record, [write(tmp_path / "a.jsonl", LINE), tmp_path / "missing.jsonl"])
    assert contents(record)["turns"] == 0


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_whole_conversations_and_is_completed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    lines = [{**LINE, "id": f"c-{number}", "messages": [USER, ANSWER] * 5} for number in range(4000)]
    write(path, *lines)
    command = [sys.executable, "-c", "from conversations.cli import main; main()", "import", str(path)]
    record_path = tmp_path / "record.db"
    seen: list[int] = []
    for _ in range(3):
        running = subprocess.Popen([*command, "--record", str(record_path)], stdout=subprocess.DEVNULL)
        so_far = seen[-1] if seen else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and running.poll() is None:
            if record_path.exists() and _count(record_path) > so_far:
                break
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        with Record(record_path) as record:
            sizes = record.query("SELECT COUNT(*) AS n FROM turns GROUP BY conversation_id")
            assert all(row["n"] == 10 for row in sizes)
            assert len(sizes) == contents(record)["conversations"]
            assert checks.verify(record).problems == []
            seen.append(len(sizes))
    with Record(record_path) as record:
        counts = imports.import_files(record, [path])
        assert counts.conversations == 4000 - seen[-1]
        assert contents(record)["turns"] == 40_000
    assert 0 < seen[0] < 4000


def _count(path: Path) -> int:
    with Record(path, to_read=True) as record:
        return contents(record)["conversations"]


def test_what_a_customer_said_is_theirs_whenever_they_are_named(record: Record, tmp_path: Path) -> None:
    grown = [USER, ANSWER, {"role": "user", "content": "It still blinks, says Dora"}]
    bring_in(
        record, tmp_path / "in.jsonl", {"id": "q", "messages": [USER, ANSWER], "feedback": [{"message": 1, "value": "up"}]}
    )
    counts = bring_in(record, tmp_path / "in.jsonl", {"id": "q", "customer_id": "dora", "messages": grown})
    assert (counts.conversations, counts.turns) == (0, 1)
    assert [row["customer_id"] for row in record.query("SELECT customer_id FROM customers")] == ["dora"]
    assert checks.verify(record).problems == []
    assert erasure.erase_customer(record, "dora", actor="test").turns == 3
    assert record.query("SELECT 1 FROM turns") == []


def test_two_customers_under_one_id_never_share_a_conversation(record: Record, tmp_path: Path) -> None:
    ann = {"id": "s", "customer_id": "ann", "messages": [USER, ANSWER]}
    ben = {
        "id": "s",
        "customer_id": "ben",
        "messages": [USER, ANSWER, {"role": "user", "content": "It still blinks, says Ben"}],
    }
    for _ in range(2):
        bring_in(record, tmp_path / "in.jsonl", ann, ben, {**ann, "customer_id": "cid"})
    owners = record.query("SELECT customer_id, turn_count FROM conversations ORDER BY customer_id")
    assert [(row["customer_id"], row["turn_count"]) for row in owners] == [("ann", 2), ("ben", 3), ("cid", 2)]
    exports.export_file(record, tmp_path / "out.jsonl")
    assert erasure.erase_customer(record, "ben", actor="test").turns == 3
    left = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert sorted(each["customer_id"] for each in left) == ["ann", "cid"]
    assert checks.verify(record).problems == []
