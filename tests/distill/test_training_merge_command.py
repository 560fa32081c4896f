"""What `distill merge` promises: one checkpoint out of a finished run, with figures, and nothing written over."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import small_run
from test_training_weights import SETTINGS
from tiny_student import tiny_student, write_dataset

from conversations.errors import OperatorError
from conversations.serving import read_serving
from distill.run import Stage, new_run
from distill.training.merge import merge_run
from distill.training.request import TrainRequest
from distill.training.train import train

pytestmark = pytest.mark.slow


def merge(settings_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from distill.cli import main; main()"
    command = [sys.executable, "-c", code, "merge", "--settings", str(settings_file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_runs_adapter_is_merged_once_with_its_figures_and_nothing_is_written_over(tmp_path: Path) -> None:
    with small_run(tmp_path / "run", "http://127.0.0.1:9/v1") as small:
        base = tiny_student(tmp_path / "tiny")
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(text.replace('base = "no-student"', f'base = "{base}"'), encoding="utf-8")
        with new_run(small.record, small.settings) as run:
            untrained = merge(small.settings_file, "--run", run.run_id)
            assert untrained.returncode == 2 and f"distill train --run {run.run_id}" in untrained.stderr
            assembled = run.stage_folder(Stage.ASSEMBLE)
            train(
                TrainRequest(
                    base_dir=base,
                    train_path=write_dataset(assembled / "train.jsonl", 6),
                    validation_path=write_dataset(assembled / "validation.jsonl", 5, first=6),
                    out_dir=run.stage_folder(Stage.TRAIN),
                    metrics_path=run.folder / "metrics.jsonl",
                    settings=SETTINGS.model_copy(update={"merged": False}),
                    max_prompt_tokens=400,
                ),
                lambda _: None,
            )
    out = tmp_path / "whole"
    done = merge(small.settings_file, "--run", run.run_id, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["out"] == str(out) and told["prompts"] == 8 and told["max_logit_difference"] <= 1e-3
    serving = read_serving(out)
    assert serving is not None and serving.kind == "merged"
    again = merge(small.settings_file, "--run", run.run_id, "--out", str(out))
    assert again.returncode == 2 and "there is something already" in again.stderr
    student = small.settings.student.model_copy(update={"base": base})
    settings = small.settings.model_copy(update={"student": student})
    with pytest.raises(OperatorError, match="no folder can be made there"):
        merge_run(settings, run.folder, out / "config.json" / "merged")
    for gone in (run.folder / "train" / "adapter" / "README.md", assembled / "validation.jsonl"):
        gone.unlink()
        with pytest.raises(OperatorError, match=re.escape(str(gone))):
            merge_run(settings, run.folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
