"""What choosing promises: splits are for ever, no test question has a twin in training, nothing is lost, nothing personal leaves."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from conversations import decisions, runs
from conversations.exchange import imports
from conversations.messages import Role, Split
from conversations.settings import read_settings
from conversations.store import Record
from distill.dataset.choose import Choice, plan_decisions
from distill.dataset.similarity import trigram_jaccard
from distill.settings import ChooseTable, DistillSettings

DEMO = Path("deploy/demo")


@pytest.fixture(scope="module")
def settings() -> DistillSettings:
    return read_settings(DistillSettings, DEMO / "settings.toml")


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record(tmp_path / "record.db") as opened:
        yield opened


def plan(record: Record, settings: DistillSettings, **choose: object) -> Choice:
    table = ChooseTable.model_validate({**settings.choose.model_dump(), **choose})
    return plan_decisions(record, settings.model_copy(update={"choose": table}), with_topics=False)


def enter(record: Record, choice: Choice) -> None:
    """Keep what was chosen, as an earlier run would have."""
    if not runs.runs(record):
        runs.begin_run(record, run_id="run_a", path="/p", settings_digest="d")
    decisions.put_decisions(record, (replace(each, chosen_by_run_id="run_a") for each in choice.decisions))


def test_the_demo_holds_out_over_a_hundred_questions_with_facts_and_none_has_a_twin_in_training(
    record: Record, settings: DistillSettings
) -> None:
    imports.import_files(record, [DEMO / "conversations.jsonl"])
    rows = plan(record, settings).rows
    test = [row for row in rows if row.split is Split.TEST]
    learnt = [row for row in rows if row.split is not Split.TEST]
    assert sum(bool(row.labels.facts) for row in test) >= 100
    for name in ("conversation_id", "cluster_id", "decision_id"):
        assert {getattr(row, name) for row in test}.isdisjoint({getattr(row, name) for row in learnt})
    alike = [
        (one.messages[-1].content, other.messages[-1].content)
        for one, other in product(test, learnt)
        if trigram_jaccard(one.messages[-1].content, other.messages[-1].content) >= 0.5
    ]
    assert alike == []


def test_a_decision_keeps_its_split_when_the_record_grows_and_another_salt_is_set(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    lines = (DEMO / "conversations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "half.jsonl").write_text("".join(lines[:150]), encoding="utf-8")
    imports.import_files(record, [tmp_path / "half.jsonl"])
    first = plan(record, settings)
    enter(record, first)
    imports.import_files(record, [DEMO / "conversations.jsonl"])
    later = {row.decision_id: row.split for row in plan(record, settings, split_salt="another").rows}
    assert {row.decision_id: row.split for row in first.rows}.items() <= later.items()
    assert len(later) > len(first.rows)


def test_everything_of_one_customer_and_every_near_copy_is_on_one_side(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    words = "my bill of this month is much higher than the one that i got before the summer"
    lines = [
        {"id": f"c{n}", "customer_id": f"p{n // 2}", "consent": True, "messages": [{"role": "user", "content": text}]}
        for n, text in enumerate(
            [words, "the lamp on the box is orange today", f"hello, {words}", "no code arrives for the app"]
        )
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    imports.import_files(record, [tmp_path / "a.jsonl"])
    for salt in "abcdefgh":
        rows = plan(record, settings, split_salt=salt).rows
        assert len(rows) == 4
        assert len({row.cluster_id for row in rows}) == 1
        assert len({row.split for row in rows}) == 1


def test_only_what_a_customer_agreed_to_is_learnt_and_the_rest_is_counted(
    record: Record, settings: DistillSettings, tmp_path: Path
) -> None:
    lines = [
        {"id": "yes", "consent": True, "messages": [{"role": "user", "content": "where is my refund of last week"}]},
        {"id": "no", "consent": False, "messages": [{"role": "user", "content": "how do i move to another house"}]},
        {"id": "none", "messages": [{"role": "user", "content": "the internet is slow every evening"}]},
        {"id": "short", "consent": True, "messages": [{"role": "user", "content": "ok"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    imports.import_files(record, [tmp_path / "a.jsonl"])
    choice = plan(record, settings)
    assert (len(choice.rows), dict(choice.left_out)) == (1, {"no_consent": 2, "too_short": 1})
    assert len(plan(record, settings, learn_from_unknown_consent=True).rows) == 2


def test_no_address_number_or_key_is_in_what_goes_on_to_the_teacher(record: Record, settings: DistillSettings) -> None:
    imports.import_files(record, [DEMO / "conversations.jsonl"])
    said = "\n".join(m.content for row in plan(record, settings).rows for m in row.messages if m.role is Role.USER)
    assert "<EMAIL_1>" in said and "<CARD_1>" in said and "<PHONE_1>" in said
    assert "@example" not in said and "4111" not in said and "+44" not in said
