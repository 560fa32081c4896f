"""Whether trees in packed rows are learnt as their rows one by one, on a device: `python -m tests.bench.train_exactness cuda`.

In: a device. Out: one line of JSON with differences as shares, and the loss before and after some steps of full training. On a GPU
this is the test of FlexAttention, which no test of a machine without one can run.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from distill.settings import TrainTable
from distill.training.batches.forest import Forest
from distill.training.batches.layout import Layout
from distill.training.decisions.training_row import TrainingRow
from distill.training.student.learning import LearningStudent, student_of
from tests.bench.train_rows import rows_of
from tests.bench.train_ways import loaded
from tests.bench.train_work import Work

DTYPES = ("float32", "bfloat16")
ADAPTERS = TrainTable(rank=8, alpha=16, gradient_checkpointing=False)


def differences(device: str) -> dict[str, object]:
    """Return how far trees are from rows one by one, for adapters in float32 and on a bfloat16 base, and how full training goes."""
    rows = rows_of(5, 6, student=None, vocabulary=1000)
    work = Work(way="tree", model="tiny", device=device, dtype="float32", conversations={})
    found: dict[str, object] = {"blocks": False}
    for dtype in DTYPES:
        student = student_of(loaded(work, getattr(torch, dtype)), ADAPTERS, base_dir=Path("tiny"))
        # Rounding to TF32 would hide what is looked for.
        torch.set_float32_matmul_precision("highest")
        for name, parameter in student.trainable.items():
            if name.endswith("lora_b"):
                torch.nn.init.normal_(parameter, std=0.05)
        packed = student.layout(None)
        found["blocks"] = packed.one_row
        loss, gradients = _learnt(student, rows, packed)
        alone = replace(packed, max_tree_tokens=0, max_joined_tokens=0, one_row=False)
        expected_loss, expected = _learnt(student, rows, alone)
        found[dtype] = {
            "loss": abs(loss - expected_loss) / expected_loss,
            "gradients": float((gradients - expected).abs().max() / expected.abs().max()),
        }
    full = student_of(loaded(work, torch.float32), TrainTable(kind="full"), base_dir=Path("tiny"))
    optimizer = torch.optim.AdamW(list(full.trainable.values()), lr=1e-3)
    losses = []
    for _ in range(8):
        loss, _ = _learnt(full, rows, full.layout(None))
        losses.append(loss)
        optimizer.step()
        optimizer.zero_grad()
    return {**found, "full training": {"first loss": losses[0], "last loss": losses[-1]}}


def _learnt(student: LearningStudent, rows: Sequence[TrainingRow], layout: Layout) -> tuple[float, torch.Tensor]:
    """Return the loss of the rows as one step, and the gradients as one vector, which are left in the student too."""
    forest = Forest(rows)
    trees = layout.trees(forest, [forest.whole(number) for number in range(len(rows))])
    weight = sum(tree.scored_weight for tree in trees)
    loss = 0.0
    for parameter in student.trainable.values():
        parameter.grad = None
    for batch in layout.batches(trees):
        part = student.loss_sum(batch) / weight
        part.backward()
        loss += float(part.detach())
    gradients = [parameter.grad for parameter in student.trainable.values() if parameter.grad is not None]
    return loss, torch.cat([gradient.flatten() for gradient in gradients])


if __name__ == "__main__":
    print(json.dumps(differences(sys.argv[1])))
