"""What the measures of an answer beside right answers promise: the published definitions, by hand and by their libraries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from distill.evaluation.scoring import texts
from distill.evaluation.scoring.meaning import similarities
from distill.evaluation.scoring.metric import Metric, metrics_of, quality_metrics_of
from distill.rows import Task

WORDS = ("the", "ads", "ad", "a", "cat", "cats", "sat", "on", "mat,", "Mat.", "Denver", "Broncos", "24", "it's")
PHRASES = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The Eiffel Tower!", ("eiffel tower",), 1.0, 1.0),
        ("the cat sat", ("cat sat down",), 0.0, 0.8),
        ("Denver  Broncos", ("Carolina Panthers", "denver broncos."), 1.0, 1.0),
        ("Broncos", ("the Denver Broncos", "Carolina Panthers"), 0.0, 2 / 3),
        ("24–10", ("24-10",), 0.0, 0.0),
        ("in 1999", ("1999",), 0.0, 2 / 3),
        ("nothing alike", ("the right one",), 0.0, 0.0),
        # A word that stands twice counts as often as it stands in both.
        ("no no no", ("no yes no",), 0.0, 2 / 3),
        ("the", ("an",), 1.0, 1.0),
        ("", ("an answer",), 0.0, 0.0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(answer: str, references: tuple[str, ...], exact: float, f1: float) -> None:
    assert texts.exact_match(answer, references) == exact
    assert texts.token_f1(answer, references) == pytest.approx(f1)


@given(PHRASES, st.lists(PHRASES, min_size=1, max_size=3))
def test_f1_is_at_least_exact_match_the_same_both_ways_and_never_hurt_by_another_right_answer(
    answer: str, references: list[str]
) -> None:
    exact, f1 = texts.exact_match(answer, references), texts.token_f1(answer, references)
    assert 0 <= exact <= f1 <= 1
    assert texts.token_f1(answer, [references[0]]) == pytest.approx(texts.token_f1(references[0], [answer]))
    assert f1 == max(texts.token_f1(answer, [each]) for each in references) >= texts.token_f1(answer, references[1:])
    assert texts.token_f1(answer, [*references, answer]) == texts.exact_match(answer, [*references, answer]) == 1


def test_bleu_of_a_sentence_is_the_papers_and_sacrebleus() -> None:
    # Of 6, 5, 4 and 3 runs of one to four words, 5, 3, 2 and 1 stand in the right answer; both are as long.
    by_hand = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    answer, right = "the cat sat on the mat", "the cat sat on a mat"
    assert texts.bleu(answer, (right,)) == pytest.approx(by_hand)
    assert texts.bleu(answer, (right, answer)) == 1
    library = BLEU(effective_order=True)
    for said in ("the cat", "a dog ran away from the mat", "The cat sat on a mat."):
        assert texts.bleu(said, (right, "a mat")) == pytest.approx(
            library.sentence_score(said, [right, "a mat"]).score / 100
        )
        assert texts.likeness(said, right) == CHRF().sentence_score(said, [right]).score / 100


def test_rouge_is_lins_example_and_the_librarys() -> None:
    # Lin 2004, section 3: the longest common subsequence is two of four words, and all four words are there.
    assert texts.rouge("the gunman kill police", ("police killed the gunman",)) == (1.0, 0.5)
    assert texts.rouge("police kill the gunman", ("nothing alike", "police killed the gunman")) == (1.0, 1.0)
    # Short words are not stemmed: "ads" is not "ad".
    assert texts.rouge("his ads", ("hi ad",)) == (0.0, 0.0) and texts.rouge("cats", ("cat",)) == (1.0, 1.0)
    # The library's own tokenizer drops every letter that is not English.
    assert texts.rouge("Перезавантажте роутер", ("Перезавантажте роутер зараз",)) == (pytest.approx(0.8), pytest.approx(0.8))


@given(PHRASES, PHRASES)
def test_rouge_of_english_is_the_librarys_to_the_last_digit(answer: str, right: str) -> None:
    library = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(right, answer)
    assert texts.rouge(answer, (right,)) == (library["rouge1"].fmeasure, library["rougeL"].fmeasure)


def test_a_label_is_right_alone_and_a_solution_by_the_number_that_it_ends_in() -> None:
    assert texts.nli_accuracy("Entailment.", ("entailment",)) == 1
    assert texts.nli_accuracy("entailment, because it says so", ("entailment",)) == 0
    assert texts.math_accuracy("7 boxes of 6 are 42, so the answer is $42.00", ("6 * 7 = 42\n#### 42",)) == 1
    assert texts.math_accuracy("42 is wrong; the answer is 41", ("#### 42",)) == 0
    assert texts.math_accuracy("1,250", ("#### 1250",)) == 1
    assert texts.math_accuracy("no idea", ("#### 42",)) == 0
    assert texts.math_accuracy("42", ("it depends",)) is None


@pytest.mark.slow
def test_likeness_in_meaning_is_of_the_best_one_and_an_answer_without_words_is_like_nothing() -> None:
    said = "Please restart the router."
    same, other = "Could you reboot your router, please?", "Our office is closed on Sundays."
    (near,), (far,), (best,) = (similarities([(said, each)]) for each in ((same,), (other,), (other, same)))
    assert 0 <= far < 0.4 < near < 1 and best == pytest.approx(near)
    assert similarities([(said, (said,)), ("  ", (said,))]) == [pytest.approx(1, abs=1e-6), 0.0]
    assert similarities([]) == []


def test_every_task_has_a_quality_that_its_teacher_has_too_and_none_is_likeness_or_a_rate() -> None:
    for task in Task:
        assert set(quality_metrics_of(task)) <= set(metrics_of(task)) and quality_metrics_of(task)
        assert not [each for each in quality_metrics_of(task) if each.startswith("teacher") or each.endswith("rate")]
    assert quality_metrics_of(Task.QA) == (Metric.EXACT_MATCH, Metric.TOKEN_F1)
    assert {metric for task in Task for metric in metrics_of(task)} == set(Metric)
