"""What people's words promise across runs: an approval stays whatever a teacher says later; a rejection takes nothing else along."""

from pathlib import Path

from scripted_teacher import Act, ScriptedTeacher
from small_run import SmallRun, small_run

from conversations import decisions, reviews
from conversations.corrections import correct
from conversations.decisions import AnswerAuthor, Decision
from conversations.messages import Split
from conversations.reviews import ReviewVerdict
from distill.rows import AnswerRow, ChosenRow, DatasetRow, read_rows
from distill.run import STAGES, Run, Stage

UP_TO_ASSEMBLE = STAGES[: STAGES.index(Stage.ASSEMBLE) + 1]


def learnt(run: Run) -> dict[str, DatasetRow]:
    return {row.decision_id: row for row in read_rows(run.folder / "assemble/train.jsonl", DatasetRow) if row.decision_id}


def trained(small: SmallRun) -> Decision:
    return next(each for each in decisions.decisions(small.record) if each.split is Split.TRAIN)


def test_an_approved_answer_is_learnt_when_the_teacher_says_something_else_later(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, body: Act(text="Press the round button twice, then wait a while.")) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        small.perform(*UP_TO_ASSEMBLE)
        decision = trained(small)
        (given,) = decisions.answers(small.record, decision.decision_id)
        reviews.review(small.record, given.answer_id, ReviewVerdict.APPROVED, reviewed_by="ann")
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace("[teach]\n", '[teach]\ninstruction = "Be kind."\n'), encoding="utf-8")
        asked = len(teacher.seen)
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        rows = {row.decision_id: row for row in read_rows(run.folder / "teach/answers.jsonl", AnswerRow)}
        assert (rows[decision.decision_id].answer_id, rows[decision.decision_id].teacher) == (given.answer_id, "big")
        assert len(teacher.seen) - asked == len(rows) - 1
        assert (learnt(run)[decision.decision_id].weight, learnt(run)[decision.decision_id].teacher) == (3.0, "big")


def test_a_rejected_operators_answer_neither_blocks_its_decision_nor_stays_a_label(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, body: Act(text="Press the round button twice, then wait a while.")) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        small.perform(*UP_TO_ASSEMBLE)
        decision = trained(small)
        wrong = correct(
            small.record,
            decision.decision_id,
            "Throw the box out of the window.",
            operator="ann",
            rules=small.settings.redaction.rules,
        )
        reviews.review(small.record, wrong.answer_id, ReviewVerdict.REJECTED, reviewed_by="bob")
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        row = learnt(run)[decision.decision_id]
        assert (row.teacher, row.weight, row.labels.replies) == ("big", 1.0, ())
        chosen = {each.decision_id: each for each in read_rows(run.folder / "choose/decisions.jsonl", ChosenRow)}
        assert "operator_answered" not in chosen[decision.decision_id].signals
        assert {each.author for each in decisions.answers(small.record, decision.decision_id)} == {
            AnswerAuthor.OPERATOR,
            AnswerAuthor.TEACHER,
        }
