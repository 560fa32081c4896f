"""Choosing and teaching in a small run, with what was chosen changed in between where a test wants that."""

import re
from collections.abc import Callable

from small_run import SmallRun

from distill.rows import AnswerRow, ChosenRow, read_rows
from distill.run import Manifest, Run, Stage

Change = Callable[[ChosenRow], ChosenRow]


def chosen(small: SmallRun, change: Change = lambda row: row) -> Run:
    """A run with its decisions chosen, each as `change` returns it."""
    run, _ = small.perform(Stage.CHOOSE)
    rows = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    run.write_rows(Stage.CHOOSE, "decisions.jsonl", [change(row) for row in rows])
    return run


def teach_in(small: SmallRun, run: Run) -> tuple[Manifest, dict[str, AnswerRow]]:
    """The manifest of teaching, and the answers by decision."""
    _, (manifest,) = small.perform(Stage.TEACH, run_id=run.run_id)
    answers = read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow)
    counts = manifest.counts
    assert counts.taken_in == counts.accepted + counts.rejected + counts.unscored
    return manifest, {answer.decision_id: answer for answer in answers}


def set_keys(small: SmallRun, **values: str) -> None:
    """Change keys in the settings file; each stands there already."""
    text = small.settings_file.read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count, key
    small.settings_file.write_text(text, encoding="utf-8")


def talk(place: int, questions: list[str]) -> dict[str, object]:
    """A conversation of several turns, as it is imported."""
    messages = [
        message
        for question in questions
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": f"Reply {place}."})
    ]
    return {
        "id": f"talk{place}", "customer_id": f"talker-{place}", "created_at": f"2026-08-03T08:{place:02d}:00Z",
        "consent": True, "messages": messages,
    }  # fmt: skip
