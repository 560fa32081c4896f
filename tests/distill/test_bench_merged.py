"""What the figures of a merged student count."""

from tests.bench.merged import likeness


def test_likeness_counts_whole_answers_and_the_tokens_before_the_first_difference() -> None:
    found = likeness([[1, 2, 3, 4], [5, 6], [7]], [[1, 2, 9, 4], [5, 6], [7, 8]])
    assert (found["answers"], found["identical answers"]) == (3, 1)
    assert found["tokens before the first difference, share"] == round(5 / 7, 4)
    assert found["tokens before it where there is one, median"] == 1.5
