"""Clusters: what must be on one side of the split, over the whole record; and the split, which is fixed here for ever.

In: every candidate, the decisions of earlier runs. Out: each wanted candidate with its cluster and its split, or the reason why it has
none. A cluster is near-duplicate questions, all of one conversation and all of one customer, together. Its split is a salted hash of
its name; what was decided once stays. Where decided clusters come to be joined, what joins them is left out, and the others stay with
those that they were decided with.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from conversations.decisions import Decision
from conversations.messages import Split
from distill.dataset.choosing.candidates import Candidate
from distill.dataset.similarity import (
    MIN_COMPARED_WORDS,
    Groups,
    Vectors,
    alike_in_meaning,
    meaning_groups,
    near_duplicate_groups,
    near_duplicates_of,
    words,
)
from distill.settings import ChooseTable

# Below so many questions a share says nothing.
_SMALL_CLUSTER = 20


class LeftOut(StrEnum):
    """Why a question was not chosen."""

    NO_CONSENT = "no_consent"
    TOO_SHORT = "too_short"
    HISTORY_TOO_LONG = "history_too_long"
    TAUGHT_BEFORE = "taught_before"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    JOINS_SPLITS = "joins_splits"
    CLUSTER_TOO_LARGE = "cluster_too_large"
    TWIN_OF_TEST = "twin_of_test"
    TOPIC_FULL = "topic_full"
    OVER_LIMIT = "over_limit"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Placed:
    """A candidate with its cluster and its split."""

    candidate: Candidate
    cluster_id: str
    split: Split

    @property
    def name(self) -> str:
        """The decision's name."""
        return self.candidate.decision_id


class Clusters:
    """The clusters of one record, and inside them the groups of twins, which are alike by wording or by meaning."""

    def __init__(self, every: Sequence[Candidate], known: Mapping[str, Decision], table: ChooseTable, salt: str) -> None:
        self._every = {candidate.decision_id: candidate for candidate in every}
        self._known = known
        self._table = table
        self._salt = salt
        self._twins: Groups[str] = Groups(self._every)
        self._joined: Groups[str] = Groups(self._every)
        self._vectors: dict[str, Vectors] = {}
        # A decided question that the customer has since put otherwise still holds its conversation to its split.
        self._join_people(self._joined, [*self._every, *known])
        names = list(self._every)
        self._join_twins(names, near_duplicate_groups([each.question for each in every], self._table.near_duplicate_jaccard))
        # Greetings, which everybody begins with, are too short to be taught: they join nobody.
        first_asked: dict[bytes, str] = {}
        for each in every:
            if each.prompt_name is not None and each.word_count >= table.min_question_words:
                first = first_asked.setdefault(each.prompt_name, each.decision_id)
                self._twins.join(each.decision_id, first)
                self._joined.join(each.decision_id, first)

    def join_by_meaning(self, names: Sequence[str], vectors: Vectors) -> None:
        """Join the named questions whose vectors are nearly the same. A few words mean what went before them: they join nothing."""
        if self._table.near_duplicate_cosine < 1:
            spoken = self._with_meaning(names)
            groups = meaning_groups(vectors[spoken], self._table.near_duplicate_cosine)
            self._join_twins([names[place] for place in spoken], groups)
            self._vectors = dict(zip(names, vectors, strict=True))

    def twin_group(self, name: str) -> str:
        """Return the decision that stands for the twins of this one."""
        return self._twins.find(name)

    def place(self, wanted: Iterable[Candidate], left_out: dict[str, LeftOut]) -> list[Placed]:
        """Give each wanted candidate its cluster and split; note of those that have none why."""
        wanted_in: dict[str, list[Candidate]] = {}
        for candidate in wanted:
            wanted_in.setdefault(self._joined.find(candidate.decision_id), []).append(candidate)
        placed: list[Placed] = []
        for cluster in self._joined.members():
            found = wanted_in.get(self._joined.find(cluster[0]), [])
            if found:
                placed += self._place_cluster(cluster, found, left_out)
        return placed

    def without_twins_of_test(self, placed: Sequence[Placed], left_out: dict[str, LeftOut]) -> list[Placed]:
        """Leave out what would be learnt and is the near-duplicate of a test question, by wording or by meaning.

        Clusters keep such twins together; what is left are rows whose clusters were decided before they met.
        """
        tested = {each.name for each in placed if each.split is Split.TEST}
        tested |= {name for name, decision in self._known.items() if decision.split is Split.TEST and name in self._every}
        twins = self._near(tested, [each.name for each in placed if each.split is not Split.TEST])
        left_out.update(dict.fromkeys(twins, LeftOut.TWIN_OF_TEST))
        return [each for each in placed if each.name not in twins]

    def _near(self, held_out: Iterable[str], others: Sequence[str]) -> set[str]:
        """Return which of the others are near-duplicates of a held-out question themselves, not by way of a third one."""
        held_out = list(held_out)
        groups = {self._twins.find(name) for name in held_out}
        others = [name for name in others if self._twins.find(name) in groups]
        groups = {self._twins.find(name) for name in others}
        held_out = sorted(name for name in held_out if self._twins.find(name) in groups)
        near = near_duplicates_of(
            [self._every[name].question for name in held_out],
            [self._every[name].question for name in others],
            self._table.near_duplicate_jaccard,
        )
        asked = {self._every[name].prompt_name for name in held_out} - {None}
        near |= {place for place, name in enumerate(others) if self._every[name].prompt_name in asked}
        return {others[place] for place in near | self._near_in_meaning(held_out, others)}

    def _near_in_meaning(self, held_out: Sequence[str], others: Sequence[str]) -> set[int]:
        tested = [name for name in held_out if name in self._vectors and self._is_compared(name)]
        places = [place for place, name in enumerate(others) if name in self._vectors and self._is_compared(name)]
        if not tested or not places:
            return set()
        near = alike_in_meaning(
            _stacked(self._vectors, tested),
            _stacked(self._vectors, [others[place] for place in places]),
            self._table.near_duplicate_cosine,
        )
        return {places[found] for found in near}

    def _place_cluster(
        self, cluster: Sequence[str], found: Sequence[Candidate], left_out: dict[str, LeftOut]
    ) -> list[Placed]:
        if len({self._known[name].split for name in cluster if name in self._known}) < 2:
            return self._place_part(cluster, found, left_out)
        wanted = {each.decision_id: each for each in found}
        placed: list[Placed] = []
        for part in self._parts(cluster):
            placed += self._place_part(part, [wanted.pop(name) for name in part if name in wanted], left_out)
        left_out.update(dict.fromkeys(wanted, LeftOut.JOINS_SPLITS))
        return placed

    def _parts(self, cluster: Sequence[str]) -> list[list[str]]:
        """Take a cluster that joins splits apart into what is held to one split each, and what is held to none.

        A question is held by what was decided of its conversation, its customer and its near-duplicates, and where nothing of these
        was, by those that it would be in one cluster with. What is held to several splits joins them, and is in no part.
        """
        decided = {name: self._known[name].split for name in cluster if name in self._known}
        new = [name for name in cluster if name not in decided]
        people: Groups[str] = Groups(cluster)
        self._join_people(people, cluster)
        held: dict[str, set[Split]] = {people.find(name): set() for name in cluster}
        for name, split in decided.items():
            held[people.find(name)].add(split)
        for split in set(decided.values()):
            asked = [name for name in decided if decided[name] is split and name in self._every]
            for name in self._near(asked, new):
                held[people.find(name)].add(split)
        side: dict[str, Split] = {}
        loose: list[list[str]] = []
        for group in self._clusters_of([name for name in new if len(held[people.find(name)]) < 2]):
            splits = {split for name in group for split in held[people.find(name)]}
            if not splits:
                loose.append(group)
            for name in group:
                own = held[people.find(name)] or splits
                if len(own) == 1:
                    side[name] = min(own)
        torn: set[str] = set()
        for split in set(side.values()):
            # Twins that were never decided, and are held to different splits by others.
            here, elsewhere = ([name for name in side if (side[name] is split) is wanted] for wanted in (True, False))
            torn |= self._near(here, elsewhere)
        sides = decided | {name: split for name, split in side.items() if name not in torn}
        parts = ([name for name in cluster if sides.get(name) is split] for split in Split)
        return [*(part for part in parts if part), *loose]

    def _clusters_of(self, names: Sequence[str]) -> list[list[str]]:
        """Return the clusters that some of the questions would make by themselves."""
        apart = Clusters([self._every[name] for name in names], {}, self._table, self._salt)
        embedded = [name for name in names if name in self._vectors]
        if embedded:
            apart.join_by_meaning(embedded, _stacked(self._vectors, embedded))
        return apart._joined.members()

    def _place_part(self, part: Sequence[str], found: Sequence[Candidate], left_out: dict[str, LeftOut]) -> list[Placed]:
        decided = [self._known[name] for name in part if name in self._known]
        placed = [
            Placed(each, self._known[each.decision_id].cluster_id, self._known[each.decision_id].split)
            for each in found
            if each.decision_id in self._known
        ]
        new = [each for each in found if each.decision_id not in self._known]
        is_large = len(part) > max(_SMALL_CLUSTER, self._table.largest_cluster_share * len(self._every))
        if is_large and any(decision.split is Split.TEST for decision in decided):
            left_out.update((each.decision_id, LeftOut.CLUSTER_TOO_LARGE) for each in new)
            return placed
        cluster_id = decided[0].cluster_id if decided else f"cluster_{hashlib.sha256(min(part).encode()).hexdigest()[:16]}"
        split = decided[0].split if decided else Split.TRAIN if is_large else self._split_of(cluster_id)
        return placed + [Placed(each, cluster_id, split) for each in new]

    def _split_of(self, cluster_id: str) -> Split:
        """Return the split of a new cluster: its salted hash as a number from 0 to 1, against the shares."""
        place = int(hashlib.sha256(f"{self._salt} {cluster_id}".encode()).hexdigest()[:13], 16) / 16**13
        if place < self._table.test_share:
            return Split.TEST
        if place < self._table.test_share + self._table.validation_share:
            return Split.VALIDATION
        return Split.TRAIN

    def _join_people(self, groups: Groups[str], names: Iterable[str]) -> None:
        """Join what is of one conversation or of one customer; of a question that is no candidate its conversation alone is known."""
        first_of: dict[str, str] = {}
        for name in names:
            candidate = self._every.get(name)
            conversation_id = candidate.conversation_id if candidate else self._known[name].conversation_id
            groups.join(name, first_of.setdefault(f"conversation {conversation_id}", name))
            if candidate:
                groups.join(name, first_of.setdefault(f"customer {candidate.customer_id}", name))

    def _join_twins(self, names: Sequence[str], stands_for: Sequence[int]) -> None:
        for name, place in zip(names, stands_for, strict=True):
            self._twins.join(name, names[place])
            self._joined.join(name, names[place])

    def _with_meaning(self, names: Sequence[str]) -> list[int]:
        return [place for place, name in enumerate(names) if self._is_compared(name)]

    def _is_compared(self, name: str) -> bool:
        return len(words(self._every[name].question)) >= MIN_COMPARED_WORDS


def _stacked(vectors: Mapping[str, Vectors], names: Sequence[str]) -> Vectors:
    return np.stack([vectors[name] for name in names])
