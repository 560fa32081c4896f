"""How fast the online figures of releases are in a large record, and how often and how soon the rules take a canary back.

Run: `python -m tests.bench.online [--turns 1000000] [--json FILE]`. The record is made by SQL, half its turns are answers of two
releases over sixty days. The rules are tried on canaries whose answers fail by chance, with a look after every answer: more often
than the watch in the chat looks, so that real canaries are taken back by accident at most as often.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from conversations import online, releases
from conversations.entry import TURNS_PER_CONVERSATION
from conversations.messages import utc_now, utc_text
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.rollouts import Rules
from conversations.store import Record
from tests.bench.machine import hardware, told, written

TURNS_A_CONVERSATION = 10
DAYS = 60
_AT_ONCE = 2_000


def filled(record: Record, turn_count: int, *, seed: int) -> tuple[str, str]:
    """Fill a record with conversations of the last sixty days and return the release in service and the one on trial."""
    base = releases.register_base(record, base="bench", weights_path="/none", weights_digest="sha256:" + "cd" * 32)
    release = Release("tried", None, "bench", ReleaseKind.LORA, "/w", "sha256:1", {}, utc_now(), ReleaseState.CANDIDATE)
    releases.register(record, release, actor="bench", reason="bench")
    chance = random.Random(seed)
    talks = turn_count // TURNS_A_CONVERSATION
    beginning = datetime.now(UTC) - timedelta(days=DAYS)
    for first in range(0, talks, _AT_ONCE):
        with record.write() as transaction:
            for number in range(first, min(first + _AT_ONCE, talks)):
                began = beginning + timedelta(days=DAYS * number / talks)
                _talk(transaction, number, began, "tried" if number % 10 == 0 else base, chance)
    return base, "tried"


def _talk(transaction, number: int, began: datetime, release_id: str, chance: random.Random) -> None:
    customer, talk = f"customer-{number}", f"talk-{number}"
    transaction.execute("INSERT INTO customers VALUES (?, ?)", [customer, utc_text(began)])
    transaction.insert(
        "conversations",
        {
            "conversation_id": talk,
            "conversation_seq": number + 1,
            "customer_id": customer,
            "channel": "chat",
            "state": "waiting" if number % 50 == 0 else "bot",
            "consent": "unknown",
            "created_at_utc": utc_text(began),
            "updated_at_utc": utc_text(began + timedelta(minutes=TURNS_A_CONVERSATION)),
        },
    )
    rows, votes = [], []
    for place in range(TURNS_A_CONVERSATION):
        is_reply = place % 2 == 1
        now = utc_text(began + timedelta(minutes=place))
        rows.append(
            {
                "turn_seq": (number + 1) * TURNS_PER_CONVERSATION + place,
                "turn_id": f"turn-{number}-{place}",
                "conversation_id": talk,
                "position": 0,
                "role": "assistant" if is_reply else "user",
                "author": ("operator" if number % 40 == 0 and place == 9 else "student") if is_reply else "customer",
                "status": "failed" if is_reply and chance.random() < 0.02 else "complete",
                "content": "Push the plug in." if is_reply else "It blinks coral.",
                "content_hash": "none",
                "release_id": release_id if is_reply else None,
                "first_token_ms": chance.uniform(50, 400) if is_reply else None,
                "latency_ms": chance.uniform(400, 3000) if is_reply else None,
                "created_at_utc": now,
            }
        )
        if is_reply and chance.random() < 0.1:
            votes.append((f"turn-{number}-{place}", customer, chance.choice(["up", "down"]), now))
    transaction.insert_many("turns", rows)
    for turn_id, customer_id, vote, now in votes:
        transaction.execute("INSERT INTO feedback VALUES (?, ?, ?, '', ?)", [turn_id, customer_id, vote, now])


def timed(record: Record, tried: str, *, times: int = 5) -> dict[str, object]:
    """Return what a look takes, in milliseconds of a processor: all releases as the console draws them, and the one that is watched.

    Processor time is what is the same on a machine that does other things too; the median of a few looks.
    """
    found: dict[str, object] = {}
    for name, days in (("a day", 1), ("a week", 7), ("ever", 10_000)):
        since = utc_text(datetime.now(UTC) - timedelta(days=days))
        met = online.figures(record, since_utc=since)
        found[f"answers since {name}"] = sum(each.turns for each in met.values())
        found[f"the console's table since {name}, ms"] = _spent(
            times, lambda since=since: online.figures(record, since_utc=since)
        )
        found[f"the watch's look since {name}, ms"] = _spent(
            times, lambda since=since: online.figures_of(record, tried, since_utc=since)
        )
    return found


def _spent(times: int, look: Callable[[], object]) -> float:
    took = []
    for _ in range(times):
        began = time.process_time()
        look()
        took.append((time.process_time() - began) * 1e3)
    return median(took)


def taken_back(error_rate: float, *, canaries: int, answers: int, seed: int) -> Mapping[str, object]:
    """Return how many of some canaries the error rule takes back within so many answers, and after how many at the median."""
    rules, chance, ends = Rules(), random.Random(seed), []
    for _ in range(canaries):
        failed = 0
        for number in range(1, answers + 1):
            failed += chance.random() < error_rate
            found = online.rate(failed, number)
            if number >= rules.min_turns and found.low is not None and found.low > rules.max_error_rate:
                ends.append(number)
                break
    return {"taken back": len(ends) / canaries, "after answers, median": median(ends) if ends else None}


def figures(turn_count: int, *, canaries: int, answers: int, seed: int = 7) -> dict[str, object]:
    """Measure both."""
    with tempfile.TemporaryDirectory() as folder, Record(Path(folder) / "record.db") as record:
        began = time.monotonic()
        _, tried = filled(record, turn_count, seed=seed)
        made_s = time.monotonic() - began
        return {
            "hardware": hardware(),
            "turns": turn_count,
            "record made, s": made_s,
            "speed": timed(record, tried),
            "rules": {
                f"{rate:.0%} of answers fail": dict(taken_back(rate, canaries=canaries, answers=answers, seed=seed))
                for rate in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
            },
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--canaries", type=int, default=1_000)
    parser.add_argument("--answers", type=int, default=500, help="how long each canary goes on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = figures(arguments.turns, canaries=arguments.canaries, answers=arguments.answers)
    told(f"online figures at {arguments.turns:,} turns", {name: {"": each} for name, each in found["speed"].items()})  # type: ignore[attr-defined]
    told("the error rule (5 %, 20 answers)", found["rules"])  # type: ignore[arg-type]
    written(found, arguments.json)


if __name__ == "__main__":
    main()
