"""What verify promises without a handbook: everyday answers are kept, and machine's leavings and refusals are not learnt."""

from pathlib import Path

import pytest
from planted_everyday import BAD, GOOD, NEEDS_A_JUDGE, PROMPT
from small_run import small_run
from test_dataset_verify import answer_row, chosen, evidence, verified

from conversations.decisions import AnswerAuthor
from distill.dataset.verifying.checks import reason_against
from distill.rows import OfferedRow, Task
from distill.run import new_run

_LEAST_KEPT = 0.95
_LEAST_CAUGHT = 0.95


def reason(text: str, question: str, *, told: str = PROMPT, **more: object) -> str:
    row = chosen("d", question, system=told)
    return reason_against(evidence(text, row=row, allowed=None, **more))[0]


def test_of_everyday_answers_at_least_95_of_100_are_kept() -> None:
    lost = [(found, text) for question, text in GOOD if (found := reason(text, question))]
    kept = 1 - len(lost) / len(GOOD)
    assert kept >= _LEAST_KEPT, f"kept {kept:.1%} of {len(GOOD)}: {lost}"


def test_of_everyday_bad_answers_at_least_95_of_100_are_caught_each_with_its_code() -> None:
    missed = [(code, found, text) for code, question, text in BAD if (found := reason(text, question)) != code]
    caught = 1 - len(missed) / len(BAD)
    assert caught >= _LEAST_CAUGHT, f"caught {caught:.1%} of {len(BAD)}: {missed}"


def test_what_needs_a_judge_is_left_to_the_judge() -> None:
    assert [text for question, text in NEEDS_A_JUDGE if reason(text, question)] == []


@pytest.mark.parametrize(
    ("text", "finish_reason", "author", "expected"),
    [
        ("Click on the link and then follow the instru", "unknown", AnswerAuthor.TEACHER, "truncated"),
        ("Click on the link and then follow the instru", "", AnswerAuthor.TEACHER, "truncated"),
        ("Click on the link and then follow the steps", "stop", AnswerAuthor.TEACHER, ""),
        ("Click on the link and then follow the steps", "unknown", AnswerAuthor.LOGGED, ""),
        ("Click on the link and then follow the steps.", "unknown", AnswerAuthor.TEACHER, ""),
        ("Do this:\n1. open the app and\n2. tap on the profile and the gear", "unknown", AnswerAuthor.TEACHER, ""),
        ("You find all of it here: https://acme.example/help", "unknown", AnswerAuthor.TEACHER, ""),
    ],
)
def test_where_nobody_says_why_an_answer_stopped_it_must_end_like_a_sentence(
    text: str, finish_reason: str, author: AnswerAuthor, expected: str
) -> None:
    assert reason(text, "How do I log in?", finish_reason=finish_reason, author=author) == expected


def test_contact_data_that_the_operator_wrote_is_the_companys_own() -> None:
    asked = "Who do I ask about business plans?"
    for text in (
        "Please ask Ms. Keller of our business team.",
        "Please write to keller@acme.example today.",
        "Please call +49 30 123 4567 today.",
    ):
        assert reason(text, asked) == ""
        assert reason(text, asked, told="You are the support of Acme.") == "personal_data"


def test_what_the_settings_tell_student_or_teacher_is_the_operators_word(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        text = small.settings_file.read_text(encoding="utf-8")
        head, _, rest = text.partition("[teach]")
        written = f'{head}[teach]\ninstruction = "Our line is +44 20 7946 0999."{rest}'
        small.settings_file.write_text(written, encoding="utf-8")
        with new_run(small.record, small.settings) as run:
            rows = [chosen("d1", "How can I call you?"), chosen("d2", "How can I call you?")]
            answers = [
                answer_row("d1", "Please call +44 20 7946 0999."),
                answer_row("d2", "Please call +44 20 7946 0888."),
            ]
            _, verdicts = verified(run, rows, answers)
    assert verdicts["d1"].reason != "personal_data"
    assert verdicts["d2"].reason == "personal_data"


def test_data_in_place_of_words_is_kept_where_it_was_asked_for() -> None:
    text = '{"answer": "Open the app."}'
    assert reason(text, "How do I log in?") == "control_tokens"
    assert reason(text, "Give me the example as JSON, please") == ""
    wanted = chosen("d", "How do I log in?", offered=OfferedRow(response_format_json='{"type": "json_object"}'))
    assert reason_against(evidence(text, row=wanted, allowed=None))[0] == ""


def test_a_result_may_be_reasoned_aloud() -> None:
    row = chosen("d", "What are 6 and 6?", task=Task.MATH)
    assert reason_against(evidence("Let me think. 6 + 6 = 12.\nFinal answer: 12", row=row, allowed=None))[0] == ""
