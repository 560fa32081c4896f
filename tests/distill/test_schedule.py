"""What the runner decides at a look, and what it says of it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import QUESTIONS, SmallRun, conversation, small_run

from conversations import lineage, processes, runs, schedules
from conversations.errors import OperatorError
from conversations.messages import utc_text
from conversations.processes import process_token
from conversations.schedules import LEASE, ScheduleDecision
from distill import schedule as scheduling
from distill.due import dueness
from distill.run import Run, Stage
from distill.schedule import schedule

DUE = "[schedule]\nevery_hours = 0.000001\nmin_new_conversations = 1\npoll_seconds = 0.05\n"
ELSEWHERE = "another-machine:1:1.000"


def silent(stage: Stage, share: float, note: str) -> None:
    pass


def look(small: SmallRun) -> list[str]:
    """Look once and return what was said."""
    said: list[str] = []
    schedule(small.record, small.settings, silent, said.append, once=True)
    return said


def log_of(small: SmallRun) -> list[tuple[str, str]]:
    """The log of the schedule, the oldest entry first."""
    return [(entry.decision, entry.reason) for entry in reversed(schedules.decisions_taken(small.record))]


def move_back(small: SmallRun, statement: str) -> None:
    """Change times in the record as if hours had passed."""
    with small.record.write() as transaction:
        transaction.execute(statement)


def as_by_schedule(small: SmallRun) -> None:
    """Let every run have been begun by a scheduler."""
    move_back(
        small, "UPDATE run_events SET detail_json = json_set(detail_json, '$.by', 'distill schedule') WHERE event = 'begun'"
    )


def failed(small: SmallRun, *, times: int) -> Run:
    """A run that a scheduler began and that failed so often since it has chosen."""
    run, _ = small.perform(Stage.CHOOSE)
    for _ in range(times):
        runs.finish_run(small.record, run.run_id, state=runs.RunState.FAILED, outcome="a fault")
    as_by_schedule(small)
    return run


@contextmanager
def nothing_to_learn(folder: Path, more: str = DUE) -> Iterator[tuple[SmallRun, ScriptedTeacher]]:
    """A small run whose teacher's answers the handbook contradicts: its cycles end well before a student is needed."""
    with (
        ScriptedTeacher(lambda question, before: Act("Wait 99 minutes.")) as teacher,
        small_run(folder, teacher.base_url, more=more) as small,
    ):
        yield small, teacher


def test_waiting_says_how_far_it_is_and_does_not_grow_the_log(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more="[schedule]\nmin_new_conversations = 50") as small:
        assert look(small) == ["waits: fewer than 50 conversations are new (8 of 50 new conversations)"]
        small.import_conversations([conversation(20, "Is there anything you can tell me about the weather at sea?")])
        assert look(small) == ["waits: fewer than 50 conversations are new (9 of 50 new conversations)"]
        for _ in range(5):
            look(small)
        assert log_of(small) == [("waits", "fewer than 50 conversations are new")]
        run, _ = small.perform(Stage.CHOOSE)
        move_back(
            small, f"UPDATE runs SET started_at_utc = '{utc_text(datetime.now(UTC) - timedelta(hours=3, minutes=30))}'"
        )
        assert look(small) == [
            "waits: 24 hours have not passed since the last run (0 of 50 new conversations, 3.5 of 24 hours)"
        ]
        assert len(log_of(small)) == 2 and run.run_id


def test_a_look_is_written_again_once_something_has_happened_since(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        for decision in (ScheduleDecision.WAITS, ScheduleDecision.CANARY, ScheduleDecision.WAITS, ScheduleDecision.CANARY):
            schedules.note_decision(small.record, scheduler="one", decision=decision, reason="r")
        schedules.note_decision(small.record, scheduler="other", decision=ScheduleDecision.WAITS, reason="r")
        assert log_of(small) == [("waits", "r"), ("canary", "r")]
        for _ in range(2):
            schedules.note_decision(small.record, scheduler="one", decision=ScheduleDecision.ENDED, reason="e")
        schedules.note_decision(small.record, scheduler="one", decision=ScheduleDecision.WAITS, reason="r")
        assert log_of(small)[2:] == [("ended", "e"), ("ended", "e"), ("waits", "r")]


def test_a_cycle_is_due_when_the_interval_has_passed_and_enough_is_new(tmp_path: Path) -> None:
    with small_run(
        tmp_path, "http://127.0.0.1:9/v1", more="[schedule]\nmin_new_conversations = 1\nevery_hours = 10"
    ) as small:
        assert dueness(small.record, small.settings).because == "8 conversations are new"
        small.perform(Stage.CHOOSE)
        later = datetime.now(UTC) + timedelta(hours=11)
        assert dueness(small.record, small.settings, later).because == ""
        small.import_conversations([conversation(20, "Is there anything you can tell me about the weather at sea?")])
        assert dueness(small.record, small.settings).because == ""
        assert dueness(small.record, small.settings, later).because == "1 conversations are new"


def test_a_changed_handbook_is_a_reason_for_one_cycle_also_where_that_one_is_refused(tmp_path: Path) -> None:
    never = "[schedule]\nevery_hours = 1000\nmin_new_conversations = 1000"
    with nothing_to_learn(tmp_path, never) as (small, _):
        run, _ = small.perform(Stage.CHOOSE)
        runs.finish_run(small.record, run.run_id, state=runs.RunState.COMPLETE, outcome="promote")
        lineage.note_passages(small.record, run.run_id, ["sha256:of-words-that-are-no-more"])
        look(small)
        (again, _) = runs.runs(small.record)
        assert again.state is runs.RunState.COMPLETE and (again.outcome or "").startswith("refused: ")
        assert "hours have not passed" in dueness(small.record, small.settings).waits_for
        move_back(small, f"UPDATE runs SET state = 'failed' WHERE run_id = '{again.run_id}'")
        assert "have changed" in dueness(small.record, small.settings).because
        move_back(small, f"UPDATE runs SET state = 'complete' WHERE run_id = '{again.run_id}'")
        (tmp_path / "handbook" / "more.md").write_text(
            "# Bills\n\nBills come on the first of each month.\n", encoding="utf-8"
        )
        assert "have changed" in dueness(small.record, small.settings).because


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-07-01T00:59:00+00:00", False),
        ("2026-07-01T01:00:30+00:00", True),
        ("2026-07-01T01:44:00+00:00", True),
        ("2026-07-01T01:46:00+00:00", False),
        ("2026-07-04T01:10:00+00:00", False),
        ("2026-12-01T01:10:00+00:00", False),
        ("2026-12-01T02:10:00+00:00", True),
    ],
)
def test_a_due_cycle_starts_only_soon_after_a_time_of_the_cron_expression(tmp_path: Path, now: str, due: bool) -> None:
    more = "[schedule]\nmin_new_conversations = 1\ncron = '0 3 * * mon-fri'\ntimezone = 'Europe/Berlin'\ncron_minutes = 45"
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more=more) as small:
        found = dueness(small.record, small.settings, datetime.fromisoformat(now))
        assert bool(found.because) is due
        assert due or "starts at the next time of [schedule] cron = '0 3 * * mon-fri'" in found.waits_for


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cron = '0 3 * *'", "expected minute, hour, day, month and weekday"),
        ("cron = '0 25 * * *'", "cron is '0 25"),
        ("cron = '0 3 * * 0'", "weekday is a name here, such as sun or mon-fri, never a number"),
        (
            "cron = '0 3 * * *'\ntimezone = 'Mars/X'",
            "[schedule]: timezone is 'Mars/X'; expected a name such as 'Europe/Berlin'",
        ),
        ("cron = '0 3 31 2 *'", "[schedule]: cron is '0 3 31 2 *', a time that never comes"),
        ("every_hours = -1", "[schedule]: every_hours = -1: input should be greater than 0; mend the value"),
    ],
)
def test_a_time_that_is_none_is_refused_when_the_settings_are_read(tmp_path: Path, line: str, told: str) -> None:
    with (
        small_run(tmp_path, "http://127.0.0.1:9/v1", more=f"[schedule]\n{line}") as small,
        pytest.raises(OperatorError, match=r"\[schedule\]") as error,
    ):
        assert small.settings
    assert told in str(error.value)


def test_a_request_is_taken_by_one_and_settled_with_the_run_that_served_it(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path, "") as (small, teacher):
        asked = runs.request_run(small.record, requested_by="jo")
        assert look(small)[0] == "started: asked for by jo"
        settled = runs.request(small.record, asked.request_id)
        run = runs.runs(small.record)[0]
        assert (settled.state, settled.run_id) == ("done", run.run_id) and run.state is runs.RunState.COMPLETE
        assert settled.outcome and "no answer is left" in settled.outcome
        assert len(teacher.seen) == len(QUESTIONS)
        assert runs.take_request(small.record, "a:1:1.0") is None


def test_a_fault_settles_the_request_and_no_later_process_tries_again_at_once(tmp_path: Path) -> None:
    """A wrong setting ends each cycle before it has a run: what keeps it from being tried again stands in the record alone."""
    with nothing_to_learn(tmp_path, DUE) as (small, _):
        small.settings_file.write_text(
            small.settings_file.read_text(encoding="utf-8").replace('base = "no-student"', 'base = "gone"'), encoding="utf-8"
        )
        assert "there is no model in" in look(small)[-1] and runs.runs(small.record) == []
        for _ in range(3):
            assert look(small) == ["waits: the last cycle ended early; by itself the next one starts 1 h after that"]
        request = runs.request_run(small.record, requested_by="jo")
        assert "there is no model in" in look(small)[-1]
        assert runs.request(small.record, request.request_id).state == "done"
        move_back(small, "UPDATE schedule_log SET decided_at_utc = '2020-01-01T00:00:00.000Z'")
        assert look(small)[0] == "started: due, as 8 conversations are new"


def test_a_scheduler_stands_by_while_another_machine_acts_and_takes_over_from_a_dead_one_here(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path) as (small, teacher):
        assert schedules.take_lease(small.record, LEASE, holder=ELSEWHERE, seconds=60) is None
        for _ in range(3):
            assert look(small) == [f"stands by: the process {ELSEWHERE} acts"]
        assert teacher.seen == [] and len(log_of(small)) == 1
        schedules.give_back_lease(small.record, LEASE, holder=ELSEWHERE)
        dead = process_token().rsplit(":", 1)[0] + ":1.000"
        assert schedules.take_lease(small.record, LEASE, holder=dead, seconds=3600) is None
        assert look(small)[0] == "started: due, as 8 conversations are new"
        assert schedules.take_lease(small.record, LEASE, holder="x:1:1.0", seconds=1) is None, "the lease was not given back"


def test_a_request_that_a_lost_scheduler_took_is_served_by_the_next(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path, "") as (small, _):
        asked = runs.request_run(small.record, requested_by="jo")
        assert schedules.take_over_request(small.record, process_token()) is None
        assert runs.take_request(small.record, ELSEWHERE) is not None
        assert schedules.take_over_request(small.record, process_token()) is None, "taken without the lease"
        assert look(small)[0] == "started: asked for by jo"
        assert runs.request(small.record, asked.request_id).state == "done"


def test_what_an_operator_stopped_is_the_operators_to_go_on_with(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        run, _ = small.perform(Stage.CHOOSE)
        assert runs.run(small.record, run.run_id).state is runs.RunState.INTERRUPTED
        assert schedules.left_run(small.record) is None
        runs.begin_run(
            small.record,
            run_id=run.run_id,
            path=str(run.folder),
            settings_digest="d",
            begun=runs.Begun(schedules.BY_SCHEDULE),
        )
        assert schedules.left_run(small.record) is None, "it goes on"
        runs.finish_run(small.record, run.run_id, state=runs.RunState.INTERRUPTED, outcome="stopped")
        left = schedules.left_run(small.record)
        assert left is not None and left.run_id == run.run_id


def test_a_scheduler_leaves_alone_what_an_operator_stopped_also_where_a_cycle_is_asked_for(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path, "") as (small, _):
        run, _ = small.perform(Stage.CHOOSE)
        asked = runs.request_run(small.record, requested_by="jo")
        assert look(small)[0] == "started: asked for by jo"
        assert runs.run(small.record, run.run_id).state is runs.RunState.INTERRUPTED
        assert runs.request(small.record, asked.request_id).run_id not in (None, run.run_id)


def test_a_run_that_failed_goes_on_after_an_hour_or_when_it_is_asked_for(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path, "") as (small, _):
        run = failed(small, times=1)
        schedules.note_decision(small.record, scheduler="s", decision=ScheduleDecision.ENDED, reason="ended early: a fault")
        assert look(small) == ["waits: the last cycle ended early; by itself the next one starts 1 h after that"]
        move_back(small, "UPDATE schedule_log SET decided_at_utc = '2020-01-01T00:00:00.000Z'")
        assert look(small)[0] == "resumed: failed in choose"
        assert runs.run(small.record, run.run_id).state is runs.RunState.COMPLETE
        run = failed(small, times=1)
        runs.request_run(small.record, requested_by="jo")
        assert look(small)[0] == "resumed: asked for by jo"
        assert runs.run(small.record, run.run_id).state is runs.RunState.COMPLETE
        assert {entry.run_id for entry in schedules.decisions_taken(small.record, 2)} == {run.run_id}


def test_a_run_that_fails_again_and_again_is_given_up_and_its_conversations_are_still_new(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path) as (small, _):
        run = failed(small, times=scheduling.FAILURES_BEFORE_GIVEN_UP)
        assert look(small)[:2] == [
            f"waits: the run {run.run_id} failed 3 times in a row; `distill cycle --run {run.run_id}` goes on with it",
            "started: due, as 8 conversations are new",
        ]
        assert runs.run(small.record, run.run_id).state is runs.RunState.FAILED
        assert runs.runs(small.record)[0].state is runs.RunState.COMPLETE
        assert look(small) == ["waits: fewer than 1 conversations are new (0 of 1 new conversations, 0.0 of 1e-06 hours)"]


def test_a_run_that_waits_for_other_settings_is_said_once(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more="[schedule]\nmin_new_conversations = 50") as small:
        run, _ = small.perform(Stage.CHOOSE)
        as_by_schedule(small)
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace("max_calls = ", "max_calls = 9"), encoding="utf-8")
        said = [line for _ in range(3) for line in look(small)]
        other = f"the run {run.run_id} was begun with other settings; it goes on where those are set back"
        assert said[0] == f"waits: {other}" and len([line for line in said if other in line]) == 1
        assert "8 of 50 new conversations" in said[1] and len(log_of(small)) == 2


def test_the_newest_run_is_the_one_begun_last_also_where_the_clock_was_set_back(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1", more="[schedule]\nmin_new_conversations = 1") as small:
        small.perform(Stage.CHOOSE)
        move_back(small, "UPDATE runs SET started_at_utc = '2099-01-01T00:00:00.000Z'")
        small.import_conversations([conversation(20, "Is there anything you can tell me about the weather at sea?")])
        assert dueness(small.record, small.settings).because == "1 conversations are new"
        later, _ = small.perform(Stage.CHOOSE)
        as_by_schedule(small)
        left = schedules.left_run(small.record)
        assert left is not None and left.run_id == later.run_id
        assert dueness(small.record, small.settings).figures == "0 of 1 new conversations, 0.0 of 24 hours"


def test_a_run_that_dies_in_one_stage_again_and_again_is_tried_seldom(tmp_path: Path) -> None:
    with nothing_to_learn(tmp_path) as (small, _):
        run, _ = small.perform(Stage.CHOOSE)
        as_by_schedule(small)
        move_back(small, "UPDATE run_events SET happened_at_utc = '2026-01-01T00:00:00.000Z'")
        for _ in range(scheduling.RESUMES_AT_ONCE):
            schedules.note_decision(
                small.record, scheduler="s", decision=ScheduleDecision.RESUMED, reason="left", run_id=run.run_id
            )
        assert "was resumed 10 times and finished no stage" in look(small)[0]
        runs.add_event(small.record, run.run_id, stage="teach", event="finished", detail={})
        assert look(small)[0] == "resumed: left in the middle of choose"
        assert runs.run(small.record, run.run_id).state is runs.RunState.COMPLETE


def test_a_run_of_another_machine_lives_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        runs.begin_run(small.record, run_id="far", path="/p", settings_digest="d")
        move_back(small, f"UPDATE runs SET process_token = '{ELSEWHERE}'")
        assert runs.run(small.record, "far").state is runs.RunState.RUNNING
        assert dueness(small.record, small.settings).waits_for == "the run far is going on"
        silent_since = utc_text(datetime.now(UTC) - timedelta(seconds=processes.SILENT_SECONDS + 1))
        move_back(small, f"UPDATE runs SET heartbeat_at_utc = '{silent_since}'")
        assert runs.run(small.record, "far").state is runs.RunState.INTERRUPTED
        assert runs.begin_run(small.record, run_id="near", path="/p", settings_digest="d").state is runs.RunState.RUNNING


def test_a_run_that_another_process_took_up_is_not_written_by_the_first(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        runs.begin_run(small.record, run_id="run", path="/p", settings_digest="d")
        assert runs.beat(small.record, "run")
        move_back(small, f"UPDATE runs SET process_token = '{ELSEWHERE}'")
        assert not runs.beat(small.record, "run")
        runs.show_progress(small.record, "run", stage="train", progress=0.5)
        runs.finish_run(small.record, "run", state=runs.RunState.FAILED, outcome="mine")
        found = runs.run(small.record, "run")
        assert (found.state, found.stage, found.outcome) == (runs.RunState.RUNNING, "", None)


@pytest.mark.slow
def test_a_run_is_heard_of_while_its_teacher_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.run.SECONDS_BETWEEN_BEATS", 0.2)
    heard: set[str] = set()

    def slow(question: str, before: int) -> Act:
        with sqlite3.connect(tmp_path / "record.db") as connection:
            heard.update(row[0] for row in connection.execute("SELECT heartbeat_at_utc FROM runs"))
        connection.close()
        return Act("Wait 99 minutes.", seconds=1.5)

    with ScriptedTeacher(slow) as teacher, small_run(tmp_path, teacher.base_url, more=DUE) as small:
        look(small)
    assert len(heard) >= 4, heard
