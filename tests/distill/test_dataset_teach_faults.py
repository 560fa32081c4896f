"""A teacher that lies, stalls, hangs up or never stops is counted, asked again where that helps, and never believed."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run
from taught_run import chosen, set_keys, teach_in

from conversations import spending
from conversations.errors import OperatorError, OutsideError, Refused
from conversations.messages import ChatMessage, Role
from distill.dataset.teaching import pace
from distill.dataset.teaching.replies import Fault
from distill.dataset.teaching.requests import make_request
from distill.dataset.teaching.teacher import Delay, RawReply, Teacher
from distill.settings import TeacherTable

CALLS = {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "open_door", "arguments": "{}"}}]}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait as long as a real teacher is waited for."""
    monkeypatch.setattr(pace, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pace, "FIRST_PAUSE_SECONDS", 0.02)


def once(act: Act) -> ScriptedTeacher:
    """A teacher that does this once, for the first question, and answers well ever after."""
    return ScriptedTeacher(lambda question, before: act if question == QUESTIONS[0] and before == 0 else Act())


@pytest.mark.parametrize(
    ("act", "fault", "stays_booked"),
    [
        (Act(raw=b"{not json"), "invalid_json", True),
        (Act(raw=b'data: {"choices": []}\n\ndata: [DONE]\n\n'), "stream_unasked", True),
        (Act(raw=b'{"error": {"message": "overloaded"}}'), "error_in_reply", True),
        (Act(raw=b'{"choices": [], "usage": {}}'), "no_choices", True),
        (Act(raw=b'["a list"]'), "other_shape", True),
        (Act(raw=b"[" * 200_000), "invalid_json", True),
        (Act(raw=b" " * 9_000_000), "too_large", True),
        (Act(cut="half"), "connection_lost", True),
        (Act(cut="reset"), "connection_lost", True),
        (Act(status=500), "server_error", False),
        (Act(status=429), "rate_limited", False),
    ],
)
def test_a_reply_without_an_answer_is_counted_and_asked_for_again(
    tmp_path: Path, act: Act, fault: str, stays_booked: bool
) -> None:
    with once(act) as teacher, small_run(tmp_path, teacher.base_url) as small:
        run = chosen(small)
        manifest, answers = teach_in(small, run)
        assert {answer.text for answer in answers.values()} == {"Press the button twice."}
        assert len(answers) == len(QUESTIONS) and len(teacher.seen) == len(QUESTIONS) + 1
        assert manifest.details["teachers"]["big"]["faults"] == {fault: 1}
        exact = len(QUESTIONS) * (100 * 10 + 10 * 100) / 1e6
        spent = spending.spent(small.record, run.run_id).usd
        # What may have been billed stays booked at the most it can have cost.
        assert spent > exact + 0.03 if stays_booked else spent == pytest.approx(exact)


@pytest.mark.parametrize("usage", [(-5, 10), (100, 10**9), (10**9, 1), (0, 0), (100, 1)])
def test_an_absurd_usage_is_booked_at_the_most_that_it_can_have_cost(tmp_path: Path, usage: tuple[int, int]) -> None:
    with once(Act(usage=usage)) as teacher, small_run(tmp_path, teacher.base_url) as small:
        run = chosen(small)
        manifest, answers = teach_in(small, run)
        assert manifest.details["teachers"]["big"]["faults"] == {"wrong_usage": 1}
        assert len(answers) == len(QUESTIONS) == len(teacher.seen)
        assert max(answer.cost_usd for answer in answers.values()) > 0.04
        assert spending.spent(small.record, run.run_id).usd == pytest.approx(sum(each.cost_usd for each in answers.values()))


def test_odd_shapes_are_read_and_calls_of_tools_that_nobody_offered_are_kept_for_verify(tmp_path: Path) -> None:
    odd = [
        Act(message={"content": [{"type": "text", "text": "Press "}, {"type": "text", "text": "it."}]}),
        Act(text=None, message=CALLS, finish_reason="tool_calls"),
        Act(text=None, message={"refusal": "No."}),
        Act(more={"choices": [{"message": {"content": "One"}, "finish_reason": "stop"}, {"message": {"content": "Two"}}]}),
        Act(usage=None),
    ]
    with (
        ScriptedTeacher(
            lambda question, before: odd[QUESTIONS.index(question)] if question in QUESTIONS[:5] else Act()
        ) as teacher,
        small_run(tmp_path, teacher.base_url, teach="max_smoke_failures = 8") as small,
    ):
        run = chosen(small)
        questions = {}
        chosen_rows = (run.folder / "choose" / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, chosen_rows):
            questions[row["messages"][-1]["content"]] = row["decision_id"]
        manifest, answers = teach_in(small, run)
    found = [answers[questions[question]] for question in QUESTIONS[:4]]
    assert [each.text for each in found] == ["Press it.", "", "No.", "One"]
    assert found[1].finish_reason == "tool_calls" and json.loads(found[1].extra_json) == CALLS
    assert manifest.details["teachers"]["big"]["faults"] == {
        "no_usage": 1, "several_choices": 1, "tool_calls_unasked": 1,
    }  # fmt: skip


def test_a_teacher_that_hangs_is_given_up_after_its_time_and_its_reservation_stays(tmp_path: Path) -> None:
    with (
        once(Act(seconds=1.5)) as teacher,
        small_run(tmp_path, teacher.base_url, teacher="timeout_seconds = 0.4") as small,
    ):
        run = chosen(small)
        manifest, answers = teach_in(small, run)
        assert len(answers) == len(QUESTIONS)
        assert manifest.details["teachers"]["big"]["faults"] == {"timeout": 1}
        assert spending.spent(small.record, run.run_id).usd > len(QUESTIONS) * 0.002 + 0.03


def test_a_date_in_retry_after_is_waited_for_by_everybody(tmp_path: Path) -> None:
    until = datetime.now(UTC) + timedelta(seconds=60)
    assert 58 < pace.asked_seconds(format_datetime(until, usegmt=True)) <= 60
    assert pace.asked_seconds("soon") == 0.0 and pace.asked_seconds("2.5") == 2.5
    with once(Act(status=503, headers={"Retry-After": "0.5"})) as teacher, small_run(tmp_path, teacher.base_url) as small:
        teach_in(small, chosen(small))
        failed = next(seen.arrived_at for seen in teacher.seen if seen.question == QUESTIONS[0])
        # One may have been on its way beside it.
        assert sum(failed + 0.1 < seen.arrived_at < failed + 0.5 for seen in teacher.seen) == 0


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (Act(text="cut", finish_reason="length"), "truncated"), (Act(text="I'm sorry, but I can't assist with that."), "refused"),
        (Act(text="Das kann ich leider nicht beantworten."), "refused"), (Act(text="Lo siento, no puedo ayudar con eso."), "refused"),
        (Act(text=""), "empty"), (Act(status=400), "request_refused"), (Act(status=500), "stopped answering|does not answer"),
        (Act(status=429), "does not answer"),
        (Act(raw=b"<html>"), "stopped answering|does not answer"), (Act(cut="reset"), "stopped answering|does not answer"),
        (Act(text="", message=CALLS, finish_reason="tool_calls"), "tool_calls_unasked"),
    ],
)  # fmt: skip
def test_a_bad_teacher_costs_sixteen_calls_at_most(tmp_path: Path, act: Act, told: str) -> None:
    with ScriptedTeacher(lambda question, before: act) as teacher, small_run(tmp_path, teacher.base_url) as small:
        set_keys(small, concurrency="8")
        small.import_conversations(
            [
                {
                    "id": f"more{place}", "customer_id": f"more-{place}", "created_at": "2026-08-05T08:00:00Z", "consent": True,
                    "messages": [{"role": "user", "content": f"my{place} box{place} is{place} not{place} here{place}"}],
                }
                for place in range(40)
            ]
        )  # fmt: skip
        run = chosen(small)
        with pytest.raises((Refused, OutsideError), match=told):
            teach_in(small, run)
        assert 0 < len(teacher.seen) <= 16


def test_an_answer_that_is_always_cut_off_is_asked_for_twice_and_kept_as_cut_off(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(finish_reason="length")) as teacher,
        small_run(tmp_path, teacher.base_url, teach="max_smoke_failures = 100") as small,
    ):
        manifest, answers = teach_in(small, chosen(small))
        assert Counter(seen.question for seen in teacher.seen) == dict.fromkeys(QUESTIONS, 2)
        assert {seen.body["max_tokens"] for seen in teacher.seen} == {400, 800}
        assert {answer.finish_reason for answer in answers.values()} == {"length"}
        assert manifest.details["truncated"] == len(QUESTIONS)


def test_the_breaker_lets_probes_through_and_closes_when_the_teacher_is_back(tmp_path: Path) -> None:
    asked = 0

    def script(question: str, before: int) -> Act:
        nonlocal asked
        asked += 1
        return Act(status=503) if 4 <= asked < 11 else Act()

    with ScriptedTeacher(script) as teacher, small_run(tmp_path, teacher.base_url, teach="smoke_decisions = 1") as small:
        manifest, answers = teach_in(small, chosen(small))
        assert len(answers) == len(QUESTIONS)
        assert manifest.details["teachers"]["big"]["faults"] == {"server_error": 7}


def test_a_good_teacher_that_asks_for_patience_in_its_trial_is_not_given_up(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(status=429) if before < 1 else Act()) as teacher,
        small_run(tmp_path, teacher.base_url, teach="smoke_decisions = 12") as small,
    ):
        set_keys(small, concurrency="8")
        _, answers = teach_in(small, chosen(small))
    assert len(answers) == len(QUESTIONS)


def test_half_a_surrogate_pair_and_what_no_text_may_hold_are_cleaned_and_the_answer_stays(tmp_path: Path) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "open\ud83d", "arguments": "{}"}}]
    with (
        once(Act("Please wait \ud83d a minute.", message={"tool_calls": calls})) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        _, answers = teach_in(small, chosen(small))
        assert len(answers) == len(QUESTIONS) == len(teacher.seen)
        odd = next(answer for answer in answers.values() if answer.extra_json)
    assert odd.text == "Please wait \ufffd a minute." and "open\ufffd" in odd.extra_json


def test_a_reply_that_drips_for_longer_than_its_time_is_a_timeout(tmp_path: Path) -> None:
    is_over = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not is_over.is_set():
            writer.write(b" ")
            await asyncio.sleep(0.1)
        writer.transport.abort()

    async def ask() -> RawReply | Delay:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        table = TeacherTable(
            base_url=f"http://{host}:{port}/v1", model="m", licence_allows_training="yes", timeout_seconds=0.5
        )
        request = make_request("d", [ChatMessage(Role.USER, "Why?")], name="big", table=table)
        async with Teacher("big", table) as teacher:
            got = await teacher.ask_once(request)
        is_over.set()
        server.close()
        await asyncio.sleep(0.3)
        return got

    assert asyncio.run(ask()) == Delay(Fault.TIMEOUT, 0.0, may_be_billed=True)


def test_a_redirect_is_not_followed_with_a_customers_words(tmp_path: Path) -> None:
    with (
        ScriptedTeacher() as other,
        ScriptedTeacher(lambda *_: Act(status=307, headers={"Location": f"{other.base_url}/chat/completions"})) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        run = chosen(small)
        with pytest.raises(OperatorError, match="mend base_url"):
            teach_in(small, run)
        assert other.seen == [] and spending.spent(small.record, run.run_id).usd == 0


def test_a_403_of_one_question_refuses_that_question_and_the_run_goes_on(tmp_path: Path) -> None:
    flagged = Act(status=403, more={"error": {"message": "Flagged by moderation", "code": "moderation"}})
    with (
        ScriptedTeacher(lambda question, before: flagged if question == QUESTIONS[0] else Act()) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        manifest, answers = teach_in(small, chosen(small))
    assert len(answers) == len(QUESTIONS) - 1 and manifest.counts.rejected_by_reason == {"request_refused": 1}
