"""What trying a release promises: the figures are the record's, a bad canary is taken back once, and the release in service stays."""

import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from statistics import quantiles

import pytest
from conftest import talk_of

from conversations import audit, gate_word, online, releases, rollouts, runs, shadows, turns
from conversations.errors import OperatorError
from conversations.messages import Author, ConversationState, Role, TurnStatus, Vote, utc_now, utc_text
from conversations.online import rate
from conversations.releases import Load, Release, ReleaseKind, ReleaseState, ServerState
from conversations.rollouts import Rollout, RolloutKind, RolloutState, Rules
from conversations.shadows import ShadowAnswer
from conversations.store import Record
from conversations.turns import ReplyMeasures


def based(record: Record) -> str:
    return releases.register_base(
        record, base="tiny", weights_path=str(record.path.parent), weights_digest="sha256:" + "ab" * 32
    )


def candidate(record: Record, name: str) -> str:
    weights = str(record.path.parent)
    release = Release(name, None, "tiny", ReleaseKind.LORA, weights, "sha256:1", {}, "2026-01-01", ReleaseState.CANDIDATE)
    releases.register(record, release, actor="test", reason="test")
    return name


def canary_of(record: Record, name: str, **rules: float) -> Rollout:
    based(record)
    return rollouts.start(
        record, RolloutKind.CANARY, candidate(record, name), share=0.5, rules=Rules(**rules), actor="test", reason="test",
        against_gate=True,
    )  # fmt: skip


def answered(
    record: Record,
    release_id: str,
    *,
    talk: str = "",
    status: TurnStatus = TurnStatus.COMPLETE,
    vote: Vote | None = None,
    latency_ms: float = 100.0,
    failure_code: str | None = None,
) -> turns.Turn:
    talk = talk or talk_of(record, "anna", "Why is the light red?")
    question = [each for each in turns.all_turns(record, talk) if each.role is Role.USER][-1]
    reply = turns.begin_reply(
        record, talk, question_turn_id=question.turn_id, release_id=release_id, prompt_version="1", decoding={}
    )
    measures = ReplyMeasures(first_token_ms=latency_ms / 10, latency_ms=latency_ms)
    reply = turns.finish_reply(
        record, reply.turn_id, status=status, content="so it is", measures=measures, failure_code=failure_code
    )
    if vote is not None:
        turns.vote_on(record, reply.turn_id, "anna", vote)
    return reply


def test_online_figures_are_what_counting_every_turn_gives(record: Record) -> None:
    base, tried = based(record), candidate(record, "student-1")
    chance = random.Random(7)
    statuses = [TurnStatus.COMPLETE] * 6 + [TurnStatus.FAILED, TurnStatus.STOPPED, TurnStatus.INTERRUPTED]
    expected: dict[str, dict[str, list]] = {base: {}, tried: {}}
    answered(record, tried, status=TurnStatus.FAILED, vote=Vote.DOWN)
    time.sleep(0.002)  # The record counts milliseconds.
    since = utc_now()
    for number in range(120):
        release_id = chance.choice([base, tried])
        status, vote = chance.choice(statuses), chance.choice([None, None, Vote.UP, Vote.DOWN])
        latency_ms = chance.uniform(50, 900)
        reply = answered(record, release_id, status=status, vote=vote, latency_ms=latency_ms)
        handed = number % 5 == 0
        if handed and number % 2:
            turns.append_message(record, reply.conversation_id, Role.ASSISTANT, Author.OPERATOR, "Olga here.")
        elif handed:
            with record.write() as transaction:
                transaction.execute(
                    "UPDATE conversations SET state = ? WHERE conversation_id = ?",
                    [ConversationState.WAITING, reply.conversation_id],
                )
        for name, value in (("status", status), ("vote", vote), ("handed", handed)):
            expected[release_id].setdefault(name, []).append(value)
        if status is TurnStatus.COMPLETE:
            expected[release_id].setdefault("latency", []).append(latency_ms)
    found = online.figures(record, since_utc=since)
    assert set(found) == {base, tried}
    for release_id, seen in expected.items():
        met = found[release_id]
        failed = seen["status"].count(TurnStatus.FAILED)
        interrupted = seen["status"].count(TurnStatus.INTERRUPTED)
        assert (met.turns, met.conversations, met.interrupted) == (len(seen["status"]), len(seen["status"]), interrupted)
        assert met.errors == rate(failed, len(seen["status"]) - interrupted)
        voted = [each for each in seen["vote"] if each]
        assert met.thumbs_down == rate(voted.count(Vote.DOWN), len(voted))
        assert met.handoffs == rate(sum(seen["handed"]), len(seen["status"]))
        cuts = quantiles(seen["latency"], n=20, method="inclusive")
        assert (met.latency_p50_ms, met.latency_p95_ms) == pytest.approx((cuts[9], cuts[18]))
        assert met.first_token_p95_ms == pytest.approx(cuts[18] / 10)
    assert online.figures(record)[tried].turns == found[tried].turns + 1


def test_a_conversation_that_came_to_a_person_counts_for_the_release_that_answered_last(record: Record) -> None:
    base, tried = based(record), candidate(record, "student-1")
    talk = talk_of(record, "anna", "Why is the light red?")
    answered(record, tried, talk=talk)
    turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "That did not help.")
    answered(record, base, talk=talk)
    turns.append_message(record, talk, Role.ASSISTANT, Author.OPERATOR, "Olga here.")
    turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "Thanks, and the other light?")
    answered(record, tried, talk=talk)
    found = online.figures(record)
    assert (found[base].handoffs.count, found[tried].handoffs.count) == (1, 0)


@pytest.mark.parametrize(("failed", "of", "is_broken"), [(1, 1, False), (4, 20, True), (2, 20, False), (19, 19, False)])
def test_the_error_rule_needs_enough_answers_and_a_lower_end_above_the_maximum(
    record: Record, failed: int, of: int, is_broken: bool
) -> None:
    canary = canary_of(record, "student-1", max_error_rate=0.05, min_turns=20)
    for number in range(of):
        answered(record, "student-1", status=TurnStatus.FAILED if number < failed else TurnStatus.COMPLETE)
    broken = online.violated(canary, online.figures_of(record, "student-1"))
    assert bool(broken) is is_broken
    if is_broken:
        assert f"{failed} of {of} answers" in broken and "above the rule's 5.0%" in broken


def test_an_outage_of_the_servers_is_no_error_of_a_release_and_takes_no_canary_back(record: Record) -> None:
    canary = canary_of(record, "student-1", min_turns=20)
    for number in range(26):
        answered(record, "student-1", status=TurnStatus.FAILED, failure_code=rollouts.NO_SERVER_CODES[number % 2])
    answered(record, "student-1", status=TurnStatus.FAILED, failure_code="broke_off")
    answered(record, "student-1")
    met = online.figures_of(record, "student-1")
    assert (met.no_server, met.errors) == (26, rate(1, 2))
    assert online.violated(canary, met) == ""


def test_a_message_that_is_too_long_and_a_bug_of_ours_are_no_errors_of_a_release(record: Record) -> None:
    canary = canary_of(record, "student-1", min_turns=20)
    for number in range(26):
        answered(record, "student-1", status=TurnStatus.FAILED, failure_code=("prompt_too_long", "our_bug")[number % 2])
    answered(record, "student-1")
    met = online.figures_of(record, "student-1")
    assert (met.no_server, met.errors) == (0, rate(0, 1))
    assert online.violated(canary, met) == ""


def test_a_release_that_comes_into_service_ends_its_canary_in_the_same_transaction(record: Record) -> None:
    canary = canary_of(record, "student-1")
    releases.promote(record, "student-1", actor="gate", reason="better")
    ended = rollouts.rollout(record, canary.rollout_id)
    assert (ended.state, ended.ended_by, ended.ended_because) == (RolloutState.PROMOTED, "gate", "better")
    releases.promote(record, candidate(record, "student-2"), actor="gate", reason="better still")
    again = rollouts.start(record, RolloutKind.CANARY, "student-1", share=0.5, actor="olga", reason="once more")
    assert rollouts.roll_back(record, to="student-1", actor="olga", reason="complaints").in_service == "student-1"
    assert rollouts.rollout(record, again.rollout_id).state is RolloutState.PROMOTED
    assert rollouts.running(record, RolloutKind.CANARY) is None
    assert rollouts.roll_back(record, actor="olga", reason="complaints").release_id == "student-1"
    assert releases.in_service(record) != "student-1"


def test_a_canary_whose_release_came_into_service_leaves_it_when_it_is_taken_back(record: Record) -> None:
    base = based(record)
    releases.promote(record, candidate(record, "student-1"), actor="gate", reason="better")
    with record.write() as transaction:
        # A record of an earlier version may hold one.
        transaction.execute(
            "INSERT INTO rollouts VALUES ('r', 'canary', 'student-1', 0.5, '{}', 'running', 't', '2026-01-01', NULL, NULL, NULL)"
        )
    assert rollouts.take_back(record, "r", actor="watch", reason="errors")
    assert releases.in_service(record) == base
    assert releases.release(record, "student-1").state is ReleaseState.ROLLED_BACK


def test_a_new_conversation_gets_the_canary_only_while_a_server_has_it(record: Record) -> None:
    base = based(record)
    rollouts.start(
        record, RolloutKind.CANARY, candidate(record, "student-1"), share=1, actor="t", reason="t", against_gate=True
    )
    assert rollouts.release_for(record, "a conversation", None) == base
    serve(record, "student-1")
    assert rollouts.release_for(record, "a conversation", None) == "student-1"


def test_a_conversation_that_found_no_server_moves_once_the_release_in_service_has_one(record: Record) -> None:
    base = based(record)
    held = candidate(record, "student-1")
    releases.want(record, held, wanted_by="test")
    talk = talk_of(record, "anna", "Why is the light red?")
    serve(record, base)
    assert rollouts.release_for(record, talk, held) == held, "it stays before anything has failed"
    answered(record, held, talk=talk, status=TurnStatus.FAILED, failure_code="no_server")
    assert rollouts.release_for(record, talk, held) == base
    serve(record, held)
    assert rollouts.release_for(record, talk, held) == held, "its server is back"


def serve(record: Record, release_id: str) -> None:
    releases.announce_server(record, server_id=release_id, base_url="http://a", base="tiny", state=ServerState.READY)
    releases.note_load(record, Load(release_id, release_id, True, ""))


def test_the_thumbs_down_rule_counts_votes_and_not_answers(record: Record) -> None:
    canary = canary_of(record, "student-1", max_thumbs_down_rate=0.5, min_turns=20)
    for _ in range(19):
        answered(record, "student-1", vote=Vote.DOWN)
    answered(record, "student-1")
    assert online.violated(canary, online.figures_of(record, "student-1")) == ""
    answered(record, "student-1", vote=Vote.DOWN)
    assert "thumbs-down rate is 100.0% (20 of 20 votes" in online.violated(canary, online.figures_of(record, "student-1"))


def test_a_canary_is_taken_back_once_and_the_release_in_service_stays(record: Record) -> None:
    canary = canary_of(record, "student-1")
    base = releases.in_service(record)
    before = len(releases.events(record))
    assert rollouts.take_back(record, canary.rollout_id, actor="watch", reason="errors")
    assert not rollouts.take_back(record, canary.rollout_id, actor="another watch", reason="errors too")
    ended = rollouts.rollout(record, canary.rollout_id)
    assert (ended.state, ended.ended_by, ended.ended_because) == (RolloutState.ROLLED_BACK, "watch", "errors")
    assert releases.in_service(record) == base
    assert len(releases.events(record)) == before + 1
    assert releases.release(record, "student-1").state is ReleaseState.ROLLED_BACK
    assert not releases.may_go_on(record, "student-1")
    told = [(each.actor, each.action) for each in audit.newest(record, 2)]
    assert told == [("watch", "release rolled_back"), ("watch", "canary rolled back")]


def test_of_many_processes_one_takes_a_canary_back(record: Record) -> None:
    canary = canary_of(record, "student-1")
    code = (
        "import sys; from pathlib import Path; from conversations import rollouts; from conversations.store import Record\n"
        "record = Record(Path(sys.argv[1])); sys.stdin.readline()\n"
        "print(rollouts.take_back(record, sys.argv[2], actor='watch', reason='errors'))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(record.path), canary.rollout_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate("go\n")[0].strip() for process in running]
    assert sorted(said) == ["False", "False", "False", "True"]
    assert [each.event for each in releases.events(record)].count("rolled_back") == 1


def test_a_rollback_undoes_the_canary_first_and_then_the_release_in_service(record: Record) -> None:
    base = based(record)
    releases.promote(record, candidate(record, "student-1"), actor="gate", reason="better")
    canary_of(record, "student-2")
    first = rollouts.roll_back(record, actor="olga", reason="complaints")
    assert (first.release_id, first.in_service) == ("student-2", "student-1")
    second = rollouts.roll_back(record, actor="olga", reason="complaints")
    assert (second.release_id, second.in_service) == ("student-1", base)
    assert rollouts.release_for(record, "a conversation", "student-2") == base
    assert rollouts.release_for(record, "a conversation", "student-1") == base


def test_a_rollback_to_a_named_release_leaves_the_canary_going(record: Record) -> None:
    base = based(record)
    releases.promote(record, candidate(record, "student-1"), actor="gate", reason="better")
    canary = canary_of(record, "student-2")
    assert rollouts.roll_back(record, to=base, actor="olga", reason="complaints").in_service == base
    assert rollouts.running(record, RolloutKind.CANARY) == canary


def test_a_canary_is_promoted_once_and_only_where_a_server_has_it(record: Record) -> None:
    canary = canary_of(record, "student-1")
    with pytest.raises(OperatorError, match="no student server has 'student-1' loaded"):
        rollouts.promote(record, canary.rollout_id, actor="olga", reason="good", against_gate=True)
    assert rollouts.running(record, RolloutKind.CANARY) == canary
    releases.announce_server(record, server_id="s", base_url="http://a", base="tiny", state=ServerState.READY)
    releases.note_load(record, Load("s", "student-1", True, ""))
    assert rollouts.promote(record, canary.rollout_id, actor="olga", reason="good", against_gate=True)
    assert not rollouts.promote(record, canary.rollout_id, actor="olga", reason="good", against_gate=True)
    assert not rollouts.take_back(record, canary.rollout_id, actor="watch", reason="errors")
    assert releases.in_service(record) == "student-1"


def test_a_release_that_the_gate_holds_back_is_tried_and_promoted_only_against_it(record: Record) -> None:
    based(record)
    releases.announce_server(record, server_id="s", base_url="http://a", base="tiny", state=ServerState.READY)
    releases.note_load(record, Load("s", candidate(record, "student-1"), True, ""))
    with pytest.raises(OperatorError, match=r"never asked about 'student-1'; .*canary student-1 --override REASON"):
        rollouts.start(record, RolloutKind.CANARY, "student-1", share=0.5, actor="olga", reason="look")
    canary = rollouts.start(
        record, RolloutKind.CANARY, "student-1", share=0.5, actor="olga", reason="look", against_gate=True
    )
    with pytest.raises(OperatorError, match="canary --promote --override REASON"):
        rollouts.promote(record, canary.rollout_id, actor="olga", reason="good")
    assert rollouts.running(record, RolloutKind.CANARY) == canary
    assert rollouts.promote(record, canary.rollout_id, actor="olga", reason="good", against_gate=True)
    told = [each for each in audit.newest(record, 20) if each.action == "gate overridden"]
    assert [(each.actor, each.target) for each in told] == [("olga", "student-1")] * 2
    # It has been in service, so that it may be tried again as any other.
    releases.promote(record, candidate(record, "student-2"), actor="olga", reason="better")
    assert rollouts.start(record, RolloutKind.CANARY, "student-1", share=0.5, actor="olga", reason="again")
    assert len([each for each in audit.newest(record, 20) if each.action == "gate overridden"]) == 2


@pytest.mark.parametrize(("outcome", "is_held"), [("promote", False), ("inconclusive", True), ("refuse", True)])
def test_the_gates_word_is_that_of_the_releases_own_run(record: Record, outcome: str, is_held: bool) -> None:
    runs.begin_run(record, run_id="run_1", path="here", settings_digest="")
    for name in ("student-1", "student-2"):
        releases.register(
            record, Release(name, "run_1", "tiny", ReleaseKind.LORA, "", "", {}, "2026", ReleaseState.CANDIDATE),
            actor="test", reason="test",
        )  # fmt: skip
    assert "never asked" in gate_word.held_back(record, "student-1")
    runs.note_report(record, "run_1", {"release_id": "student-1", "gate": {"outcome": outcome}})
    assert (f"said {outcome}" in gate_word.held_back(record, "student-1")) is is_held
    assert "never asked" in gate_word.held_back(record, "student-2")


def test_a_release_that_was_rolled_back_is_no_canary_again(record: Record) -> None:
    canary = canary_of(record, "student-1")
    rollouts.take_back(record, canary.rollout_id, actor="watch", reason="errors")
    with pytest.raises(OperatorError, match="is rolled back"):
        rollouts.start(record, RolloutKind.CANARY, "student-1", share=0.5, actor="olga", reason="again")
    assert rollouts.start(record, RolloutKind.SHADOW, "student-1", share=0.5, actor="olga", reason="look at it")


def test_a_conversation_whose_release_no_server_keeps_goes_on_with_the_one_in_service(record: Record) -> None:
    base, old = based(record), candidate(record, "student-1")
    assert rollouts.release_for(record, "a conversation", old) == base
    releases.want(record, old, wanted_by="test")
    assert rollouts.release_for(record, "a conversation", old) == old


def test_a_conversation_has_rested_when_nothing_was_said_for_so_long_before_the_question(record: Record) -> None:
    talk = talk_of(record, "anna", "Why is the light red?", "Hello again")
    first, question = turns.thread(record, talk)
    assert not rollouts.has_rested(record, talk, question.turn_id, hours=1)
    fresh = talk_of(record, "bo", "Why is the light red?")
    assert not rollouts.has_rested(record, fresh, turns.thread(record, fresh)[0].turn_id, hours=0.000001)
    with record.write() as transaction:
        transaction.execute("DROP TRIGGER turns_keep_their_place")
        transaction.execute(
            "UPDATE turns SET created_at_utc = ? WHERE turn_id = ?",
            [utc_text(datetime.now(UTC) - timedelta(hours=2)), first.turn_id],
        )
    assert rollouts.has_rested(record, talk, question.turn_id, hours=1)
    assert not rollouts.has_rested(record, talk, question.turn_id, hours=3)


def test_a_shadow_answers_a_question_once_and_its_figures_are_counts(record: Record) -> None:
    base = based(record)
    shadow = rollouts.start(record, RolloutKind.SHADOW, candidate(record, "student-1"), share=1, actor="t", reason="t")

    def said(number: int, failure: str | None, is_same: bool | None, ratio: float | None) -> bool:
        question = answered(record, base, latency_ms=number + 1.0).parent_turn_id
        answer = ShadowAnswer(
            shadow.rollout_id, question or "", "student-1", "ok", failure, 1.0, 100.0 * number, 1, 1, is_same, ratio
        )
        return shadows.keep(record, answer) and not shadows.keep(record, answer)

    assert said(1, None, True, 1.0) and said(2, None, False, 0.5) and said(3, "no_server", None, None)
    gone = ShadowAnswer(shadow.rollout_id, "turn_that_was_erased", "student-1", "ok", None, 1.0, 1.0, 1, 1, True, 1.0)
    assert not shadows.keep(record, gone)
    found = shadows.figures(record, shadow.rollout_id)
    assert (found.answers, found.failures, found.same, found.mean_length_ratio) == (3, rate(1, 3), rate(1, 2), 0.75)
    assert found.latency_p50_ms == 150
