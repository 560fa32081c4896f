"""Batches: half the price, the same bookkeeping, found again after a kill, and nothing paid twice."""

import json
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run
from taught_run import chosen, set_keys, teach_in

from conversations import batches, spending

BATCH = 'transport = "batch"\nbatch_poll_seconds = 0.02\nsmoke_decisions = 2\nmax_batch_requests = 4'


def test_after_a_trial_by_chat_the_rest_comes_by_batch_in_any_order_at_half_the_price(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(f"About {question}")) as teacher,
        small_run(tmp_path, teacher.base_url, teach=BATCH) as small,
    ):
        teacher.batch.looks = 3
        run = chosen(small)
        _, answers = teach_in(small, run)
        spent = spending.spent(small.record, run.run_id)
        by_batch = [seen for seen in teacher.seen if seen.by_batch]
        assert (len(by_batch), len(teacher.seen), len(teacher.batches)) == (6, 8, 2)
        rows = map(json.loads, (run.folder / "choose" / "decisions.jsonl").read_text(encoding="utf-8").splitlines())
        for row in rows:
            assert answers[row["decision_id"]].text == f"About {row['messages'][-1]['content']}"
        one = (100 * 10 + 10 * 100) / 1e6
        assert spent.usd == pytest.approx(2 * one + 6 * one / 2) and spent.calls == 8
        teach_in(small, chosen(small))
        assert len(teacher.seen) == 8


def test_what_expired_failed_or_was_cut_off_is_sent_once_more_and_answers_for_others_are_counted(tmp_path: Path) -> None:
    lost: set[str] = set()

    def keep(custom_id: str) -> bool:
        """The provider leaves one request of the first batch undone."""
        if not lost:
            lost.add(custom_id)
            return False
        return True

    def script(question: str, before: int) -> Act:
        if question == QUESTIONS[4]:
            return Act(status=400)
        return Act(finish_reason="length" if question == QUESTIONS[5] and before == 0 else "stop")

    strange = json.dumps({"custom_id": "sha256:other", "response": {"status_code": 200, "body": {}}})
    with (
        ScriptedTeacher(script) as teacher,
        small_run(tmp_path, teacher.base_url, teach=f"max_smoke_failures = 8\n{BATCH}") as small,
    ):
        teacher.batch.keep, teacher.batch.status = keep, "expired"
        teacher.batch.more_lines = (strange, "not json")
        run = chosen(small)
        manifest, answers = teach_in(small, run)
        left = small.record.query("SELECT COUNT(*) AS n FROM spending WHERE settled_usd IS NULL")[0]["n"]
    assert manifest.counts.rejected_by_reason == {"request_refused": 1}
    assert len(answers) == len(QUESTIONS) - 1 and {answer.finish_reason for answer in answers.values()} == {"stop"}
    faults = manifest.details["teachers"]["big"]["faults"]
    assert faults["batch_expired"] == 1 and faults["other_request"] > 0 and faults["invalid_json"] > 0
    assert left == 0


def test_decisions_that_a_cap_keeps_out_of_a_batch_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url, teach=BATCH) as small:
        set_keys(small, max_calls="5")
        manifest, answers = teach_in(small, chosen(small))
    assert len(answers) == 5 and sum(seen.by_batch for seen in teacher.seen) == 3
    assert manifest.details["unscored_by_reason"] == {"cap": 3}
    assert "5 of max_calls = 5" in caplog.text and "3 of 8 decisions have no answer" in caplog.text


def test_a_run_that_was_killed_while_it_waited_finds_its_batches_at_the_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url, teach=BATCH) as small:
        run = chosen(small)
        noted = batches.submitted

        def killed(*arguments: object, **named: object) -> None:
            if named["provider_batch_id"] is not None:
                raise Killed
            noted(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(batches, "submitted", killed)
        with pytest.raises(Killed):
            teach_in(small, run)
        monkeypatch.setattr(batches, "submitted", noted)
        waiting = batches.waiting(small.record, "big")
        sent = len(teacher.batches)
        assert sent >= 1 and len(waiting) == 2
        # Another run, begun anew, takes up what the first one sent.
        again = chosen(small)
        _, answers = teach_in(small, again)
        assert len(answers) == len(QUESTIONS)
        assert len([seen for seen in teacher.seen if seen.by_batch]) == 6
        assert batches.waiting(small.record, "big") == []


def test_line_ends_inside_a_text_do_not_cut_an_answer_and_what_cannot_be_read_is_paid_once(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act("One.\u2028Two.\x85Three.")) as teacher,
        small_run(tmp_path, teacher.base_url, teach=BATCH) as small,
    ):
        broken: list[str] = []

        def keep(custom_id: str) -> bool:
            if not broken:
                broken.append(custom_id)
                teacher.batch.more_lines = (f'{{"custom_id": "{custom_id}", "response": {{"body": "cut o',)
            return custom_id not in broken

        teacher.batch.keep = keep
        run = chosen(small)
        _, answers = teach_in(small, run)
        spent = small.record.query("SELECT reserved_usd, settled_usd FROM spending")
    assert len(answers) == len(QUESTIONS) - 1 and {answer.text for answer in answers.values()} == {
        "One.\u2028Two.\x85Three."
    }
    assert sum(seen.by_batch for seen in teacher.seen) == 5
    assert sum(row["settled_usd"] == row["reserved_usd"] for row in spent) == 1
