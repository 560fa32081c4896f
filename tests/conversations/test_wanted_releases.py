"""Promises of what the servers are asked to keep, and of putting releases into service and back."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conversations import releases, rollouts, turns
from conversations.errors import OperatorError
from conversations.messages import Author, Role, TurnStatus, utc_now, utc_text
from conversations.processes import process_token
from conversations.releases import Load, Release, ReleaseKind, ReleaseState, ServerState, needs
from conversations.releases.needs import Need
from conversations.rollouts import RolloutKind, RolloutState
from conversations.store import Record


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as record:
        yield record


@pytest.fixture
def base(record: Record) -> str:
    return releases.register_base(record, base="tiny", weights_path="/none", weights_digest="sha256:" + "ab" * 32)


def candidate(record: Record, name: str) -> str:
    folder = record.path.parent / name
    folder.mkdir()
    release = Release(name, None, "tiny", ReleaseKind.LORA, str(folder), "sha256:1", {}, utc_now(), ReleaseState.CANDIDATE)
    releases.register(record, release, actor="test", reason="test")
    releases.want(record, name, wanted_by="test")
    return name


def promoted(record: Record, name: str) -> str:
    releases.promote(record, candidate(record, name), actor="gate", reason="better")
    return name


def holds(record: Record, release_id: str) -> str:
    return turns.create_conversation(record, customer_id="anna", channel="chat", release_id=release_id).conversation_id


def needed_for(record: Record) -> dict[str, Need]:
    return {each.release.release_id: each.need for each in needs.needed(record, keep_hours=24)}


def make_older(record: Record, table: str, column: str) -> None:
    with record.write() as transaction:
        transaction.execute(f"UPDATE {table} SET {column} = '2026-01-01T00:00:00.000Z'")


def test_after_many_promotions_only_the_base_the_release_in_service_and_the_one_before_it_are_wanted(
    record: Record, base: str
) -> None:
    for number in range(6):
        promoted(record, f"student-{number}")
        needs.settle(record, keep_hours=24)
    assert needed_for(record) == {base: Need.BASE, "student-5": Need.IN_SERVICE, "student-4": Need.BEFORE}
    assert {release.release_id for release in releases.wanted(record)} == {base, "student-5", "student-4"}


def test_a_release_is_kept_while_an_open_conversation_holds_it_and_let_go_once_that_has_rested(
    record: Record, base: str
) -> None:
    held = promoted(record, "student-0")
    holds(record, held)
    for number in (1, 2):
        promoted(record, f"student-{number}")
    assert needs.settle(record, keep_hours=24) == []
    assert needed_for(record)[held] is Need.CONVERSATIONS and needs.is_kept(record, held)
    make_older(record, "conversations", "updated_at_utc")
    assert needs.settle(record, keep_hours=24) == [held]
    assert not needs.is_kept(record, held)


def test_a_release_on_trial_is_kept_until_its_trial_ends(record: Record, base: str) -> None:
    promoted(record, "student-1")
    tried = candidate(record, "student-2")
    trial = rollouts.start(record, RolloutKind.CANARY, tried, share=0.1, actor="operator", reason="test", against_gate=True)
    make_older(record, "wanted_loads", "wanted_at_utc")
    assert needs.settle(record, keep_hours=24) == [] and needed_for(record)[tried] is Need.ON_TRIAL
    rollouts.end(record, trial.rollout_id, RolloutState.STOPPED, actor="operator", reason="test")
    assert needs.settle(record, keep_hours=24) == [tried]


def test_a_candidate_whose_run_was_killed_is_let_go_after_two_days(record: Record, base: str) -> None:
    left = candidate(record, "student-1")
    assert needs.settle(record, keep_hours=24) == [] and needed_for(record)[left] is Need.CANDIDATE
    make_older(record, "wanted_loads", "wanted_at_utc")
    assert needs.settle(record, keep_hours=24) == [left]
    assert base in needed_for(record)


def test_a_release_that_is_taken_back_is_kept_until_its_last_answer_has_ended(record: Record, base: str) -> None:
    bad = promoted(record, "student-1")
    talk = holds(record, bad)
    asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "and now?")
    reply = turns.begin_reply(record, talk, question_turn_id=asked.turn_id, release_id=bad, prompt_version="1", decoding={})
    releases.roll_back(record, actor="operator", reason="complaints")
    releases.refuse(record, bad, actor="operator", reason="complaints")
    assert needs.settle(record, keep_hours=24) == [] and needs.answers_under_way(record, bad) == 1
    turns.finish_reply(record, reply.turn_id, status=TurnStatus.COMPLETE, content="Now it works.")
    assert needs.settle(record, keep_hours=24) == [bad]


def test_a_release_that_was_taken_back_is_loaded_again_for_whoever_asks_for_it(record: Record, base: str) -> None:
    bad = promoted(record, "student-1")
    releases.roll_back(record, actor="operator", reason="complaints")
    assert needs.settle(record, keep_hours=24) == [bad]
    time.sleep(0.002)
    releases.want(record, bad, wanted_by="distill promote")
    assert needed_for(record)[bad] is Need.CANDIDATE


def test_a_release_that_no_server_could_load_is_not_kept_for_anybody(record: Record, base: str) -> None:
    broken = candidate(record, "student-1")
    assert needs.is_kept(record, broken)
    releases.announce_server(record, server_id="a", base_url="http://a", base="tiny", state=ServerState.READY)
    releases.note_load(record, Load("a", broken, False, "no adapter in it"))
    assert not needs.is_kept(record, broken)
    releases.announce_server(record, server_id="b", base_url="http://b", base="tiny", state=ServerState.READY)
    releases.note_load(record, Load("b", broken, True, ""))
    assert needs.is_kept(record, broken)


def test_a_release_whose_weights_are_gone_is_not_promoted_and_the_one_in_service_goes_on(record: Record, base: str) -> None:
    gone = candidate(record, "student-1")
    (record.path.parent / gone).rmdir()
    with pytest.raises(OperatorError, match=r"weights of the release 'student-1' are gone.*student-1.*goes on"):
        releases.promote(record, gone, actor="gate", reason="better")
    assert releases.in_service(record) == base


def test_a_rollback_to_a_release_whose_weights_are_gone_is_refused_unless_a_server_has_it(record: Record, base: str) -> None:
    for number in (1, 2, 3):
        promoted(record, f"student-{number}")
    (record.path.parent / "student-1").rmdir()
    with pytest.raises(OperatorError, match="weights of the release 'student-1' are gone, and no server has it"):
        releases.roll_back(record, to="student-1", actor="operator", reason="test")
    assert releases.in_service(record) == "student-3"
    releases.announce_server(record, server_id="a", base_url="http://a", base="tiny", state=ServerState.READY)
    releases.note_load(record, Load("a", "student-1", True, ""))
    assert releases.roll_back(record, to="student-1", actor="operator", reason="test") == "student-1"


def test_a_rollback_passes_over_a_release_whose_weights_are_gone(record: Record, base: str) -> None:
    for number in (1, 2, 3):
        promoted(record, f"student-{number}")
    (record.path.parent / "student-2").rmdir()
    assert releases.roll_back(record, actor="operator", reason="test") == "student-1"


def test_a_rollback_never_goes_forward_to_what_an_earlier_one_went_back_over(record: Record, base: str) -> None:
    for name in ("student-1", "student-2", "student-3"):
        promoted(record, name)
    releases.roll_back(record, to="student-1", actor="operator", reason="test")
    assert releases.roll_back(record, actor="operator", reason="test") == base
    with pytest.raises(OperatorError, match="no earlier release"):
        releases.roll_back(record, actor="operator", reason="test")
    # By name every release that was in service can come back, and what is before it then is what it came after.
    assert releases.roll_back(record, to="student-2", actor="operator", reason="test") == "student-2"


@pytest.mark.parametrize("died", ["here", "elsewhere"])
def test_an_answer_of_a_process_that_died_keeps_no_release_in_memory(record: Record, base: str, died: str) -> None:
    bad = promoted(record, "student-1")
    talk = holds(record, bad)
    asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "and now?")
    turns.begin_reply(record, talk, question_turn_id=asked.turn_id, release_id=bad, prompt_version="1", decoding={})
    releases.roll_back(record, actor="operator", reason="complaints")
    assert needs.settle(record, keep_hours=24) == [] and needs.answers_under_way(record, bad) == 1
    with record.write() as transaction:
        if died == "here":
            token = process_token().rsplit(":", 1)[0] + ":1.000"
            transaction.execute("UPDATE turns SET process_token = ? WHERE status = 'pending'", [token])
        else:
            transaction.execute("DROP TRIGGER turns_keep_their_place")
            transaction.execute(
                "UPDATE turns SET process_token = 'another-machine:1:1.000', created_at_utc = ? WHERE status = 'pending'",
                [utc_text(datetime.now(UTC) - timedelta(hours=turns.ANSWER_HOURS, minutes=1))],
            )
    assert needs.answers_under_way(record, bad) == 0
    assert needs.settle(record, keep_hours=24) == [bad]


def test_what_a_server_could_not_load_stays_written_until_it_starts_again(record: Record, base: str) -> None:
    def told(state: ServerState) -> list[bool]:
        releases.announce_server(record, server_id="a", base_url="http://a", base="tiny", state=state)
        return [load.loaded for load in releases.loads(record)]

    assert told(ServerState.READY) == []
    releases.note_load(record, Load("a", base, True, ""))
    releases.note_load(record, Load("a", candidate(record, "student-1"), False, "no adapter in it"))
    assert told(ServerState.DOWN) == [False]
    assert told(ServerState.STARTING) == []
