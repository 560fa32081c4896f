"""The run's `metrics.jsonl`: every figure of a training as one line, none twice however often the training was killed.

In: figures. Out: lines of JSON, each with its event and time.
"""

import json
from pathlib import Path

from conversations.messages import Json, utc_now


class MetricsLog:
    """The run's `metrics.jsonl`, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def bytes(self) -> int:
        """Return the present length of the file."""
        return self._path.stat().st_size

    def cut(self, length: int) -> None:
        """Forget what was written after the file had this length in bytes."""
        if length < self.bytes():
            with self._path.open("r+b") as file:
                file.truncate(length)

    def write(self, event: str, figures: dict[str, Json]) -> None:
        """Append one line."""
        line: dict[str, Json] = {"stage": "train", "event": event, **figures, "at_utc": utc_now()}
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
