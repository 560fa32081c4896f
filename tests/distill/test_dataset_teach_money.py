"""What teaching may cost: never more than the caps, close to what was foretold, and nothing twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run
from taught_run import chosen, set_keys, teach_in
from tiny_student import tiny_student
from tokenizers import Tokenizer

from conversations import spending
from conversations.errors import OperatorError, OutsideError, Refused
from conversations.messages import Author, Split
from distill.dataset.choose import plan_decisions
from distill.dataset.teaching import pace
from distill.dataset.teaching.estimate import above_caps, estimate, replies_in_log
from distill.rows import LoggedReply


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait as long as a real teacher is waited for."""
    monkeypatch.setattr(pace, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pace, "FIRST_PAUSE_SECONDS", 0.02)


def many(count: int) -> list[dict[str, object]]:
    """Conversations of one question each, none like another."""
    return [
        {
            "id": f"many{place}", "customer_id": f"many-{place}", "created_at": "2026-08-05T08:00:00Z", "consent": True,
            "messages": [{"role": "user", "content": f"my{place} box{place} is{place} not{place} here{place}"}],
        }
        for place in range(count)
    ]  # fmt: skip


def billed(body: dict[str, Any]) -> tuple[int, int]:
    """What a greedy provider bills: a token for every third byte, and all of the answer's room on every other request."""
    size = len(json.dumps(body, ensure_ascii=False).encode())
    return size // 3, body["max_tokens"] if size % 2 == 0 else 60


def test_a_cap_of_half_a_dollar_holds_at_32_at_once_whatever_the_teacher_does(tmp_path: Path) -> None:
    bill = 0.0

    def script(body: dict[str, Any]) -> Act:
        nonlocal bill
        prompt, completion = billed(body)
        bill += (prompt * 100 + completion * 10) / 1e6
        if completion > 60:
            # It bills what it then fails to deliver.
            return Act(usage=(prompt, completion), seconds=0.01, cut="half")
        return Act(usage=(prompt, completion), seconds=0.01)

    with (
        ScriptedTeacher(by_body=script) as teacher,
        small_run(tmp_path, teacher.base_url, teach="max_smoke_failures = 100") as small,
    ):
        set_keys(
            small, max_cost_usd="0.5", concurrency="32", prompt_usd_per_million="100.0", completion_usd_per_million="10.0"
        )
        small.import_conversations(many(150))
        run = chosen(small)
        manifest, answers = teach_in(small, run)
        spent = spending.spent(small.record, run.run_id).usd
    assert teacher.most_under_way > 4
    assert 0 < bill <= spent <= 0.5
    assert 0 < len(answers) < 158
    assert manifest.details["unscored_by_reason"]["cap"] > 0


@pytest.mark.parametrize(("key", "value", "answered"), [("max_calls", "5", 5), ("max_tokens", "3000", None)])
def test_caps_on_calls_and_tokens_hold_too(tmp_path: Path, key: str, value: str, answered: int | None) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url, teach="max_tokens = 100000") as small:
        set_keys(small, **{key: value})
        run = chosen(small)
        _, answers = teach_in(small, run)
        spent = spending.spent(small.record, run.run_id)
        assert len(answers) > 0 and (answered is None or len(answers) == answered == len(teacher.seen))
        assert spent.tokens <= 3000


def test_an_unpaid_account_stops_within_what_is_under_way_and_is_paid_for_the_rest_alone_later(tmp_path: Path) -> None:
    credit = 20

    def script(question: str, before: int) -> Act:
        return Act(seconds=0.15) if len(teacher.seen) <= credit else Act(status=402)

    with ScriptedTeacher(script) as teacher, small_run(tmp_path, teacher.base_url) as small:
        set_keys(small, concurrency="8")
        small.import_conversations(many(60))
        run = chosen(small)
        with pytest.raises(OperatorError, match=r"asks for payment \(HTTP 402\).*what was answered is kept"):
            teach_in(small, run)
        assert len(teacher.seen) <= credit + 8
        refused, credit = len(teacher.seen) - credit, 1000
        _, answers = teach_in(small, run)
        assert len(answers) == 68 and len(teacher.seen) == 68 + refused


def test_the_estimate_is_close_to_the_bill_and_leaves_out_what_costs_nothing(tmp_path: Path) -> None:
    student = tiny_student(tmp_path / "student")
    counter = Tokenizer.from_file(str(student / "tokenizer.json"))

    def tokens(text: str) -> int:
        return len(counter.encode(text, add_special_tokens=False).ids)

    def script(body: dict[str, Any]) -> Act:
        prompt = sum(tokens(each["content"]) + 4 for each in body["messages"]) + 4
        text = "Restart it, please: hold the button for ten seconds."
        return Act(text, usage=(prompt, tokens(text)))

    with ScriptedTeacher(by_body=script) as teacher, small_run(tmp_path / "run", teacher.base_url) as small:
        set_keys(small, base=f'"{student}"')
        small.import_conversations(many(40))
        teach_in(small, chosen(small))
        first = len(teacher.seen)
        more = [{**each, "id": f"new{place}", "customer_id": f"new-{place}"} for place, each in enumerate(many(100)[40:])]
        small.import_conversations(more)
        foretold = estimate(small.record, small.settings)["big"]
        assert (foretold.decisions, foretold.already_answered) == (60, first)
        run = chosen(small)
        teach_in(small, run)
        bill = spending.spent(small.record, run.run_id).usd
    # An estimate embeds nothing, so it knows no twins by meaning; a run leaves a few of these templates out.
    assert 56 <= len(teacher.seen) - first <= 60
    assert foretold.cost_usd_estimate == pytest.approx(bill, rel=0.15)


def test_what_the_provider_had_in_its_cache_is_booked_at_its_price(tmp_path: Path) -> None:
    usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 80}}}
    with (
        ScriptedTeacher(lambda question, before: Act(more=usage)) as teacher,
        small_run(tmp_path, teacher.base_url, teacher="cached_prompt_usd_per_million = 1.0") as small,
    ):
        run = chosen(small)
        teach_in(small, run)
        spent = spending.spent(small.record, run.run_id).usd
    assert spent == pytest.approx(len(QUESTIONS) * (20 * 10 + 80 * 1 + 10 * 100) / 1e6)


def test_people_are_asked_first_and_cost_nothing(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        logged = LoggedReply(author=Author.OPERATOR, content="Call us at noon.")
        run = chosen(
            small,
            lambda row: row.model_copy(update={"logged": logged}) if row.messages[-1].content == QUESTIONS[0] else row,
        )
        manifest, answers = teach_in(small, run)
        by_people = [answer for answer in answers.values() if answer.author == "logged"]
        assert [(each.text, each.cost_usd, each.teacher) for each in by_people] == [("Call us at noon.", 0.0, "people")]
        assert QUESTIONS[0] not in {seen.question for seen in teacher.seen}
        assert manifest.details["by_people"] == 1


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_refused_account_and_a_closed_door_cost_nothing(tmp_path: Path, status: int) -> None:
    with ScriptedTeacher(lambda *_: Act(status=status)) as teacher, small_run(tmp_path, teacher.base_url) as small:
        run = chosen(small)
        with pytest.raises(OperatorError):
            teach_in(small, run)
        spent = spending.spent(small.record, run.run_id)
        assert (spent.usd, spent.tokens, spent.calls) == (0.0, 0, len(teacher.seen))


def test_a_teacher_that_cannot_be_reached_uses_up_no_call(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        run = chosen(small)
        with pytest.raises(OutsideError, match="cannot be reached"):
            teach_in(small, run)
        assert spending.spent(small.record, run.run_id) == spending.Spent(0.0, 0, 0)


def test_what_a_teacher_bills_above_its_limit_is_booked_and_stops_the_run_at_the_cap(tmp_path: Path) -> None:
    with ScriptedTeacher(lambda *_: Act(usage=(3000, 5000))) as teacher, small_run(tmp_path, teacher.base_url) as small:
        set_keys(small, max_cost_usd="1.0")
        run = chosen(small)
        with pytest.raises(Refused, match=r"'big' says that .* took 3000 prompt and 5000 completion tokens"):
            teach_in(small, run)
        assert spending.spent(small.record, run.run_id).usd == pytest.approx(len(teacher.seen) * 0.53)
        assert len(teacher.seen) <= 3


def test_what_the_total_has_beyond_prompt_and_completion_is_billed_as_completion(tmp_path: Path) -> None:
    usage = {"usage": {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 380}}
    with ScriptedTeacher(lambda *_: Act(more=usage)) as teacher, small_run(tmp_path, teacher.base_url) as small:
        _, answers = teach_in(small, chosen(small))
        assert {answer.completion_tokens for answer in answers.values()} == {320}


def test_a_cap_that_is_used_up_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        set_keys(small, max_calls="5")
        teach_in(small, chosen(small))
        assert "5 of max_calls = 5" in caplog.text and "3 of 8 decisions have no answer" in caplog.text
        set_keys(small, max_cost_usd="0.000001")
        small.import_conversations(many(1))
        with pytest.raises(Refused, match="of max_cost_usd = 1e-06"):
            teach_in(small, chosen(small, lambda row: row.model_copy(update={"messages": row.messages * 2})))


def test_the_estimate_counts_the_judge_and_the_log_and_tells_of_caps(tmp_path: Path) -> None:
    more = (
        '[teachers.judge]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "j"\nlicence_allows_training = "no"\n'
        'prompt_usd_per_million = 1.0\n[judge]\nteacher = "judge"\n'
        '[teachers.log]\nkind = "logged"\nlicence_allows_training = "yes"\nlogged_authors = ["imported"]\n'
    )
    with small_run(tmp_path, "http://127.0.0.1:9/v1", teach='fallback = ["log"]', more=more) as small:
        found = estimate(small.record, small.settings)
        held_out = sum(
            row.split is Split.TEST for row in plan_decisions(small.record, small.settings, with_topics=False).rows
        )
        # Both orders of each comparison with the log, and in `evaluate` four grades and two comparisons of each held-out decision.
        assert held_out and found["judge as judge"].decisions == 2 * (len(QUESTIONS) - held_out) + 8 * held_out
        assert found["judge as judge"].cost_usd_estimate > 0
        assert replies_in_log(small.record, small.settings) == {"log": len(QUESTIONS)}
        assert above_caps(small.settings, found) == []
        set_keys(small, max_calls="10", max_cost_usd="0.001")
        assert [told.split(" above ")[1] for told in above_caps(small.settings, found)] == [
            "max_cost_usd = 0.001", "max_calls = 10",
        ]  # fmt: skip
