"""What training promises of conversations with tools: what a chat format cannot write is left out and counted."""

import json
from pathlib import Path

import pytest
from tiny_student import dataset_line

from conversations.prompt import Renderer
from distill.training.decisions.reading import read_decisions
from tests.conversations.made_tokenizers import CHATML, PHI3_MINI, PHI4_MINI, Made


@pytest.mark.parametrize(
    ("made", "left_out"),
    [(CHATML, {}), (PHI3_MINI, {"role_unknown": 1}), (PHI4_MINI, {"role_unknown": 1})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_row_whose_history_has_a_role_that_the_format_cannot_write_is_left_out_and_counted(
    tmp_path: Path, made: Made, left_out: dict[str, int]
) -> None:
    plain = dataset_line(0, 0, ["Be kind.", "Where is box 1?", "On shelf 2."])
    with_tool = json.loads(dataset_line(1, 1, ["Be kind.", "Where is box 3?", "On shelf 4."]))
    with_tool["messages"].insert(2, {"role": "tool", "content": "shelf 4"})
    (tmp_path / "train.jsonl").write_text(f"{plain}\n{json.dumps(with_tool)}\n", encoding="utf-8")
    renderer = Renderer.load(made.write(tmp_path / "student"))
    rows, counts = read_decisions(tmp_path / "train.jsonl", renderer, max_prompt_tokens=400, max_tokens=500)
    assert counts.rows == 2 and counts.left_out == left_out
    assert len(rows) == 2 - len(left_out)
