"""What balance and the guard against leaks promise."""

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as some

from conversations.messages import Role, Split
from distill.dataset.assembling.balance import Weighed, allowed_rows, surplus
from distill.dataset.assembling.leaks import HeldOut, KnownTexts
from distill.dataset.similarity import trigram_jaccard
from distill.rows import ChosenRow, DatasetRow, LabelsRow, MessageRow

PASSAGE = "Coral light means that the box waits for the line, so please wait 12 minutes."


def rows(*groups: tuple[str, int, int], weight: float = 1.0) -> list[Weighed]:
    return [Weighed(f"{topic}-{depth}-{n}", topic, depth, weight) for topic, depth, count in groups for n in range(count)]


def kept_topics(every: list[Weighed], max_topic_share: float) -> Counter[str]:
    left_out = surplus(every, max_topic_share=max_topic_share, max_depth_share=1)
    return Counter(row.topic for row in every if row.decision_id not in left_out)


def test_a_topic_beyond_its_share_is_cut_to_it_and_the_cut_is_counted() -> None:
    every = rows(("bill", 1, 60), ("line", 1, 25), ("box", 1, 15))
    assert kept_topics(every, 0.5) == {"bill": 40, "line": 25, "box": 15}
    assert Counter(surplus(every, max_topic_share=0.5, max_depth_share=1).values()) == {"topic_surplus": 20}


def test_one_topic_is_not_cut_at_all_and_none_loses_more_than_half() -> None:
    assert kept_topics(rows(("bill", 1, 60)), 0.25) == {"bill": 60}
    assert kept_topics(rows(("bill", 1, 1000), ("line", 1, 600)), 0.3) == {"bill": 600, "line": 600}
    assert kept_topics(rows(("bill", 1, 1000), *((name, 1, 90) for name in "abcdefghi")), 0.1)["bill"] == 500


@given(some.integers(1, 400), some.integers(0, 400), some.floats(0.5, 0.99))
def test_no_row_more_takes_others_away_and_a_few_odd_ones_cost_as_few(count: int, rest: int, share: float) -> None:
    def kept(others: int) -> int:
        return sum(allowed_rows({True: count, **({False: others} if others else {})}, share).values())

    assert kept(rest) >= count
    assert kept(rest) <= kept(rest + 1) <= kept(rest) + 2 + round(share / (1 - share))


def test_later_turns_keep_their_place_beside_first_ones() -> None:
    every = rows(("bill", 1, 95), ("bill", 3, 10))
    left_out = surplus(every, max_topic_share=0.5, max_depth_share=0.9)
    assert Counter(left_out.values()) == {"depth_surplus": 5}
    assert all(name.startswith("bill-1-") for name in left_out)


def test_what_people_answered_is_left_out_last() -> None:
    every = [*rows(("bill", 1, 60)), *rows(("line", 1, 20)), *rows(("bill", 2, 30), weight=3.0)]
    left_out = surplus(every, max_topic_share=0.6, max_depth_share=1)
    assert left_out and not [name for name in left_out if name.startswith("bill-2-")]


@given(some.dictionaries(some.text(max_size=3), some.integers(1, 300), min_size=1, max_size=8), some.floats(0.05, 1))
def test_no_group_is_beyond_its_share_unless_half_of_it_is_kept(counts: dict[str, int], share: float) -> None:
    allowed = allowed_rows(counts, share)
    total = sum(allowed.values())
    for group, count in counts.items():
        least = count - min(count // 2, sum(counts.values()) - count)
        assert least <= allowed[group] <= count
        most = max(share, 1 / len(counts)) * total
        assert allowed[group] in (count, least) or allowed[group] <= most
    assert len(counts) > 1 or allowed == counts


def chosen(name: str, *said: str, cluster: str = "") -> ChosenRow:
    roles = [Role.SYSTEM, *[(Role.USER, Role.ASSISTANT)[place % 2] for place in range(len(said))]]
    return ChosenRow(
        decision_id=name, conversation_id=f"c {name}", cluster_id=cluster or f"k {name}", topic="", split=Split.TRAIN,
        chosen_because="coverage", labels=LabelsRow(),
        messages=tuple(MessageRow(role=role, content=text) for role, text in zip(roles, ("You help.", *said), strict=True)),
    )  # fmt: skip


def held_row(name: str, question: str, answer: str) -> DatasetRow:
    row = chosen(name, question)
    return DatasetRow(
        decision_id=row.decision_id, conversation_id=row.conversation_id, cluster_id=row.cluster_id, topic="", weight=1.0,
        teacher="big", labels=LabelsRow(), messages=(*row.messages, MessageRow(role=Role.ASSISTANT, content=answer)),
    )  # fmt: skip


def held_out(*references: str, question: str = "Why is my bill twice as high as it was agreed?") -> HeldOut:
    known = KnownTexts([PASSAGE, "Then press the round button."], ["I don't know that, so I'm passing this to a colleague."])
    held = HeldOut(0.5)
    held.add(held_row("t", question, "x"), references, known)
    return held


ANSWER = "The second line was billed too, we take it off with the next bill."


def test_an_answer_of_the_test_in_an_earlier_turn_keeps_a_row_out_of_training() -> None:
    held = held_out(ANSWER)
    assert held.reason_against(
        chosen("a", "Hello there", f"Well:  {ANSWER.upper()} Fine?", "Thanks, and the box?"), frozenset()
    ) == ("test_answer_in_prompt")
    assert (
        held.reason_against(chosen("b", "Hello there", "The second line was billed too.", "And the box?"), frozenset())
        is None
    )
    assert held.counts == {"references": 1}


def test_short_answers_handbook_passages_and_fixed_sentences_are_nobodys_secret() -> None:
    texts = (
        PASSAGE,
        f"{PASSAGE} Then press the round button.",
        "I don't know that, so I'm passing this to a colleague.",
        "Wait a bit.",
    )
    held = held_out(*texts)
    assert held.counts == {"handbook_references": 2, "fixed_references": 1}
    assert all(held.reason_against(chosen("a", "Hi", text, "So what?"), frozenset()) is None for text in texts)
    mixed = held_out(f"{PASSAGE} But in your street it lasts until Thursday evening at the very least.")
    assert mixed.counts == {"references": 1}


def test_the_configured_system_prompt_alone_is_not_looked_at() -> None:
    row = chosen("a", "What now, dear bot of mine?")
    row = row.model_copy(
        update={"messages": (MessageRow(role=Role.SYSTEM, content=f"You help. {ANSWER}"), *row.messages[1:])}
    )
    assert held_out(ANSWER).reason_against(row, frozenset({row.messages[0].content})) is None
    assert held_out(ANSWER).reason_against(row, frozenset()) == "test_answer_in_prompt"


def test_a_twin_of_a_test_question_and_a_tested_cluster_are_not_learnt() -> None:
    held = held_out(question="Why is my bill twice as high as it was agreed?")
    assert held.reason_against(chosen("a", "so why is my BILL twice as high as it was"), frozenset()) == "twin_of_test"
    assert held.reason_against(chosen("b", "Something else altogether, please?", cluster="k t"), frozenset()) == "joins_test"
    assert held.reason_against(chosen("c", "Something else altogether, please?"), frozenset()) is None
    short = held_out(question="Cancel my order")
    assert short.reason_against(chosen("d", "cancel MY order!"), frozenset()) == "twin_of_test"
    assert short.reason_against(chosen("e", "Hi", "Hello.", "cancel my order"), frozenset()) is None


WORDS = some.lists(some.sampled_from("ab"), min_size=5, max_size=9).map(" ".join)


@given(some.lists(WORDS, min_size=1, max_size=5), WORDS, some.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_the_search_for_twins_misses_none(questions: list[str], asked: str, threshold: float) -> None:
    held = HeldOut(threshold)
    for question in questions:
        held.add(held_row(hashlib.sha256(question.encode()).hexdigest(), question, "x"), (), KnownTexts((), ()))
    is_twin = any(trigram_jaccard(question, asked) >= threshold for question in questions)
    assert (held.reason_against(chosen("a", asked), frozenset()) == "twin_of_test") is is_twin
