"""Promises of the supervisor, against a scripted server; the real vLLM is in test_student_vllm.py."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from chat_world import write_tokenizer
from scripted_vllm import ScriptedVllm

from conversations import releases, rollouts, turns
from conversations.errors import OperatorError, OutsideError
from conversations.messages import Author, Role, TurnStatus, utc_now
from conversations.prompt import Renderer
from conversations.releases import Release, ReleaseKind, ReleaseState, ServerState
from conversations.rollouts import RolloutKind
from conversations.serving import RopeFactors, Served, Serving, write_serving
from conversations.settings import PromptTable, RedactionTable
from conversations.store import Record
from support_bot.serving.pace import Pace, ServedStudent
from support_bot.serving.real_prompts import RealPrompts
from support_bot.serving.supervisor import StudentSupervisor
from support_bot.vllm import VllmProcess

FAST = Pace(
    look_seconds=0.05,
    heartbeat_seconds=0.1,
    health_timeout_seconds=0.5,
    load_timeout_seconds=5,
    linger_seconds=0.1,
    first_backoff_seconds=0.4,
    last_backoff_seconds=0.8,
    start_timeout_seconds=20,
)
BASE = "tiny"
SERVED = Served(
    base_digest="sha256:base",
    tokenizer_digest="sha256:tokenizer",
    prompt_digest="prompts",
    max_model_len=4096,
    rope_factors=RopeFactors.SHORT,
    max_lora_rank=16,
)
FITTING = Serving(
    kind="lora",
    base=BASE,
    base_digest="sha256:base",
    tokenizer_digest="sha256:tokenizer",
    prompt_digest="",
    max_model_len=2048,
    rope_factors=RopeFactors.SHORT,
    rank=16,
    dtype="float32",
)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as record:
        yield record


@pytest.fixture
def base_id(record: Record) -> str:
    return releases.register_base(record, base=BASE, weights_path="/nowhere", weights_digest="sha256:0123456789ab")


def a_release(
    record: Record, name: str, *, base: str = BASE, kind: ReleaseKind = ReleaseKind.LORA, folder: Path = Path("/weights")
) -> str:
    state = ReleaseState.CANDIDATE
    release = Release(name, None, base, kind, str(folder / name), "sha256:1", {}, utc_now(), state)
    releases.register(record, release, actor="test", reason="test")
    releases.want(record, name, wanted_by="test")
    return name


def prompts_of(record: Record) -> RealPrompts:
    folder = record.path.parent / "tokenizer"
    if not folder.exists():
        write_tokenizer(folder)
    return RealPrompts(record, Renderer.load(folder), PromptTable(system="You help."), RedactionTable())


def server_of(record: Record) -> releases.StudentServer | None:
    found = releases.servers(record)
    return found[0] if found else None


def state_of(record: Record) -> ServerState | None:
    server = server_of(record)
    return server.state if server else None


def loaded(record: Record) -> set[str]:
    return {load.release_id for load in releases.loads(record) if load.loaded}


def problem_with(record: Record, release_id: str) -> str:
    return "".join(load.detail for load in releases.loads(record) if load.release_id == release_id)


async def until(fact: Callable[[], bool], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def looked_after(supervisor: StudentSupervisor):
    task = asyncio.create_task(supervisor.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def attached(
    record: Record,
    base_id: str,
    url: str,
    said: list[str] | None = None,
    why_not_whole: Callable[[Release], str] = lambda release: "",
    pace: Pace = FAST,
) -> StudentSupervisor:
    say = (said if said is not None else []).append
    student = ServedStudent(BASE, base_id, url, SERVED)
    return StudentSupervisor(
        record, student, prompts_of(record), new_process=None, why_not_whole=why_not_whole, say=say, pace=pace
    )


class OwnServer:
    """A supervisor of a scripted server that runs as a process, and what can be done to that process."""

    def __init__(self, record: Record, base_id: str, folder: Path, plan: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.said: list[str] = []
        self.child_file = folder / "child"
        script = Path(__file__).with_name("scripted_vllm.py")
        command = [sys.executable, str(script), str(port), base_id, str(self.child_file), *([plan] if plan else [])]
        self.record = record
        self.log_path = folder / "logs" / "student.log"
        self.supervisor = StudentSupervisor(
            record,
            ServedStudent(BASE, base_id, f"http://127.0.0.1:{port}", SERVED),
            prompts_of(record),
            new_process=lambda: VllmProcess(command, os.environ, self.log_path),
            say=self.said.append,
            pace=FAST,
        )

    @property
    def process_id(self) -> int:
        server = server_of(self.record)
        assert server is not None and server.process_id is not None
        return server.process_id

    @property
    def child_id(self) -> int:
        return int(self.child_file.read_text(encoding="utf-8"))


def is_gone(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


def test_wanted_releases_are_loaded_before_the_server_is_called_ready(record: Record, base_id: str) -> None:
    a_release(record, "release-1")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            vllm.seconds_to_load = 0.6
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: state_of(record) is ServerState.STARTING, "starting")
                await asyncio.sleep(0.3)
                assert state_of(record) is ServerState.STARTING
                await until(lambda: loaded(record) == {base_id, "release-1"}, "both loaded")
                assert state_of(record) is ServerState.READY
            assert vllm.load_requests == ["release-1"]

    run(scenario)


def test_the_heart_beats_while_a_slow_release_is_loading(record: Record, base_id: str) -> None:
    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: state_of(record) is ServerState.READY, "ready")
                vllm.seconds_to_load = 1.5
                a_release(record, "slow")
                await until(lambda: vllm.load_requests == ["slow"], "asked")
                before = server_of(record)
                await asyncio.sleep(0.6)
                after = server_of(record)
                assert before is not None and after is not None
                assert after.heartbeat_at_utc > before.heartbeat_at_utc
                assert "slow" not in loaded(record)
                await until(lambda: "slow" in loaded(record), "loaded")

    run(scenario)


def test_a_release_that_is_wanted_later_is_loaded_and_one_wanted_no_longer_is_unloaded(record: Record, base_id: str) -> None:
    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: state_of(record) is ServerState.READY, "ready")
                a_release(record, "release-1")
                await until(lambda: "release-1" in loaded(record), "loaded")
                releases.refuse(record, "release-1", actor="test", reason="not good enough")
                await until(lambda: vllm.names == [base_id], "unloaded")
                assert loaded(record) == {base_id}

    run(scenario)


def test_a_load_that_fails_is_told_in_the_servers_words_and_tried_three_times_only(record: Record, base_id: str) -> None:
    a_release(record, "broken")
    a_release(record, "sound")
    said: list[str] = []

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            vllm.refusals["broken"] = "LoRA rank 64 is greater than max_lora_rank 16."
            async with looked_after(attached(record, base_id, vllm.base_url, said)):
                await until(lambda: vllm.load_requests.count("broken") == 3, "three attempts")
                await asyncio.sleep(0.5)
            assert vllm.load_requests.count("broken") == 3
            assert "sound" in vllm.names

    run(scenario)
    told = [line for line in said if "could not load broken: LoRA rank 64 is greater than max_lora_rank 16." in line]
    assert len(told) == 1 and "tried 3 times at most" in told[0]


def test_a_failed_load_stands_in_the_record_and_keeps_no_other_release_away(record: Record, base_id: str) -> None:
    a_release(record, "broken")
    a_release(record, "sound")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            vllm.refusals["broken"] = "No adapter found"
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: "given up after 3" in problem_with(record, "broken"), "given up")
                assert "No adapter found" in problem_with(record, "broken")
                assert loaded(record) == {base_id, "sound"}

    run(scenario)


@pytest.mark.parametrize("need", ["in service", "on trial"])
def test_what_customers_meet_now_is_tried_with_growing_pauses_for_as_long_as_the_server_lives(
    record: Record, base_id: str, tmp_path: Path, need: str
) -> None:
    (tmp_path / "release-1").mkdir()
    a_release(record, "release-1", folder=tmp_path)
    said: list[str] = []
    if need == "in service":
        releases.promote(record, "release-1", actor="test", reason="test")
    else:
        rollouts.start(record, RolloutKind.CANARY, "release-1", share=0.1, actor="test", reason="t", against_gate=True)

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            vllm.refusals["release-1"] = "no memory"
            pace = replace(FAST, first_backoff_seconds=0.1, last_backoff_seconds=0.4)
            async with looked_after(attached(record, base_id, vllm.base_url, said, pace=pace)):
                began = time.monotonic()
                await until(lambda: len(vllm.load_requests) == 5, "more attempts than three")
                assert time.monotonic() - began > 0.1 + 0.2 + 0.4
                assert problem_with(record, "release-1") == "no memory"
                assert loaded(record) == {base_id}
                vllm.refusals.clear()
                await until(lambda: "release-1" in loaded(record), "loaded")

    run(scenario)
    told = [line for line in said if "could not load release-1" in line]
    assert len(told) == 1 and "tried again while the server lives" in told[0]


def test_an_adapter_of_another_base_is_never_sent_to_the_server(record: Record, base_id: str) -> None:
    a_release(record, "misfit", base="another-base")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                words = "made for the base 'another-base'"
                await until(lambda: words in problem_with(record, "misfit"), words)
            assert vllm.load_requests == []

    run(scenario)


def test_a_release_is_asked_the_newest_questions_redacted_before_it_is_called_loaded(record: Record, base_id: str) -> None:
    for said in ("an older question", "my mail is anna@example.com", "why is it slow"):
        talk = turns.create_conversation(record, customer_id=said, channel="chat").conversation_id
        turns.append_message(record, talk, Role.USER, Author.CUSTOMER, said)

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            vllm.seconds_to_answer = 0.3
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: state_of(record) is ServerState.READY, "ready")
                assert vllm.asked == []
                a_release(record, "release-1")
                await until(lambda: len(vllm.asked) == 1, "asked")
                assert loaded(record) == {base_id}
                await until(lambda: "release-1" in loaded(record), "loaded")
                await asyncio.sleep(0.5)
            assert [name for name, _ in vllm.asked] == ["release-1", "release-1"]
            asked = [prompts_of(record).renderer.text(prompt) for _, prompt in vllm.asked]
            assert "why is it slow" in asked[0] and "my mail is <EMAIL_1>" in asked[1] and "You help." in asked[1]

    run(scenario)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("garbage", "the log-probability of a token is no number"),
        ("silence", "answered 1 real prompts without one word"),
        ("refusal", "failed on a real prompt"),
    ],
)
def test_a_release_that_cannot_answer_a_real_prompt_is_a_failed_load_and_leaves_the_server(
    record: Record, base_id: str, fault: str, words: str
) -> None:
    a_release(record, "sound")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            if fault == "garbage":
                vllm.logprobs["broken"] = None
            elif fault == "silence":
                vllm.says["broken"] = " "
            else:
                vllm.lost_after_load.add("broken")
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: state_of(record) is ServerState.READY, "ready")
                a_release(record, "broken")
                await until(lambda: words in problem_with(record, "broken"), words)
                assert "broken" not in loaded(record) and "broken" not in vllm.names
                await until(lambda: "given up after 3" in problem_with(record, "broken"), "given up")
                assert vllm.load_requests.count("broken") == 3
                assert loaded(record) == {base_id, "sound"}

    run(scenario)


def test_a_release_that_failed_is_tried_again_when_it_is_wished_for_again(record: Record, base_id: str) -> None:
    a_release(record, "release-1")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            vllm.refusals["release-1"] = "no memory"
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: "given up after 3" in problem_with(record, "release-1"), "given up")
                vllm.refusals.clear()
                releases.want(record, "release-1", wanted_by="test")
                assert problem_with(record, "release-1") == ""
                await until(lambda: "release-1" in loaded(record), "loaded")

    run(scenario)


def test_a_release_that_is_answering_leaves_the_server_only_when_the_answer_has_ended(record: Record, base_id: str) -> None:
    a_release(record, "release-1")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: "release-1" in loaded(record), "loaded")
                releases.refuse(record, "release-1", actor="test", reason="bad")
                # The turn chose its release a moment before.
                talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
                asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "and now?")
                reply = turns.begin_reply(
                    record, talk, question_turn_id=asked.turn_id, release_id="release-1", prompt_version="1", decoding={}
                )
                await asyncio.sleep(0.6)
                assert "release-1" in loaded(record) and vllm.unload_requests == []
                turns.finish_reply(record, reply.turn_id, status=TurnStatus.COMPLETE, content="Now.")
                await until(lambda: vllm.names == [base_id], "unloaded")
                assert loaded(record) == {base_id}

    run(scenario)


def test_an_attached_server_that_loses_its_health_is_down_and_comes_back_with_everything_loaded(
    record: Record, base_id: str
) -> None:
    a_release(record, "release-1")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: "release-1" in loaded(record), "loaded")
                vllm.health_status = 503
                await until(lambda: state_of(record) is ServerState.DOWN, "down")
                assert loaded(record) == set()
                # As after a restart by whoever runs it: it answers again, and has nothing in memory.
                vllm.names[:] = [base_id]
                vllm.health_status = 200
                await until(lambda: loaded(record) == {base_id, "release-1"}, "loaded again")
            assert state_of(record) is ServerState.DOWN

    run(scenario)


@pytest.mark.slow
def test_an_attached_server_that_is_gone_is_noticed_within_three_seconds_at_the_usual_pace(
    record: Record, base_id: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def scenario() -> None:
        script = str(Path(__file__).with_name("scripted_vllm.py"))
        vllm = await asyncio.create_subprocess_exec(sys.executable, script, str(port), base_id, str(tmp_path / "child"))
        student = ServedStudent(BASE, base_id, f"http://127.0.0.1:{port}", SERVED)
        supervisor = StudentSupervisor(
            record, student, prompts_of(record), new_process=None, say=lambda line: None, pace=Pace()
        )
        async with looked_after(supervisor):
            await until(lambda: state_of(record) is ServerState.READY, "ready")
            vllm.kill()
            await vllm.wait()
            await until(lambda: state_of(record) is ServerState.DOWN, "down", seconds=3)
            assert loaded(record) == set()
        os.kill(int((tmp_path / "child").read_text(encoding="utf-8")), signal.SIGKILL)

    run(scenario)


def test_a_server_that_was_restarted_unseen_gets_its_releases_again(record: Record, base_id: str) -> None:
    a_release(record, "release-1")

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: "release-1" in loaded(record), "loaded")
                vllm.names[:] = [base_id]
                await until(lambda: vllm.names == [base_id, "release-1"], "loaded again")

    run(scenario)


def test_an_attached_server_with_another_base_is_not_used_and_the_record_says_why(record: Record, base_id: str) -> None:
    async def scenario() -> None:
        with ScriptedVllm("somebody-elses-model") as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: state_of(record) is ServerState.DOWN, "down")
                server = server_of(record)
                assert server is not None and f"--served-model-name {base_id}" in server.detail

    run(scenario)


MISFITS = {
    "rank": ({"rank": 32}, "its rank is 32, above this server's [student] max_lora_rank = 16"),
    "factors": (
        {"rope_factors": "long", "max_model_len": 8192},
        "trained with the long LongRoPE factors (max_model_len 8192)",
    ),
    "tokenizer": ({"tokenizer_digest": "sha256:other"}, "taught with the tokenizer sha256:other"),
    "prompts": (
        {"prompt_digest": "others"},
        "prompts with the digest others; this chat writes its students' with the digest prompts",
    ),
    "base": ({"base_digest": "sha256:other"}, "made on weights with the digest sha256:other"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_an_adapter_that_would_be_served_otherwise_than_trained_is_not_loaded_and_the_record_says_why(
    record: Record, base_id: str, tmp_path: Path, what: str
) -> None:
    change, says = MISFITS[what]
    for name, serving in (("good", FITTING), ("bad", Serving(**{**FITTING.model_dump(), **change}))):
        (tmp_path / name).mkdir()
        write_serving(tmp_path / name, serving)
        a_release(record, name, folder=tmp_path)

    async def scenario() -> None:
        with ScriptedVllm(base_id) as vllm:
            async with looked_after(attached(record, base_id, vllm.base_url)):
                await until(lambda: loaded(record) == {base_id, "good"}, "the good one loaded")
                await until(lambda: says in problem_with(record, "bad"), "told why")
            assert vllm.load_requests == ["good"]

    run(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "engine hang"])
def test_a_killed_or_hanging_server_comes_back_with_its_releases_and_leaves_no_process(
    record: Record, base_id: str, tmp_path: Path, victim: str
) -> None:
    a_release(record, "release-1")

    async def scenario() -> None:
        own = OwnServer(record, base_id, tmp_path)
        async with looked_after(own.supervisor):
            await until(lambda: "release-1" in loaded(record), "loaded")
            first_process, first_child = own.process_id, own.child_id
            os.kill(first_process, signal.SIGKILL if victim == "server" else signal.SIGSTOP)
            await until(lambda: state_of(record) is ServerState.DOWN, "down")
            await until(lambda: "release-1" in loaded(record), "loaded again")
            assert own.process_id != first_process
            await until(lambda: is_gone(first_process) and is_gone(first_child), "the first is gone")
            last_process, last_child = own.process_id, own.child_id
        await until(lambda: is_gone(last_process) and is_gone(last_child), "the last is gone")

    run(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("need", ["candidate", "in service"])
def test_weights_that_end_the_server_are_tried_three_times_and_the_base_serves_on(
    record: Record, base_id: str, tmp_path: Path, need: str
) -> None:
    (tmp_path / "deadly").mkdir()
    a_release(record, "deadly", folder=tmp_path)
    if need == "in service":
        releases.promote(record, "deadly", actor="test", reason="test")

    async def scenario() -> None:
        own = OwnServer(record, base_id, tmp_path, plan="dies-on-load")
        async with looked_after(own.supervisor):
            await until(lambda: loaded(record) == {base_id}, "ready without it", seconds=30)
            assert "given up after 3 attempts that ended the server" in problem_with(record, "deadly")
            assert own.supervisor.starts == 4

    run(scenario)


def test_a_command_line_that_vllm_refuses_is_the_operators_to_mend(record: Record, base_id: str, tmp_path: Path) -> None:
    own = OwnServer(record, base_id, tmp_path, plan="wrong-arguments")
    with pytest.raises(OperatorError, match=r"unrecognized arguments: --nonsense.*extra_arguments"):
        asyncio.run(own.supervisor.run())
    assert state_of(record) is ServerState.DOWN


def test_a_server_that_never_comes_up_is_given_up_with_its_last_words_and_its_log(
    record: Record, base_id: str, tmp_path: Path
) -> None:
    own = OwnServer(record, base_id, tmp_path, plan="no-memory")
    with pytest.raises(OutsideError, match=r"No available memory for the cache blocks.*after 3 starts.*student.log"):
        asyncio.run(own.supervisor.run())


def test_a_server_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, sys
from pathlib import Path
from support_bot.vllm import VllmProcess
async def main():
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = VllmProcess(sleeping, os.environ, Path({str(tmp_path)!r}) / "log")
    await process.start()
    print(process.process_id, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""

    async def scenario() -> None:
        supervisor = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert supervisor.stdout is not None
        process_id = int(await supervisor.stdout.readline())
        assert not is_gone(process_id)
        supervisor.kill()
        await supervisor.wait()
        await until(lambda: is_gone(process_id), "the server has ended")

    run(scenario)


def test_the_log_of_a_talkative_server_stays_bounded(tmp_path: Path) -> None:
    log_path = tmp_path / "student.log"
    program = "line = 'x' * 999\nfor _ in range(45_000): print(line)"

    async def scenario() -> None:
        process = VllmProcess([sys.executable, "-c", program], os.environ, log_path)
        await process.start()
        await until(lambda: process.exit_status is not None, "ended", seconds=60)
        await process.end(at_once=True)

    run(scenario)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert 0 < sum(sizes) <= 20_000_000
