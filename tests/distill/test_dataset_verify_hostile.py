"""What hostile logs hold and verify must catch, when their replies are taken for answers."""

import json
from pathlib import Path

import pytest
from small_run import small_run
from test_dataset_verify import answer_row, evidence

from conversations.decisions import AnswerAuthor, Verdict
from conversations.exchange import imports
from conversations.messages import Role
from distill.cycle import perform_stage
from distill.dataset.verifying.checks import reason_against
from distill.rows import ChosenRow, MessageRow, VerdictRow, read_rows
from distill.run import Counts, Outcome, Run, Stage, new_run

HOSTILE = Path(__file__).parents[3] / "shared" / "data" / "hostile"
pytestmark = pytest.mark.skipif(
    not HOSTILE.is_dir(), reason="../shared/data/hostile is not here; it is no part of the project"
)

# Text of a customer that is no damage in an answer: shown as it is, or weak at most. Everything else that is flagged must go.
HARMLESS = {
    "markdown_table", "code_fence", "nested_quotes", "sql", "shell", "path", "yaml", "log_forge", "latex",
    "csv_formula_dde", "html_entities",
}  # fmt: skip
# What only a judge or a person can tell from a good answer.
NEEDS_A_JUDGE = {
    "off_topic", "abusive_user", "sarcasm", "legal_threat", "no_resolution", "answer_before_question", "attachment_only",
    "voice_transcript", "html_entities", "minor", "customer_wants_human", "quoted_mail_thread", "language_switch",
}  # fmt: skip

MUST_GO = (
    "language model", "My invoice is wrong", "tap the", "onclick", "customer_name", "Traceback", "[object", "small hole",
    "not my problem",
)  # fmt: skip


def cases(name: str) -> list[tuple[str, str, list[dict[str, str]]]]:
    expected = {}
    for line in (HOSTILE / "EXPECTED.jsonl").read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        if told["file"] == name:
            expected[told["line"]] = (told["case"], told["expect"])
    lines = (HOSTILE / name).read_text(encoding="utf-8").split("\n")
    return [(*expected[place], json.loads(line)["messages"]) for place, line in enumerate(lines, start=1) if line.strip()]


@pytest.mark.parametrize("name", ["05_unicode.jsonl", "06_markup_injection.jsonl"])
def test_flagged_text_is_caught_when_it_is_an_answer(name: str) -> None:
    missed = []
    for case, expect, messages in cases(name):
        if expect == "flag" and case not in HARMLESS:
            text = messages[-1 if case == "assistant_emits_html" else 0]["content"]
            if not reason_against(evidence(text, question="What is it?", allowed=None))[0]:
                missed.append((case, text))
    assert missed == []


def test_flagged_replies_of_low_quality_are_caught_but_for_those_that_need_a_judge() -> None:
    missed = []
    for case, expect, messages in cases("10_low_quality.jsonl"):
        if expect != "flag" or case in NEEDS_A_JUDGE or messages[-1]["role"] != "assistant":
            continue
        asked = tuple(MessageRow(role=Role(each["role"]), content=each["content"]) for each in messages[:-1])
        row = evidence("x").row.model_copy(update={"messages": asked})
        if not reason_against(evidence(messages[-1]["content"], row=row, allowed="Tidewell has a box."))[0]:
            missed.append((case, messages[-1]["content"]))
    assert missed == []


@pytest.mark.slow
def test_replies_of_hostile_logs_go_through_import_choose_and_verify_and_none_that_must_not_is_accepted(
    tmp_path: Path,
) -> None:
    names = ("03_turn_order.jsonl", "05_unicode.jsonl", "06_markup_injection.jsonl", "10_low_quality.jsonl")
    lines = [line for name in names for line in (HOSTILE / name).read_text(encoding="utf-8").split("\n") if line.strip()]
    # The longest logs, of hundreds of turns, are choose's to be tried with.
    short = [line for line in lines if line.count('"role"') < 100]
    (tmp_path / "hostile.jsonl").write_text("\n".join(short), encoding="utf-8")
    with small_run(tmp_path / "run", "http://127.0.0.1:9/v1") as small:
        text = small.settings_file.read_text(encoding="utf-8")
        wide = "[choose]\nlearn_from_unknown_consent = true\nmin_question_words = 1"
        small.settings_file.write_text(text.replace("[choose]", wide), encoding="utf-8")
        imports.import_files(small.record, [tmp_path / "hostile.jsonl"])
        with new_run(small.record, small.settings) as run:
            perform_stage(run, Stage.CHOOSE)
            replies = {
                str(row["decision_id"]): str(row["content"])
                for row in small.record.query(
                    "SELECT d.decision_id, t.content FROM decisions d JOIN turns t ON t.turn_id = d.reply_turn_id"
                )
            }
            rows = [row for row in read_rows(run.folder / "choose/decisions.jsonl", ChosenRow) if row.decision_id in replies]
            answers = [answer_row(each.decision_id, replies[each.decision_id], author=AnswerAuthor.LOGGED) for each in rows]

            def work(run: Run) -> Outcome:
                run.write_rows(Stage.TEACH, "answers.jsonl", answers)
                return Outcome(
                    Counts(taken_in=len(answers), accepted=len(answers), rejected=0, unscored=0, rejected_by_reason={})
                )

            run.perform(Stage.TEACH, work)
            counts = perform_stage(run, Stage.VERIFY).counts
            verdicts = {each.decision_id: each for each in read_rows(run.folder / "verify/verdicts.jsonl", VerdictRow)}
        accepted = {replies[name] for name, each in verdicts.items() if each.verdict is Verdict.ACCEPTED}
        assert len(answers) > 20 and counts.taken_in == counts.accepted + counts.rejected + counts.unscored
        for bad in MUST_GO:
            assert not [each for each in accepted if bad in each], bad
