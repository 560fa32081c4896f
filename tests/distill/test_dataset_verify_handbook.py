"""What a changed handbook does to answers, releases, expected facts and the schedule."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import ARTICLE, SmallRun, small_run
from typer.testing import CliRunner

from conversations import decisions, passages, releases, reviews, runs
from conversations.decisions import Verdict
from conversations.reviews import ReviewVerdict
from distill.cli import app
from distill.dataset.handbook.articles import Handbook, Passage
from distill.dataset.handbook.changes import changes, retired_facts, without_retired
from distill.due import due_because
from distill.rows import FactRow, LabelsRow, VerdictRow, read_rows
from distill.run import Run, Stage

STALE = "[schedule]\nevery_hours = 1000\nmin_new_conversations = 1000"


def cited(small: SmallRun) -> tuple[ScriptedTeacher, str]:
    """A teacher whose answers rest on the article's one passage."""
    passage = next(iter(Handbook.load(small.folder / "handbook").passages))
    return ScriptedTeacher(
        lambda question, before: Act("Please wait 12 minutes.", more={"handbook_passages": [passage]})
    ), passage


def change(small: SmallRun) -> None:
    article = ARTICLE.replace("please wait 12 minutes", "please wait 15 minutes")
    (small.folder / "handbook" / "coral.md").write_text(article, encoding="utf-8")


def learned(small: SmallRun, run: Run, passage: str) -> None:
    """Note what assemble notes, and a release that came of the run."""
    with small.record.write() as transaction:
        transaction.execute("INSERT OR IGNORE INTO run_passages VALUES (?, ?)", [run.run_id, passage])
        transaction.execute(
            "INSERT INTO releases VALUES ('release_1', ?, 'base', 'lora', '/w', 'd', '{}', '2026-08-01T00:00:00Z', NULL)",
            [run.run_id],
        )


def test_a_changed_passage_retires_its_answers_names_who_learned_it_and_makes_a_cycle_due(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more=STALE) as small:
        teacher, passage = cited(small)
        with teacher:
            text = small.settings_file.read_text(encoding="utf-8")
            small.settings_file.write_text(text.replace("http://127.0.0.1:9/v1", teacher.base_url), encoding="utf-8")
            run, manifests = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
            accepted = manifests[-1].counts.accepted
            assert accepted > 0
            learned(small, run, passage)
            present = Handbook.load(small.folder / "handbook")
            assert changes(small.record, present).gone == () and due_because(small.record, small.settings) == ""
            assert len(passages.replayable(small.record, present.passages.keys())) == accepted

            change(small)
            changed = Handbook.load(small.folder / "handbook")
            found = changes(small.record, changed)
            assert [each.passage_hash for each in found.gone] == [passage] and len(found.answer_ids) == accepted
            assert found.releases == ("release_1",)
            assert "1 handbook passages" in due_because(small.record, small.settings)
            assert passages.replayable(small.record, changed.passages.keys()) == []
            shown = CliRunner().invoke(app, ["handbook", "--settings", str(small.settings_file), "--json"])
            told = json.loads(shown.stdout)
            assert told["cycle_due"] and told["releases"] == ["release_1"] and len(told["answers_to_retire"]) == accepted
            assert (
                "a cycle is due: 1 handbook"
                in CliRunner().invoke(app, ["handbook", "--settings", str(small.settings_file)]).stdout
            )

            later, again = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
        verdicts = list(read_rows(later.folder / "verify/verdicts.jsonl", VerdictRow))
        assert {(each.verdict, each.reason) for each in verdicts} == {(Verdict.REJECTED, "passage_changed")}
        assert again[-1].counts.rejected_by_reason == {"passage_changed": len(verdicts)}
        assert changes(small.record, changed).answer_ids == ()
        # The next training set rests on the handbook as it is, and then nothing is due.
        with small.record.write() as transaction:
            for name in changed.passages:
                transaction.execute("INSERT INTO run_passages VALUES (?, ?)", [later.run_id, name])
        assert due_because(small.record, small.settings) == ""
        assert releases.releases(small.record)[0].run_id == run.run_id


def test_an_answer_that_says_the_same_of_a_changed_passage_is_accepted_and_stays_so_unless_an_operator_rejected_it(
    tmp_path: Path,
) -> None:
    def script(question: str, before: int) -> Act:
        return Act("Coral light: please be patient.", more={"handbook_passages": list(present())})

    def present() -> Mapping[str, Passage]:
        return Handbook.load(tmp_path / "handbook").passages

    with (
        ScriptedTeacher(script) as teacher,
        small_run(tmp_path, teacher.base_url, teacher='kind = "handbook"') as small,
    ):
        small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
        names = [each.decision_id for each in decisions.decisions(small.record)]
        wrong = decisions.answers(small.record, names[0])[0].answer_id
        reviews.review(small.record, wrong, ReviewVerdict.REJECTED, reviewed_by="olga")
        change(small)
        run, _ = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
        verdicts = {each.decision_id: each for each in read_rows(run.folder / "verify/verdicts.jsonl", VerdictRow)}
        assert verdicts[names[0]].reason == "rejected_by_operator"
        accepted = [each for name, each in verdicts.items() if name != names[0]]
        assert {each.verdict for each in accepted} == {Verdict.ACCEPTED}
        for each in accepted:
            newest, older = sorted(
                decisions.answers(small.record, each.decision_id), key=lambda answer: answer.version, reverse=True
            )
            assert (newest.answer_id, newest.verdict, newest.passages) == (each.answer_id, Verdict.ACCEPTED, (*present(),))
            assert (older.verdict, older.verdict_reason) == (Verdict.REJECTED, "passage_changed")


def test_accepted_answers_of_other_runs_are_retired_with_them(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        teacher, _ = cited(small)
        with teacher:
            text = small.settings_file.read_text(encoding="utf-8")
            small.settings_file.write_text(text.replace("http://127.0.0.1:9/v1", teacher.base_url), encoding="utf-8")
            run, _ = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
        rows = [decisions.answers(small.record, each.decision_id)[0] for each in decisions.decisions(small.record)]
        assert all(each.verdict is Verdict.ACCEPTED for each in rows)
        assert passages.retire(small.record, [], "passage_changed") == len(rows)
        again = [decisions.answers(small.record, each.decision_id)[0] for each in rows]
        assert {(each.verdict, each.verdict_reason) for each in again} == {(Verdict.REJECTED, "passage_changed")}
        assert passages.passages_by_run(small.record) == {} and run.run_id


def test_a_handbook_that_cannot_be_read_makes_no_cycle_due_and_stops_no_schedule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more=STALE) as small:
        (small.folder / "handbook" / "coral.md").write_text("---\nid: coral\n", encoding="utf-8")
        assert due_because(small.record, small.settings) == ""
        assert "whether the handbook has changed is unknown" in caplog.text


def test_a_cycle_is_due_by_time_and_new_conversations_as_before(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more="[schedule]\nmin_new_conversations = 8") as small:
        assert due_because(small.record, small.settings) == "8 conversations are new"
        small.perform(Stage.CHOOSE)
        assert due_because(small.record, small.settings) == ""
        runs.finish_run(small.record, runs.runs(small.record)[0].run_id, state=runs.RunState.COMPLETE, outcome="promote")


def test_a_fact_that_the_handbook_gives_otherwise_is_expected_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "coral.md").write_text(ARTICLE, encoding="utf-8")
    handbook = Handbook.load(tmp_path)
    stands = next(iter(handbook.facts.values()))
    changed, gone = (
        stands.model_copy(update={"says": "wait 11 minutes"}),
        FactRow(fact_id="coral.gone", says="x", match=("x",)),
    )
    labels = LabelsRow(answerable=True, facts=(stands, gone))
    assert retired_facts([labels, LabelsRow(facts=(changed,))], handbook) == ("coral.gone", "coral.wait")
    assert without_retired(labels, handbook).facts == (stands,)
    assert without_retired(labels, None) is labels and without_retired(LabelsRow(facts=(stands,)), handbook).facts == (
        stands,
    )
