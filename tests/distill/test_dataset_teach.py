"""What teaching promises: an answer is paid once, a cap holds, a teacher that fails is told apart from one to be mended."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher

from conversations import decisions, turns
from conversations.errors import Failure, OperatorError, OutsideError, Refused
from conversations.messages import Author, Consent, Role, Split
from conversations.settings import read_settings
from conversations.store import Record
from distill.dataset.asking import find_passages, requests_for
from distill.dataset.budget import estimate
from distill.dataset.choose import choose
from distill.dataset.handbook import Handbook
from distill.dataset.lesson import Patience, Unanswered, hold_lesson
from distill.dataset.teach import UnansweredRow, teach
from distill.rows import AnswerRow, ChosenRow, LabelsRow, MessageRow, read_rows
from distill.run import Manifest, Run, Stage, new_run, open_run
from distill.settings import DistillSettings

SYSTEM = "You are the support assistant of Tidewell."
# What the scripted teacher's replies cost at 1,000 dollars a million tokens: 100 + 10 tokens.
REPLY_USD = 0.11
PRICES = "prompt_usd_per_million = 1000\ncompletion_usd_per_million = 1000"


def settings_for(folder: Path, base_url: str, *, teacher: str = "", teach: str = "", tables: str = "") -> DistillSettings:
    limits = "" if "max_calls" in teach else "max_calls = 1000\n"
    limits += "" if "max_cost_usd" in teach else "max_cost_usd = 100.0\n"
    licence = "" if "licence" in teacher else 'licence_allows_training = "yes"\n'
    path = folder / "settings.toml"
    path.write_text(
        f"""
[record]
path = "record.db"
[student]
base = "student"
profile = "cpu"
[prompt]
system = "{SYSTEM}"
[runs]
folder = "runs"
[teachers.large]
base_url = "{base_url}"
model = "large-1"
{licence}{teacher}
[teach]
teacher = "large"
{limits}{teach}
[evaluate]
server_usd_per_hour = 0.1
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.02
{tables}""",
        encoding="utf-8",
    )
    return read_settings(DistillSettings, path)


@contextmanager
def run_over(settings: DistillSettings, count: int) -> Iterator[Run]:
    """Open a new run whose chosen decisions are `question 0`, `question 1` and so on."""
    with Record(settings.record.path) as record, new_run(record, settings) as run:
        choose_questions(run, count)
        yield run


def choose_questions(run: Run, count: int) -> None:
    rows = []
    for number in range(count):
        talk = turns.create_conversation(run.record, customer_id=f"customer-{number}", channel="test", consent=Consent.YES)
        question = turns.append_message(
            run.record, talk.conversation_id, Role.USER, Author.CUSTOMER, f"question {number}: what is wrong, <EMAIL_1>?"
        )
        row = ChosenRow(
            decision_id=f"decision-{number}",
            conversation_id=talk.conversation_id,
            cluster_id=f"cluster-{number}",
            topic="lights",
            split=(Split.TRAIN, Split.VALIDATION, Split.TEST)[number % 3],
            chosen_because="coverage",
            labels=LabelsRow(),
            messages=(
                MessageRow(role=Role.SYSTEM, content=SYSTEM),
                MessageRow(role=Role.USER, content=f"  Hello,\nI am nr {number}  "),
                MessageRow(role=Role.ASSISTANT, content="Ünïcode 🙂 reply", extra_json='{"name": "bot"}'),
                MessageRow(role=Role.USER, content=question.content),
            ),
        )
        rows.append(row)
        decisions.put_decisions(
            run.record,
            [
                decisions.Decision(
                    decision_id=row.decision_id,
                    conversation_id=row.conversation_id,
                    question_turn_id=question.turn_id,
                    reply_turn_id=None,
                    cluster_id=row.cluster_id,
                    split=row.split,
                    topic=row.topic,
                    history_hash="",
                    chosen_by_run_id=run.run_id,
                    chosen_because=row.chosen_because,
                )
            ],
        )
    run.write_rows(Stage.CHOOSE, "decisions.jsonl", rows)


def taught(run: Run) -> tuple[Manifest, list[AnswerRow], dict[str, str]]:
    """Teach, and return the manifest, the answers and the reason of every other decision."""
    manifest = run.perform(Stage.TEACH, teach)
    folder = run.folder / Stage.TEACH
    reasons = {row.decision_id: row.reason for row in read_rows(folder / "unanswered.jsonl", UnansweredRow)}
    return manifest, list(read_rows(folder / "answers.jsonl", AnswerRow)), reasons


def failure_of(run: Run) -> Failure:
    with pytest.raises(Failure) as caught:
        run.perform(Stage.TEACH, teach)
    assert not run.is_complete(Stage.TEACH)
    assert not (run.folder / Stage.TEACH / "answers.jsonl").exists()
    return caught.value


def test_teacher_gets_the_logged_history_byte_for_byte_and_its_answer_is_kept(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(more={"handbook_passages": ["sha256:aa"]})) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teacher=PRICES, teach='instruction = "Be short."'), 5) as run,
    ):
        manifest, answers, _ = taught(run)
        assert len(teacher.seen) == 5
        asked = next(seen.body for seen in teacher.seen if seen.question.startswith("question 3"))
        assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("large-1", 400, 0.0)
        assert asked["messages"] == [
            {"role": "system", "content": SYSTEM},
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "  Hello,\nI am nr 3  "},
            {"role": "assistant", "content": "Ünïcode 🙂 reply", "name": "bot"},
            {"role": "user", "content": "question 3: what is wrong, <EMAIL_1>?"},
        ]
        assert [row.decision_id for row in answers] == [f"decision-{number}" for number in range(5)]
        assert all(row.passages == ("sha256:aa",) and row.cost_usd == pytest.approx(REPLY_USD) for row in answers)
        assert decisions.answers(run.record, "decision-3")[0].content == "Press the button twice."
        assert manifest.details["cost_usd"] == pytest.approx(5 * REPLY_USD)
        assert manifest.details["cost_usd_per_1000_turns"] == pytest.approx(1000 * REPLY_USD)
        assert (manifest.details["calls"], manifest.details["reused"]) == (5, 0)


def test_a_second_run_asks_nothing_again_unless_the_question_is_asked_differently(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher:
        settings = settings_for(tmp_path, teacher.base_url, teacher=PRICES)
        with run_over(settings, 4) as run:
            taught(run)
            rows = run.folder / "choose" / "decisions.jsonl"
        for teacher_part, calls in ((PRICES, 4), (f"{PRICES}\ntemperature = 0.5", 8)):
            settings = settings_for(tmp_path, teacher.base_url, teacher=teacher_part)
            with Record(settings.record.path) as record, new_run(record, settings) as again:
                again.write_rows(Stage.CHOOSE, "decisions.jsonl", read_rows(rows, ChosenRow))
                manifest, answers, _ = taught(again)
            assert (len(teacher.seen), len(answers)) == (calls, 4)
            assert manifest.details["reused"] == 8 - calls
            assert manifest.details["cost_usd"] == pytest.approx((calls - 4) * REPLY_USD)


def test_rate_limit_and_server_error_are_asked_again_when_the_teacher_says(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        if question.startswith("question 1") and before == 0:
            return Act(status=429, headers={"Retry-After": "1"})
        return Act(status=500) if question.startswith("question 2") and before < 2 else Act()

    with ScriptedTeacher(script) as teacher, run_over(settings_for(tmp_path, teacher.base_url, teacher=PRICES), 4) as run:
        manifest, answers, _ = taught(run)
        limited = [seen.arrived_at for seen in teacher.seen if seen.question.startswith("question 1")]
        assert 1.0 <= limited[1] - limited[0] < 3.0
        assert len(answers) == 4
        assert manifest.details["calls"] == len(teacher.seen) == 7
        # An answer with an error status is not charged.
        assert manifest.details["cost_usd"] == pytest.approx(4 * REPLY_USD)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, ["TEACHER_KEY", "/v1"]), (402, ["add credit"]), (403, ["rights"]), (404, ["large-1", "[teachers.large] model"])],
)
def test_what_the_operator_must_mend_ends_the_lesson_and_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: list[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    table = 'api_key_variable = "TEACHER_KEY"\nconcurrency = 4'
    with (
        ScriptedTeacher(lambda question, before: Act(status=status, seconds=0.05)) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teacher=table), 30) as run,
    ):
        failure = failure_of(run)
        assert isinstance(failure, OperatorError)
        assert all(word in str(failure) for word in words)
        assert "sk-secret" not in str(failure)
        assert len(teacher.seen) <= 4
        assert {seen.key for seen in teacher.seen} == {"sk-secret"}


def test_missing_key_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    with (
        ScriptedTeacher() as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teacher='api_key_variable = "NO_SUCH_KEY_HERE"'), 1) as run,
    ):
        assert "NO_SUCH_KEY_HERE" in str(failure_of(run))
        assert teacher.seen == []


def test_teacher_that_truncates_everything_is_stopped_within_sixteen_calls(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(finish_reason="length")) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url), 60) as run,
    ):
        failure = failure_of(run)
        assert isinstance(failure, Refused)
        assert "truncated" in str(failure)
        assert "max_answer_tokens" in str(failure)
        assert len(teacher.seen) <= 16


def test_truncated_answer_is_asked_once_more_with_twice_the_room(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        longwinded = question.startswith("question 1:") or (question.startswith("question 2:") and before == 0)
        return Act(finish_reason="length" if longwinded else "stop")

    with (
        ScriptedTeacher(script) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teach="max_smoke_failures = 2"), 4) as run,
    ):
        manifest, answers, reasons = taught(run)
        limits = [seen.body["max_tokens"] for seen in teacher.seen if seen.question.startswith("question 1:")]
        assert limits == [400, 800]
        assert reasons == {"decision-1": "truncated"}
        assert [row.decision_id for row in answers] == ["decision-0", "decision-2", "decision-3"]
        assert manifest.counts.rejected_by_reason == {"truncated": 1}
        assert manifest.details["reused"] == 0


def test_every_decision_without_a_usable_answer_is_counted_with_its_reason(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        match question.split(":")[0]:
            case "question 1":
                return Act(text="  ")
            case "question 2":
                return Act(status=400, error="this model's maximum context length is 10 tokens")
            case "question 3":
                return Act(raw=b"<html>gateway</html>")
            case "question 4":
                return Act(status=503)
            case "question 5":
                return Act(finish_reason="content_filter")
            case "question 6":
                return Act(raw=b'{"object": "chat.completion"') if before == 0 else Act()
        return Act()

    settings_of = "max_smoke_failures = 9"
    with (
        ScriptedTeacher(script) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teach=settings_of), 7) as run,
    ):
        rows = list(read_rows(run.folder / "choose" / "decisions.jsonl", ChosenRow))
        requests = requests_for(rows, run.settings, "large")
        patience = Patience(attempts=3, first_wait_seconds=0.01)
        lesson = asyncio.run(hold_lesson(run, run.settings.teachers["large"], requests, patience))
        results = [lesson.results[request.request_hash] for request in requests]
        found = {
            number: (result.outcome, result.reason)
            for number, result in enumerate(results)
            if isinstance(result, Unanswered)
        }
        assert found == {
            1: ("rejected", "empty"),
            2: ("rejected", "bad_request"),
            3: ("rejected", "bad_reply"),
            4: ("unscored", "server_error"),
            5: ("rejected", "content_filter"),
        }
        asked = [sum(seen.question.startswith(f"question {number}") for seen in teacher.seen) for number in range(7)]
        assert asked == [1, 1, 1, 3, 3, 1, 2]


def test_hanging_teacher_is_given_up_and_what_it_may_have_charged_stays_reserved(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        return Act(seconds=1.5 if question.startswith("question 1") else 0)

    with (
        ScriptedTeacher(script) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teacher=f"{PRICES}\ntimeout_seconds = 0.3"), 3) as run,
    ):
        manifest, answers, reasons = taught(run)
        assert reasons == {"decision-1": "timeout"}
        assert len(answers) == 2
        assert manifest.counts.unscored == 1
        assert manifest.details["unscored_by_reason"] == {"timeout": 1}
        assert manifest.details["cost_usd"] > 2 * REPLY_USD + 2 * 0.4


def test_teacher_that_is_not_running_is_an_outside_failure_that_says_what_to_start(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with run_over(settings_for(tmp_path, base_url, teacher='kind = "handbook"'), 3) as run:
        failure = failure_of(run)
        assert isinstance(failure, OutsideError)
        assert base_url in str(failure)
        assert "distill teacher" in str(failure)
        # A request that never left is no call.
        assert decisions.calls_made(run.record, run.run_id) == 0


@pytest.mark.parametrize(
    ("caps", "most_calls"), [("max_calls = 13\nsmoke_decisions = 4", 13), ("max_cost_usd = 6.0\nsmoke_decisions = 4", 54)]
)
def test_cap_is_never_passed_under_concurrency_and_the_rest_is_counted(tmp_path: Path, caps: str, most_calls: int) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act(seconds=0.02)) as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teacher=f"{PRICES}\nconcurrency = 32", teach=caps), 80) as run,
    ):
        manifest, answers, reasons = taught(run)
        assert len(teacher.seen) == len(answers) <= most_calls
        assert len(answers) * REPLY_USD <= 6.0
        assert set(reasons.values()) == {"cap"}
        assert manifest.counts.unscored == 80 - len(answers)
        # The money that settled requests gave back is used: only the last request's reservation may be left over.
        assert len(answers) >= min(most_calls, 40)
        assert teacher.most_under_way > 1


@pytest.mark.parametrize(("licence", "key"), [("no", "licence_allows_training"), ("unknown", "allow_unknown_licence")])
def test_teacher_whose_licence_does_not_allow_it_is_not_asked(tmp_path: Path, licence: str, key: str) -> None:
    with (
        ScriptedTeacher() as teacher,
        run_over(settings_for(tmp_path, teacher.base_url, teacher=f'licence_allows_training = "{licence}"'), 2) as run,
    ):
        failure = failure_of(run)
        assert isinstance(failure, Refused)
        assert key in str(failure)
        assert teacher.seen == []


def test_dry_run_names_what_the_lesson_then_takes_and_calls_nobody(tmp_path: Path) -> None:
    words = len(f"{SYSTEM} What is wrong with number one here?".split())
    with ScriptedTeacher(lambda question, before: Act(usage=(round(words * 1.4) + 8, 150))) as teacher:
        settings = settings_for(tmp_path, teacher.base_url, teacher=PRICES, teach="max_smoke_failures = 16")
        with Record(settings.record.path) as record:
            for number in ("one", "two", "three"):
                talk = turns.create_conversation(record, customer_id=number, channel="test", consent=Consent.YES)
                question = f"What is wrong with number {number} here?"
                turns.append_message(record, talk.conversation_id, Role.USER, Author.CUSTOMER, question)
            before = estimate(record, settings)["large"]
            assert teacher.seen == []
            assert decisions.decisions(record) == []
            with new_run(record, settings) as run:
                run.perform(Stage.CHOOSE, choose)
                manifest, answers, _ = taught(run)
            after = estimate(record, settings)["large"]
        assert (before["decisions"], before["reused"]) == (3, 0)
        assert before["cost_usd_estimate"] == pytest.approx(manifest.details["cost_usd"], rel=0.15)
        assert before["prompt_tokens"] == pytest.approx(sum(row.prompt_tokens for row in answers), rel=0.15)
        assert (after["reused"], after["prompt_tokens"], after["cost_usd_estimate"]) == (3, 0, 0)


def test_newer_endpoint_that_wants_other_parameters_gets_them(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        body = newer.seen[-1].body
        if "max_tokens" in body:
            return Act(status=400, error="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return Act(status=400, error="Unsupported value: 'temperature' does not support 0.0.")
        return Act()

    newer = ScriptedTeacher(script)
    with newer, run_over(settings_for(tmp_path, newer.base_url, teacher="concurrency = 1"), 3) as run:
        _, answers, _ = taught(run)
        assert len(answers) == 3
        assert len(newer.seen) == 5


_TEACH_ONCE = """
import sys
from pathlib import Path
from conversations.settings import read_settings
from conversations.store import Record
from distill.dataset.teach import teach
from distill.run import Stage, open_run
from distill.settings import DistillSettings
settings = read_settings(DistillSettings, Path(sys.argv[1]))
with Record(settings.record.path) as record, open_run(record, settings, sys.argv[2]) as run:
    run.perform(Stage.TEACH, teach)
"""


@pytest.mark.slow
def test_killed_lesson_resumes_and_pays_for_no_answer_twice(tmp_path: Path) -> None:
    concurrency, count, kills = 4, 40, 0
    with ScriptedTeacher(lambda question, before: Act(seconds=0.05)) as teacher:
        settings = settings_for(tmp_path, teacher.base_url, teacher=f"{PRICES}\nconcurrency = {concurrency}")
        with run_over(settings, count) as run:
            run_id = run.run_id
        for threshold in (3, 14, 29):
            child = subprocess.Popen([sys.executable, "-c", _TEACH_ONCE, str(settings.settings_file), run_id])
            deadline = time.monotonic() + 60
            while len(teacher.seen) < threshold + kills * concurrency and child.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
        with Record(settings.record.path) as record, open_run(record, settings, run_id) as resumed:
            manifest, answers, _ = taught(resumed)
        assert [row.decision_id for row in answers] == [f"decision-{number}" for number in range(count)]
        assert count < len(teacher.seen) <= count + kills * concurrency
        assert manifest.details["reused"] > 0
        assert len({json.dumps(seen.body["messages"]) for seen in teacher.seen}) == count


@pytest.mark.slow
def test_handbook_passages_go_before_the_teacher_and_are_what_the_answer_rests_on(tmp_path: Path) -> None:
    handbook = tmp_path / "handbook.jsonl"
    articles = [
        {
            "id": "light",
            "title": "Coral light",
            "text": "A coral light says that the line is down. Press the button twice.",
        },
        {"id": "bill", "title": "Paying a bill", "text": "Bills are due on the 9th of each month and can be paid by card."},
    ]
    handbook.write_text("".join(json.dumps(article) + "\n" for article in articles), encoding="utf-8")
    with ScriptedTeacher() as teacher:
        settings = settings_for(
            tmp_path, teacher.base_url, teacher="handbook_passages = 1", tables='[handbook]\npath = "handbook.jsonl"'
        )
        with run_over(settings, 1) as run:
            row = next(read_rows(run.folder / "choose" / "decisions.jsonl", ChosenRow))
            asks = MessageRow(role=Role.USER, content="What does the coral lamp on my router want?")
            run.write_rows(Stage.CHOOSE, "decisions.jsonl", [row.model_copy(update={"messages": (*row.messages[:1], asks)})])
            _, answers, _ = taught(run)
        known = Handbook.load(handbook)
        (passage,) = known.by_id["light"].passages
        assert answers[0].passages == (passage.passage_hash,)
        sent = teacher.seen[0].body["messages"]
        assert [message["role"] for message in sent] == ["system", "system", "user"]
        assert "Press the button twice." in sent[1]["content"]
        assert "due on the 9th" not in sent[1]["content"]
        assert find_passages([], known, 2) == []
