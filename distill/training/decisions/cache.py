"""Token ids that were made once, kept under a name made of everything that decides them.

In: rows of token ids with what became of the others. Out: the same, mapped into memory, for every later training on the same rows.
A file is whole or not there; one that was damaged is made again. Token ids are their text: each file names its decisions and
conversations, so that an erasure finds it and removes it.
"""

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from distill.training.decisions.reading import RowCounts
from distill.training.decisions.training_row import SoftLabels, TrainingRow

# The newest that are kept in a folder: a training reads two, and a study reads the same ones in each of its trials.
MOST_ENTRIES = 16
_LAYOUT = "2"
# What is half written for longer was left by a training that was killed.
_SECONDS_TO_WRITE = 3600
_ALIGNMENT = 64
# The digest of the rest of the file, in hexadecimal, and a line end.
_DIGEST_BYTES = 65

Arrays = Mapping[str, np.ndarray]
Rows = tuple[list[TrainingRow], RowCounts]

log = logging.getLogger(__name__)


def kept_rows(folder: Path | None, decided_by: Mapping[str, str], make: Callable[[], Rows]) -> Rows:
    """Return the rows that `make` makes, without calling it where they are kept already.

    `decided_by` names everything that decides the rows: the renderer, the file's digest, limits, soft labels. Without a folder
    nothing is kept. A folder that cannot be written is said and costs only time.
    """
    if folder is None:
        return make()
    counted = [each.name for each in fields(RowCounts)]
    key = hashlib.sha256(json.dumps([_LAYOUT, counted, dict(decided_by)], sort_keys=True).encode()).hexdigest()
    path = folder / f"{key}.tokens"
    found = _read(path)
    if found is not None:
        # Used last; another training may have removed it since, or the folder may be one that is only read.
        with suppress(OSError):
            os.utime(path)
        return found
    rows, counts = make()
    arrays, about = _arrays(rows), _about(rows, counts)
    try:
        _write(path, arrays, about)
        _forget_oldest(folder)
    except OSError as error:
        log.warning("%s: token ids cannot be kept there: %s; they are made again by the next training", path, error.strerror)
    # What is kept and what was just made are the same rows, so that a resumed training computes the same sums.
    return _rows(arrays, about), counts


def _about(rows: Sequence[TrainingRow], counts: RowCounts) -> dict[str, object]:
    named = [[row.decision_id, row.conversation_id] for row in rows]
    return {"counts": asdict(counts), "rows": named}


def _arrays(rows: Sequence[TrainingRow]) -> Arrays:
    """Return rows as flat arrays: all token ids, where each row and its answer begin, weights, and soft labels by answer token."""
    lengths = [(len(row.prompt_ids), len(row.answer_ids)) for row in rows]
    starts = np.cumsum([0, *(prompt + answer for prompt, answer in lengths)], dtype=np.int64)
    soft = [row.soft for row in rows if row.soft is not None]
    choices = max((labels.token_ids.shape[1] for labels in soft), default=0)
    positions = [0 if row.soft is None else len(row.answer_ids) for row in rows]
    return {
        "token_ids": np.array([each for row in rows for each in row.prompt_ids + row.answer_ids], dtype=np.int32),
        "starts": starts,
        "answer_starts": starts[:-1] + np.array([prompt for prompt, _ in lengths], dtype=np.int64),
        "weights": np.array([row.weight for row in rows], dtype=np.float64),
        "soft_starts": np.cumsum([0, *positions], dtype=np.int64),
        "soft_ids": _stacked([labels.token_ids for labels in soft], choices, np.int32, -1),
        "soft_log_probabilities": _stacked([labels.log_probabilities for labels in soft], choices, np.float32, -np.inf),
    }


def _stacked(pieces: Sequence[np.ndarray], choices: int, dtype: type, absent: float) -> np.ndarray:
    widened: list[np.ndarray] = [
        np.pad(each, ((0, 0), (0, choices - each.shape[1])), constant_values=absent) for each in pieces
    ]
    stacked: np.ndarray = np.concatenate([np.zeros((0, choices)), *widened]).astype(dtype)
    return stacked


def _rows(arrays: Arrays, about: Mapping[str, object]) -> list[TrainingRow]:
    starts, answers, softs = (arrays[name].tolist() for name in ("starts", "answer_starts", "soft_starts"))
    token_ids, weights = arrays["token_ids"], arrays["weights"].tolist()
    named = about["rows"]
    assert isinstance(named, list)
    return [
        TrainingRow(
            decision_id=decision_id,
            conversation_id=conversation_id,
            prompt_ids=tuple(token_ids[starts[number] : answers[number]].tolist()),
            answer_ids=tuple(token_ids[answers[number] : starts[number + 1]].tolist()),
            weight=weights[number],
            soft=_soft(arrays, softs[number], softs[number + 1]),
        )
        for number, (decision_id, conversation_id) in enumerate(named)
    ]


def _soft(arrays: Arrays, start: int, stop: int) -> SoftLabels | None:
    if start == stop:
        return None
    token_ids = arrays["soft_ids"][start:stop]
    # Other rows may have more choices: columns that are empty here are theirs.
    width = max(1, int((token_ids >= 0).any(axis=0).sum()))
    return SoftLabels(token_ids[:, :width], arrays["soft_log_probabilities"][start:stop, :width])


def _write(path: Path, arrays: Arrays, about: Mapping[str, object]) -> None:
    """Write an entry in one step: the digest of the rest, a line of JSON that says what follows, and the arrays."""
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    head = json.dumps({**about, "arrays": shapes}).encode() + b"\n"
    head = head[:-1] + b" " * (-(_DIGEST_BYTES + len(head)) % _ALIGNMENT) + b"\n"
    pieces = [head, *(_padded(array) for array in arrays.values())]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            file.write(digest.hexdigest().encode() + b"\n")
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _padded(array: np.ndarray) -> bytes:
    return array.tobytes() + b"\0" * (-array.nbytes % _ALIGNMENT)


def _read(path: Path) -> Rows | None:
    """Return what an entry holds, or None where there is none or it is damaged."""
    try:
        with path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        # An empty file cannot be mapped.
        log.warning("%s: cannot be read (%s); its token ids are made again", path, error)
        return None
    rest = memoryview(whole)[_DIGEST_BYTES:]
    if bytes(whole[:_DIGEST_BYTES]) != hashlib.sha256(rest).hexdigest().encode() + b"\n":
        log.warning("%s: damaged; its token ids are made again", path)
        return None
    end_of_head = whole.find(b"\n", _DIGEST_BYTES) + 1
    about = json.loads(whole[_DIGEST_BYTES:end_of_head])
    arrays, offset = {}, end_of_head
    for name, (dtype, shape) in about["arrays"].items():
        array = np.frombuffer(whole, dtype=dtype, count=int(np.prod(shape)), offset=offset).reshape(shape)
        arrays[name] = array
        offset += array.nbytes + -array.nbytes % _ALIGNMENT
    return _rows(arrays, about), RowCounts(**about["counts"])


def _forget_oldest(folder: Path) -> None:
    """Remove all but the entries that were used last, and what killed trainings left; another one may be doing the same."""
    for half in folder.glob(".*.half"):
        if half.stat().st_mtime < time.time() - _SECONDS_TO_WRITE:
            half.unlink(missing_ok=True)
    entries = sorted(folder.glob("*.tokens"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in entries[MOST_ENTRIES:]:
        path.unlink(missing_ok=True)
