"""What search promises: no input breaks it, every script is found, filters combine, pages neither repeat nor skip."""

from datetime import date

import pytest
from conftest import bring_in, talk_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations import decisions, releases, runs, search, tags, turns
from conversations.decisions import AnswerAuthor, Decision
from conversations.errors import OperatorError
from conversations.messages import Author, Role, Split, TurnStatus, Vote
from conversations.search import Filters
from conversations.store import Record

SPOKEN = {
    "en": "My router's lamp blinks coral, is that C++ or a Café-fault? Order TW-004711",
    "zh": "我想申请退款谢谢",
    "uk": "Поверніть гроші за замовлення, будь ласка",
    "ar": "جهاز التوجيه لا يعمل منذ الصباح",
    "th": "เราเตอร์ของฉันไม่ทำงาน",
    "emoji": "It works now 👍🏽 thanks 🫠",
    "forms": "Die Straße ist gesperrt, Ⴀბგ and a ﬁne day",
    "signs": "it says >>> --force /var/log/*.log 100%",
}


def found_by(record: Record, words: str, filters: Filters | None = None) -> list[str]:
    return [each.customer_id for each in search.find(record, words, filters)]


def spoken(record: Record) -> None:
    for name, words in SPOKEN.items():
        talk_of(record, name, words)


@pytest.mark.parametrize(
    ("words", "who"),
    [
        ("coral", "en"),
        ("CORAL lamp", "en"),
        ("rout", "en"),
        ("cafe", "en"),
        ("TW-004711", "en"),
        ("c++", "en"),
        ("退", "zh"),
        ("退款", "zh"),
        ("申请退款", "zh"),
        ("гроші", "uk"),
        ("ГРОШІ ласк", "uk"),
        ("التوجيه", "ar"),
        ("เราเตอร์", "th"),
        ("👍", "emoji"),
        ("🫠", "emoji"),
        ("🫠 works", "emoji"),
        ("STRASSE", "forms"),
        ("fine day", "forms"),
        ("ⴀბგ", "forms"),
        (">>>", "signs"),
        ("--force", "signs"),
        ("*.log", "signs"),
    ],
)
def test_a_word_of_any_script_finds_who_said_it(record: Record, words: str, who: str) -> None:
    spoken(record)
    assert found_by(record, words) == [who]


@pytest.mark.parametrize("words", ["款退", "moneyy", "router gone", "🙃", "<<<"])
def test_what_nobody_said_finds_nobody(record: Record, words: str) -> None:
    spoken(record)
    assert found_by(record, words) == []


@given(
    st.text(max_size=60) | st.text(alphabet="\"'*^:()-+~{}[]NEARANDOT 退🙂\x00\ud800%_\\", max_size=20), st.text(max_size=30)
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_and_no_cursor_breaks_the_search(record: Record, words: str, cursor: str) -> None:
    if not record.query("SELECT 1 FROM conversations"):
        spoken(record)
    for each in search.find(record, words):
        assert each.customer_id in SPOKEN
    try:
        search.find(record, words, after=cursor)
    except OperatorError as error:
        assert "is no place in this list" in str(error)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_said_is_found_by_its_own_first_word(record: Record, words: str) -> None:
    talk = talk_of(record, "anyone", words)
    first = words.split()[:1]
    found = search.find(record, first[0] if first else "", limit=1000)
    assert talk in [each.conversation_id for each in found] or not first


def test_filters_combine(record: Record) -> None:
    spoken(record)
    base = releases.register_base(record, base="tiny", weights_path="/nowhere", weights_digest="sha256:" + "ab" * 32)
    talks = {each.customer_id: each.conversation_id for each in search.find(record)}
    question = turns.thread(record, talks["en"])[0]
    reply = turns.begin_reply(
        record, talks["en"], question_turn_id=question.turn_id, release_id=base, prompt_version="1", decoding={}
    )
    turns.finish_reply(record, reply.turn_id, status=TurnStatus.FAILED, content="", failure_code="unreachable")
    turns.vote_on(record, question.turn_id, "en", Vote.DOWN)
    tags.tag(record, talks["en"], ["vip"], tagged_by="test")
    runs.begin_run(record, run_id="run", path="/nowhere", settings_digest="d")
    decisions.put_decisions(
        record, [Decision("d", talks["en"], question.turn_id, None, "c", Split.TRAIN, "t", "h", "run", "coverage")]
    )
    decisions.add_answer(record, "d", author=AnswerAuthor.TEACHER, author_name="big", content="one")
    assert found_by(record, "", Filters(has_disagreement=True)) == []
    decisions.add_answer(record, "d", author=AnswerAuthor.STUDENT, author_name="small", content="two")
    assert found_by(record, "", Filters(has_disagreement=True)) == []
    decisions.add_answer(record, "d", author=AnswerAuthor.OPERATOR, author_name="olga", content="two")
    today = date.fromisoformat(reply.created_at_utc[:10])
    fitting = [
        Filters(status=TurnStatus.FAILED),
        Filters(release_id=base),
        Filters(vote=Vote.DOWN),
        Filters(tag="vip"),
        Filters(language="en", tag="vip"),
        Filters(has_disagreement=True, channel="chat"),
        Filters(
            status=TurnStatus.FAILED, release_id=base, vote=Vote.DOWN, channel="chat", state="bot", language="en", tag="vip",
            since=today, until=today, has_disagreement=True,
        ),
    ]  # fmt: skip
    for filters in fitting:
        assert found_by(record, "", filters) == ["en"], filters
        assert found_by(record, "coral", filters) == ["en"], filters
        assert found_by(record, "退款", filters) == [], filters
    for other in (
        Filters(vote=Vote.UP, tag="vip"),
        Filters(language="uk", tag="vip"),
        Filters(since=date(2999, 1, 1)),
        Filters(until=date(1999, 1, 1)),
    ):
        assert found_by(record, "coral", other) == found_by(record, "", other) == [], other


def test_a_vote_taken_back_and_a_tag_taken_off_are_no_longer_found(record: Record) -> None:
    talk = talk_of(record, "anna", "hello")
    turn_id = turns.thread(record, talk)[0].turn_id
    turns.vote_on(record, turn_id, "anna", Vote.DOWN)
    turns.vote_on(record, turn_id, "anna", Vote.UP)
    tags.tag(record, talk, ["vip", "vip"], tagged_by="test")
    assert found_by(record, "", Filters(vote=Vote.UP, tag="vip")) == ["anna"]
    assert found_by(record, "", Filters(vote=Vote.DOWN)) == []
    turns.withdraw_vote(record, turn_id, "anna")
    assert tags.untag(record, talk, ["vip", "other"]) == 1
    assert found_by(record, "", Filters(vote=Vote.UP)) == found_by(record, "", Filters(tag="vip")) == []


@pytest.mark.parametrize("bad", ["", " ", " vip", "x" * 61, "two\nlines"])
def test_a_tag_that_nobody_could_type_again_is_refused(record: Record, bad: str) -> None:
    talk = talk_of(record, "anna", "hello")
    with pytest.raises(OperatorError, match="expected 1 to 60 printable characters"):
        tags.tag(record, talk, ["good", bad], tagged_by="test")
    assert tags.tags_of(record, talk) == []


@pytest.mark.parametrize("words", ["", "router"])
def test_pages_show_each_conversation_once_while_others_come_in(record: Record, words: str) -> None:
    there = {talk_of(record, "anna", f"my router number {number}", "and once more router") for number in range(25)}
    seen: list[str] = []
    after = ""
    while page := search.find(record, words, after=after, limit=4):
        seen += [each.conversation_id for each in page]
        after = page[-1].cursor
        talk_of(record, "bo", "a new router")
    assert len(seen) == len(set(seen))
    assert set(seen) == there or words


def test_an_answer_is_found_when_it_is_finished_and_never_before(record: Record) -> None:
    base = releases.register_base(record, base="tiny", weights_path="/nowhere", weights_digest="sha256:" + "ab" * 32)
    talk = talk_of(record, "anna", "hello")
    question = turns.thread(record, talk)[0]
    reply = turns.begin_reply(
        record, talk, question_turn_id=question.turn_id, release_id=base, prompt_version="1", decoding={}
    )
    turns.save_partial(record, reply.turn_id, "Push the plug", first_token_ms=1.0)
    assert found_by(record, "plug") == []
    turns.finish_reply(record, reply.turn_id, status=TurnStatus.STOPPED, content="Push the plug in")
    assert found_by(record, "plug in") == ["anna"]


def test_what_a_page_shows_is_the_piece_that_was_found(record: Record) -> None:
    talk_of(record, "anna", "so " * 200 + "the Coral lamp" + " and" * 200)
    snippet = search.find(record, "coral")[0].snippet
    assert "the Coral lamp" in snippet and len(snippet) <= search.MAX_SNIPPET_CHARACTERS


def test_the_language_is_known_once_the_words_tell_it(record: Record) -> None:
    talk = talk_of(record, "anna", "hi")
    assert turns.conversation(record, talk).language == ""
    turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "Після оновлення застосунок не відкривається")
    turns.append_message(
        record, talk, Role.USER, Author.CUSTOMER, "and now I go on in English, to be understood by everybody"
    )
    assert turns.conversation(record, talk).language == "uk"


def test_an_import_is_found_by_what_it_tells(record: Record) -> None:
    bring_in(
        record,
        {"id": "a", "messages": [{"role": "user", "content": "我想申请退款谢谢"}], "created_at": "2026-03-05T10:00:00Z"},
    )
    day = date(2026, 3, 5)
    assert len(search.find(record, "退款", Filters(since=day, until=day, channel="import"))) == 1
    assert search.find(record, "退款", Filters(until=date(2026, 3, 4))) == []
