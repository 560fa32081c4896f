"""How long choosing and assembling take, and how much memory, on a log of 50,000 conversations, and how both grow with it.

Run: `python -m tests.bench.choose [--conversations 5000 50000] [--json FILE]`. The log is made of the conversations in
`../shared/data`, or of the demo's where that folder is absent: an exchange is a customer's message and its reply; a new conversation
is a few exchanges of one source in a row, each drawn by chance. So that the questions are not copies of one another, more than a
third of the words of each give way to others, drawn as often as the same source says them; one question in thirty stays as it was,
so that there are near-duplicates to find. Each stage runs in a process of its own. No teacher is asked: what was chosen gets
made-up answers, all accepted, so that assemble has its input.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.bench.machine import hardware, told, written

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "deploy" / "demo" / "conversations.jsonl"
EXCHANGES = (1, 11)
REPLACED = 0.38
COPIED = 1 / 30
BEGINNING = datetime(2025, 6, 1, tzinfo=UTC)
Exchange = tuple[str, str]

_STAGE = """
import json, re, sys, time
from pathlib import Path
from conversations.settings import read_settings
from conversations.store import Record
from distill.run import Stage, new_run, open_run
from distill.settings import DistillSettings
from tests.bench.choose import WORK
stage, settings_file, run_id = Stage(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
settings = read_settings(DistillSettings, settings_file)
with Record(settings.record.path) as record:
    with (open_run(record, settings, run_id) if run_id else new_run(record, settings)) as run:
        began = time.monotonic()
        manifest = run.perform(stage, WORK[stage])
        seconds = time.monotonic() - began
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
told = manifest.model_dump(mode="json", by_alias=True)
print(json.dumps({"run_id": run.run_id, "seconds": seconds, "peak_mb": peak, "manifest": told}))
"""
_SETTINGS = """
[record]
path = "record.db"
[student]
base = "no-student"
profile = "cpu"
[prompt]
system = "You help."
[runs]
folder = "runs"
[teachers.big]
base_url = "http://127.0.0.1:9/v1"
model = "big-1"
licence_allows_training = "yes"
[choose]
split_salt = "bench"
[teach]
teacher = "big"
max_cost_usd = 0.0
max_calls = 1
[evaluate]
server_usd_per_hour = 0.1
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.02
"""


def sources() -> dict[str, list[Exchange]]:
    """Return the exchanges of each source: a customer's message and the reply to it, which may be empty."""
    files = sorted(DATA.glob("*.jsonl"))
    if not files:
        print(f"{DATA} is absent: the demo's conversations are used", file=sys.stderr)
        files = [DEMO]
    found: dict[str, list[Exchange]] = {}
    for file in files:
        exchanges = found.setdefault(file.stem, [])
        for line in file.read_text(encoding="utf-8").splitlines():
            asked = ""
            for message in json.loads(line)["messages"]:
                if message["role"] == "user":
                    if asked:
                        exchanges.append((asked, ""))
                    asked = message["content"]
                elif message["role"] == "assistant" and asked:
                    exchanges.append((asked, message["content"]))
                    asked = ""
            if asked:
                exchanges.append((asked, ""))
    return found


def lines(conversation_count: int, *, seed: int) -> Iterator[str]:
    """Yield a log of that many conversations."""
    chance = random.Random(seed)
    found = sources()
    names = list(found)
    weights = [len(found[name]) for name in names]
    spoken = {name: [word for asked, _ in found[name] for word in asked.split()] for name in names}
    for number in range(conversation_count):
        name = chance.choices(names, weights)[0]
        messages = []
        for asked, reply in chance.choices(found[name], k=chance.randint(*EXCHANGES)):
            messages.append({"role": "user", "content": _retold(asked, spoken[name], chance)})
            messages.append({"role": "assistant", "content": reply or "Thank you, I am looking into that."})
        yield json.dumps(
            {
                "id": f"bench-{number}",
                "customer_id": f"customer-{number * 2 // 3}",
                "created_at": (BEGINNING + timedelta(minutes=number)).isoformat(),
                "consent": True,
                "messages": messages,
                "feedback": [{"message": 1, "value": "down"}] if number % 9 == 0 else [],
            },
            ensure_ascii=False,
        )


def _retold(text: str, spoken: list[str], chance: random.Random) -> str:
    """Return a text with a good third of its words replaced by others, which come as often as the source says them."""
    if chance.random() < COPIED:
        return text
    return " ".join(chance.choice(spoken) if chance.random() < REPLACED else word for word in text.split())


def stage(name: str, settings_file: Path, run_id: str = "") -> dict[str, object]:
    """Run one stage in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", _STAGE, name, str(settings_file), run_id],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    told_last: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told_last


def answer(run: "object") -> "object":
    """Write a made-up answer for every chosen decision, in the place of teach."""
    from distill.rows import AnswerRow, ChosenRow, read_rows
    from distill.run import Counts, Outcome, Run, Stage

    assert isinstance(run, Run)
    chosen = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    run.write_rows(
        Stage.TEACH,
        "answers.jsonl",
        (
            AnswerRow(
                decision_id=row.decision_id, answer_id=f"answer_{row.decision_id}", teacher="big",
                text=f"About {row.messages[-1].content[:60]}: please see part {number} of your letter.", finish_reason="stop",
                passages=(), request_hash=str(number), prompt_tokens=100, completion_tokens=20, cost_usd=0.0, latency_ms=1.0,
            )
            for number, row in enumerate(chosen)
        ),
    )  # fmt: skip
    return Outcome(Counts(taken_in=len(chosen), accepted=len(chosen), rejected=0, unscored=0, rejected_by_reason={}))


def accept(run: "object") -> "object":
    """Accept every answer, in the place of verify."""
    from conversations.decisions import Verdict
    from distill.rows import AnswerRow, VerdictRow, read_rows
    from distill.run import Counts, Outcome, Run, Stage

    assert isinstance(run, Run)
    names = [(a.decision_id, a.answer_id) for a in read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow)]
    run.write_rows(
        Stage.VERIFY,
        "verdicts.jsonl",
        (
            VerdictRow(decision_id=name, answer_id=answer_id, verdict=Verdict.ACCEPTED, reason="")
            for name, answer_id in names
        ),
    )
    return Outcome(Counts(taken_in=len(names), accepted=len(names), rejected=0, unscored=0, rejected_by_reason={}))


def _choose(run: "object") -> "object":
    from distill.dataset.choose import choose
    from distill.run import Run

    assert isinstance(run, Run)
    return choose(run)


def _assemble(run: "object") -> "object":
    from distill.dataset.assemble import assemble
    from distill.run import Run

    assert isinstance(run, Run)
    return assemble(run)


WORK = {"choose": _choose, "teach": answer, "verify": accept, "assemble": _assemble}


def measured(conversation_count: int) -> dict[str, object]:
    """Make a log of that size, choose from it and assemble it, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        folder = Path(name)
        (folder / "no-student").mkdir()
        (folder / "no-student" / "config.json").write_text("{}", encoding="utf-8")
        settings_file = folder / "settings.toml"
        settings_file.write_text(_SETTINGS, encoding="utf-8")
        with (folder / "log.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in lines(conversation_count, seed=1))
        command = "from conversations.cli import main; main()"
        arguments = ["import", str(folder / "log.jsonl"), "--record", str(folder / "record.db"), "--json"]
        subprocess.run([sys.executable, "-c", command, *arguments], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        chosen = stage("choose", settings_file)
        for each in ("teach", "verify"):
            stage(each, settings_file, str(chosen["run_id"]))
        assembled = stage("assemble", settings_file, str(chosen["run_id"]))
    manifest, sets = chosen["manifest"], assembled["manifest"]
    assert isinstance(manifest, dict) and isinstance(sets, dict)
    details, counts = manifest["details"], manifest["counts"]
    return {
        "conversations": conversation_count,
        "candidates": counts["in"],
        "chosen": counts["accepted"],
        **{f"left out: {reason}": count for reason, count in counts["rejected_by_reason"].items()},
        **{f"split: {split}": count for split, count in details["by_split"].items()},
        "choose, s": chosen["seconds"],
        **{f"choose: {part}, s": seconds for part, seconds in details["seconds"].items()},
        "choose, peak MB": chosen["peak_mb"],
        "assemble, s": assembled["seconds"],
        "assemble, peak MB": assembled["peak_mb"],
        "assembled": sets["counts"]["accepted"],
    }


def figures(sizes: list[int]) -> dict[str, object]:
    """Measure every size and return all figures."""
    return {"subject": "choose", "hardware": hardware(), **{f"{size} conversations": measured(size) for size in sizes}}


def show(found: Mapping[str, object]) -> None:
    """Print one table, a column a size."""
    sizes = {name: row for name, row in found.items() if name.endswith(" conversations") and isinstance(row, dict)}
    names = list(dict.fromkeys(name for row in sizes.values() for name in row))
    told("choose and assemble", {name: {size: row.get(name) for size, row in sizes.items()} for name in names})


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = figures(arguments.conversations)
    show(found)
    written(found, arguments.json)


if __name__ == "__main__":
    main()
