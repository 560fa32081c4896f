"""Replay against forgetting: which rows of earlier runs a training learns again (rehearsal, Robins 1995).

In: `replay.jsonl` of a run, which holds all that may be replayed, and how many rows the run itself teaches. Out: `replayed.jsonl`
beside the weights, with the rows that were drawn, so that whoever is erased is found in it. The draw is a pure function of the
rows, the share and the seed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.rows import DatasetRow, read_rows, rows_text
from distill.run import write_whole
from distill.training.request import TrainRequest

FILE = "replayed.jsonl"


@dataclass(frozen=True)
class Drawn:
    """The file with the rows to learn again, None where a run has no replay, and how many rows might have been drawn."""

    path: Path | None
    replayable: int


def draw_replay(request: TrainRequest) -> None:
    """Write the rows that a training replays: the same however often it is asked.

    As many are drawn as make [train] replay_share of all training rows, or all where there are fewer.
    Raises OperatorError with file and line where a line is not a dataset row.
    """
    if request.replay_path is None:
        return
    rows = list(read_rows(request.replay_path, DatasetRow))
    own = sum(1 for _ in read_rows(request.train_path, DatasetRow))
    wanted = wanted_rows(own, request.settings.replay_share)
    places = drawn_places([row.topic for row in rows], wanted, request.settings.seed)
    write_whole(request.out_dir / FILE, rows_text(rows[place] for place in places))


def drawn_replay(request: TrainRequest) -> Drawn:
    """Return what `draw_replay` wrote; every process of a training reads it."""
    if request.replay_path is None:
        return Drawn(None, 0)
    return Drawn(replayed_file(request), sum(1 for _ in read_rows(request.replay_path, DatasetRow)))


def replayed_file(request: TrainRequest) -> Path | None:
    """Return the file that `draw_replay` writes, None where a run has no replay."""
    return None if request.replay_path is None else request.out_dir / FILE


def wanted_rows(own: int, share: float) -> int:
    """Return how many rows beside `own` make up a share of all: n / (own + n) = share."""
    return round(own * share / (1 - share))


def drawn_places(topics: Sequence[str], wanted: int, seed: int) -> list[int]:
    """Return the places of the rows that are drawn, in order: from each topic as many as from any other, as far as it has.

    So every topic is there as soon as as many rows are wanted as there are topics, however rare one is.
    """
    places_of: dict[str, list[int]] = {}
    for place, topic in enumerate(topics):
        places_of.setdefault(topic, []).append(place)
    draw = random.Random(f"{seed}/replay")
    for topic in sorted(places_of):
        draw.shuffle(places_of[topic])
    order = sorted(places_of)
    draw.shuffle(order)
    rounds = max((len(places) for places in places_of.values()), default=0)
    by_turns = [places_of[topic][turn] for turn in range(rounds) for topic in order if turn < len(places_of[topic])]
    return sorted(by_turns[:wanted])
