"""A training that goes on until it is killed: `python -m tests.bench.beside_training MODEL [--gives-way]`.

Out: a line of JSON for each step, with the row tokens that it has learnt. It ends with whoever started it.
"""

import json
import sys
from pathlib import Path

from conversations.cores import give_way
from distill.settings import TrainTable
from distill.training.fitting.interruption import end_with_the_watcher
from tests.bench.train_work import SHAPES, Work

ROWS_A_STEP = 5


def main(model: str, *, gives_way: bool) -> None:
    """Train on conversations of five turns, a conversation a step."""
    end_with_the_watcher()
    if gives_way:
        give_way(TrainTable().nice)
    from distill.training.student.learning import device_at_hand, precision_of
    from tests.bench.train_ways import ours

    device = device_at_hand()
    work = Work("tree", model if model in SHAPES else str(Path(model)), device.type, precision_of(device), {"5": 3})
    rows, learn = work.rows(5), ours(work)
    some = [rows[start : start + ROWS_A_STEP] for start in range(0, len(rows), ROWS_A_STEP)]
    while True:
        for step in some:
            learn(step)
            print(json.dumps({"row_tokens": sum(row.input_tokens for row in step)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], gives_way="--gives-way" in sys.argv)
