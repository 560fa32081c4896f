"""Several teachers: who is asked next, who is picked, and whose licence counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run
from taught_run import chosen, talk, teach_in

from conversations import decisions
from conversations.decisions import AnswerAuthor
from conversations.errors import OperatorError, Refused
from conversations.messages import Author
from distill.dataset.teaching import pace
from distill.dataset.teaching.budget import teachers_of
from distill.dataset.teaching.several import agreement_of
from distill.dataset.teaching.trial import Guard
from distill.rows import ChosenRow, LoggedReply
from distill.settings import TeacherTable

MORE = """
[teachers.second]
base_url = "{base_url}"
model = "second-1"
licence_allows_training = "{licence}"
[teachers.judge]
base_url = "{base_url}"
model = "judge-1"
licence_allows_training = "no"
[teachers.log]
kind = "logged"
licence_allows_training = "yes"
logged_authors = ["imported"]
[judge]
teacher = "judge"
"""
CUT, CALLS = {"finish_reason": "length"}, {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait as long as a real teacher is waited for."""
    monkeypatch.setattr(pace, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pace, "FIRST_PAUSE_SECONDS", 0.02)


def more(teacher: ScriptedTeacher, licence: str = "yes") -> str:
    return MORE.format(base_url=teacher.base_url, licence=licence)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Act(status=400), "request_refused"), (Act(status=500), "no_answer"), (Act(finish_reason="length"), "truncated"),
        (Act(text=""), "empty"), (Act(finish_reason="content_filter"), "filtered"),
        (Act(message=CALLS), "tool_calls_unasked"),
    ],
)  # fmt: skip
def test_what_the_first_cannot_answer_the_fallback_is_asked(tmp_path: Path, fault: Act, reason: str) -> None:
    def script(body: dict[str, Any]) -> Act:
        is_hard = body["messages"][-1]["content"] == QUESTIONS[0] and body["model"] == "big-1"
        return fault if is_hard else Act(f"So says {body['model']}.")

    with (
        ScriptedTeacher(by_body=script) as teacher,
        small_run(tmp_path, teacher.base_url, teach='fallback = ["second"]', more=more(teacher)) as small,
    ):
        manifest, answers = teach_in(small, chosen(small))
    assert len(answers) == len(QUESTIONS)
    by_second = [answer for answer in answers.values() if answer.teacher == "second"]
    assert [answer.text for answer in by_second] == ["So says second-1."]
    assert manifest.details["passed_on"] == {f"big: {reason}": 1}
    assert sum(seen.body["model"] == "second-1" for seen in teacher.seen) == 1


def test_the_judge_picks_the_best_of_several_above_its_floor_and_its_calls_are_booked(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Act:
        if body["model"] != "judge-1":
            is_bad = body["messages"][-1]["content"] == QUESTIONS[0]
            return Act("I really cannot say." if is_bad else f"Hold the button, says {body['model']}.")
        shown = json.loads(body["messages"][-1]["content"])
        if "answer" in shown:
            return Act(json.dumps({"grade": 2 if "cannot" in shown["answer"] else 9 if "second" in shown["answer"] else 7}))
        return Act('{"better": "tie"}')

    with (
        ScriptedTeacher(by_body=script) as teacher,
        small_run(tmp_path, teacher.base_url, teach='best_of = ["second"]', more=more(teacher)) as small,
    ):
        run = chosen(small)
        manifest, answers = teach_in(small, run)
        asked = len(teacher.seen)
        teach_in(small, chosen(small))
        assert len(teacher.seen) == asked
    assert {answer.teacher for answer in answers.values()} == {"second"}
    assert manifest.counts.rejected_by_reason == {"below_floor": 1}
    assert {answer.agreement for answer in answers.values()} == {0.8333}
    assert manifest.details["spent_calls"] == asked


def test_a_judge_that_is_away_leaves_the_best_of_several_unscored(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Act:
        return Act(status=500) if body["model"] == "judge-1" else Act(f"Says {body['model']}.")

    with (
        ScriptedTeacher(by_body=script) as teacher,
        small_run(tmp_path, teacher.base_url, teach='best_of = ["second"]', more=more(teacher)) as small,
    ):
        manifest, answers = teach_in(small, chosen(small))
    assert answers == {} and manifest.counts.unscored == len(QUESTIONS)
    assert manifest.details["unscored_by_reason"] == {"judge_silent": len(QUESTIONS)}


def test_the_log_is_a_teacher_for_what_it_holds_and_a_model_for_the_rest(tmp_path: Path) -> None:
    def change(row: ChosenRow) -> ChosenRow:
        author = Author.IMPORTED if row.messages[-1].content in QUESTIONS[:3] else Author.STUDENT
        return row.model_copy(update={"logged": LoggedReply(author=author, content="As it was said.")})

    with (
        ScriptedTeacher() as teacher,
        small_run(tmp_path, teacher.base_url, teach='fallback = ["big"]', more=more(teacher)) as small,
    ):
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace('teacher = "big"', 'teacher = "log"'), encoding="utf-8")
        _, answers = teach_in(small, chosen(small, change))
        assert {seen.question for seen in teacher.seen} == set(QUESTIONS[3:])
    found = sorted((answer.teacher, answer.author.value, answer.text) for answer in answers.values())
    assert found == [("big", "teacher", "Press the button twice.")] * 5 + [("log", "logged", "As it was said.")] * 3


def test_an_operators_answer_goes_before_every_teacher_and_is_redacted_with_its_conversation(tmp_path: Path) -> None:
    secret = "Please write to jane.doe@example.org about the coral lamp on my box today"
    line = {
        "id": "c99", "customer_id": "customer-99", "created_at": "2026-08-02T08:00:00Z", "consent": True,
        "messages": [{"role": "user", "content": secret}],
    }  # fmt: skip
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.import_conversations([line])
        run = chosen(small)
        name = next(
            each.decision_id
            for each in decisions.decisions(small.record)
            if "coral lamp"
            in small.record.query("SELECT content FROM turns WHERE turn_id = ?", [each.question_turn_id])[0]["content"]
        )
        for text in ("Old.", "We wrote to jane.doe@example.org and to bob@example.org."):
            decisions.add_answer(small.record, name, author=AnswerAuthor.OPERATOR, author_name="ann", content=text)
        _, answers = teach_in(small, run)
    assert answers[name].text == "We wrote to <EMAIL_1> and to bob@example.org."
    assert (answers[name].author, answers[name].teacher, answers[name].cost_usd) == (AnswerAuthor.OPERATOR, "people", 0.0)
    assert all("coral lamp" not in seen.question for seen in teacher.seen)


def test_a_licence_that_says_no_is_refused_for_every_teacher_and_unknown_needs_the_flag(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher:
        for licence, teach, told in (
            ("no", 'fallback = ["second"]', "does not allow training"),
            ("no", 'best_of = ["second"]', "does not allow training"),
            ("unknown", 'fallback = ["second"]', "allow_unknown_licence = true"),
        ):
            folder = tmp_path / f"{licence}-{teach[:4]}"
            with (
                small_run(folder, teacher.base_url, teach=teach, more=more(teacher, licence)) as small,
                pytest.raises(OperatorError, match=told),
            ):
                teach_in(small, chosen(small))
        assert teacher.seen == []
        with small_run(tmp_path / "flag", teacher.base_url, teach="allow_unknown_licence = true") as small:
            text = small.settings_file.read_text(encoding="utf-8")
            small.settings_file.write_text(text.replace('training = "yes"', 'training = "unknown"'), encoding="utf-8")
            _, answers = teach_in(small, chosen(small))
            assert {answer.licence for answer in answers.values()} == {"unknown"}


def test_agreement_is_the_share_of_words_that_answers_have_in_common() -> None:
    assert agreement_of(["one"]) is None
    assert agreement_of(["Wait a minute.", "wait a MINUTE"]) == 1.0
    assert agreement_of(["a b c d", "a b x y", "q r s t"]) == round(0.5 / 3, 4)


@pytest.mark.parametrize("bad", [Act(""), Act("Das kann ich leider nicht beantworten.")])
def test_a_bad_fallback_is_stopped_among_its_first_answers(tmp_path: Path, bad: Act) -> None:
    def script(body: dict[str, Any]) -> Act:
        if body["model"] != "big-1":
            return bad
        # The first teacher passes its trial and has nothing to say to the rest.
        return Act() if sum(seen.body["model"] == "big-1" for seen in teacher.seen) <= 8 else Act("")

    with (
        ScriptedTeacher(by_body=script) as teacher,
        small_run(
            tmp_path, teacher.base_url, teach='fallback = ["second"]\nsmoke_decisions = 8', more=more(teacher)
        ) as small,
    ):
        small.import_conversations([talk(place, [f"my{place} box{place} is{place} gone{place}"]) for place in range(40)])
        with pytest.raises(Refused, match=r"the teacher 'second' is stopped: [56] "):
            teach_in(small, chosen(small))
        assert sum(seen.body["model"] == "second-1" for seen in teacher.seen) <= 5 + 8


def test_a_teacher_that_turns_bad_after_its_trial_is_stopped_by_more_than_half_of_its_last_fifty() -> None:
    guard = Guard("big", first=0, max_failures=1)
    for _ in range(100):
        guard.note("")
    for _ in range(25):
        guard.note("empty")
    with pytest.raises(Refused, match="26 empty among its last 50 answers"):
        guard.note("empty")


@pytest.mark.parametrize(
    ("key", "names"), [("fallback", ["big"]), ("fallback", ["log", "log"]), ("best_of", ["second"] * 2)]
)
def test_a_teacher_that_is_named_twice_is_an_error(tmp_path: Path, key: str, names: list[str]) -> None:
    with (
        ScriptedTeacher() as teacher,
        small_run(tmp_path, teacher.base_url, teach=f"{key} = {json.dumps(names)}", more=more(teacher)) as small,
        pytest.raises(OperatorError, match=f"{key} names '{names[0]}'.*twice"),
    ):
        teachers_of(small.settings)


def test_a_teacher_of_the_log_that_finds_none_of_its_authors_says_who_wrote_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url, more=more(teacher)) as small:
        text = small.settings_file.read_text(encoding="utf-8")
        text = text.replace('logged_authors = ["imported"]\n', "").replace('\nteacher = "big"', '\nteacher = "log"')
        small.settings_file.write_text(text, encoding="utf-8")
        _, answers = teach_in(small, chosen(small))
    assert answers == {}
    assert "8 by 'imported'" in caplog.text and 'logged_authors = ["operator", "imported"]' in caplog.text


def test_an_address_that_cannot_be_one_is_an_error_of_the_settings() -> None:
    with pytest.raises(ValueError, match=r"base_url is 'htp://x'; expected http:// or https://"):
        TeacherTable(base_url="htp://x", model="m", licence_allows_training="yes")
