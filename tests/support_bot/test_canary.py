"""What a trial promises in the chat: a share of new conversations, each stays, a bad canary goes by itself, a shadow is never felt."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chat_world import ChatWorld
from scripted_student import ScriptedStudent
from test_session import ask_and_wait, begin, in_session, to_the_end, until

from conversations import audit, releases, rollouts, shadows, turns
from conversations.messages import Role, TurnStatus, utc_text
from conversations.prompt import Renderer
from conversations.releases import Load, ReleaseKind, ReleaseState, ServerState
from conversations.rollouts import Rollout, RolloutKind, RolloutState, Rules
from distill.terminal import operator_name
from support_bot.completion import FailureCode
from support_bot.console.releases import show_releases
from support_bot.session import Session
from support_bot.watch import watch_canary


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ChatWorld]:
    made = ChatWorld(tmp_path, serve="max_message_chars = 100\n")
    made.new_release("tuned-1")
    made.student.answers = {made.base: "from the base", "tuned-1": "from the tuned one"}
    yield made
    made.close()


def on_trial(world: ChatWorld, kind: RolloutKind = RolloutKind.CANARY, share: float = 1.0, **rules: float) -> Rollout:
    return rollouts.start(
        world.record, kind, "tuned-1", share=share, rules=Rules(**rules), actor="test", reason="try it", against_gate=True
    )


def writers(world: ChatWorld, conversation_id: str) -> list[str | None]:
    return [each.release_id for each in turns.thread(world.record, conversation_id) if each.role is Role.ASSISTANT]


def put_back(world: ChatWorld, conversation_id: str, hours: float) -> None:
    """Let everything in a conversation have happened so long ago."""
    with world.record.write() as transaction:
        transaction.execute("DROP TRIGGER IF EXISTS turns_keep_their_place")
        transaction.execute(
            "UPDATE turns SET created_at_utc = ? WHERE conversation_id = ?",
            [utc_text(datetime.now(UTC) - timedelta(hours=hours)), conversation_id],
        )


def test_a_canary_gets_its_share_of_new_conversations_and_each_stays_with_its_release(world: ChatWorld) -> None:
    canary = on_trial(world, share=0.3)
    talks = [begin(world, f"customer-{number}").conversation_id for number in range(400)]

    async def act(session: Session) -> None:
        for start in range(0, len(talks), 20):
            await asyncio.gather(*(ask_and_wait(session, each) for each in talks[start : start + 20]))
        for each in talks[:40]:
            await ask_and_wait(session, each, "And the other light?")

    in_session(world, act)
    chosen = sum(writers(world, each)[0] == "tuned-1" for each in talks)
    # Four standard deviations of a binomial share: a fair draw falls outside once in 16,000 trials.
    assert abs(chosen - 120) < 4 * math.sqrt(400 * 0.3 * 0.7), chosen
    for each in talks[:40]:
        first, second = writers(world, each)
        assert first == second == ("tuned-1" if rollouts.falls_into(canary, each) else world.base)


def test_a_conversation_that_has_rested_is_drawn_again_and_one_that_has_not_stays(world: ChatWorld) -> None:
    rested, open_one = (begin(world, name).conversation_id for name in ("ann", "bob"))

    async def act(session: Session) -> None:
        for each in (rested, open_one):
            await ask_and_wait(session, each)
        on_trial(world)
        put_back(world, rested, world.settings.serve.rest_hours + 0.1)
        put_back(world, open_one, world.settings.serve.rest_hours - 0.1)
        for each in (rested, open_one):
            await ask_and_wait(session, each, "And the other light?")
        # Now it is the canary's, for as long as it does not rest.
        await ask_and_wait(session, rested, "And the third?")

    in_session(world, act)
    assert writers(world, rested) == [world.base, "tuned-1", "tuned-1"]
    assert writers(world, open_one) == [world.base, world.base]


def test_a_canary_that_is_taken_back_moves_its_open_conversations_at_their_next_turn(world: ChatWorld) -> None:
    talk = begin(world).conversation_id

    async def act(session: Session) -> None:
        canary = on_trial(world)
        assert (await ask_and_wait(session, talk)).content == "from the tuned one"
        rollouts.take_back(world.record, canary.rollout_id, actor="test", reason="complaints")
        assert (await ask_and_wait(session, talk, "And now?")).content == "from the base"

    in_session(world, act)
    assert releases.in_service(world.record) == world.base


def test_the_command_rolls_a_canary_back_as_the_button_does(world: ChatWorld) -> None:
    # The button is clicked in test_pages, and leaves the same record.
    canary = on_trial(world)
    talk = begin(world).conversation_id

    async def act(session: Session) -> None:
        await ask_and_wait(session, talk)
        await asyncio.to_thread(run_rollback, world)
        assert (await ask_and_wait(session, talk, "And now?")).release_id == world.base

    in_session(world, act)
    assert_rolled_back(world, canary, by=operator_name("distill rollback"))


def assert_rolled_back(world: ChatWorld, canary: Rollout, *, by: str) -> None:
    ended = rollouts.rollout(world.record, canary.rollout_id)
    assert (ended.state, ended.ended_by, ended.ended_because) == (RolloutState.ROLLED_BACK, by, "complaints")
    newest = releases.events(world.record)[0]
    assert (newest.release_id, newest.event, newest.actor, newest.reason) == (
        canary.release_id, "rolled_back", by, "complaints",
    )  # fmt: skip
    assert [each.action for each in audit.newest(world.record, 2)] == ["release rolled_back", "canary rolled back"]
    assert releases.in_service(world.record) == world.base


def run_rollback(world: ChatWorld) -> None:
    settings = world.folder / "distill.toml"
    text = (Path(__file__).parents[2] / "deploy" / "demo" / "settings.toml").read_text(encoding="utf-8")
    before, _, after = text.partition("[record]")
    settings.write_text(f'{before}[record]\npath = "record.db"\n[{after.partition(chr(10) + "[")[2]}', encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from distill.cli import main; main()",
            "rollback",
            "--settings",
            str(settings),
            "--reason",
            "complaints",
            "--json",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["in_service"] == world.base


def watched(world: ChatWorld, act: Callable[[Session], Awaitable[None]]) -> None:
    async def with_watch(session: Session) -> None:
        watching = asyncio.create_task(watch_canary(session.stored))
        try:
            await act(session)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    in_session(world, with_watch)


def test_a_canary_that_fails_is_taken_back_within_seconds_and_the_page_and_the_log_say_why(
    world: ChatWorld, caplog: pytest.LogCaptureFixture
) -> None:
    canary = on_trial(world, min_turns=5)
    talk = begin(world).conversation_id
    took: list[float] = []

    async def act(session: Session) -> None:
        world.student.dies_after_pieces = 1
        for number in range(5):
            await ask_and_wait(session, begin(world, f"customer-{number}").conversation_id)
        failed_at = time.monotonic()
        world.student.dies_after_pieces = None
        await ask_and_wait(session, talk)
        await until(lambda: rollouts.running(world.record, RolloutKind.CANARY) is None, seconds=8)
        took.append(time.monotonic() - failed_at)
        assert (await ask_and_wait(session, talk, "And now?")).release_id == world.base

    watched(world, act)
    assert took[0] < 5
    ended = rollouts.rollout(world.record, canary.rollout_id)
    assert ended.state is RolloutState.ROLLED_BACK and ended.ended_by == "support-bot serve"
    assert "the error rate is" in str(ended.ended_because) and "above the rule's 5.0%" in str(ended.ended_because)
    assert releases.release(world.record, "tuned-1").state is ReleaseState.ROLLED_BACK
    assert "the canary of tuned-1 is rolled back: the error rate is" in caplog.text
    assert "rolled back" in show_releases(world.record) and "the error rate is" in show_releases(world.record)


def test_the_watch_outlives_a_fault_of_its_own_and_the_log_has_its_traceback(
    world: ChatWorld, caplog: pytest.LogCaptureFixture
) -> None:
    canary = on_trial(world, min_turns=1)
    (sound,) = world.record.query("SELECT rules_json FROM rollouts")

    def say_rules(rules_json: str) -> None:
        with world.record.write() as transaction:
            transaction.execute("UPDATE rollouts SET rules_json = ?", [rules_json])

    async def act(session: Session) -> None:
        await until(lambda: "Traceback" in caplog.text)
        say_rules(str(sound["rules_json"]))
        world.student.dies_after_pieces = 1
        for number in range(5):
            await ask_and_wait(session, begin(world, f"customer-{number}").conversation_id)
        await until(lambda: rollouts.running(world.record, RolloutKind.CANARY) is None, seconds=8)

    say_rules("{}}")
    watched(world, act)
    assert rollouts.rollout(world.record, canary.rollout_id).state is RolloutState.ROLLED_BACK


def test_a_healthy_canary_goes_on_under_the_watch(world: ChatWorld) -> None:
    canary = on_trial(world, min_turns=3)

    async def act(session: Session) -> None:
        for number in range(6):
            await ask_and_wait(session, begin(world, f"customer-{number}").conversation_id)
        await asyncio.sleep(2.5)

    watched(world, act)
    assert rollouts.running(world.record, RolloutKind.CANARY) == canary


def test_a_shadow_answers_the_same_prompt_out_of_sight_and_keeps_placeholders(world: ChatWorld) -> None:
    shadow = on_trial(world, RolloutKind.SHADOW)
    world.student.answers = {world.base: "I wrote to <EMAIL_1>.", "tuned-1": "I wrote to <EMAIL_1>."}
    talk = begin(world).conversation_id

    async def act(session: Session) -> None:
        reply = await ask_and_wait(session, talk, "Write to ann@example.com")
        assert (reply.content, reply.release_id) == ("I wrote to ann@example.com.", world.base)
        await until(lambda: bool(shadows.answers(world.record, shadow.rollout_id)))

    in_session(world, act)
    (kept,) = shadows.answers(world.record, shadow.rollout_id)
    question = turns.thread(world.record, talk)[0]
    assert (kept.question_turn_id, kept.content, kept.failure_code) == (question.turn_id, "I wrote to <EMAIL_1>.", None)
    assert (kept.is_same, kept.length_ratio) == (True, 1.0)
    assert kept.first_token_ms is not None and kept.latency_ms is not None and kept.first_token_ms <= kept.latency_ms
    assert len(turns.all_turns(world.record, talk)) == 2
    asked = {str(each["model"]): each["prompt"] for each in world.student.requests}
    assert asked[world.base] == asked["tuned-1"]
    assert "ann@example.com" not in Renderer.load(world.settings.student.base).text(asked["tuned-1"])


def test_a_slow_shadow_delays_nobody_and_no_more_than_two_are_on_their_way(world: ChatWorld) -> None:
    slow = ScriptedStudent()
    slow.seconds_before_first = 30
    move_release(world, "tuned-1", slow)
    shadow = on_trial(world, RolloutKind.SHADOW)
    took: list[float] = []

    async def act(session: Session) -> None:
        for number in range(8):
            began = time.monotonic()
            reply = await ask_and_wait(session, begin(world, f"customer-{number}").conversation_id)
            took.append(time.monotonic() - began)
            assert reply.content == "from the base"
        await until(lambda: len(slow.requests) == 2)

    began = time.monotonic()
    in_session(world, act)
    assert max(took) < 3, "the shadow's first word would take 30 seconds"
    assert time.monotonic() - began < 15, "closing does not wait for the shadow"
    assert len(slow.requests) == 2
    assert shadows.answers(world.record, shadow.rollout_id) == []
    slow.close()


def test_a_shadow_that_fails_is_a_row_with_its_code_and_the_customer_has_the_answer(world: ChatWorld) -> None:
    broken = ScriptedStudent()
    broken.refuses_with = 500
    move_release(world, "tuned-1", broken)
    shadow = on_trial(world, RolloutKind.SHADOW)

    async def act(session: Session) -> None:
        assert (await ask_and_wait(session, begin(world).conversation_id)).status is TurnStatus.COMPLETE
        await until(lambda: bool(shadows.answers(world.record, shadow.rollout_id)))

    in_session(world, act)
    (kept,) = shadows.answers(world.record, shadow.rollout_id)
    assert (kept.failure_code, kept.content, kept.is_same) == (FailureCode.REFUSED, "", None)
    broken.close()


def test_a_shadow_answers_its_sample_alone(world: ChatWorld) -> None:
    shadow = on_trial(world, RolloutKind.SHADOW, share=0.3)
    questions: list[str] = []

    async def act(session: Session) -> None:
        for number in range(30):
            talk = begin(world, f"customer-{number}").conversation_id
            await ask_and_wait(session, talk)
            questions.append(turns.thread(world.record, talk)[0].turn_id)
            wanted = sum(rollouts.falls_into(shadow, each) for each in questions)
            await until(lambda wanted=wanted: len(shadows.answers(world.record, shadow.rollout_id)) == wanted)

    in_session(world, act)
    kept = {each.question_turn_id for each in shadows.answers(world.record, shadow.rollout_id)}
    assert kept == {each for each in questions if rollouts.falls_into(shadow, each)}
    assert 0 < len(kept) < 30


def move_release(world: ChatWorld, release_id: str, student: ScriptedStudent) -> None:
    """Let a second server alone have a release."""
    releases.forget_load(world.record, "server", release_id)
    releases.announce_server(
        world.record, server_id="second", base_url=student.base_url, base="tiny", state=ServerState.READY
    )
    releases.note_load(world.record, Load("second", release_id, True, ""))


def test_an_answer_goes_to_another_server_where_the_first_cannot_be_reached(world: ChatWorld) -> None:
    gone = ScriptedStudent()
    releases.announce_server(world.record, server_id="gone", base_url=gone.base_url, base="tiny", state=ServerState.READY)
    releases.note_load(world.record, Load("gone", world.base, True, ""))
    gone.close()

    async def act(session: Session) -> None:
        for number in range(4):
            reply = await ask_and_wait(session, begin(world, f"customer-{number}").conversation_id)
            assert (reply.status, reply.content) == (TurnStatus.COMPLETE, "from the base")

    in_session(world, act)
    assert len(world.student.requests) == 4


def test_an_answer_is_tried_twice_at_most_and_never_after_its_first_word(world: ChatWorld) -> None:
    second = ScriptedStudent()
    releases.announce_server(
        world.record, server_id="second", base_url=second.base_url, base="tiny", state=ServerState.READY
    )
    releases.note_load(world.record, Load("second", world.base, True, ""))

    def requests() -> int:
        return len(world.student.requests) + len(second.requests)

    async def act(session: Session) -> None:
        world.student.dies_after_pieces = second.dies_after_pieces = 0
        reply = await ask_and_wait(session, begin(world, "ann").conversation_id)
        assert (reply.failure_code, reply.content, requests()) == (FailureCode.UNREACHABLE, "", 2)
        world.student.dies_after_pieces = second.dies_after_pieces = 2
        reply = await ask_and_wait(session, begin(world, "bob").conversation_id)
        assert (reply.failure_code, requests()) == (FailureCode.BROKE_OFF, 3)
        assert reply.content

    in_session(world, act)
    second.close()


def test_the_codes_that_are_no_fault_of_a_release_are_codes_of_the_chat() -> None:
    assert rollouts.NO_SERVER_CODES == (FailureCode.NO_SERVER, FailureCode.UNREACHABLE)
    assert rollouts.BLAMELESS_CODES[2:] == (FailureCode.PROMPT_TOO_LONG, FailureCode.OUR_BUG)


def test_a_conversation_that_holds_a_canary_without_a_server_goes_on_at_its_next_turn(world: ChatWorld) -> None:
    world.new_release("whole-1", ReleaseKind.MERGED)
    rollouts.start(world.record, RolloutKind.CANARY, "whole-1", share=1, actor="test", reason="try it", against_gate=True)
    talk = begin(world).conversation_id

    async def act(session: Session) -> None:
        assert (await ask_and_wait(session, talk)).release_id == "whole-1"
        releases.forget_load(world.record, "server", "whole-1")
        assert (await ask_and_wait(session, talk, "And now?")).failure_code == FailureCode.NO_SERVER
        await session.retry(talk)
        await to_the_end(session, talk)
        assert turns.thread(world.record, talk)[-1].content == "from the base"

    in_session(world, act)


def test_an_answer_waits_for_a_release_that_a_ready_server_is_loading(world: ChatWorld) -> None:
    releases.promote(world.record, "tuned-1", actor="gate", reason="better")
    releases.forget_load(world.record, "server", "tuned-1")

    async def act(session: Session) -> None:
        talk = begin(world).conversation_id
        await session.ask(talk, "Hello")
        await asyncio.sleep(0.5)
        releases.note_load(world.record, Load("server", "tuned-1", True, ""))
        assert (await to_the_end(session, talk))[-1].text == "from the tuned one"

        releases.forget_load(world.record, "server", "tuned-1")
        talk = begin(world, "bob").conversation_id
        began = time.monotonic()
        await session.ask(talk, "Hello")
        await asyncio.sleep(0.5)
        releases.note_load(world.record, Load("server", "tuned-1", False, "no memory"))
        await to_the_end(session, talk)
        assert turns.thread(world.record, talk)[-1].failure_code == FailureCode.NO_SERVER
        assert time.monotonic() - began < 5, "a load that failed is waited for no longer"

    in_session(world, act)


def test_a_silent_server_shows_no_memory_and_none_at_all_after_a_day(world: ChatWorld) -> None:
    releases.announce_server(
        world.record, server_id="old", base_url="http://old", base="tiny", state=ServerState.DOWN, memory_bytes=3_400_000_000
    )
    assert "3.4 GB" in show_releases(world.record)
    for minutes, is_shown in ((5, True), (24 * 60 + 1, False)):
        with world.record.write() as transaction:
            silent_since = utc_text(datetime.now(UTC) - timedelta(minutes=minutes))
            transaction.execute("UPDATE student_servers SET heartbeat_at_utc = ? WHERE server_id = 'old'", [silent_since])
        shown = show_releases(world.record)
        assert ("http://old" in shown) is is_shown and "3.4 GB" not in shown


def test_following_an_answer_that_moved_shows_one_answer(world: ChatWorld) -> None:
    gone = ScriptedStudent()
    gone.dies_after_pieces = 0
    releases.announce_server(world.record, server_id="gone", base_url=gone.base_url, base="tiny", state=ServerState.READY)
    releases.note_load(world.record, Load("gone", world.base, True, ""))

    async def act(session: Session) -> None:
        for number in range(2):
            talk = begin(world, f"customer-{number}").conversation_id
            await session.ask(talk, "Hello")
            glimpses = await to_the_end(session, talk)
            assert glimpses[-1].text == "from the base"
            assert len(turns.all_turns(world.record, talk)) == 2

    in_session(world, act)
    gone.close()
