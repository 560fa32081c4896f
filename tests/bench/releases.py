"""Promotions and rollbacks while customers are answered, with the real vLLM and the real session.

Run: `python -m tests.bench.releases [--conversations 200] [--moves 10] [--case NAME] [--json FILE]`. Two adapters that answer
otherwise, and a whole release that does, are put into service and taken back while conversations go on; vLLM is killed; a promotion
is killed before the pointer moves. Each release answers every question with a text of its own, so that every answer
tells whose weights it came from.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from conversations import releases, turns
from conversations.errors import OutsideError
from conversations.messages import Author, Consent, TurnStatus
from conversations.prompt import Renderer, SpokenTurn, messages_for_model
from conversations.releases import ReleaseKind, ServerState
from conversations.turns import Turn
from support_bot.routing import choose_server
from support_bot.session import Session
from tests.bench.arguments import at_least_one
from tests.bench.machine import hardware, told, written
from tests.bench.students import (
    ROOT,
    START_SECONDS,
    RunningStudent,
    register,
    running_student,
    until,
    write_adapter,
    write_whole,
)

STUDENT = ROOT / "var" / "students" / "smollm2-135m-instruct"
FIRST, SECOND, WHOLE = "student-a", "student-b", "student-whole"
CASES = ("under load", "rollback", "killed before the pointer moves", "blue and green", "vLLM killed")
MOST_ROLLBACK_SECONDS = 5.0
# Questions come over a few moves of the pointer; an answer takes longer than that, so that all of them are under way at once.
_ARRIVAL_SECONDS = 8.0
_TOPICS = ("router", "invoice", "line", "contract", "password", "modem", "address", "refund")
_LOADING = """
import sys, time
from pathlib import Path
from conversations import releases
from conversations.store import Record
with Record(Path(sys.argv[1])) as record:
    releases.want(record, sys.argv[2], wanted_by="test")
    while not releases.servers_with(record, sys.argv[2]):
        time.sleep(0.1)
    print("loaded", flush=True)
    time.sleep(600)
    releases.promote(record, sys.argv[2], actor="test", reason="never reached")
"""


@dataclass(frozen=True)
class Reply:
    """An answer, the question that it answers, and the prompt that was read."""

    conversation_id: str
    question: Turn
    answer: Turn
    prompt: tuple[int, ...]


def pointer_under_load(
    running: RunningStudent, first: str, second: str, conversations: int, moves: int
) -> dict[str, object]:
    """Hold conversations of two turns, all at once, while `second` is promoted and rolled back; return what was seen."""
    record = running.record
    releases.promote(record, first, actor="bench", reason="the beginning")
    stop = threading.Event()
    done = {"promotions": 0, "rollbacks": 0}

    def move() -> None:
        while done["rollbacks"] < moves or not stop.is_set():
            # As `distill promote` does: the pointer moves to what is loaded.
            releases.want(record, second, wanted_by="bench")
            until(lambda: bool(releases.servers_with(record, second)), "loaded", START_SECONDS)
            releases.promote(record, second, actor="bench", reason="back and forth")
            done["promotions"] += 1
            time.sleep(1.5)
            releases.roll_back(record, actor="bench", reason="back and forth")
            done["rollbacks"] += 1
            time.sleep(1.5)

    began = time.monotonic()
    mover = threading.Thread(target=move)
    mover.start()
    try:
        names = asyncio.run(_converse(running, conversations))
    finally:
        stop.set()
        mover.join()
    seconds = time.monotonic() - began
    replies = [reply for name in names for reply in replies_of(running, name)]
    origins = origins_of(running, replies, (first, second))
    return {
        "conversations at once": conversations,
        "requests": len(replies),
        **done,
        "failed": sum(reply.answer.status is not TurnStatus.COMPLETE for reply in replies),
        "replies that name no release": sum(reply.answer.release_id not in (first, second) for reply in replies),
        f"replies by {first}": sum(reply.answer.release_id == first for reply in replies),
        f"replies by {second}": sum(reply.answer.release_id == second for reply in replies),
        **origins,
        "moved without a rollback": len(moved_without_rollback(running, names)),
        "seconds": round(seconds, 1),
    }


async def _converse(running: RunningStudent, count: int) -> list[str]:
    session = Session(running.record, running.settings)

    async def one(number: int) -> str:
        topic = _TOPICS[number % len(_TOPICS)]
        await asyncio.sleep(_ARRIVAL_SECONDS * number / count)
        conversation_id = await session.open(
            f"customer-{number}", f"My {topic} number {number} is broken.", channel="chat", consent=Consent.UNKNOWN
        )
        await _answered(session, conversation_id)
        await session.ask(conversation_id, f"And what else can I do about the {topic}?")
        await _answered(session, conversation_id)
        return conversation_id

    try:
        return list(await asyncio.gather(*(one(number) for number in range(count))))
    finally:
        await session.close()


async def _answered(session: Session, conversation_id: str) -> None:
    async for _ in session.follow(conversation_id):
        pass


def replies_of(running: RunningStudent, conversation_id: str) -> list[Reply]:
    """Return a conversation's answers with the prompts that the student read."""
    renderer = _renderer(running.settings.student.base)
    prompt = running.settings.prompt
    thread = turns.thread(running.record, conversation_id)
    found = []
    for place, answer in enumerate(thread):
        if answer.author is not Author.STUDENT:
            continue
        spoken = [SpokenTurn(each.role, each.status, each.content, each.extra_json) for each in thread[:place]]
        messages, _ = messages_for_model(spoken, system_prompt=prompt.system, rules=running.settings.redaction.rules)
        token_ids = renderer.prompt(messages, max_prompt_tokens=prompt.max_prompt_tokens).token_ids
        found.append(Reply(conversation_id, thread[place - 1], answer, token_ids))
    return found


@cache
def _renderer(base: Path) -> Renderer:
    return Renderer.load(base)


def origins_of(running: RunningStudent, replies: Sequence[Reply], names: Sequence[str]) -> dict[str, object]:
    """Tell of each reply whether its text is the one that its release, and no other, answers every question with."""
    stop_ids = _renderer(running.settings.student.base).stop_ids
    said: dict[str, str] = {}
    for name in names:
        releases.want(running.record, name, wanted_by="bench")
        until(lambda name=name: bool(releases.servers_with(running.record, name)), "loaded", START_SECONDS)
        body = {"model": name, "prompt": list(replies[0].prompt), "max_tokens": running.settings.prompt.max_answer_tokens}
        answer = httpx.post(
            f"{choose_server(running.record, name).base_url}/v1/completions",
            json={**body, "temperature": 0, "stop_token_ids": list(stop_ids)},
            timeout=600,
            trust_env=False,
        )
        answer.raise_for_status()
        said[name] = str(answer.json()["choices"][0]["text"]).strip()
    assert len(set(said.values())) == len(names), said
    own = sum(reply.answer.content == said[str(reply.answer.release_id)] for reply in replies)
    return {"say what their release says": own, "say something else": len(replies) - own}


def moved_without_rollback(running: RunningStudent, names: Sequence[str]) -> list[str]:
    """Return the conversations whose second answer came from another release although the first one's was never taken back, or from
    the same one although it was: at no moment between the question and the beginning of its answer."""
    events = releases.events(running.record, limit=100_000)[::-1]

    def was_taken_back(release_id: str, after_utc: str, until_utc: str) -> set[bool]:
        own = [event for event in events if event.release_id == release_id]
        before = [event for event in own if event.happened_at_utc <= after_utc][-1:]
        between = [event for event in own if after_utc < event.happened_at_utc <= until_utc]
        return {event.event == "rolled_back" for event in [*before, *between]}

    wrong = []
    for name in names:
        first, second = replies_of(running, name)
        assert first.answer.release_id is not None
        moved = first.answer.release_id != second.answer.release_id
        states = was_taken_back(first.answer.release_id, second.question.created_at_utc, second.answer.created_at_utc)
        if moved not in states:
            wrong.append(name)
    return wrong


def rollback_seconds(running: RunningStudent, first: str, second: str) -> dict[str, object]:
    """Return how long it takes from a rollback to the first word of the restored release in an open conversation."""

    async def measure() -> tuple[float, str | None]:
        session = Session(running.record, running.settings)
        try:
            conversation_id = await session.open("customer", "My line is dead.", channel="chat", consent=Consent.UNKNOWN)
            await _answered(session, conversation_id)
            held = turns.conversation(running.record, conversation_id).release_id
            assert held == second, held
            began = time.monotonic()
            releases.roll_back(running.record, actor="bench", reason="measured")
            await session.ask(conversation_id, "Is it better now?")
            async for glimpse in session.follow(conversation_id):
                if glimpse.text:
                    break
            seconds = time.monotonic() - began
            await _answered(session, conversation_id)
            return seconds, replies_of(running, conversation_id)[-1].answer.release_id
        finally:
            await session.close()

    releases.promote(running.record, first, actor="bench", reason="measured")
    releases.promote(running.record, second, actor="bench", reason="measured")
    seconds, answered_by = asyncio.run(measure())
    return {"seconds to the first word by the restored release": round(seconds, 2), "answered by it": answered_by == first}


def killed_before_the_pointer_moves(running: RunningStudent, first: str, second: str) -> dict[str, object]:
    """Kill a promotion when its release is loaded, and see who answers."""
    releases.promote(running.record, first, actor="bench", reason="in service")
    process = subprocess.Popen(
        [sys.executable, "-c", _LOADING, str(running.record.path), second],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"loaded\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    answered = [reply for name in asyncio.run(_converse(running, 2)) for reply in replies_of(running, name)]
    return {
        "in service as before": releases.in_service(running.record) == first,
        "replies by it": sum(reply.answer.release_id == first for reply in answered),
        "replies": len(answered),
        "failed": sum(reply.answer.status is not TurnStatus.COMPLETE for reply in answered),
    }


def restarted(running: RunningStudent, first: str) -> dict[str, object]:
    """Kill vLLM, and see when the release in service is back."""
    releases.promote(running.record, first, actor="bench", reason="in service")
    until(lambda: first in running.loaded(), "loaded", START_SECONDS)
    os.kill(running.process_id(), signal.SIGKILL)
    return asked_until_it_is_back(running, first)


def asked_until_it_is_back(running: RunningStudent, first: str) -> dict[str, object]:
    """Ask, again and again, whichever server the record names for a release whose server was just killed; return what was seen."""
    began = time.monotonic()
    counts = {"asked and answered": 0, "asked a dead server": 0, "asked a server without the release": 0}
    noticed = None
    while True:
        now = time.monotonic() - began
        assert now < START_SECONDS, "never came back"
        try:
            server = choose_server(running.record, first)
        except OutsideError:
            noticed = noticed or now
            time.sleep(0.05)
            continue
        try:
            body = {"model": first, "prompt": [1, 2, 3, 4, 5], "max_tokens": 1, "temperature": 0}
            answer = httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=120, trust_env=False)
        except httpx.HTTPError:
            counts["asked a dead server"] += 1
            time.sleep(0.05)
            continue
        if answer.is_success:
            counts["asked and answered"] += 1
        else:
            # A server whose engine was killed answers for a moment, with an error of its own.
            is_missing = answer.status_code == httpx.codes.NOT_FOUND
            counts["asked a server without the release" if is_missing else "asked a dead server"] += 1
            time.sleep(0.05)
        if noticed is not None and counts["asked and answered"] >= 3:
            break
    return {
        "seconds until it was noticed": round(noticed or 0.0, 2),
        "seconds until the release answered again": round(now, 1),
        **counts,
    }


def blue_green(running: RunningStudent, first: str, whole: str, folder: Path) -> dict[str, object]:
    """Serve a whole release beside the first one, put it into service, take it back, and see its server end."""
    record = running.record
    releases.promote(record, first, actor="bench", reason="in service")
    before = asyncio.run(_converse(running, 1))[0]
    base = running.settings.student.base
    weights = write_whole(folder / whole, base, write_adapter(folder / "merged-in", base, 7))
    register(record, whole, ReleaseKind.MERGED, weights, base.name)
    seconds = until(lambda: bool(releases.servers_with(record, whole)), "served", START_SECONDS)
    server = releases.servers_with(record, whole)[0]
    assert server.process_id is not None
    releases.promote(record, whole, actor="bench", reason="blue and green")
    names = asyncio.run(_converse(running, 2))
    green = [reply for name in names for reply in replies_of(running, name)]
    origins = origins_of(running, green, (first, whole))
    until(lambda: _memory(running, whole) is not None, "measured", 60)
    memory, base_memory = _memory(running, whole), running.server().memory_bytes
    old = asyncio.run(_asked_again(running, before))
    releases.roll_back(record, actor="bench", reason="blue and green")
    moved = [asyncio.run(_asked_again(running, name)) for name in names]
    ended = until(lambda: not os.path.exists(f"/proc/{server.process_id}"), "ended", 120)
    return {
        "seconds from the wish to the second server's release": round(seconds, 1),
        "replies by the whole release": sum(reply.answer.release_id == whole for reply in green),
        **origins,
        "an open conversation kept its release": old.release_id == first,
        "after the rollback by the first": sum(turn.release_id == first for turn in moved),
        "failed": sum(each.status is not TurnStatus.COMPLETE for each in [*(reply.answer for reply in green), old, *moved]),
        "seconds from the rollback's replies to the end of the second server": round(ended, 1),
        "memory of the second server, MB": round((memory or 0) / 1e6),
        "memory of the first server, MB": round((base_memory or 0) / 1e6),
        "servers left": sum(each.state is ServerState.READY for each in releases.servers(record)),
    }


def _memory(running: RunningStudent, release_id: str) -> int | None:
    return next((one.memory_bytes for one in releases.servers(running.record) if one.release_id == release_id), None)


async def _asked_again(running: RunningStudent, conversation_id: str) -> Turn:
    session = Session(running.record, running.settings)
    try:
        await session.ask(conversation_id, "And now?")
        await _answered(session, conversation_id)
    finally:
        await session.close()
    return turns.thread(running.record, conversation_id)[-1]


def figures(cases: Sequence[str], conversations: int, moves: int) -> dict[str, dict[str, object]]:
    """Go through the cases with one server, print what was seen of each as it comes, and return all."""
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name, running_student(Path(name), STUDENT, (FIRST, SECOND)) as running:
        work: dict[str, Callable[[], dict[str, object]]] = {
            "under load": lambda: pointer_under_load(running, FIRST, SECOND, conversations, moves),
            "rollback": lambda: rollback_seconds(running, FIRST, SECOND),
            "killed before the pointer moves": lambda: killed_before_the_pointer_moves(running, FIRST, SECOND),
            "blue and green": lambda: blue_green(running, FIRST, WHOLE, Path(name)),
            "vLLM killed": lambda: restarted(running, FIRST),
        }
        for case in cases:
            found[case] = work[case]()
            told(case, {what: {"seen": value} for what, value in found[case].items()})
    return found


def faults_in(found: dict[str, dict[str, object]]) -> list[str]:
    """Return what should have been otherwise."""
    promises: list[tuple[str, str, object]] = [
        ("under load", "failed", 0),
        ("under load", "replies that name no release", 0),
        ("under load", "say something else", 0),
        ("under load", "moved without a rollback", 0),
        ("rollback", "answered by it", True),
        ("killed before the pointer moves", "in service as before", True),
        ("killed before the pointer moves", "failed", 0),
        ("blue and green", "failed", 0),
        ("blue and green", "say something else", 0),
        ("blue and green", "an open conversation kept its release", True),
        ("blue and green", "servers left", 1),
        ("vLLM killed", "asked a server without the release", 0),
    ]
    faults = [
        f"{case}: {name} is {found[case][name]!r}"
        for case, name, right in promises
        if case in found and found[case][name] != right
    ]
    seconds = found.get("rollback", {}).get("seconds to the first word by the restored release", 0.0)
    if not isinstance(seconds, float) or seconds > MOST_ROLLBACK_SECONDS:
        faults.append(f"rollback: {seconds!r} seconds")
    faults += [
        f"under load: no reply by {name}, so that nothing is proved"
        for name in (FIRST, SECOND)
        if found.get("under load", {}).get(f"replies by {name}") == 0
    ]
    return faults


def main() -> None:
    """Print the figures; exit 1 where a promise did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=at_least_one, default=200)
    parser.add_argument("--moves", type=at_least_one, default=10)
    parser.add_argument("--case", action="append", choices=CASES, help="only this; may be given several times")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = figures(arguments.case or CASES, arguments.conversations, arguments.moves)
    faults = faults_in(found)
    written({"subject": "releases", "hardware": hardware(), **found, "faults": faults}, arguments.json)
    with suppress(BrokenPipeError):
        print("\n".join(faults), file=sys.stderr)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
