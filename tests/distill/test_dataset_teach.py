"""What teaching promises: nothing is bought twice, faults are retried or told plainly, the caps hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, small_run

from conversations import spending
from conversations.errors import OperatorError, OutsideError, Refused
from distill.cli import main
from distill.dataset.teaching import pace
from distill.rows import AnswerRow, read_rows
from distill.run import Stage

CHOOSE_AND_TEACH = (Stage.CHOOSE, Stage.TEACH)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait as long as a real teacher is waited for."""
    monkeypatch.setattr(pace, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pace, "FIRST_PAUSE_SECONDS", 0.02)


def told(script: Callable[[str, int], Act] | None = None) -> ScriptedTeacher:
    return ScriptedTeacher(script) if script else ScriptedTeacher()


def test_every_decision_is_asked_once_and_a_second_run_buys_nothing(tmp_path: Path) -> None:
    with (
        told(lambda question, before: Act(f"About this: {question[:20]}")) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        run, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
        assert sorted(seen.question for seen in teacher.seen) == sorted(QUESTIONS)
        assert taught.counts.accepted == len(QUESTIONS)
        assert taught.details["spent_usd"] == pytest.approx(len(QUESTIONS) * (100 * 10 + 10 * 100) / 1e6)
        assert taught.details["spent_by_teacher"]["big"]["calls"] == len(QUESTIONS)
        assert taught.details["cost_usd_per_1000_turns"] == pytest.approx(1000 * (100 * 10 + 10 * 100) / 1e6)
        again, (_, reused) = small.perform(*CHOOSE_AND_TEACH)
        assert len(teacher.seen) == len(QUESTIONS)
        assert reused.details["reused"] == len(QUESTIONS) and reused.details["spent_usd"] == 0
        rows = [run.stage_folder(Stage.TEACH) / "answers.jsonl", again.stage_folder(Stage.TEACH) / "answers.jsonl"]
        assert rows[0].read_bytes() == rows[1].read_bytes()


def test_what_may_pass_is_tried_again_and_waits_as_long_as_the_teacher_asks(tmp_path: Path) -> None:
    faults = [Act(status=429, headers={"Retry-After": "0.6"}), Act(status=503), Act(raw=b"<html>no</html>")]

    def script(question: str, before: int) -> Act:
        return faults[before] if question == QUESTIONS[0] and before < len(faults) else Act()

    with told(script) as teacher, small_run(tmp_path, teacher.base_url) as small:
        _, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
        assert taught.counts.accepted == len(QUESTIONS)
        assert len(teacher.seen) == len(QUESTIONS) + len(faults)
        moments = [seen.arrived_at for seen in teacher.seen if seen.question == QUESTIONS[0]]
        assert moments[1] - moments[0] >= 0.6
        assert taught.details["teachers"]["big"]["faults"] == {"invalid_json": 1, "rate_limited": 1, "server_error": 1}


def test_a_request_that_the_teacher_refuses_is_counted_and_not_repeated(tmp_path: Path) -> None:
    with (
        told(lambda question, before: Act(status=400) if question == QUESTIONS[3] else Act()) as teacher,
        small_run(tmp_path, teacher.base_url) as small,
    ):
        _, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
        assert taught.counts.rejected_by_reason == {"request_refused": 1}
        assert taught.counts.accepted == len(QUESTIONS) - 1
        assert sum(seen.question == QUESTIONS[3] for seen in teacher.seen) == 1


def test_an_interrupted_stage_goes_on_and_pays_only_for_what_is_missing(tmp_path: Path) -> None:
    answered: list[str] = []
    room = 3

    def script(question: str, before: int) -> Act:
        if len(answered) >= room:
            return Act(status=500)
        answered.append(question)
        return Act()

    with told(script) as teacher, small_run(tmp_path, teacher.base_url, teach="smoke_decisions = 1") as small:
        run, _ = small.perform(Stage.CHOOSE)
        with pytest.raises(OutsideError, match=r"has stopped answering.*what was answered is kept"):
            small.perform(Stage.TEACH, run_id=run.run_id)
        bought, room = len(answered), 1000
        _, (taught,) = small.perform(Stage.TEACH, run_id=run.run_id)
        assert taught.counts.accepted == len(QUESTIONS)
        assert sorted(answered) == sorted(QUESTIONS)
        assert taught.details["calls"] == len(QUESTIONS) - bought


def test_the_trial_stops_before_a_useless_teacher_is_paid_for_the_rest(tmp_path: Path) -> None:
    with (
        told(lambda question, before: Act(text="", finish_reason="length")) as teacher,
        small_run(tmp_path, teacher.base_url, teach="smoke_decisions = 3") as small,
    ):
        with pytest.raises(Refused, match=r"trial of the teacher 'big' failed.*nothing more was asked"):
            small.perform(*CHOOSE_AND_TEACH)
        assert len(teacher.seen) <= 3


def test_caps_on_calls_and_money_hold_and_leave_the_rest_unscored(tmp_path: Path) -> None:
    with told() as teacher:
        with small_run(tmp_path / "calls", teacher.base_url, teach="smoke_decisions = 1", more="") as small:
            text = small.settings_file.read_text(encoding="utf-8").replace("max_calls = 1000", "max_calls = 3")
            small.settings_file.write_text(text, encoding="utf-8")
            run, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
            assert len(teacher.seen) == 3
            assert taught.counts.unscored == len(QUESTIONS) - 3
            assert taught.details["unscored_by_reason"] == {"cap": len(QUESTIONS) - 3}
            assert len(list(read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow))) == 3
        with small_run(tmp_path / "money", teacher.base_url) as small:
            text = small.settings_file.read_text(encoding="utf-8").replace("max_cost_usd = 10.0", "max_cost_usd = 0.1")
            small.settings_file.write_text(text, encoding="utf-8")
            run, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
            # 400 tokens of answer at 100 USD a million are reserved for each request until its own figure is known.
            assert 0 < taught.counts.accepted <= len(QUESTIONS)
            assert spending.spent(small.record, run.run_id).usd <= 0.1


@pytest.mark.parametrize(
    ("act", "told_plainly", "kind"),
    [
        (
            Act(status=401),
            r"refuses the key in the environment variable BIG_KEY \(HTTP 401\): it says 'scripted 401'; export a valid BIG_KEY",
            OperatorError,
        ),
        (Act(status=402), "asks for payment", OperatorError),
        (Act(status=404), "does not know the model 'big-1'", OperatorError),
    ],
)
def test_a_teacher_that_will_not_serve_us_is_one_clear_error_and_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Act, told_plainly: str, kind: type[Exception]
) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-not-this-one")
    with (
        told(lambda question, before: act) as teacher,
        small_run(tmp_path, teacher.base_url, teacher='api_key_variable = "BIG_KEY"\n') as small,
    ):
        with pytest.raises(kind, match=told_plainly) as caught:
            small.perform(*CHOOSE_AND_TEACH)
        assert "sk-not" not in str(caught.value)
        assert len(teacher.seen) <= 2
        assert not list(small.folder.glob("runs/*/teach/manifest.json"))


def test_a_missing_key_is_an_operator_error_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BIG_KEY", raising=False)
    with told() as teacher, small_run(tmp_path, teacher.base_url, teacher='api_key_variable = "BIG_KEY"\n') as small:
        monkeypatch.setattr("sys.argv", ["distill", "cycle", "--settings", str(small.settings_file)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "BIG_KEY" in capsys.readouterr().err
        assert teacher.seen == []


def test_nothing_personal_leaves_the_machine(tmp_path: Path) -> None:
    with told() as teacher, small_run(tmp_path, teacher.base_url) as small:
        secret = "Please write to jane.doe@example.org about the coral lamp on my box today"
        small.import_conversations(
            [
                {
                    "id": "c99",
                    "customer_id": "customer-99",
                    "created_at": "2026-08-02T08:00:00Z",
                    "consent": True,
                    "messages": [{"role": "user", "content": secret}],
                }
            ]
        )
        small.perform(*CHOOSE_AND_TEACH)
        sent = " ".join(str(seen.body) for seen in teacher.seen)
        assert "coral lamp on my box today" in sent and "jane.doe" not in sent


def test_an_answer_that_was_cut_off_counts_once_when_asking_again_fails(tmp_path: Path) -> None:
    def script(question: str, before: int) -> Act:
        if question != QUESTIONS[0]:
            return Act()
        return Act(status=400) if before else Act(finish_reason="length")

    with told(script) as teacher, small_run(tmp_path, teacher.base_url, teach="max_smoke_failures = 8") as small:
        _, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
        assert taught.counts.accepted == len(QUESTIONS)
        assert taught.details["truncated"] == 1


def test_of_fifty_personal_strings_none_is_in_the_recorded_bytes_nor_in_the_answers(tmp_path: Path) -> None:
    planted = [f"person{place}.doe@example{place}.org" for place in range(25)]
    planted += [f"+44 20 7946 0{place:03d}" for place in range(100, 125)]
    lines = [
        {
            "id": f"p{place}", "customer_id": f"planted-{place}", "created_at": "2026-08-02T08:00:00Z", "consent": True,
            "messages": [
                {"role": "system", "content": f"You talk to {secret}."},
                {"role": "user", "content": f"my{place} reach{place} me{place} soon{place} at{place} {secret}"},
                {"role": "assistant", "content": f"We will use {secret}."},
                {"role": "user", "content": f"then{place} why{place} was{place} {secret} not{place} used{place}"},
            ],
        }
        for place, secret in enumerate(planted)
    ]  # fmt: skip

    def script(question: str, before: int) -> Act:
        return Act(f"You said: {question}")

    with told(script) as teacher, small_run(tmp_path, teacher.base_url) as small:
        small.import_conversations(lines)
        run, (_, taught) = small.perform(*CHOOSE_AND_TEACH)
        sent = b"".join(seen.raw for seen in teacher.seen).decode()
        written = "".join(path.read_text(encoding="utf-8") for path in run.folder.rglob("*.jsonl"))
    assert taught.counts.accepted > 50 and "<EMAIL_1>" in sent and "<PHONE_1>" in sent
    assert [secret for secret in planted if secret in sent or secret in written] == []
