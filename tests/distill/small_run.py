"""A small record with a settings file and a handbook, to try the stages of a run on without a student."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conversations.exchange import imports
from conversations.settings import read_settings
from conversations.store import Record
from distill.cycle import perform_stage
from distill.run import Manifest, Run, Stage, new_run, open_run
from distill.settings import DistillSettings

QUESTIONS = (
    "Why does the lamp on my box glow coral all evening long?",
    "The bill this month is twice as high as we had agreed on, why?",
    "My console says that it cannot host a game for friends, please help",
    "We are moving to another town in spring, can the line come along?",
    "Nobody came to connect us although I waited at home for hours",
    "How can I change the password of the wireless network in our flat?",
    "The picture in my meetings freezes whenever my son plays online",
    "I would like to send the old box back, where does it go?",
)
# A judge that is another teacher; what it is told beside comes behind.
JUDGE = """
[teachers.other]
base_url = "{base_url}"
model = "other-1"
licence_allows_training = "no"
[judge]
teacher = "other"
"""
ARTICLE = """---
id: coral
title: The light glows coral
topic: lights
facts:
  - id: wait
    says: wait 12 minutes
    match: ['\\b12 minutes\\b']
---

# The light glows coral

## What customers notice

The lamp on the box glows coral all evening. Nothing loads any more, on no device.

## Answer

Coral light: please wait 12 minutes.
"""


@dataclass(frozen=True)
class SmallRun:
    """A folder with everything that a run reads."""

    folder: Path
    settings_file: Path
    record: Record

    @property
    def settings(self) -> DistillSettings:
        return read_settings(DistillSettings, self.settings_file)

    def import_conversations(self, conversations: Sequence[dict[str, object]]) -> None:
        path = self.folder / "conversations.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in conversations), encoding="utf-8")
        imports.import_files(self.record, [path])

    def perform(self, *stages: Stage, run_id: str | None = None) -> tuple[Run, list[Manifest]]:
        opened = open_run(self.record, self.settings, run_id) if run_id else new_run(self.record, self.settings)
        with opened as run:
            return run, [perform_stage(run, stage) for stage in stages]


def conversation(place: int, question: str) -> dict[str, object]:
    return {
        "id": f"c{place}", "customer_id": f"customer-{place}", "created_at": f"2026-08-01T08:{place:02d}:00Z", "consent": True,
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Restart it."}],
    }  # fmt: skip


@contextmanager
def small_run(folder: Path, base_url: str, *, teacher: str = "", teach: str = "", more: str = "") -> Iterator[SmallRun]:
    """Eight conversations, half of them held out as the salt falls, and a teacher at `base_url`."""
    (folder / "handbook").mkdir(parents=True)
    (folder / "handbook" / "coral.md").write_text(ARTICLE, encoding="utf-8")
    (folder / "no-student").mkdir()
    (folder / "no-student" / "config.json").write_text("{}", encoding="utf-8")
    settings_file = folder / "settings.toml"
    settings_file.write_text(
        f"""
[record]
path = "record.db"
[student]
base = "no-student"
profile = "cpu"
[prompt]
system = "You help."
[runs]
folder = "runs"
[handbook]
path = "handbook"
[teachers.big]
base_url = "{base_url}"
model = "big-1"
licence_allows_training = "yes"
prompt_usd_per_million = 10.0
completion_usd_per_million = 100.0
concurrency = 2
{teacher}
[choose]
split_salt = "s"
test_share = 0.3
validation_share = 0.1
[teach]
teacher = "big"
max_cost_usd = 10.0
max_calls = 1000
{teach}
[evaluate]
server_usd_per_hour = 0.1
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.02
{more}
""",
        encoding="utf-8",
    )
    with Record(folder / "record.db") as record:
        made = SmallRun(folder, settings_file, record)
        made.import_conversations([conversation(place, question) for place, question in enumerate(QUESTIONS)])
        yield made
