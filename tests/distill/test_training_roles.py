"""What training promises of conversations with tools, or roles that a format lacks: they are left out and counted."""

import json
from pathlib import Path

import pytest
from tiny_student import dataset_line

from conversations.prompt import Renderer
from distill.training.decisions.reading import RowCounts, read_decisions
from tests.conversations.made_tokenizers import CHATML, GEMMA, PHI3_MINI, PHI4_MINI, Made

CALL = json.dumps({"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]})


def read_beside_a_plain_row(folder: Path, made: Made, *between: dict[str, str]) -> tuple[int, RowCounts]:
    """Read two rows, one of which has further messages in its history; return how many are kept, and the counts."""
    plain = dataset_line(0, 0, ["Be kind.", "Where is box 1?", "On shelf 2."])
    other = json.loads(dataset_line(1, 1, ["Be kind.", "Where is box 3?", "On shelf 4."]))
    other["messages"][2:2] = between
    (folder / "train.jsonl").write_text(f"{plain}\n{json.dumps(other)}\n", encoding="utf-8")
    renderer = Renderer.load(made.write(folder / "student"))
    rows, counts = read_decisions(folder / "train.jsonl", renderer, max_prompt_tokens=400, max_tokens=500)
    return len(rows), counts


@pytest.mark.parametrize(("made", "left_out"), [(CHATML, {}), (GEMMA, {"role_unknown": 1})], ids=["chatml", "gemma"])
def test_a_row_whose_history_has_a_role_that_the_format_cannot_write_is_left_out_and_counted(
    tmp_path: Path, made: Made, left_out: dict[str, int]
) -> None:
    kept, counts = read_beside_a_plain_row(tmp_path, made, {"role": "system", "content": "The customer is in a hurry."})
    assert (kept, counts.rows, counts.left_out) == (2 - len(left_out), 2, left_out)


@pytest.mark.parametrize("made", [CHATML, PHI3_MINI, PHI4_MINI], ids=lambda made: made.name)
@pytest.mark.parametrize(
    "message",
    [{"role": "assistant", "content": "", "extra_json": CALL}, {"role": "tool", "content": "shelf 4"}],
    ids=["call", "result"],
)
def test_a_row_whose_history_calls_a_tool_is_left_out_and_counted(
    tmp_path: Path, made: Made, message: dict[str, str]
) -> None:
    kept, counts = read_beside_a_plain_row(tmp_path, made, message)
    assert (kept, counts.rows, counts.left_out) == (1, 2, {"tool_call_in_history": 1})


@pytest.mark.parametrize("extra", ['{"name": "Ada"}', '{"tool_calls": null}', '{"tool_calls": []}'])
def test_an_answer_in_the_history_that_calls_no_tool_is_learnt_behind(tmp_path: Path, extra: str) -> None:
    said = {"role": "assistant", "content": "One moment.", "extra_json": extra}
    kept, counts = read_beside_a_plain_row(tmp_path, CHATML, said, {"role": "user", "content": "Well?"})
    assert (kept, counts.left_out) == (2, {})
