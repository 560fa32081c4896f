"""How fast teaching asks, beside a plain gather over the openai client and one peer library, against the same loopback server.

The server is a process of its own that answers each request after 200 ms. Ours is the whole stage: a real record, money reserved
and settled, raw replies saved. The rounds are interleaved. Run: python -m tests.bench.teach [--json FILE]
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from conversations.decisions import Decision, put_decisions
from conversations.dialogues import every_dialogue
from conversations.exchange import imports
from conversations.messages import Split
from conversations.settings import read_settings
from conversations.store import Record
from distill.dataset.teach import teach
from distill.rows import ChosenRow, LabelsRow, MessageRow
from distill.run import Stage, new_run
from distill.settings import DistillSettings
from tests.bench import machine

LATENCY_SECONDS = 0.2
CONCURRENCY = 64
IDEAL = CONCURRENCY / LATENCY_SECONDS
SYSTEM = "You are the support assistant of a home-internet provider. " * 8
PEER = Path("var/bench/peer/bin/python")
PEER_CODE = """
import asyncio, json, os, sys, time
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
url, count, system = sys.argv[1], int(sys.argv[2]), sys.argv[3]
async def main():
    places = asyncio.Semaphore(64)
    async def one(place):
        async with places:
            await litellm.acompletion(model="openai/m", api_base=url, api_key="x", temperature=0, max_tokens=400,
                messages=[{"role": "system", "content": system}, {"role": "user", "content": f"Question {place}, please?"}])
    await asyncio.gather(*(one(place) for place in range(64)))
    began = time.perf_counter()
    await asyncio.gather(*(one(place) for place in range(count)))
    print(json.dumps(count / (time.perf_counter() - began)))
asyncio.run(main())
"""
SETTINGS = """
[record]
path = "record.db"
[student]
base = "none"
profile = "cpu"
[prompt]
system = "You help."
[runs]
folder = "runs"
[teachers.big]
base_url = "{base_url}"
model = "m"
licence_allows_training = "yes"
prompt_usd_per_million = 1.0
completion_usd_per_million = 1.0
concurrency = 64
[teach]
teacher = "big"
max_cost_usd = 1000.0
max_calls = 1000000
[evaluate]
server_usd_per_hour = 0.1
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.02
"""


class _Answering(asyncio.Protocol):
    """HTTP/1.1 with the least work: a request is whole when its body is; the answer goes out after the latency."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._held = transport, b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, end, rest = self._held.partition(b"\r\n\r\n")
        if not end:
            return
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) >= size:
            self._held = rest[size:]
            asyncio.get_running_loop().call_later(LATENCY_SECONDS, self._answer)

    def _answer(self) -> None:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "Press the button twice."},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 120, "completion_tokens": 6, "total_tokens": 126}
        body = json.dumps(
            {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write((head + body).encode())  # type: ignore[attr-defined]


def _serve(told: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", 0, backlog=256)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def answering() -> Iterator[str]:
    """A server in a process of its own; yields its base_url."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def plain(base_url: str, count: int, *, on_aiohttp: bool) -> float:
    """Requests a second of asyncio.gather over the openai client behind a semaphore, which keeps nothing."""
    import openai

    async def main() -> float:
        http = openai.DefaultAioHttpClient() if on_aiohttp else None
        async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0, http_client=http) as client:
            places = asyncio.Semaphore(CONCURRENCY)

            async def one(place: int) -> None:
                async with places:
                    await client.chat.completions.create(
                        model="m", temperature=0, max_tokens=400,
                        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Question {place}, please?"}],
                    )  # fmt: skip

            await asyncio.gather(*(one(place) for place in range(CONCURRENCY)))
            began = time.perf_counter()
            await asyncio.gather(*(one(place) for place in range(count)))
            return count / (time.perf_counter() - began)

    return asyncio.run(main())


def ours(base_url: str, count: int) -> float:
    """Decisions a second of the whole stage: from the chosen rows to answers.jsonl, money and replies in the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "settings.toml").write_text(SETTINGS.format(base_url=base_url), encoding="utf-8")
        lines = (
            {"id": f"c{place}", "consent": True, "messages": [{"role": "user", "content": f"Question {place}, please?"}]}
            for place in range(count)
        )
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        settings = read_settings(DistillSettings, folder / "settings.toml")
        with Record(folder / "record.db") as record:
            imports.import_files(record, [folder / "in.jsonl"])
            with new_run(record, settings) as run:
                rows = []
                for dialogue in every_dialogue(record):
                    (turn,) = dialogue.turns
                    rows.append(
                        ChosenRow(
                            decision_id=f"decision_{turn.turn_id}", conversation_id=turn.conversation_id,
                            cluster_id=turn.conversation_id, topic="", split=Split.TRAIN, chosen_because="coverage",
                            labels=LabelsRow(),
                            messages=(MessageRow(role="system", content=SYSTEM), MessageRow(role="user", content=turn.content)),
                        )
                    )  # fmt: skip
                put_decisions(
                    record,
                    (
                        Decision(
                            row.decision_id, row.conversation_id, row.decision_id.removeprefix("decision_"), None, row.cluster_id,
                            row.split, "", "", run.run_id, "coverage",
                        )
                        for row in rows
                    ),
                )  # fmt: skip
                run.write_rows(Stage.CHOOSE, "decisions.jsonl", rows)
                began = time.perf_counter()
                manifest = run.perform(Stage.TEACH, teach)
                seconds = time.perf_counter() - began
        assert manifest.counts.accepted == count
        return count / seconds


def peer(base_url: str, count: int) -> float | None:
    """Requests a second of litellm in an environment of its own; None where that is not there."""
    if not PEER.is_file():
        print(f"{PEER} is not there: python3.11 -m venv {PEER.parents[1]} and pip install litellm there", file=sys.stderr)
        return None
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [str(PEER), "-c", PEER_CODE, base_url, str(count), SYSTEM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        print(f"litellm failed: {done.stderr[-500:]}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def figures(count: int, rounds: int) -> dict[str, object]:
    """Ask `count` decisions each way, `rounds` times in turn; return the medians a second and their share of the ideal."""
    cases = {
        "teach": ours,
        "gather, openai client on aiohttp": lambda url, n: plain(url, n, on_aiohttp=True),
        "gather, openai client": lambda url, n: plain(url, n, on_aiohttp=False),
        "litellm": peer,
    }
    measured: dict[str, list[float]] = {name: [] for name in cases}
    with answering() as base_url:
        for _ in range(rounds):
            for name, case in cases.items():
                found = case(base_url, count)
                if found is not None:
                    measured[name].append(found)
    return {
        "hardware": machine.hardware(),
        "decisions": count,
        "rounds": rounds,
        "ideal, a second": IDEAL,
        "ways": {
            name: {
                "a second": round(statistics.median(values), 1),
                "share of the ideal": round(statistics.median(values) / IDEAL, 3),
                "rounds": [round(value, 1) for value in values],
            }
            for name, values in measured.items()
            if values
        },
    }


def show(found: dict[str, object]) -> None:
    """Print the figures as a table."""
    ways = found["ways"]
    assert isinstance(ways, dict)
    columns = ("a second", "share of the ideal")
    title = f"Asking at concurrency {CONCURRENCY}, {LATENCY_SECONDS * 1000:.0f} ms latency"
    machine.told(title, {column: {name: each[column] for name, each in ways.items()} for column in columns})


def main() -> None:
    """Measure, print a table, and write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--decisions", type=int, default=3200)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    found = figures(chosen.decisions, chosen.rounds)
    show(found)
    machine.written(found, chosen.json)


if __name__ == "__main__":
    main()
