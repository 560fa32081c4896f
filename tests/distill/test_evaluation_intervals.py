"""What an interval promises: it holds the truth as often as it says, also of few conversations, and it never feigns certainty."""

import numpy as np
import pytest

from distill.evaluation.figures.intervals import Score, difference_of_means, mean, ratio_of_means


def drawn(rng: np.random.Generator, conversations: int, share: float) -> list[Score]:
    """Two decisions a conversation, alike within it."""
    shares = rng.beta(4 * share, 4 * (1 - share), size=conversations)
    return [Score(f"{c}-{d}", f"c{c}", float(rng.random() < shares[c])) for c in range(conversations) for d in range(2)]


@pytest.mark.parametrize("conversations", [8, 15, 40])
def test_the_interval_of_a_mean_holds_the_truth_at_least_nine_times_in_ten(conversations: int) -> None:
    rng = np.random.default_rng(conversations)
    held = 0
    for _ in range(300):
        found = mean(drawn(rng, conversations, 0.7), 400)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0.7 <= found.high
    assert held >= 270


def test_the_share_kept_is_compared_question_by_question() -> None:
    rng = np.random.default_rng(3)
    teacher = drawn(rng, 40, 0.6)
    # The student fails where the teacher fails, and at one question more in ten.
    student = [Score(each.decision_id, each.conversation_id, each.value * (rng.random() < 0.9)) for each in teacher]
    shuffled = [
        Score(a.decision_id, a.conversation_id, b.value)
        for a, b in zip(student, rng.permutation(np.array(student, object)), strict=True)
    ]
    paired, apart = ratio_of_means(student, teacher, 2000), ratio_of_means(shuffled, teacher, 2000)
    assert (
        paired
        and apart
        and paired.high is not None
        and paired.low is not None
        and apart.high is not None
        and apart.low is not None
    )
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.6 * (apart.high - apart.low)


def test_what_was_seen_never_or_always_is_not_called_certain() -> None:
    never = mean([Score(f"d{n}", f"c{n}", 0.0) for n in range(60)], 500)
    always = mean([Score(f"d{n}", f"c{n % 30}", 1.0) for n in range(60)], 500)
    assert never and always
    # Wilson's 95 % interval of none in 60 conversations, and of 30 in 30.
    assert (never.value, never.low, never.high) == (0.0, 0.0, pytest.approx(0.0602, abs=1e-4))
    assert (always.value, always.low, always.high) == (1.0, pytest.approx(0.8865, abs=1e-4), pytest.approx(1.0))
    assert (always.n, always.conversations) == (60, 30)


def test_a_student_that_was_like_its_teacher_everywhere_keeps_all_of_it_but_not_for_certain() -> None:
    teacher = drawn(np.random.default_rng(3), 60, 0.9)
    kept = ratio_of_means(teacher, teacher, 500)
    assert kept is not None
    assert (kept.value, kept.low, kept.high) == (1.0, pytest.approx(0.9398, abs=1e-4), pytest.approx(1.0602, abs=1e-4))


@pytest.mark.parametrize("conversations", [15, 40])
def test_the_interval_of_the_share_kept_holds_the_truth_also_where_students_hardly_differ(conversations: int) -> None:
    rng = np.random.default_rng(conversations)
    held = 0
    for _ in range(300):
        teacher = drawn(rng, conversations, 0.8)
        student = [Score(each.decision_id, each.conversation_id, each.value * (rng.random() < 0.93)) for each in teacher]
        found = ratio_of_means(student, teacher, 400)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0.93 <= found.high
    assert held >= 270


def test_one_conversation_has_no_interval_however_many_questions() -> None:
    one = [Score(f"d{n}", "c", float(n % 2)) for n in range(50)]
    for found in (mean(one, 500), ratio_of_means(one, one, 500), difference_of_means(one, one, 500)):
        assert found is not None
        assert (found.low, found.high, found.n, found.conversations) == (None, None, 50, 1)


def test_a_share_of_hardly_anything_has_no_bounds() -> None:
    # The teacher scores in 2 of 20 conversations: one draw in eight has neither, and the share is then without bounds.
    teacher = [Score(f"d{n}", f"c{n}", float(n < 2)) for n in range(20)]
    student = [Score(f"d{n}", f"c{n}", float(n == 0)) for n in range(20)]
    found = ratio_of_means(student, teacher, 2000)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, None, None)
    assert ratio_of_means(student, [Score(f"d{n}", f"c{n}", 0.0) for n in range(20)], 2000) is None


def test_the_same_scores_give_the_same_interval_in_any_order() -> None:
    scores = drawn(np.random.default_rng(1), 12, 0.5)
    assert mean(scores, 500) == mean(scores[::-1], 500)
