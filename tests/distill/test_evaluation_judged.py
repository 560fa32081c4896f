"""What the judge may say in an evaluation, and that nothing is said in its place."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import Act, ScriptedTeacher
from small_run import JUDGE, QUESTIONS
from trained_run import MeasuredRun, measured_run

from conversations import decisions, votes
from conversations.decisions import AnswerAuthor
from conversations.messages import Json
from conversations.votes import Choice
from distill.evaluation.scoring.agreement import agreement_of, cohens_kappa
from distill.evaluation.scoring.judged import JudgedRow
from distill.rows import EvaluationRow, read_rows
from distill.run import Stage, read_json

# The models that redact and embed take seconds to load.
pytestmark = pytest.mark.slow
JUDGE_OF_ANSWERS = JUDGE + "reject_worse_than_logged = false\nconcurrency = 1\n"
LEFT, RIGHT, TIE = Choice.LEFT, Choice.RIGHT, Choice.TIE


class Killed(Exception):
    """Ends an evaluation at once, as a kill does."""


def likes_short(body: dict[str, Json]) -> Act:
    """A judge that grades 10 the answers of up to six words, 4 the others, and likes the shorter one of two."""
    shown = json.loads(body["messages"][-1]["content"])
    if "answer" in shown:
        return Act(json.dumps({"grade": 10 if len(shown["answer"].split()) <= 6 else 4, "why": "length"}))
    a, b = (len(shown[f"answer_{side}"]) for side in "AB")
    return Act(json.dumps({"better": "tie" if a == b else "A" if a < b else "B", "why": "length"}))


def scores(rows: Sequence[EvaluationRow], model: str, metric: str) -> set[float | None]:
    return {row.scores[metric] for row in rows if row.model == model}


def rulings(measured: MeasuredRun) -> list[JudgedRow]:
    return list(read_rows(measured.run.folder / "evaluate" / "judged.jsonl", JudgedRow))


def judge_file(measured: MeasuredRun) -> dict[str, Json]:
    return read_json(measured.run.folder / "evaluate" / "judge.json")


def test_every_answer_is_graded_the_candidates_are_compared_and_each_ruling_is_kept_as_it_was_given(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(by_body=likes_short) as judge,
        measured_run(tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url)) as measured,
    ):
        measured.student.answers = {
            measured.candidate: "Wait 12 minutes.",
            measured.base: "That is a very hard question to answer.",
        }
        measured.evaluate()
        tested, rows = len(measured.test_rows), measured.rows
        assert scores(rows, "candidate", "judge_grade") == scores(rows, "teacher", "judge_grade") == {1.0}
        assert scores(rows, "base", "judge_grade") == {3 / 9}
        assert scores(rows, "candidate", "judge_wins_teacher") == {1.0}
        assert scores(rows, "teacher", "judge_wins_teacher") == scores(rows, "candidate", "judge_wins_released") == {None}
        kept = rulings(measured)
        assert len([each for each in kept if each.kind == "grade"]) == 3 * tested
        compared = [each for each in kept if each.kind == "comparison"]
        assert len(compared) == tested and all(each.against == "teacher" and len(each.replies) == 2 for each in compared)
        assert all(json.loads(reply)["why"] == "length" for each in kept for reply in each.replies)
        told = judge_file(measured)
        assert (told["graded"], told["compared"], told["unscored"], told["down"]) == (3 * tested, tested, 0, "")
        # Every answer that the judge read, it read without being told whose it was.
        sent = json.dumps([seen.body for seen in judge.seen])
        assert not [name for name in ("candidate", "teacher", measured.candidate, "big-1") if name in sent]


def test_no_more_decisions_are_judged_than_the_settings_say(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(by_body=likes_short) as judge,
        measured_run(
            tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url), evaluate="judged_decisions = 1\n"
        ) as measured,
    ):
        assert len(measured.test_rows) > 1
        measured.evaluate()
        assert len({each.decision_id for each in rulings(measured)}) == 1
        assert sum(row.scores["judge_grade"] is not None for row in measured.rows) == 3


def test_a_judge_that_is_down_leaves_every_score_empty_and_says_so(tmp_path: Path) -> None:
    with measured_run(tmp_path, more=JUDGE_OF_ANSWERS.format(base_url="http://127.0.0.1:9/v1")) as measured:
        manifest = measured.evaluate()
        for metric in ("judge_grade", "judge_wins_teacher", "judge_wins_released"):
            assert {row.scores.get(metric) for row in measured.rows} == {None}
        told = judge_file(measured)
        assert "cannot be reached" in str(told["down"]) and (told["graded"], told["compared"]) == (0, 0)
        assert dict(manifest.details["judge"])["down"] == told["down"]
        assert told["unscored"] == len(rulings(measured)) > 0
        # The rest of the evaluation stands.
        assert scores(measured.rows, "candidate", "format_fault_rate") == {0.0}


@pytest.mark.parametrize("reply", ["10 of 10", '{"grade": 11, "better": "first"}', ""])
def test_a_judge_that_talks_gives_no_grade(tmp_path: Path, reply: str) -> None:
    with (
        ScriptedTeacher(by_body=lambda body: Act(reply)) as judge,
        measured_run(tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url)) as measured,
    ):
        measured.evaluate()
        assert {row.scores["judge_grade"] for row in measured.rows} == {None}
        assert dict(judge_file(measured))["graded"] == 0


def test_a_cap_that_is_reached_ends_the_rulings_and_not_the_evaluation(tmp_path: Path) -> None:
    # The teacher takes one call of each question, and leaves two.
    with (
        ScriptedTeacher(by_body=likes_short) as judge,
        measured_run(
            tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url), max_calls=len(QUESTIONS) + 2
        ) as measured,
    ):
        measured.evaluate()
        told = judge_file(measured)
        assert len(judge.seen) == 2 and int(str(told["graded"])) > 0
        assert told["unscored"] == len(rulings(measured)) - int(str(told["graded"])) - int(str(told["compared"])) > 0


def test_rulings_that_were_paid_for_are_not_paid_again_when_the_evaluation_is_killed(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(by_body=likes_short) as judge,
        measured_run(tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url)) as measured,
    ):

        def die(stage: Stage, share: float, note: str) -> None:
            if note.startswith("3 of"):
                raise Killed

        with pytest.raises(Killed):
            measured.evaluate(die)
        asked_before, students_asked = len(judge.seen), len(measured.student.requests)
        assert asked_before >= 3
        measured.load()
        measured.evaluate()
        # What was on its way when it died may be asked again; what was answered is kept.
        again = len(judge.seen) - len({seen.raw for seen in judge.seen})
        assert again <= 1 and len(judge.seen) > asked_before
        assert len(measured.student.requests) == students_asked
        assert None not in scores(measured.rows, "candidate", "judge_grade")


def test_the_judges_agreement_with_blind_votes_is_counted_on_the_same_answers(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(by_body=likes_short) as judge,
        measured_run(
            tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url), evaluate="judged_decisions = 50\n"
        ) as measured,
    ):
        record = measured.small.record
        first, second = measured.test_rows[:2]
        # The judge likes the shorter one; so does the first operator, and the second one likes the longer one once.
        for row, who, choice in ((first, "ann", LEFT), (first, "bob", RIGHT), (second, "ann", RIGHT)):
            short, long = (
                decisions.add_answer(record, row.decision_id, author=AnswerAuthor.STUDENT, author_name=name, content=said)
                for name, said in (("a", "Wait."), ("b", "Wait a good while, or write to maria.keller@gmail.com."))
            )
            left, right = (short, long) if row is first else (long, short)
            votes.vote(
                record, decision_id=row.decision_id, left_answer_id=left.answer_id, right_answer_id=right.answer_id,
                choice=choice, voted_by=who,
            )  # fmt: skip
        measured.evaluate()
        told = dict(judge_file(measured)["agreement"])
        assert (told["n"], told["unscored"], told["value"]) == (3, 0, pytest.approx(2 / 3))
        # People: left, right, right. Judge: left, left, right. By chance (1 * 2 + 2 * 1) / 9.
        assert told["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9), abs=1e-6)
        sent = json.dumps([seen.body for seen in judge.seen])
        assert "maria.keller" not in sent and "<EMAIL_1>" in sent


@pytest.mark.parametrize(
    ("pairs", "value", "kappa"),
    [
        # Cohen's own table in small: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.
        ([(LEFT, LEFT)] * 20 + [(LEFT, RIGHT)] * 5 + [(RIGHT, LEFT)] * 10 + [(RIGHT, RIGHT)] * 15, 0.7, 0.4),
        ([(LEFT, LEFT), (RIGHT, RIGHT), (TIE, TIE)], 1.0, 1.0),
        ([(LEFT, RIGHT), (RIGHT, LEFT)], 0.0, -1.0),
        ([(LEFT, TIE), (RIGHT, TIE)], 0.0, 0.0),
        # Whoever always says the same agrees by chance alone.
        ([(LEFT, LEFT)] * 4, 1.0, None),
    ],
)
def test_agreement_and_kappa_are_those_worked_out_by_hand(
    pairs: list[tuple[Choice, Choice]], value: float, kappa: float | None
) -> None:
    found = agreement_of([*pairs, (LEFT, None)])
    assert (found.n, found.unscored) == (len(pairs), 1)
    assert found.value == pytest.approx(value) and found.kappa == (kappa if kappa is None else pytest.approx(kappa))
    assert agreement_of([(LEFT, None)]).value is None


@given(st.lists(st.tuples(st.sampled_from(Choice), st.sampled_from(Choice)), min_size=1, max_size=30))
def test_kappa_is_the_same_both_ways_never_above_one_and_one_where_all_agree(pairs: list[tuple[Choice, Choice]]) -> None:
    kappa = cohens_kappa(pairs)
    turned = cohens_kappa([(judge, person) for person, judge in pairs])
    assert kappa == turned and (kappa is None or -1 <= kappa <= 1)
    if all(person is judge for person, judge in pairs):
        assert kappa in (1.0, None)


def test_an_answer_is_worth_what_its_grade_and_its_comparisons_say() -> None:
    graded = [JudgedRow(decision_id="d", kind="grade", model="base", grade=grade).score for grade in (1, 10, None)]
    assert graded == [0.0, 1.0, None]
