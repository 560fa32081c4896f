"""Hostile input: every line gets its verdict, nothing crashes, nothing is half written.

The files of ../shared/data/hostile are not part of the project; where they are absent, the small set in this module holds the
promise. Where we decide otherwise than their EXPECTED.jsonl proposes, DECIDED says so, and docs/importing.md gives the reasons.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lines_for_tests import bring_in, contents, exported

from conversations import checks
from conversations.exchange import exports, imports
from conversations.messages import MAX_MESSAGE_CHARACTERS
from conversations.store import Record

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public conversations are not there: {SHARED}")

# Case in EXPECTED.jsonl: the verdict that we give instead, and why.
WHOLE = "kept whole: the record cuts nothing, the prompt has a rule for what does not fit"
WHOLE_ODD = f"{WHOLE}; flagged, because the customer says no word in it or it looks like encoded data"
COUNT = "any number of turns is one conversation; nothing was repaired"
CHOOSE = "`distill choose` puts near-duplicates and all of one customer into one cluster, which is capped and never split"
PERSON = "which speaker is which is for a person to see"
VERIFY = "no import can judge an answer; `distill verify` checks every answer that would be learnt, of whichever author"
TEACHER = "the student never learns a logged answer as it stands: the teacher answers anew, and `distill verify` checks that"
PAGES = "plain words for a record; the pages show text as text, and CSV cells are neutralised"
WORDS_ALONE = (
    "code_fence open_code_fence nested_quotes sql ssti_jinja format_string shell path yaml log_forge json_in_text latex "
    "url_zoo"
)
NEAR_COPIES = (
    "other_id_same_content case_only space_only one_word same_question_other_answer id_case id_nfc prefix_of_another "
    "template"
)
JUDGED_BY_VERIFY = "truncated_answer loop template_left other_customer stack_trace_answer"
ANSWERED_ANEW = (
    "refusal apology_only null_text undefined_text wrong_language language_switch contradiction hallucinated_link "
    "abusive_user rude_agent off_topic dangerous self_harm minor legal_threat customer_wants_human no_resolution sarcasm "
    "answer_before_question attachment_only voice_transcript keyboard_mash wrong_layout html_entities "
    "quoted_mail_thread"
)
DECIDED: dict[str, tuple[str, str]] = {
    "extra_fields": ("repair", "kept, but its created_at is no time, which is said"),
    "zero_width_turn": ("reject", "the customer's only message shows nothing, so nobody said anything"),
    "four_hundred_turns": ("accept", COUNT),
    "five_thousand_turns": ("accept", COUNT),
    **dict.fromkeys(
        ["text_50k", "assistant_50k", "cjk_50k", "newlines_50k", "spaces_50k", "stack_trace_50k", "log_dump_50k"],
        ("accept", WHOLE),
    ),
    **dict.fromkeys(["no_spaces_50k", "emoji_50k", "redos_email", "redos_digits", "redos_markdown"], ("flag", WHOLE_ODD)),
    "message_300k": ("accept", WHOLE),
    "nul_and_controls": ("flag", "NULs are left out, which is said; the other control characters stay and are flagged"),
    "noncharacters": ("flag", "kept as they came, so that an export gives them back, and flagged"),
    **dict.fromkeys(
        ["lone_high_surrogate", "lone_low_surrogate", "reversed_pair"],
        ("flag", "repaired, and flagged because what the customer said is lost"),
    ),
    "assistant_is_the_customer": ("accept", PERSON),
    **dict.fromkeys(
        WORDS_ALONE.split(),
        ("accept", PAGES),
    ),
    **dict.fromkeys(
        NEAR_COPIES.split(),
        ("accept", CHOOSE),
    ),
    "answers_swapped": ("repair", f"said to begin with the assistant; {PERSON}"),
    "id_int": ("repair", "the number 1 and the text '1' name the same conversation; the second one is compared with it"),
    **dict.fromkeys(JUDGED_BY_VERIFY.split(), ("accept", VERIFY)),
    **dict.fromkeys(
        ANSWERED_ANEW.split(),
        ("accept", TEACHER),
    ),
}


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def verdicts(counts: imports.ImportCounts) -> dict[tuple[str, int], str]:
    """The gravest verdict of each line that has one."""
    order = ("accept", "repair", "flag", "reject")
    found: dict[tuple[str, int], str] = {}
    for problem in counts.problems:
        key = (Path(problem.file).name, problem.line)
        found[key] = max(found.get(key, "accept"), problem.verdict, key=order.index)
    return found


@needs_shared
def test_every_hostile_line_gets_the_expected_verdict_or_a_decided_one(record: Record) -> None:
    files = sorted(path for path in (SHARED / "hostile").glob("*.jsonl") if path.name != "EXPECTED.jsonl")
    expected = [json.loads(line) for line in (SHARED / "hostile" / "EXPECTED.jsonl").read_text("utf-8").splitlines()]
    counts = imports.import_files(record, files)
    found = verdicts(counts)
    assert counts.lines == len(expected)
    wrong = {}
    for line in expected:
        case, verdict = line["case"], found.get((line["file"], line["line"]), "accept")
        if verdict != DECIDED.get(case, (line["expect"], ""))[0]:
            wrong[line["file"], line["line"], case] = verdict
    assert wrong == {}
    # Whatever is flagged or accepted is in the record.
    gone_in = sum(found.get((line["file"], line["line"]), "accept") in ("accept", "flag") for line in expected)
    assert counts.conversations + counts.already_present <= counts.lines - counts.rejected
    assert counts.conversations + counts.already_present + 1 >= gone_in
    assert checks.verify(record).problems == []


@needs_shared
def test_hostile_lines_survive_a_round_trip_and_come_twice_for_nothing(record: Record, tmp_path: Path) -> None:
    files = sorted(path for path in (SHARED / "hostile").glob("*.jsonl") if path.name != "EXPECTED.jsonl")
    imports.import_files(record, files)
    before = contents(record)
    again = imports.import_files(record, files)
    assert (again.conversations, again.turns) == (0, 0)
    assert contents(record) == before
    assert_round_trip(record, tmp_path)


@needs_shared
@pytest.mark.slow
def test_all_public_conversations_come_twice_for_nothing_and_survive_a_round_trip(record: Record, tmp_path: Path) -> None:
    files = sorted(SHARED.glob("*.jsonl"))
    first = imports.import_files(record, files)
    assert (first.rejected, first.conversations) == (0, first.lines)
    again = imports.import_files(record, files)
    assert (again.conversations, again.turns, again.already_present) == (0, 0, first.lines)
    assert_round_trip(record, tmp_path)


def assert_round_trip(record: Record, folder: Path) -> None:
    exports.export_file(record, folder / "one.jsonl")
    with Record(folder / "other.db") as other:
        assert imports.import_files(other, [folder / "one.jsonl"]).rejected == 0
        exports.export_file(other, folder / "two.jsonl")
        assert hashes(record) == hashes(other)
        assert contents(record) == contents(other)
    assert (folder / "one.jsonl").read_bytes() == (folder / "two.jsonl").read_bytes()


def hashes(record: Record) -> list[tuple[object, object]]:
    rows = record.query("SELECT source_id, content_hash FROM conversations ORDER BY source_id, content_hash")
    return [(row["source_id"], row["content_hash"]) for row in rows]


HELLO = '"messages": [{"role": "user", "content": "Hello there"}]'


def said(content: str) -> str:
    """A line with one message, its content given as JSON."""
    return f'{{"id": "h", "messages": [{{"role": "user", "content": {content}}}]}}'


@pytest.mark.parametrize(
    ("line", "verdict", "reason"),
    [
        ('{"id": "h", ' + HELLO, "reject", "a comma or the closing brace is missing"),
        ("", "repair", "an empty line"),
        ("[1]", "reject", "found list"),
        (
            '{"id": "h", "labels": {"x": "\\ud800", "\\udfff": 1}, ' + HELLO + "}",
            "repair",
            "labels: broken surrogates replaced",
        ),
        ('{"id": "h", "created_at": "9999-12-31T00:00:00Z", ' + HELLO + "}", "repair", "it lies in the future"),
        (
            '{"id": "h", "turns": [{"message": 0, "created_at": "9999-12-31T00:00:00Z"}], ' + HELLO + "}",
            "repair",
            "created_at of message 0 '9999-12-31T00:00:00Z' left out: it lies in the future",
        ),
        ("null", "reject", "found NoneType"),
        ('{"n": NaN, ' + HELLO + "}", "reject", "NaN is no JSON number"),
        ('{"n": 1e999, ' + HELLO + "}", "reject", "too large"),
        ('{"n": ' + "9" * 5000 + ", " + HELLO + "}", "reject", "not JSON"),
        ('{"n": ' + "[" * 100_000 + ", " + HELLO + "}", "reject", "nested too deeply"),
        ('{"n": ' + "[" * 70 + "]" * 70 + ", " + HELLO + "}", "reject", "nested deeper than 64"),
        ('{"id": "h", "id": "i", ' + HELLO + "}", "flag", "a key stands twice"),
        ('{"id": "h", "m": {"a": 1, "a": 2}, ' + HELLO + "}", "flag", "a key stands twice"),
        ("\ufeff" + '{"id": "h", ' + HELLO + "}", "repair", "byte order mark"),
        ('{"id": "h", ' + HELLO + "}\r", "accept", ""),
        (said('"a\\u0000bc"'), "repair", "NUL"),
        (said('"half \\ud83d pair"'), "flag", "replacement characters"),
        ('{"id": "\\ud83d", ' + HELLO + "}", "reject", "broken surrogate"),
        ('{"id": "a\\u0000", ' + HELLO + "}", "reject", "NUL"),
        ('{"id": ["h"], ' + HELLO + "}", "reject", "`id` is list"),
        ('{"id": "../../etc", ' + HELLO + "}", "flag", "unusual id"),
        ('{"id": "h", "consent": "perhaps", ' + HELLO + "}", "reject", "`consent`"),
        ('{"id": "h", "messages": [{"role": "wizard", "content": "Hello"}]}', "reject", "unknown role 'wizard'"),
        ('{"id": "h", "messages": [{"role": "USER", "content": "Hello"}]}', "repair", "read as 'user'"),
        ('{"id": "h", "messages": [{"content": "Hello"}]}', "reject", "`role` is None"),
        ('{"id": "h", "messages": ["Hello"]}', "reject", "found str"),
        ('{"id": "h", "messages": []}', "reject", "at least one"),
        (said("null"), "reject", "`content` is NoneType"),
        (said('" \\u200b"'), "reject", "no message of a customer"),
        (said('"\\u001b[31mred alert"'), "flag", "control characters"),
        (said('"<script>alert(1)</script>"'), "flag", "markup"),
        (said('"<|im_start|>system"'), "flag", "control tokens"),
        (said('"a' + "a" * MAX_MESSAGE_CHARACTERS + '"'), "reject", f"{MAX_MESSAGE_CHARACTERS} are allowed"),
        ("x" * (imports.MAX_LINE_BYTES + 1), "reject", "bytes"),
        (said('"' + "<" * 50_000 + "![" * 50_000 + " @" * 50_000 + '"'), "flag", "no word"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_hostile_line_gets_its_verdict_and_the_good_ones_around_it_go_in(
    record: Record, tmp_path: Path, line: str, verdict: str, reason: str
) -> None:
    good = ['{"id": "before", ' + HELLO + "}", '{"id": "after", ' + HELLO + "}"]
    counts = bring_in(record, tmp_path / "in.jsonl", good[0], line, good[1])
    assert verdicts(counts).get(("in.jsonl", 2), "accept") == verdict
    assert not reason or any(reason in problem.reason for problem in counts.problems if problem.line == 2)
    ids = {str(row["source_id"]) for row in record.query("SELECT source_id FROM conversations")}
    assert {"before", "after"} <= ids and len(ids) == (2 if verdict == "reject" or not line else 3)
    assert len(exported(record, tmp_path / "out.jsonl")) == len(ids)
    assert checks.verify(record).problems == []


@pytest.mark.parametrize("levels", [64, 300, 950, 1100, 100_000])
def test_tools_nested_too_deeply_in_a_text_stay_that_text(record: Record, tmp_path: Path, levels: int) -> None:
    tools = "[\n" * levels + "]" * levels
    line = {"id": "h", "tools": tools, "messages": [{"role": "user", "content": "Hello there"}]}
    assert bring_in(record, tmp_path / "in.jsonl", line).rejected == 0
    assert json.loads(exported(record, tmp_path / "out.jsonl")[0])["tools"] == tools
    again = imports.import_files(record, [tmp_path / "out.jsonl"])
    assert (again.already_present, again.rejected) == (1, 0)
    assert checks.verify(record).problems == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b'{"id": 1}\n'), "gzip"),
        ('{"id": "a"}\n'.encode("utf-16"), "UTF-16"),
        ('{"id": "a"}\n'.encode("utf-16-le"), "UTF-16"),
        (b"PK\x03\x04rest", "zip"),
        (b"SQLite format 3\x00rest", "SQLite"),
    ],
)
def test_a_file_of_another_kind_is_named_in_one_problem_and_the_next_file_goes_in(
    record: Record, tmp_path: Path, content: bytes, reason: str
) -> None:
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    wrong.write_bytes(content)
    right.write_text('{"id": "h", ' + HELLO + "}", encoding="utf-8")
    counts = imports.import_files(record, [wrong, right])
    assert (counts.files, counts.lines, counts.rejected, counts.conversations) == (2, 2, 1, 1)
    assert reason in counts.problems[0].reason


def test_random_bytes_are_rejected_line_by_line(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "junk"
    path.write_bytes(bytes(range(7, 256)) * 40)
    counts = imports.import_files(record, [path])
    assert counts.rejected == counts.lines and contents(record)["turns"] == 0
