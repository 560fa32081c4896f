"""Promises of serving merged and fully tuned releases, against scripted servers; the real vLLM is in test_student_releases.py."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from scripted_vllm import ScriptedVllm
from test_student_supervisor import (
    BASE,
    FAST,
    SERVED,
    a_release,
    attached,
    is_gone,
    loaded,
    prompts_of,
    run,
    state_of,
    until,
)  # fmt: skip

from conversations import releases, turns
from conversations.messages import Author, Role, TurnStatus
from conversations.releases import Release, ReleaseKind, ServerState, StudentServer, needs
from conversations.store import Record
from support_bot.serving.pace import ServedStudent
from support_bot.serving.supervisor import StudentSupervisor
from support_bot.serving.whole_servers import Room, WholeServers
from support_bot.vllm import VllmProcess

SCRIPT = Path(__file__).with_name("scripted_vllm.py")


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as record:
        yield record


@pytest.fixture
def base_id(record: Record) -> str:
    return releases.register_base(record, base=BASE, weights_path="/nowhere", weights_digest="sha256:0123456789ab")


class Own:
    """Servers of whole releases that run as scripted processes; `plans` say, by release, what goes wrong in its next start."""

    def __init__(self, record: Record, room: int = 2) -> None:
        self.record = record
        self.plans: dict[str, str] = {}
        self.names: dict[str, str] = {}  # by release, another name that its server answers to
        self.misfits: dict[str, str] = {}
        self.said: list[str] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        self.servers = WholeServers(
            record,
            self._supervisor,
            room=Room(room, range(first, first + 4), "raise [student] max_whole_servers"),
            misfit=lambda release: self.misfits.get(release.release_id, ""),
            is_free=lambda port: True,
            keep_hours=24,
            pace=FAST,
        )

    def _supervisor(self, release: Release, port: int) -> StudentSupervisor:
        name = release.release_id
        folder = self.record.path.parent

        def process() -> VllmProcess:
            plan = self.plans.get(name, "")
            command = [sys.executable, str(SCRIPT), str(port), self.names.get(name, name), str(folder / f"child-{name}")]
            return VllmProcess([*command, *([plan] if plan else [])], os.environ, folder / f"{name}.log")

        student = ServedStudent(BASE, name, f"http://127.0.0.1:{port}", SERVED, is_whole=True)
        return StudentSupervisor(
            self.record, student, prompts_of(self.record), new_process=process, say=self.said.append, pace=FAST
        )

    def server(self, release_id: str) -> StudentServer | None:
        return next((one for one in releases.servers(self.record) if one.release_id == release_id), None)

    def process_id(self, release_id: str) -> int:
        server = self.server(release_id)
        assert server is not None and server.process_id is not None
        return server.process_id


@asynccontextmanager
async def served(servers: WholeServers):
    task = asyncio.create_task(servers.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def whole(record: Record, name: str) -> str:
    return a_release(record, name, kind=ReleaseKind.MERGED, folder=record.path.parent)


def problem_with(record: Record, release_id: str) -> str:
    return "".join(load.detail for load in releases.loads(record) if load.release_id == release_id)


@pytest.mark.slow
def test_a_whole_release_gets_a_server_of_its_own_and_gives_it_back(record: Record, base_id: str) -> None:
    async def scenario() -> None:
        own = Own(record)
        async with served(own.servers):
            whole(record, "merged-1")
            await until(lambda: "merged-1" in loaded(record), "loaded")
            server = own.server("merged-1")
            assert server is not None and server.state is ServerState.READY
            assert [one.base_url for one in releases.servers_with(record, "merged-1")] == [server.base_url]
            process_id = own.process_id("merged-1")
            await until(lambda: (own.server("merged-1") or server).memory_bytes is not None, "measured")
            releases.refuse(record, "merged-1", actor="test", reason="not good enough")
            await until(lambda: own.server("merged-1") is None, "forgotten")
            assert is_gone(process_id) and "merged-1" not in loaded(record)
        assert any("is ready with merged-1" in line for line in own.said)

    run(scenario)


@pytest.mark.slow
def test_a_whole_release_that_is_answering_keeps_its_server_until_the_answer_has_ended(record: Record, base_id: str) -> None:
    async def scenario() -> None:
        own = Own(record)
        async with served(own.servers):
            whole(record, "merged-1")
            await until(lambda: "merged-1" in loaded(record), "loaded")
            process_id = own.process_id("merged-1")
            talk = turns.create_conversation(record, customer_id="anna", channel="chat").conversation_id
            asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "and now?")
            reply = turns.begin_reply(
                record, talk, question_turn_id=asked.turn_id, release_id="merged-1", prompt_version="1", decoding={}
            )
            releases.refuse(record, "merged-1", actor="test", reason="not good enough")
            await asyncio.sleep(0.8)
            assert not is_gone(process_id)
            turns.finish_reply(record, reply.turn_id, status=TurnStatus.COMPLETE, content="Now.")
            needs.settle(record, keep_hours=24)
            await until(lambda: is_gone(process_id), "ended")

    run(scenario)


def test_a_server_that_is_ending_when_the_serving_stops_is_seen_to_its_end(
    record: Record, base_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support_bot.vllm._PATIENCE_BEFORE_KILL_SECONDS", 0.5)

    async def scenario() -> None:
        own = Own(record)
        own.plans["merged-1"] = "slow-to-end"
        async with served(own.servers):
            whole(record, "merged-1")
            await until(lambda: "merged-1" in loaded(record), "loaded")
            process_id = own.process_id("merged-1")
            releases.refuse(record, "merged-1", actor="test", reason="not good enough")
            await until(lambda: state_of(record) is ServerState.DOWN, "ending")
            await asyncio.sleep(0.1)
            assert not is_gone(process_id)
        assert is_gone(process_id)

    run(scenario)


@pytest.mark.slow
def test_a_whole_releases_server_that_dies_comes_back_with_it(record: Record, base_id: str) -> None:
    async def scenario() -> None:
        own = Own(record)
        async with served(own.servers):
            whole(record, "merged-1")
            await until(lambda: "merged-1" in loaded(record), "loaded")
            first = own.process_id("merged-1")
            os.kill(first, signal.SIGKILL)
            await until(lambda: "merged-1" not in loaded(record), "noticed", seconds=3)
            await until(lambda: "merged-1" in loaded(record), "loaded again")
            assert own.process_id("merged-1") != first

    run(scenario)


FAULTS = {
    "never up": ("no-memory", "", "No available memory for the cache blocks; gave up after 3 starts"),
    "garbage": ("garbage", "", "the log-probability of a token is no number"),
    "another model": ("", "somebody-else", "serves somebody-else; expected 'merged-1'"),
    "arguments": ("wrong-arguments", "", "vLLM refused its command line"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_whole_release_that_cannot_be_served_is_a_failed_load_and_is_tried_again_when_wished_for_again(
    record: Record, base_id: str, fault: str
) -> None:
    plan, name, words = FAULTS[fault]

    async def scenario() -> None:
        own = Own(record, room=1)
        own.plans["merged-1"] = plan
        if name:
            own.names["merged-1"] = name
        async with served(own.servers):
            whole(record, "merged-1")
            await until(lambda: words in problem_with(record, "merged-1"), words, seconds=30)
            assert own.server("merged-1") is not None and not needs.is_kept(record, "merged-1")
            # What has given up takes no room.
            whole(record, "merged-2")
            await until(lambda: "merged-2" in loaded(record), "the next one loaded")
            releases.refuse(record, "merged-2", actor="test", reason="test")
            own.plans.clear()
            own.names.clear()
            releases.want(record, "merged-1", wanted_by="test")
            await until(lambda: "merged-1" in loaded(record), "loaded at the second wish", seconds=30)

    run(scenario)


@pytest.mark.slow
def test_where_there_is_no_room_the_release_in_service_goes_first_and_the_other_is_told_why(
    record: Record, base_id: str
) -> None:
    async def scenario() -> None:
        own = Own(record, room=1)
        with BasesServer(record, base_id, own) as supervisor:
            async with served(own.servers):
                task = asyncio.create_task(supervisor.run())
                whole(record, "merged-1")
                await until(lambda: "merged-1" in loaded(record), "loaded")
                (record.path.parent / "merged-2").mkdir()
                whole(record, "merged-2")
                await until(
                    lambda: (
                        "raise [student] max_whole_servers" in problem_with(record, "merged-2")
                        or "raise [student] max_whole_servers" in problem_with(record, "merged-1")
                    ),
                    "told",
                )
                releases.promote(record, "merged-2", actor="test", reason="test")
                await until(lambda: "merged-2" in loaded(record), "the promoted one loaded")
                await until(lambda: "there is room for 1" in problem_with(record, "merged-1"), "the other told")
                assert base_id in loaded(record)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    run(scenario)


class BasesServer:
    """The base's server, attached, which says why a whole release has none."""

    def __init__(self, record: Record, base_id: str, own: Own) -> None:
        self._vllm = ScriptedVllm(base_id)
        self._supervisor = attached(record, base_id, self._vllm.base_url, why_not_whole=own.servers.why_not)

    def __enter__(self) -> StudentSupervisor:
        self._vllm.__enter__()
        return self._supervisor

    def __exit__(self, *_: object) -> None:
        self._vllm.__exit__()


def test_a_whole_release_that_does_not_fit_gets_no_server_and_the_bases_server_says_why(
    record: Record, base_id: str
) -> None:
    async def scenario() -> None:
        own = Own(record)
        own.misfits["merged-1"] = "its tokenizer is another"
        with BasesServer(record, base_id, own) as supervisor:
            async with served(own.servers):
                task = asyncio.create_task(supervisor.run())
                whole(record, "merged-1")
                await until(lambda: problem_with(record, "merged-1") == "its tokenizer is another", "told")
                assert own.server("merged-1") is None
                releases.refuse(record, "merged-1", actor="test", reason="test")
                await until(lambda: problem_with(record, "merged-1") == "", "forgotten")
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    run(scenario)


def test_an_attached_server_may_serve_a_whole_release_and_counts_as_having_it(record: Record, base_id: str) -> None:
    whole(record, "merged-1")

    async def scenario() -> None:
        with ScriptedVllm("merged-1") as vllm:
            task = asyncio.create_task(attached(record, base_id, vllm.base_url).run())
            await until(lambda: loaded(record) == {"merged-1"}, "loaded")
            server = releases.servers_with(record, "merged-1")[0]
            assert server.base_url == vllm.base_url and server.release_id == "merged-1"
            assert [name for name, _ in vllm.asked] == ["merged-1"] and vllm.load_requests == []
            # As when its operator starts it with the next release.
            whole(record, "merged-2")
            vllm.names[:] = ["merged-2"]
            await until(lambda: loaded(record) == {"merged-2"}, "the next one loaded")
            assert state_of(record) is ServerState.READY
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert vllm.unload_requests == []

    run(scenario)
