"""What redaction promises: personal data goes, the rest stays, everything comes back to the letter, and nothing is ever slow."""

import string
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role
from conversations.redaction import PLACEHOLDER, Placeholders, RedactionRules, Redactor, StreamRestorer, redact_messages
from conversations.settings import RecordSettings, read_settings
from tests.bench.handwritten_texts import KNOWN_TO_GET_THROUGH, ORDINARY, PERSONAL
from tests.bench.personal_texts import REGIONS, planted_texts
from tests.bench.redaction import DATA, checksums_left, measure_file, measure_ordinary, measure_planted

BRITAIN_AND_UKRAINE = RedactionRules(regions=("GB", "UA"))
VALUES = [planted.value for planted in planted_texts(seed=7, of_each_kind=40)]


def redacted(text: str, rules: RedactionRules | None = None) -> str:
    return Redactor(rules).redact(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jo.marsh@example.com please", "write to <EMAIL_1> please"),
        ("call +44 20 7946 0123 after six", "call <PHONE_1> after six"),
        ("card 4111 1111 1111 1111 was charged", "card <CARD_1> was charged"),
        ("IBAN DE89 3704 0044 0532 0130 00 is mine", "IBAN <IBAN_1> is mine"),
        ("my address is 192.168.1.77", "my address is <IP_1>"),
        ("пишіть на olena@example.com.ua", "пишіть на <EMAIL_1>"),
        ("order 4111111111111112 is late", "order 4111111111111112 is late"),
        ("since version 4.12.7.1 it fails", "since version 4.12.7.1 it fails"),
        ("I paid 29.60 on the 21st, twice", "I paid 29.60 on the 21st, twice"),
    ],
)
def test_checksums_decide_what_is_personal(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(("text", "expected"), PERSONAL)
def test_personal_data_goes_however_it_is_written(text: str, expected: str) -> None:
    assert redacted(text, BRITAIN_AND_UKRAINE) == expected


@pytest.mark.parametrize("text", [*ORDINARY, *KNOWN_TO_GET_THROUGH])
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert redacted(text, BRITAIN_AND_UKRAINE) == text


def test_the_targets_of_the_measurement_hold_on_planted_values() -> None:
    for kind, result in measure_planted(RedactionRules(regions=REGIONS), seed=3, of_each_kind=200).items():
        assert result.recall >= 0.98, f"{kind}: {result.missed}"
        assert result.precision >= 0.98, f"{kind}: {result.wrong}"


def test_at_most_one_ordinary_sentence_in_a_hundred_is_touched() -> None:
    count, touched = measure_ordinary(RedactionRules(regions=REGIONS), seed=3, count=1500)
    assert len(touched) <= 0.01 * count, touched


def test_no_card_and_no_iban_with_a_valid_checksum_gets_through_even_without_any_setting() -> None:
    for planted in planted_texts(seed=5, of_each_kind=300):
        if planted.kind in ("CARD", "IBAN"):
            assert not checksums_left(redacted(planted.text)), planted


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real conversations is not beside this repository")
@pytest.mark.parametrize("name", ["multidogo_customer_turns.jsonl", "banking77_questions.jsonl"])
def test_no_valid_checksum_is_left_in_real_conversations_and_few_are_touched(name: str) -> None:
    result = measure_file(RedactionRules(regions=REGIONS), DATA / name)
    assert not result.left
    assert result.touched <= 0.01 * result.messages


def test_phone_numbers_of_a_country_are_found_where_it_is_configured_or_the_words_say_so() -> None:
    assert redacted("erreichbar unter 030 901820") == "erreichbar unter 030 901820"
    assert redacted("erreichbar unter 030 901820", RedactionRules(regions=("DE",))) == "erreichbar unter <PHONE_1>"
    assert redacted("tel. 030 901820, order 2125550123") == "tel. <PHONE_1>, order 2125550123"
    america = RedactionRules(regions=("US",))
    assert redacted("it is 2125550123", america) == "it is <PHONE_1>"
    assert redacted("order number 2125550123", america) == "order number 2125550123"
    for browser in (
        "Chrome/121.0.6167.160",
        "Edg/120.0.2210.144 on Windows",
        "YaBrowser/23.11.2.7712",
        "Chrome 121.0.6167.160",
    ):
        assert redacted(browser, america) == browser


def test_order_and_account_numbers_are_found_by_the_operators_patterns_but_never_tear_a_card() -> None:
    rules = RedactionRules(patterns={"ORDER": r"\bTW-\d{6}\b", "ACCOUNT": r"\d{8}"})
    assert redacted("TW-204599 of account 12345678", rules) == "<ORDER_1> of account <ACCOUNT_1>"
    assert redacted("card 4111111111111111", rules) == "card <CARD_1>"


def test_listed_names_are_found_as_whole_words_and_words_that_are_names_too_stay() -> None:
    rules = RedactionRules(names=("Mark", "Olena Petrenko", "О'Коннор Марія", "Li"))
    assert redacted("I am olena petrenko, not MARK", rules) == "I am <NAME_1>, not <NAME_2>"
    assert redacted("Це О'Коннор Марія.", rules) == "Це <NAME_1>."
    assert redacted("mark the line; Markus likes Olena", rules) == "mark the line; Markus likes Olena"


def test_a_names_file_is_read_beside_the_settings_and_a_missing_one_is_an_operators_error(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# from the address book\nOlena Petrenko\n\n", encoding="utf-8")
    file = tmp_path / "settings.toml"
    file.write_text('[record]\npath = "r.db"\n[redaction]\nnames_file = "names.txt"\n', encoding="utf-8")
    rules = read_settings(RecordSettings, file).redaction.rules
    assert rules.names == ("Olena Petrenko",) and "NAME" in rules.kinds
    (tmp_path / "names.txt").unlink()
    with pytest.raises(OperatorError, match=r"names\.txt"):
        read_settings(RecordSettings, file)


def test_the_same_value_has_one_placeholder_throughout_a_conversation() -> None:
    messages = (
        ChatMessage(Role.USER, "a@example.com and b@example.com"),
        ChatMessage(Role.ASSISTANT, "Thank you, a@example.com"),
    )
    told, placeholders = redact_messages(messages, RedactionRules(patterns={"ORDER": r"\bTW-\d{6}\b"}))
    assert [message.content for message in told] == ["<EMAIL_1> and <EMAIL_2>", "Thank you, <EMAIL_1>"]
    assert placeholders.restore("Dear <EMAIL_2>, <EMAIL_9>") == "Dear b@example.com, <EMAIL_9>"


def test_two_writings_of_one_value_come_back_each_as_it_was_written() -> None:
    redactor = Redactor()
    text = "Jo@Example.com or jo@example.com, 4111 1111 1111 1111 or 4111-1111-1111-1111"
    assert redactor.redact(text) == "<EMAIL_1> or <EMAIL_2>, <CARD_1> or <CARD_2>"
    assert redactor.placeholders.restore(redactor.redact(text)) == text


pieces = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(
        [
            "<EMAIL_1>",
            "<CARD_2>",
            "<KEY_1",
            "<",
            ">",
            " ",
            "\n",
            "_1>",
            "\u200b",
            "\u00ad",
            "٤",
            "４",
            "<PHONE_1>",
            "Olena",
            "TW-12345",
        ]
    ),
    st.text(max_size=12),
    st.text(alphabet=string.digits + " .-+@:/<>_ABEX", max_size=24),
)
texts = st.lists(pieces, max_size=8).map("".join)


@given(st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_conversation_comes_back_to_the_letter(conversation: list[str]) -> None:
    redactor = Redactor(RedactionRules(regions=("GB", "UA"), patterns={"ORDER": r"TW-\d+"}, names=("Olena",)))
    told = [redactor.redact(text) for text in conversation]
    assert [redactor.placeholders.restore(text) for text in told] == conversation


@given(st.lists(st.tuples(pieces, st.sampled_from([" ", "\n", "; ", " or ", "x", "..."])), max_size=6))
@settings(max_examples=200, deadline=None)
def test_nothing_with_a_valid_checksum_is_left_whatever_stands_beside_it(parts: list[tuple[str, str]]) -> None:
    told = redacted("".join(piece + gap for piece, gap in parts))
    between = PLACEHOLDER.split(told)
    assert not [left for piece in between for left in checksums_left(piece)]


@given(texts, st.lists(st.integers(min_value=0, max_value=200), max_size=12))
@settings(max_examples=200, deadline=None)
def test_an_answer_that_streams_in_any_pieces_is_the_whole_answer_restored(text: str, cuts: list[int]) -> None:
    redactor = Redactor(BRITAIN_AND_UKRAINE)
    told = redactor.redact(text)
    places = sorted({min(cut, len(told)) for cut in cuts} | {0, len(told)})
    stream = StreamRestorer(redactor.placeholders)
    shown = "".join(stream.feed(told[one:two]) for one, two in pairwise(places)) + stream.finish()
    assert shown == text


@given(st.lists(st.sampled_from(["<EMAIL_1>", "<EMA", "IL_1", "<", ">", "words ", "<PHONE_22>", "x"]), max_size=20))
def test_a_restored_stream_is_the_restored_whole_however_it_is_cut(pieces: list[str]) -> None:
    table = Placeholders({"<EMAIL_1>": "jo@example.com", "<PHONE_22>": "+44 1"})
    stream = StreamRestorer(table)
    shown = "".join(stream.feed(piece) for piece in pieces) + stream.finish()
    assert shown == table.restore("".join(pieces))


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1 ",
        ".",
        "1.",
        "+",
        "4",
        "4 ",
        "+4 ",
        "AA11",
        "a@",
        ":",
        "f:",
        "token ",
        "07123 ",
        "jo (at) ",
        "a.b AT ",
        "a AT a.",
        "app ",
        "version 1.1 to ",
        "A/1.",
        "wifi key ",
        "a.",
        '"',
        "password=",
        "é1",
        "@a.",
        "jo@ex.com ",
        "tel 1234567 ",
        "version ",
        "1(",
        "://a:",
        "-----BEGIN PRIVATE KEY-----",
        "a" * 99 + "@",
        "<EMAIL_1>",
        "Olena ",
    ],
)
def test_no_text_takes_more_than_its_length(piece: str) -> None:
    rules = RedactionRules(regions=("GB", "DE", "UA"), names=("Olena Petrenko", "Olena"))

    def seconds(length: int) -> float:
        text = (piece * length)[:length]
        began = time.process_time()
        redacted(text, rules)
        return time.process_time() - began

    short, long = seconds(4_000), seconds(16_000)
    assert long < 8 * short + 0.5, f"{short:.2f} s for 4,000 characters, {long:.2f} s for 16,000"


def test_who_speaks_loses_the_name_and_a_tool_keeps_the_functions() -> None:
    named = '{"name": "Oksana_Kovalenko", "tool_calls": [{"function": {"name": "track"}}]}'
    found, _ = redact_messages(
        [ChatMessage(role, "Yes.", named) for role in (Role.USER, Role.ASSISTANT, Role.SYSTEM)]
        + [ChatMessage(Role.USER, "No.", '{"name": "Oksana"}'), ChatMessage(Role.TOOL, "3", '{"name": "track"}')]
    )
    assert {each.extra_json for each in found[:3]} == {'{"tool_calls": [{"function": {"name": "track"}}]}'}
    assert [each.extra_json for each in found[3:]] == ["", '{"name": "track"}']
