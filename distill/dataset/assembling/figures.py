"""Figures: what a data set is made of, counted while its rows are written.

In: rows. Out: counts by split. It keeps no customer's words.
"""

from collections import Counter
from collections.abc import Mapping

from conversations.messages import Json, Role, Split
from distill.dataset.assembling.refusals import TEACHER as HONEST_REFUSAL
from distill.dataset.handbook.study import TEACHER as STUDY
from distill.rows import DatasetRow

_DEPTHS = ((1, "1st"), (2, "2nd"), (3, "3rd"), (5, "4th and 5th"), (8, "6th to 8th"))
_DEEPER = "9th and later"
_LENGTHS = (
    (10, "up to 10"),
    (25, "11 to 25"),
    (50, "26 to 50"),
    (100, "51 to 100"),
    (200, "101 to 200"),
    (400, "201 to 400"),
)
_LONGER = "more than 400"
_ORDER = {
    "turn depth": [name for _, name in _DEPTHS] + [_DEEPER],
    "prompt words": [name for _, name in _LENGTHS] + [_LONGER],
    "answer words": [name for _, name in _LENGTHS] + [_LONGER],
}
# Words of ours, no model's: no licence stands in their way.
_OUR_OWN = (HONEST_REFUSAL, STUDY)


class Figures:
    """Counts that grow with every row."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[Split, Counter[str]]] = {}
        self._rows: Counter[Split] = Counter()
        self.answerable: Counter[bool] = Counter()
        self.licence_of: dict[str, str] = {}
        self.passages: set[str] = set()
        self.clusters: dict[Split, set[str]] = {split: set() for split in Split}
        self.tool_calls = 0

    def add(self, row: DatasetRow, split: Split, author: str = "") -> None:
        """Count a row."""
        self._rows[split] += 1
        self.clusters[split].add(row.cluster_id)
        asked, answer = row.messages[:-1], row.messages[-1]
        prompt_words = sum(len(each.content.split()) for each in asked if each.role is not Role.SYSTEM)
        for kind, value in (
            ("topic", row.topic or "none"),
            ("turn depth", _bucket(row.turn_depth, _DEPTHS, _DEEPER)),
            ("language", row.language or "not told"),
            ("prompt words", _bucket(prompt_words, _LENGTHS, _LONGER)),
            ("answer words", _bucket(len(answer.content.split()), _LENGTHS, _LONGER)),
            ("teacher", row.teacher),
            ("task", row.task.value),
        ):
            self._of(kind, split)[value] += 1
        if split is Split.TEST:
            if row.labels.answerable is not None:
                self.answerable[row.labels.answerable] += 1
            return
        self._of("weight", split)[f"{row.weight:g}"] += 1
        self._of("author", split)[author] += 1
        self.licence_of[row.teacher] = "our own words" if row.teacher in _OUR_OWN else row.licence
        self.tool_calls += "tool_calls" in answer.extra_json
        if split is Split.TRAIN:
            self.passages.update(row.passages)

    def rows(self, split: Split) -> int:
        """Return how many rows a set has."""
        return self._rows[split]

    def kinds(self) -> tuple[str, ...]:
        """Return what is counted."""
        return tuple(self._counts)

    def learnt_by_teacher(self) -> Mapping[str, int]:
        """Return how many rows of training and validation each teacher gave."""
        return self._of("teacher", Split.TRAIN) + self._of("teacher", Split.VALIDATION)

    def table(self, kind: str) -> dict[str, Json]:
        """Return the counts of one kind: value, then split. Scales stand in their order, the rest by name."""
        counts = self._counts.get(kind, {})
        found = {value for each in counts.values() for value in each}
        order = [value for value in _ORDER[kind] if value in found] if kind in _ORDER else sorted(found)
        splits = [split for split in Split if self._rows[split] or split in counts]
        return {value: {split.value: counts.get(split, Counter())[value] for split in splits} for value in order}

    def _of(self, kind: str, split: Split) -> Counter[str]:
        return self._counts.setdefault(kind, {}).setdefault(split, Counter())


def _bucket(number: int, bounds: tuple[tuple[int, str], ...], beyond: str) -> str:
    return next((name for most, name in bounds if number <= most), beyond)
