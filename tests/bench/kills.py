"""Kill -9 at random moments while conversations are imported, chats go on and thumbs are given; then look what is there.

Run: `python -m tests.bench.kills [--kills 100] [--json FILE]`. Every process writes the name of what it has committed to a file
of its own after the store has said so; whatever stands in those files must be in the record, and `conversations verify` must
find nothing. So at most the open transaction of each process may be missing.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from conversations import checks, releases
from conversations.exchange import imports
from conversations.store import Record
from tests.bench.machine import hardware, told, written

KILLS_A_RECORD = 25
_IMPORTING = """
import json, sys
from pathlib import Path
from conversations.exchange import imports
from conversations.store import Record
record, folder, start = Record(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
with open(folder / f"import-{start}.txt", "w") as told:
    for number in range(10_000):
        path = folder / f"lines-{start}-{number}.jsonl"
        names = [f"i-{start}-{number}-{line}" for line in range(20)]
        path.write_text("".join(json.dumps({"id": name, "messages": [
            {"role": "user", "content": f"question {name} " * 8}, {"role": "assistant", "content": f"answer {name} " * 8},
            {"role": "user", "content": "and then?"}]}) + "\\n" for name in names))
        imports.import_files(record, [path])
        told.write("".join(name + "\\n" for name in names))
        told.flush()
"""
_CHATTING = """
import sys
from pathlib import Path
from conversations import turns
from conversations.messages import Author, Role, TurnStatus
from conversations.store import Record
record, folder, start = Record(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
base = sys.argv[4]
with open(folder / f"chat-{start}.txt", "w") as told:
    while True:
        talk = turns.create_conversation(record, customer_id=f"customer-{start}", channel="chat").conversation_id
        for number in range(5):
            asked = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, f"my router blinks, part {number}")
            told.write(asked.turn_id + "\\n"); told.flush()
            reply = turns.begin_reply(record, talk, question_turn_id=asked.turn_id, release_id=base, prompt_version="1", decoding={})
            told.write(reply.turn_id + "\\n"); told.flush()
            turns.save_partial(record, reply.turn_id, "Hold the", first_token_ms=1.0)
            turns.finish_reply(record, reply.turn_id, status=TurnStatus.COMPLETE, content="Hold the pin for ten seconds.")
"""
_VOTING = """
import sys
from pathlib import Path
from conversations import turns
from conversations.messages import Author, Role, Vote
from conversations.store import Record
record, folder, start = Record(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
name = f"voter-{start}"
talk = turns.create_conversation(record, customer_id=name, channel="chat").conversation_id
with open(folder / f"vote-{start}.txt", "w") as told:
    while True:
        turn = turns.append_message(record, talk, Role.USER, Author.CUSTOMER, "thank you")
        turns.vote_on(record, turn.turn_id, name, Vote.UP)
        told.write(turn.turn_id + "\\n"); told.flush()
        turns.vote_on(record, turn.turn_id, name, Vote.DOWN)
"""


@dataclass
class KillCounts:
    """What was seen over all kills."""

    kills: int = 0
    processes_killed: int = 0
    told_committed: int = 0
    missing: int = 0
    unclean: int = 0
    conversations: int = 0
    turns: int = 0
    seconds: float = 0.0


def kill_under_load(kills: int, folder: Path, *, seed: int) -> tuple[KillCounts, list[str]]:
    """Kill a load of three processes so many times and return the counts and the problems that were found."""
    chance = random.Random(seed)
    counts, problems = KillCounts(), []
    began = time.monotonic()
    for number in range(kills):
        inside = folder / f"record-{number // KILLS_A_RECORD}"
        inside.mkdir(exist_ok=True)
        path = inside / "record.db"
        with Record(path) as record:
            base = releases.register_base(record, base="tiny", weights_path="/none", weights_digest="sha256:" + "ab" * 32)
        _load_and_kill(path, inside, f"{number}", base, chance.uniform(0.35, 1.4))
        counts.kills += 1
        counts.processes_killed += 3
        with Record(path) as record:
            found = checks.verify(record).problems
            counts.unclean += bool(found)
            problems += [f"kill {number}: {problem}" for problem in found]
            missing = _missing(record, inside, f"{number}", counts)
            problems += [f"kill {number}: {name} was committed and is gone" for name in missing]
            counts.missing += len(missing)
            _finish_import(record, inside, f"{number}")
            now = checks.statistics(record)
        if number % KILLS_A_RECORD == KILLS_A_RECORD - 1 or number == kills - 1:
            counts.conversations += now.conversations
            counts.turns += now.turns
    counts.seconds = round(time.monotonic() - began, 1)
    return counts, problems


def _load_and_kill(path: Path, folder: Path, start: str, base: str, after_seconds: float) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(folder), start, base])
        for code in (_IMPORTING, _CHATTING, _VOTING)
    ]
    # The moment counts from when the load runs, not from when Python starts.
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and not all(
        (folder / f"{kind}-{start}.txt").exists() for kind in ("import", "chat", "vote")
    ):
        time.sleep(0.01)
    time.sleep(after_seconds)
    for process in running:
        process.send_signal(signal.SIGKILL)
    for process in running:
        process.wait()


def _missing(record: Record, folder: Path, start: str, counts: KillCounts) -> list[str]:
    """Return what a process was told is committed and the record does not have."""
    there = {
        "import": {
            str(row["source_id"]) for row in record.query("SELECT source_id FROM conversations WHERE source_id IS NOT NULL")
        },
        "chat": {str(row["turn_id"]) for row in record.query("SELECT turn_id FROM turns")},
        "vote": {str(row["turn_id"]) for row in record.query("SELECT turn_id FROM feedback")},
    }
    gone: list[str] = []
    for kind, names in there.items():
        # The last line may be half written: the process was killed.
        told_committed = (folder / f"{kind}-{start}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        counts.told_committed += len(told_committed)
        gone += [name for name in told_committed if name not in names]
    return gone


def _finish_import(record: Record, folder: Path, start: str) -> None:
    """Import the file that the killed process was at again: what is missing goes in, and nothing twice."""
    files = sorted(folder.glob(f"lines-{start}-*.jsonl"), key=lambda path: path.stat().st_mtime)
    for path in files[-1:]:
        complete = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        path.write_text("".join(line + "\n" for line in complete), encoding="utf-8")
        imports.import_files(record, [path])
        names = [json.loads(line)["id"] for line in complete]
        rows = record.query(
            "SELECT source_id FROM conversations WHERE source_id IN (SELECT value FROM json_each(?))", [json.dumps(names)]
        )
        assert sorted(str(row["source_id"]) for row in rows) == sorted(names), path
    for path in files:
        path.unlink()


def figures(kills: int, *, seed: int) -> dict[str, object]:
    """Run the kills in a folder of their own and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        counts, problems = kill_under_load(kills, Path(folder), seed=seed)
    return {"subject": "kill -9 under load", "hardware": hardware(), "seed": seed, **asdict(counts), "problems": problems}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = figures(arguments.kills, seed=arguments.seed)
    shown: Mapping[str, Mapping[str, object]] = {
        name: {"seen": found[name]}
        for name in (
            "kills",
            "processes_killed",
            "told_committed",
            "missing",
            "unclean",
            "conversations",
            "turns",
            "seconds",
        )
    }
    told("Killed with SIGKILL while importing, chatting and voting", shown)
    written(found, arguments.json)
    raise SystemExit(1 if found["problems"] else 0)


if __name__ == "__main__":
    main()
