"""The run's `metrics.jsonl`: every figure of a training as one line, none twice however often the training was killed.

In: figures. Out: lines of JSON, each with its event and time.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from conversations.messages import Json, utc_now


class MetricsLog:
    """The run's `metrics.jsonl`, one JSON object a line."""

    def __init__(self, path: Path, heard: Callable[[str, Mapping[str, Json]], None], *, writes: bool = True) -> None:
        """Open the file; `heard` is told every event with its figures too. One of several processes alone writes."""
        self._path = path
        self._heard = heard
        self._writes = writes
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def bytes(self) -> int:
        """Return the present length of the file."""
        return self._path.stat().st_size if self._writes else 0

    def cut(self, length: int) -> None:
        """Forget what was written after the file had this length in bytes."""
        if self._writes and length < self.bytes():
            with self._path.open("r+b") as file:
                file.truncate(length)

    def write(self, event: str, figures: dict[str, Json]) -> None:
        """Append one line."""
        if not self._writes:
            return
        line: dict[str, Json] = {"stage": "train", "event": event, **figures, "at_utc": utc_now()}
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
        self._heard(event, figures)
