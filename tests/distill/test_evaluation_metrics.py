"""What the metrics promise: they cannot be met by tricks, and they are the same however a number is written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.dataset.handbook.articles import Handbook
from distill.evaluation.scoring.facts import Yardstick, concrete_values, fact_scores
from distill.evaluation.scoring.metric import Metric
from distill.rows import FactRow, LabelsRow

HANDBOOK = Path("deploy/demo/handbook")
FEE = FactRow(fact_id="late-fee.fee", says="the fee is €6.35", match=(r"6[.,]35",))
DAY = FactRow(fact_id="late-fee.day", says="it is charged from the 16th day", match=(r"\b16(th)?\b.{0,6}day|\b16 days",))
SWITCH = FactRow(fact_id="evening-slow.switch", says="switch on Night Current", match=(r"night current",))
YARDSTICK = Yardstick(
    facts={fact.fact_id: fact for fact in (FEE, DAY, SWITCH)},
    article_texts={"late-fee": "A fee of €6.35 from the 16th day.", "evening-slow": "Switch on Night Current."},
    declining_phrases=("I don't know that",),
)
LABELS = LabelsRow(answerable=True, articles=("late-fee",), facts=(FEE, DAY))


def marks(answer: str, labels: LabelsRow = LABELS, question: str = "why did i pay more") -> dict[Metric, float]:
    return fact_scores(answer, labels=labels, question=question, yardstick=YARDSTICK)


def test_every_expected_fact_and_nothing_wrong_is_full_accuracy() -> None:
    assert marks("That is the €6.35 fee, which we charge from the 16th day.")[Metric.FACT_ACCURACY] == 1.0


def test_half_of_the_facts_is_half_the_accuracy() -> None:
    assert marks("There is a fee of 6,35 euros.")[Metric.FACT_ACCURACY] == 0.5


def test_a_wrong_number_costs_accuracy_and_counts_as_a_wrong_fact() -> None:
    found = marks("The fee is €6.35 from the 16th day, and €12 after that.")
    assert found[Metric.FACT_ACCURACY] == pytest.approx(2 / 3)
    assert found[Metric.WRONG_FACT_RATE] == 1.0


def test_a_fact_of_another_article_is_wrong_here() -> None:
    found = marks("The fee is €6.35 from the 16th day; switch on Night Current.")
    assert found[Metric.FACT_ACCURACY] == pytest.approx(2 / 3)


def test_a_number_that_the_customer_said_is_not_held_against_the_answer() -> None:
    found = marks("Your €41.20 has the €6.35 fee in it, from the 16th day.", question="why is my bill 41,20 euros")
    assert found[Metric.FACT_ACCURACY] == 1.0


def test_declining_an_unanswerable_question_is_seen_and_so_is_making_something_up() -> None:
    unanswerable = LabelsRow(answerable=False)
    assert marks("I don't know that, sorry.", unanswerable)[Metric.UNANSWERABLE_DECLINED_RATE] == 1.0
    invented = marks("Yes, for €9.99 a month.", unanswerable)
    assert invented[Metric.UNANSWERABLE_DECLINED_RATE] == 0.0
    assert invented[Metric.UNANSWERABLE_WRONG_FACT_RATE] == 1.0
    assert Metric.FACT_ACCURACY not in invented


def test_without_labels_nothing_is_called_accuracy() -> None:
    assert marks("Anything.", LabelsRow()) == {}


def test_copying_the_question_gains_nothing_and_listing_every_answer_next_to_nothing() -> None:
    handbook = Handbook.load(HANDBOOK)
    texts = {article.article_id: " ".join(section.text for section in article.sections) for article in handbook.articles}
    yardstick = Yardstick(handbook.facts, texts, ())
    everything = " ".join(article.passages[0].text for article in handbook.articles)
    for article in handbook.articles:
        labels = LabelsRow(answerable=True, articles=(article.article_id,), facts=article.facts)
        answer = article.passages[0].text
        full = fact_scores(answer, labels=labels, question="", yardstick=yardstick)
        all_of_it = fact_scores(everything, labels=labels, question="", yardstick=yardstick)
        assert full[Metric.FACT_ACCURACY] == 1.0, article.article_id
        assert all_of_it[Metric.FACT_ACCURACY] < 0.1, article.article_id


@given(st.integers(3, 19))
def test_a_number_word_counts_like_its_digits(number: int) -> None:
    words = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()  # noqa: SIM905
    assert concrete_values(f"about {words[number]} days") == concrete_values(f"about {number} days")


def test_list_marks_are_no_numbers_and_codes_are_whole() -> None:
    assert concrete_values("1. Open the app\n2. Run LT-38") == {"LT-38"}
