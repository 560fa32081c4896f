"""What editions and the written sets promise: frozen by their text, contained in the next, the same however often killed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, SmallRun, small_run

from conversations import checks, editions, erasure, turns
from conversations.decisions import AnswerAuthor, add_answer, answer_name, decisions
from conversations.errors import OutsideError
from conversations.messages import Author, Consent, Role, Split
from conversations.store import Record
from distill.dataset.assembling.logged import logged_replies
from distill.dataset.assembling.rows import write_lines
from distill.rows import AnswerRow, ChosenRow, DatasetRow, VerdictRow, read_rows, rows_text
from distill.run import STAGES, Manifest, Run, Stage

UP_TO_ASSEMBLE = STAGES[: STAGES.index(Stage.ASSEMBLE) + 1]
NAMES = ("alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta")
UNKNOWN = "I don't know that, so I'm passing this to a colleague."


def more_conversations(small: SmallRun, names: Sequence[str] = NAMES) -> None:
    small.import_conversations(
        [
            {
                "id": f"new-{name}", "customer_id": f"new-{name}", "created_at": "2026-08-03T08:00:00Z", "consent": True,
                "messages": [{"role": "user", "content": f"Question number {name} about a {name} thing that nobody asked before"}],
            }
            for name in names
        ]
    )  # fmt: skip


def rows_of(run: Run, name: str) -> list[DatasetRow]:
    return list(read_rows(run.folder / f"assemble/{name}.jsonl", DatasetRow))


def test_after_the_log_has_doubled_an_edition_is_as_it_was_and_the_next_contains_it(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        first, (*_, before) = small.perform(*UP_TO_ASSEMBLE)
        more_conversations(small)
        second, (*_, after) = small.perform(*UP_TO_ASSEMBLE)
        old, new = ((run.folder / "assemble/test.jsonl").read_bytes() for run in (first, second))
        assert (before.details["test_edition"], after.details["test_edition"]) == (1, 2)
        assert set(old.splitlines()) < set(new.splitlines())
        for run_text, manifest in ((old, before), (new, after)):
            assert manifest.details["test_digest"] == "sha256:" + hashlib.sha256(run_text).hexdigest()
        assert editions.edition_of(small.record, 1).digest == before.details["test_digest"]
        third, (*_, again) = small.perform(*UP_TO_ASSEMBLE)
        assert (third.folder / "assemble/test.jsonl").read_bytes() == new and again.details["test_edition"] == 2
        assert checks.verify(small.record).problems == []


def as_an_older_version_left_it(record: Record) -> str:
    """Put edition 1 back as a version wrote it that knew fewer keys of a row, with the digest it gave."""
    new_keys = {"task", "language", "turn_depth", "offered", "answer_id", "passages", "licence"}
    with record.write() as transaction:
        rows = transaction.query("SELECT * FROM edition_decisions WHERE edition = 1 ORDER BY decision_id")
        head = transaction.query("SELECT * FROM editions WHERE edition = 1")[0]
        transaction.execute("DELETE FROM edition_decisions")
        transaction.execute("DELETE FROM editions")
        transaction.insert("editions", {**head, "digest": "sha256:as it was"})
        for row in rows:
            kept = {name: value for name, value in json.loads(str(row["row_json"])).items() if name not in new_keys}
            kept["labels"] = {name: kept["labels"][name] for name in ("answerable", "articles", "facts")}
            transaction.insert(
                "edition_decisions", {**row, "row_json": json.dumps(kept, sort_keys=True, ensure_ascii=False)}
            )
        editions.note_edition_rows(transaction, 1)
    return "".join(f"{line}\n" for line in editions.edition_of(record, 1).lines.values())


def test_an_edition_of_an_older_version_keeps_its_number_its_digest_and_its_lines(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.perform(*UP_TO_ASSEMBLE)
        lines = as_an_older_version_left_it(small.record)
        run, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        assert (manifest.details["test_edition"], manifest.details["test_digest"]) == (1, "sha256:as it was")
        assert (run.folder / "assemble/test.jsonl").read_text(encoding="utf-8") == lines
        more_conversations(small)
        run, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        assert manifest.details["test_edition"] == 2
        assert set(lines.splitlines()) < set((run.folder / "assemble/test.jsonl").read_text(encoding="utf-8").splitlines())
        assert editions.edition_of(small.record, 1).digest == "sha256:as it was"
        assert checks.verify(small.record).problems == []


def test_an_erasure_makes_a_new_edition_and_says_so(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        first, _ = small.perform(*UP_TO_ASSEMBLE)
        gone, *stay = rows_of(first, "test")
        question = gone.messages[-2].content
        erasure.erase_customer(small.record, f"customer-{QUESTIONS.index(question)}", actor="test")
        assert editions.newest_edition(small.record).erased_rows == 1
        second, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        assert [row.decision_id for row in rows_of(second, "test")] == [row.decision_id for row in stay]
        assert (manifest.details["test_edition"], manifest.details["test_edition_follows_erasure"]) == (2, True)
        assert "an erasure made it" in (second.folder / "assemble/data_card.html").read_text(encoding="utf-8")
        assert editions.newest_edition(small.record).erased_rows == 0 and checks.verify(small.record).problems == []


def test_the_sets_are_the_same_bytes_however_often_they_were_begun(tmp_path: Path) -> None:
    found = []
    for name in ("straight", "killed"):
        with ScriptedTeacher() as teacher, small_run(tmp_path / name, teacher.base_url) as small:
            run, _ = small.perform(*UP_TO_ASSEMBLE)
            folder = run.folder / "assemble"
            if name == "killed":
                # What a kill leaves: no manifest, some files, a half one.
                (folder / "manifest.json").unlink()
                (folder / "train.jsonl").rename(folder / ".train.jsonl.half")
                small.perform(Stage.ASSEMBLE, run_id=run.run_id)
            assert not list(folder.glob(".*"))
            names = ("train.jsonl", "validation.jsonl", "test.jsonl", "data_card.json", "data_card.html")
            found.append({each: (folder / each).read_bytes() for each in names})
    assert found[0] == found[1]


def test_lines_that_break_off_leave_no_file(tmp_path: Path) -> None:
    def lines():  # type: ignore[no-untyped-def]
        yield "one"
        raise OutsideError("the disk is full")

    with pytest.raises(OutsideError):
        write_lines(tmp_path / "train.jsonl", lines())
    assert not (tmp_path / "train.jsonl").exists()


def test_an_answer_has_the_same_name_in_every_record(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.perform(Stage.CHOOSE)
        name = decisions(small.record)[0].decision_id
        given = [
            add_answer(small.record, name, author=AnswerAuthor.OPERATOR, author_name="Eve", content=text)
            for text in ("a", "b")
        ]
    assert [each.answer_id for each in given] == [answer_name(name, AnswerAuthor.OPERATOR, "Eve", n) for n in (1, 2)]
    assert answer_name(name, AnswerAuthor.TEACHER, "Eve", 1) not in {each.answer_id for each in given}


def assembled_anew(small: SmallRun, run: Run) -> tuple[Run, Manifest]:
    """Assemble again after a test has changed what the stages before it left."""
    (run.folder / "assemble/manifest.json").unlink(missing_ok=True)
    again, (manifest,) = small.perform(Stage.ASSEMBLE, run_id=run.run_id)
    return again, manifest


def test_what_the_handbook_does_not_answer_is_taught_as_not_known(tmp_path: Path) -> None:
    wrong = {QUESTIONS[0], *QUESTIONS[1:4]}
    with (
        ScriptedTeacher(
            lambda question, before: Act("Wait 99 minutes." if question in wrong else "Please wait.")
        ) as teacher,
        small_run(tmp_path, teacher.base_url, more="[assemble]\nstudy_handbook = false\n") as small,
    ):
        run, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        chosen = {row.decision_id: row for row in read_rows(run.folder / "choose/decisions.jsonl", ChosenRow)}
        taught = {row.messages[-2].content: row for row in (*rows_of(run, "train"), *rows_of(run, "validation"))}
        unknown = {
            row.messages[-1].content for row in chosen.values() if row.split is not Split.TEST
        } & set(QUESTIONS[1:4])  # fmt: skip
        assert unknown and all(taught[question].messages[-1].content == UNKNOWN for question in unknown)
        assert {taught[question].teacher for question in unknown} == {"honest refusal"}
        assert manifest.details["honest_refusals"] == len(unknown) and QUESTIONS[0] not in taught
        assert not [row for row in rows_of(run, "test") if row.messages[-1].content == UNKNOWN]
        counts = manifest.counts
        assert counts.taken_in == len(chosen) == counts.accepted + counts.rejected


def test_honest_refusals_stay_within_the_share_of_declining_answers(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(
            lambda question, before: Act("Wait 99 minutes." if question in QUESTIONS[1:4] else "Please wait.")
        ) as teacher,
        small_run(tmp_path, teacher.base_url, more="[verify]\nmax_declined_share = 0.0\n") as small,
    ):
        _, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        assert manifest.details["honest_refusals"] == 0 and manifest.details["honest_refusal_surplus"]
        assert manifest.counts.rejected_by_reason == {"contradicts_handbook": manifest.details["honest_refusal_surplus"]}


def test_what_operators_approved_weighs_more_and_lineage_and_passages_are_kept(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        train = [row for row in rows_of(run, "train") if row.answer_id]
        one, other, third = train[:3]
        with small.record.write() as transaction:
            for place, (row, verdict) in enumerate([(one, "approved"), (other, "approved"), (other, "rejected")]):
                transaction.insert(
                    "answer_reviews",
                    {"review_id": f"r{place}", "answer_id": row.answer_id, "verdict": verdict, "reviewed_by": "Eve",
                     "reviewed_at_utc": "2026-08-03T08:00:00Z"},
                )  # fmt: skip
        answers = list(read_rows(run.folder / "teach/answers.jsonl", AnswerRow))
        chosen = list(read_rows(run.folder / "choose/decisions.jsonl", ChosenRow))
        path = run.folder / "teach/answers.jsonl"
        path.write_text(
            rows_text(
                row.model_copy(update={"author": AnswerAuthor.LOGGED, "passages": ("sha256:p",), "licence": "unknown"})
                if row.decision_id == third.decision_id
                else row
                for row in answers
            ),
            encoding="utf-8",
        )
        path = run.folder / "choose/decisions.jsonl"
        path.write_text(rows_text(row.model_copy(update={"weight": 2.5}) for row in chosen), encoding="utf-8")
        run, _ = assembled_anew(small, run)
        weights = {row.decision_id: row.weight for row in rows_of(run, "train")}
        assert [weights[row.decision_id] for row in (one, other, third)] == [3.0, 1.0, 2.5]
        logged = next(row for row in rows_of(run, "train") if row.decision_id == third.decision_id)
        assert (logged.passages, logged.licence, logged.answer_id) == (("sha256:p",), "unknown", third.answer_id)
        noted = {
            row["passage_hash"]
            for row in small.record.query("SELECT passage_hash FROM run_passages WHERE run_id = ?", [run.run_id])
        }
        studied = {name for row in rows_of(run, "train") if row.decision_id.startswith("study_") for name in row.passages}
        assert studied and noted == {"sha256:p"} | studied


def test_tool_calls_stay_in_the_sets_and_what_was_not_scored_is_counted_apart(tmp_path: Path) -> None:
    call = json.dumps({"tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]})
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        run, _ = small.perform(*UP_TO_ASSEMBLE)
        one, other, *_ = [row.decision_id for row in rows_of(run, "train") if row.answer_id]
        answers = list(read_rows(run.folder / "teach/answers.jsonl", AnswerRow))
        verdicts = list(read_rows(run.folder / "verify/verdicts.jsonl", VerdictRow))
        (run.folder / "teach/answers.jsonl").write_text(
            rows_text(
                row.model_copy(update={"text": "", "extra_json": call}) if row.decision_id == one else row for row in answers
            ),
            encoding="utf-8",
        )
        (run.folder / "verify/verdicts.jsonl").write_text(
            rows_text(
                VerdictRow.model_validate({**row.model_dump(), "verdict": "unscored", "reason": "judge_down"})
                if row.decision_id == other
                else row
                for row in verdicts
            ),
            encoding="utf-8",
        )
        run, manifest = assembled_anew(small, run)
        kept = {row.decision_id: row.messages[-1] for row in rows_of(run, "train")}
        assert kept[one].extra_json == call and manifest.details["tool_call_rows"] == 1
        assert other not in kept and manifest.counts.unscored == 1
        assert manifest.details["unscored_by_reason"] == {"judge_down": 1}


def test_the_card_counts_what_is_in_the_sets_and_shows_nobodys_words(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        run, manifests = small.perform(*UP_TO_ASSEMBLE)
        card = json.loads((run.folder / "assemble/data_card.json").read_text(encoding="utf-8"))
        page = (run.folder / "assemble/data_card.html").read_text(encoding="utf-8")
        for name in ("train", "validation", "test"):
            rows = rows_of(run, name)
            assert card["details"]["rows"][name] == len(rows)
            for kind in ("topic", "language", "turn depth", "prompt words", "answer words", "teacher"):
                assert sum(parts.get(name, 0) for parts in card["counts"][kind].values()) == len(rows)
            for row in rows:
                assert row.decision_id not in page and row.messages[-2].content not in page
    assert [card["stages"][stage.value]["in"] for stage in UP_TO_ASSEMBLE] == [each.counts.taken_in for each in manifests]
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_withdrawn_consent_leaves_the_next_edition_and_changes_no_earlier_one(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.perform(*UP_TO_ASSEMBLE)
        before = editions.edition_of(small.record, 1)
        withdrawn = next(each for each in decisions(small.record) if each.decision_id in before.lines)
        turns.set_consent(small.record, withdrawn.conversation_id, Consent.NO)
        run, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        assert (manifest.details["test_edition"], manifest.details["test_rows_withdrawn"]) == (2, 1)
        assert {row.decision_id for row in rows_of(run, "test")} == before.lines.keys() - {withdrawn.decision_id}
        assert editions.edition_of(small.record, 1) == before
        _, (*_, again) = small.perform(*UP_TO_ASSEMBLE)
        assert again.details["test_edition"] == 2
        assert checks.verify(small.record).problems == []


def test_the_logged_reply_to_a_test_question_is_not_learnt_when_the_run_has_not_chosen_that_question(tmp_path: Path) -> None:
    reply = "Please hold the round button for nine seconds and then let the blue cable go."
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.perform(Stage.CHOOSE)
        tested = next(each for each in decisions(small.record) if each.split is Split.TEST)
        record = small.record
        turns.append_message(record, tested.conversation_id, Role.ASSISTANT, Author.OPERATOR, reply)
        found = logged_replies(record, small.settings, {tested.decision_id})
        assert found[tested.decision_id][-1] == reply
