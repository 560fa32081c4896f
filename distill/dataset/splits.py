"""Which questions are learnt from and which are held out: a property of the row, decided once.

In: all questions of the record, and what was decided before. Out: a cluster and a split for each. A cluster holds everything
of one customer, and near-duplicates of that (last customer messages of five words or more, Jaccard index of their word
trigrams at or above the threshold), and so on. A salted hash of the cluster's name decides; a decision that stands keeps its
split for ever, and a newcomer takes its cluster's. What would join held-out and learnt questions is left out and counted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from conversations.decisions import Decision
from conversations.messages import Split
from distill.dataset.similarity import Groups, near_duplicate_pairs
from distill.settings import ChooseTable

# One huge cluster (a shared account, a form letter) would make the test set about itself.
MAX_HELD_OUT_CLUSTER_SHARE = 0.2


@dataclass(frozen=True)
class Question:
    """A customer's question, redacted, and whose it is."""

    decision_id: str
    conversation_id: str
    customer_id: str
    text: str


@dataclass(frozen=True)
class Place:
    """Where a question belongs."""

    cluster_id: str
    split: Split


@dataclass(frozen=True)
class Splits:
    """A place for every wanted question that is not left out; `twins` counts test questions with a twin in training."""

    places: Mapping[str, Place]
    left_out: frozenset[str]
    pairs: int
    twins: int


def split_questions(
    questions: Sequence[Question],
    *,
    recorded: Mapping[str, Decision],
    wanted: AbstractSet[str],
    table: ChooseTable,
    salt: str,
) -> Splits:
    """Place the wanted questions among all questions of the record; recorded decisions keep their place."""
    pairs = near_duplicate_pairs({each.decision_id: each.text for each in questions}, table.near_duplicate_jaccard)
    places: dict[str, Place] = {}
    left_out: set[str] = set()
    for members in _clusters(questions, pairs):
        place = _place_of_cluster(members, recorded, len(wanted & {each.decision_id for each in members}) / max(1, len(wanted)),
                                  table, salt)  # fmt: skip
        for each in members:
            known = recorded.get(each.decision_id)
            if each.decision_id not in wanted:
                continue
            if known is not None:
                places[each.decision_id] = Place(known.cluster_id, known.split)
            elif place is None:
                left_out.add(each.decision_id)
            else:
                places[each.decision_id] = place
    # Only a threshold that was lowered since can bring recorded twins into different splits; the test set stays.
    for learnt in _learnt_twins(pairs, places, recorded):
        left_out.add(learnt)
        places.pop(learnt)
    twins = len(_learnt_twins(pairs, places, recorded))
    assert twins == 0, f"{twins} test questions have a near-duplicate in training"
    return Splits(places, frozenset(left_out), len(pairs), twins)


def _clusters(questions: Sequence[Question], pairs: Sequence[tuple[str, str]]) -> list[list[Question]]:
    groups: Groups[str] = Groups()
    by_name = {each.decision_id: each for each in questions}
    for each in questions:
        groups.join(f"conversation {each.conversation_id}", f"customer {each.customer_id}")
        groups.join(f"decision {each.decision_id}", f"conversation {each.conversation_id}")
    for first, second in pairs:
        groups.join(f"decision {first}", f"decision {second}")
    names = [
        [name.removeprefix("decision ") for name in group if name.startswith("decision ")] for group in groups.members()
    ]
    return [[by_name[name] for name in group] for group in names]


def _place_of_cluster(
    members: Sequence[Question], recorded: Mapping[str, Decision], share: float, table: ChooseTable, salt: str
) -> Place | None:
    """Return the place of a cluster's new members; None when its recorded ones are both held out and learnt from."""
    known = [recorded[each.decision_id] for each in members if each.decision_id in recorded]
    if not known:
        # The first conversation by name: as stable as a name can be while clusters grow.
        name = min(each.conversation_id for each in members)
        cluster_id = "cluster_" + hashlib.sha256(name.encode()).hexdigest()[:24]
        is_huge = share > MAX_HELD_OUT_CLUSTER_SHARE
        return Place(cluster_id, Split.TRAIN if is_huge else _drawn(cluster_id, table, salt))
    splits = {each.split for each in known}
    if Split.TEST in splits and len(splits) > 1:
        return None
    split = Split.TRAIN if Split.TRAIN in splits else splits.pop()
    return Place(min(each.cluster_id for each in known if each.split is split), split)


def _drawn(cluster_id: str, table: ChooseTable, salt: str) -> Split:
    digest = hashlib.sha256(f"{salt} {cluster_id}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn < table.test_share:
        return Split.TEST
    return Split.VALIDATION if drawn < table.test_share + table.validation_share else Split.TRAIN


def _learnt_twins(
    pairs: Sequence[tuple[str, str]], places: Mapping[str, Place], recorded: Mapping[str, Decision]
) -> set[str]:
    """Return the training and validation questions that have a near-duplicate in the test set, past editions included."""
    found: set[str] = set()
    for pair in pairs:
        for one, other in (pair, pair[::-1]):
            held_out = other in places and places[other].split is Split.TEST
            held_out = held_out or (other in recorded and recorded[other].split is Split.TEST)
            if held_out and one in places and places[one].split is not Split.TEST:
                found.add(one)
    return found
