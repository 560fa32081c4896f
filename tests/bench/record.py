"""How fast, large and lean the record is, beside plain sqlite-utils calls in the same run.

Run: `python -m tests.bench.record [--turns 100000 --turns 1000000] [--json FILE]`. For each size a log of made-up conversations
is imported by the real command, searched, paged, exported, checked, backed up and made to forget a person. The baseline does
what a first version would: one table through sqlite-utils with its full-text search, filters by a join, pages by OFFSET.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate, islice
from pathlib import Path

from sqlite_utils import Database

from conversations import backup, checks, decisions, erasure, releases, runs, search, turns
from conversations.messages import Author, Role, TurnStatus, Vote
from conversations.search import Filters
from conversations.store import Record
from tests.bench.machine import hardware, percentile, told, written

DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "conversations.jsonl"
TURNS_A_CONVERSATION = 10
BEGINNING = datetime(2025, 6, 1, tzinfo=UTC)
DAYS = 400
PAGE_SIZE = 50
OTHERS = {
    "uk": [
        "Після оновлення застосунок не відкривається, що робити?",
        "Поверніть гроші за замовлення, будь ласка, вже тиждень чекаю.",
    ],
    "zh": ["我想申请退款，路由器坏了。", "今天早上网络断开了，灯一直闪。"],
}
_READ_WRITE = """
import sys, time
from pathlib import Path
from conversations.store import Record
record = Record(Path(sys.argv[1])); print("ready", flush=True); sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with record.write() as transaction:
        value = int(transaction.query("SELECT value FROM counters WHERE name = 'bench'")[0]["value"])
        transaction.execute("UPDATE counters SET value = ? WHERE name = 'bench'", [value + 1])
print(0, time.time())
"""
_READ_WRITE_PLAIN = """
import sqlite3, sys, time
from sqlite_utils import Database
db = Database(sys.argv[1]); print("ready", flush=True); sys.stdin.readline()
errors = 0
for _ in range(int(sys.argv[2])):
    try:
        with db.atomic():
            value = db["counters"].get("bench")["value"]
            db["counters"].update("bench", {"value": value + 1})
    except sqlite3.OperationalError:
        errors += 1
print(errors, time.time())
"""
_MIGRATE = "import sys; from pathlib import Path; from conversations.store import Record; Record(Path(sys.argv[1])).close()"


def transactions(folder: Path, *, processes: int, each: int) -> dict[str, dict[str, object]]:
    """Let processes read, add one and write: ours and plain sqlite-utils, one after the other."""
    with Record(folder / "ours.db") as record, record.write() as transaction:
        transaction.execute("INSERT INTO counters VALUES ('bench', 0)")
    plain = Database(folder / "plain.db")
    plain["counters"].insert({"name": "bench", "value": 0}, pk="name")
    plain.close()
    found: dict[str, dict[str, object]] = {}
    for name, code, path in (("record", _READ_WRITE, "ours.db"), ("sqlite-utils", _READ_WRITE_PLAIN, "plain.db")):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(folder / path), str(each)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        began = time.time()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [process.communicate()[0].split() for process in running]
        database = Database(folder / path)
        value = int(database["counters"].get("bench")["value"])  # type: ignore[index]
        database.close()
        errors = sum(int(end[0]) for end in ends)
        asked = processes * each
        found[name] = {
            "transactions a second": value / (max(float(end[1]) for end in ends) - began),
            "errors": errors,
            "lost": asked - errors - value,
        }
    return found


def migrations_at_once(folder: Path, *, processes: int) -> dict[str, object]:
    """Open one new record from many processes at once."""
    path = str(folder / "new.db")
    running = [subprocess.Popen([sys.executable, "-c", _MIGRATE, path], stderr=subprocess.PIPE) for _ in range(processes)]
    return {
        "processes": processes,
        "errors": sum(bool(process.communicate()[1]) or process.returncode != 0 for process in running),
    }


def lines(turn_count: int, *, seed: int) -> Iterator[str]:
    """Yield a log in which words are as rare and as common as in the demo's conversations."""
    chance = random.Random(seed)
    counts: dict[str, int] = {}
    for line in DEMO.read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            for word in message["content"].split():
                counts[word] = counts.get(word, 0) + 1
    vocabulary = list(counts)
    weights = list(accumulate(counts.values()))
    for number in range(turn_count // TURNS_A_CONVERSATION):
        language = "uk" if number % 33 == 0 else "zh" if number % 97 == 0 else "en"
        messages = []
        for position in range(TURNS_A_CONVERSATION):
            words = " ".join(chance.choices(vocabulary, cum_weights=weights, k=chance.randint(6, 30)))
            text = chance.choice(OTHERS[language]) if language != "en" else words
            if number % 40 == 0:
                text += " 🙂"
            # A word that stands in one conversation alone, as an order number does.
            text += f" TW-{number:07d}" if position == 0 else ""
            messages.append({"role": "user" if position % 2 == 0 else "assistant", "content": text})
        yield json.dumps(
            {
                "id": f"bench-{number}",
                "customer_id": f"customer-{number // 3}",
                "created_at": (
                    BEGINNING + timedelta(minutes=number * DAYS * 1440 // (turn_count // TURNS_A_CONVERSATION))
                ).isoformat(),
                "messages": messages,
                "feedback": [{"message": 1, "value": "down"}] if number % 8 == 0 else [],
                "tags": ["vip"] if number % 50 == 0 else [],
                "consent": True,
            },
            ensure_ascii=False,
        )


def _command(*arguments: str) -> tuple[float, float, dict[str, object]]:
    """Run a command of the record; return its seconds, its peak memory in MB and its answer."""
    code = (
        # Not ru_maxrss, which a child takes over from the process that began it.
        "import re, sys\nfrom pathlib import Path\nfrom conversations.cli import app\n"
        "try:\n    app(standalone_mode=False)\nfinally:\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1], file=sys.stderr)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments, "--json"], capture_output=True, text=True, check=True)
    return time.monotonic() - began, int(done.stderr.split()[-1]) / 1e3, json.loads(done.stdout)


def _chats(record: Record, number: int) -> None:
    """Add chats with a release, failures and answers that differ, which no import brings."""
    base = releases.register_base(record, base="bench", weights_path="/none", weights_digest="sha256:" + "cd" * 32)
    runs.begin_run(record, run_id="run_bench", path="/none", settings_digest="none")
    for each in range(number):
        talk = turns.create_conversation(record, customer_id=f"chat-{each}", channel="chat").conversation_id
        asked = turns.append_message(
            record, talk, Role.USER, Author.CUSTOMER, f"my router blinks coral since {each} o'clock"
        )
        reply = turns.begin_reply(
            record, talk, question_turn_id=asked.turn_id, release_id=base, prompt_version="1", decoding={}
        )
        failed = each % 10 == 0
        turns.finish_reply(
            record,
            reply.turn_id,
            status=TurnStatus.FAILED if failed else TurnStatus.COMPLETE,
            content="" if failed else "Push the plug in.",
        )
        if each % 5 == 0:
            decision = decisions.Decision(
                f"decision_{each}", talk, asked.turn_id, None, "c", decisions.Split.TRAIN, "t", "h", "run_bench", "because"
            )
            decisions.put_decisions(record, [decision])
            for author, text in ((decisions.AnswerAuthor.TEACHER, "one"), (decisions.AnswerAuthor.OPERATOR, "two")):
                decisions.add_answer(record, decision.decision_id, author=author, author_name=author.value, content=text)


def _queries(conversation_count: int) -> dict[str, tuple[str, Filters]]:
    """Return what operators ask, by name: words rare and common, every script, and filters alone and combined."""
    month = {"since": date(2026, 3, 1), "until": date(2026, 3, 31)}
    return {
        "rare word": (f"TW-{conversation_count // 2:07d}", Filters()),
        "common word": ("the", Filters()),
        "two words": ("router light", Filters()),
        "beginning of words": ("re", Filters()),
        "quotes and operators": ('"coral" AND -light* (NEAR', Filters()),
        "one Chinese character": ("退", Filters()),
        "emoji": ("🙂", Filters()),
        "Ukrainian": ("гроші", Filters()),
        "nothing that is there": ("zzzqqq", Filters()),
        "no words": ("", Filters()),
        "no words, rare language": ("", Filters(language="zh")),
        "no words, all filters": ("", Filters(vote=Vote.DOWN, language="uk", tag="vip", **month)),  # type: ignore[arg-type]
        "failed": ("", Filters(status=TurnStatus.FAILED)),
        "disagreement": ("", Filters(has_disagreement=True)),
        "common word, rare language": ("router", Filters(language="zh")),
        "common word, thumb, month": ("the", Filters(vote=Vote.DOWN, **month)),  # type: ignore[arg-type]
        "common word, tag": ("please", Filters(tag="vip")),
        "common word, tag, language, thumb": ("the", Filters(tag="vip", language="en", vote=Vote.DOWN)),
        "common word, disagreement": ("the", Filters(has_disagreement=True)),
        "word, failed": ("coral", Filters(status=TurnStatus.FAILED)),
        "Chinese word, month": ("退款", Filters(**month)),  # type: ignore[arg-type]
        "Ukrainian, thumb": ("будь ласка", Filters(vote=Vote.DOWN)),
    }


def _timed(ask: Callable[[], object], times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    return took


def _searches(record: Record, conversation_count: int, times: int) -> tuple[list[float], dict[str, float]]:
    every: list[float] = []
    by_name: dict[str, float] = {}
    for name, (query, filters) in _queries(conversation_count).items():
        took = _timed(lambda query=query, filters=filters: search.find(record, query, filters, limit=PAGE_SIZE), times)  # type: ignore[misc]
        every += took
        by_name[name] = round(percentile(took, 0.5), 2)
    return every, by_name


def _pages(record: Record, wanted: int) -> list[float]:
    after, seen, took = "", 0, []
    while seen < wanted:
        began = time.perf_counter()
        page = search.find(record, "", after=after, limit=PAGE_SIZE)
        took.append((time.perf_counter() - began) * 1000)
        if not page:
            break
        after, seen = page[-1].cursor, seen + len(page)
    return took


def ours(folder: Path, log: Path, turn_count: int, *, times: int, paged: int) -> dict[str, object]:
    """Do everything with the record and return its figures."""
    path = folder / "record.db"
    conversation_count = turn_count // TURNS_A_CONVERSATION
    import_seconds, import_mb, counts = _command("import", str(log), "--record", str(path))
    assert counts["turns"] == turn_count, counts
    again_seconds, _, again = _command("import", str(log), "--record", str(path))
    assert again["turns"] == 0 and again["already_present"] == conversation_count, again
    with Record(path) as record:
        _chats(record, min(1000, conversation_count))
        file_bytes = checks.statistics(record).bytes
        searched, by_query = _searches(record, conversation_count, times)
        pages = _pages(record, paged)
        began = time.monotonic()
        problems = checks.verify(record).problems
        verify_seconds = time.monotonic() - began
        assert not problems, problems
        began = time.monotonic()
        backup.back_up(record, folder / "backup.db")
        backup_seconds = time.monotonic() - began
        (folder / "backup.db").unlink()
    export_seconds, export_mb, exported = _command("export", "--out", str(folder / "out.jsonl"), "--record", str(path))
    (folder / "out.jsonl").unlink()
    with Record(path) as record:
        began = time.monotonic()
        erasure.erase_customer(record, "customer-1", actor="bench")
        erase_seconds = time.monotonic() - began
    return {
        "import, turns a second": turn_count / import_seconds,
        "import again, turns a second": turn_count / again_seconds,
        "import, peak MB": import_mb,
        "file, MB": file_bytes / 1e6,
        "file, bytes a turn": file_bytes / turn_count,
        "search p50, ms": percentile(searched, 0.5),
        "search p95, ms": percentile(searched, 0.95),
        "search, by query": by_query,
        f"page of {PAGE_SIZE} p50, ms": percentile(pages, 0.5),
        f"page of {PAGE_SIZE} p95, ms": percentile(pages, 0.95),
        "conversations paged": min(paged, len(pages) * PAGE_SIZE),
        "export, turns a second": int(str(exported["turns"])) / export_seconds,
        "export, peak MB": export_mb,
        "verify, s": verify_seconds,
        "backup, s": backup_seconds,
        "erase a person, s": erase_seconds,
    }


def plain(folder: Path, log: Path, turn_count: int, *, times: int, paged: int) -> dict[str, object]:
    """Do the same with plain sqlite-utils calls."""
    path = folder / "plain.db"
    database = Database(path)
    began = time.monotonic()
    database["turns"].create({"id": int, "conversation": str, "role": str, "content": str}, pk="id")
    database["turns"].enable_fts(["content"], create_triggers=True)  # type: ignore[union-attr]
    database["turns"].create_index(["conversation"])  # type: ignore[union-attr]
    with log.open(encoding="utf-8") as source:
        while read := [json.loads(line) for line in islice(source, 100)]:
            database["conversations"].insert_all(  # type: ignore[union-attr]
                (
                    {
                        "id": each["id"],
                        "created_at": each["created_at"],
                        "tag": ",".join(each["tags"]),
                        "vote": each["feedback"][0]["value"] if each["feedback"] else "",
                        "language": "uk" if "П" in each["messages"][0]["content"] else "en",
                    }
                    for each in read
                ),
                pk="id",
                ignore=True,
            )
            database["turns"].insert_all(  # type: ignore[union-attr]
                {"conversation": each["id"], "role": message["role"], "content": message["content"]}
                for each in read
                for message in each["messages"]
            )
    load_seconds = time.monotonic() - began
    file_bytes = sum(each.stat().st_size for each in folder.glob("plain.db*"))
    conditions = {
        "vote": "conversation in (select id from conversations where vote = 'down')",
        "tag": "conversation in (select id from conversations where tag = 'vip')",
        "language": "conversation in (select id from conversations where language = 'uk')",
    }
    searched: list[float] = []
    for query, filters in _queries(turn_count // TURNS_A_CONVERSATION).values():
        where = " and ".join(text for name, text in conditions.items() if getattr(filters, name)) or None
        if query:
            searched += _timed(
                lambda query=query, where=where: list(  # type: ignore[misc]
                    database["turns"].search(query, where=where, limit=PAGE_SIZE, quote=True)  # type: ignore[union-attr]
                ),
                max(1, times // 4),
            )
    pages = _timed_pages(database, paged)
    database.close()
    return {
        "import, turns a second": turn_count / load_seconds,
        "file, MB": file_bytes / 1e6,
        "file, bytes a turn": file_bytes / turn_count,
        "search p50, ms": percentile(searched, 0.5),
        "search p95, ms": percentile(searched, 0.95),
        f"page of {PAGE_SIZE} p50, ms": percentile(pages, 0.5),
        f"page of {PAGE_SIZE} p95, ms": percentile(pages, 0.95),
        "conversations paged": min(paged, len(pages) * PAGE_SIZE),
    }


def _timed_pages(database: Database, paged: int) -> list[float]:
    took = []
    for offset in range(0, paged, PAGE_SIZE):
        began = time.perf_counter()
        rows = list(database["conversations"].rows_where(order_by="created_at desc", limit=PAGE_SIZE, offset=offset))
        took.append((time.perf_counter() - began) * 1000)
        if not rows:
            break
    return took


def figures(
    sizes: list[int], *, times: int = 20, paged: int = 10_000, processes: int = 8, each: int = 200
) -> dict[str, object]:
    """Measure every size in a folder of its own and return all figures."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        folder = Path(name)
        found: dict[str, object] = {
            "subject": "the record",
            "hardware": hardware(),
            "transactions": transactions(folder, processes=processes, each=each),
            "migrations at once": migrations_at_once(folder, processes=processes),
        }
        for turn_count in sizes:
            inside = folder / str(turn_count)
            inside.mkdir()
            log = inside / "log.jsonl"
            with log.open("w", encoding="utf-8") as out:
                out.writelines(line + "\n" for line in lines(turn_count, seed=1))
            found[f"{turn_count} turns"] = {
                "record": ours(inside, log, turn_count, times=times, paged=paged),
                "sqlite-utils": plain(inside, log, turn_count, times=times, paged=paged),
            }
            for path in inside.iterdir():
                path.unlink()
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, action="append", help="a size; may be given again (default 100000 and 1000000)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = figures(arguments.turns or [100_000, 1_000_000])
    show(found)
    written(found, arguments.json)


def show(found: Mapping[str, object]) -> None:
    """Print the tables."""
    both = found["transactions"]
    assert isinstance(both, dict)
    names = list(both["record"])
    told(
        "8 processes, 200 read-modify-write transactions each",
        {name: {each: both[each][name] for each in both} for name in names},
    )
    for title, sides in found.items():
        if title.endswith(" turns") and isinstance(sides, dict):
            rows = {
                name: {side: values.get(name) for side, values in sides.items()}
                for name in sides["record"]
                if name != "search, by query"
            }
            told(title, rows)
            told(
                f"{title}: search by query, ms (p50)",
                {name: {"record": value} for name, value in sides["record"]["search, by query"].items()},
            )


if __name__ == "__main__":
    main()
