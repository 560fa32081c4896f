"""The splits of a data set's files: fixed by the file, or drawn by a salted hash of the cluster.

In: questions with what their file is for. Out: a cluster and a split for each, or why it stays out. A question that is the
near-duplicate of a test or validation question is not learnt; nor is what one customer says in both. What the record decided
before stays.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from conversations import decisions as kept
from conversations.messages import Split
from conversations.store import Record
from distill.dataset.similarity import Groups, near_duplicate_pairs
from distill.settings import DistillSettings

_SMALLEST_LARGE_CLUSTER = 20


@dataclass(frozen=True)
class Placing:
    """A question that wants a place; `fixed` is the split of its file, None where it is drawn.

    `text` is the question, `prompt` all that was said up to it: the same prompt is a twin however few its words.
    """

    decision_id: str
    text: str
    conversation_id: str
    customer_id: str | None
    fixed: Split | None
    prompt: str


@dataclass(frozen=True)
class Placed:
    """Cluster and split by decision, and the reason against each that has none."""

    placed: Mapping[str, tuple[str, Split]]
    left_out: Mapping[str, str]


def place(record: Record, settings: DistillSettings, questions: Sequence[Placing]) -> Placed:
    """Give every question its cluster and its split, or the reason why it has none."""
    by_name = {each.decision_id: each for each in questions}
    pairs = near_duplicate_pairs({each.decision_id: each.text for each in questions}, settings.choose.near_duplicate_jaccard)
    pairs += _same_prompts(questions)
    known = {each.decision_id: each for each in kept.decisions(record) if each.decision_id in by_name}
    left_out = _apart(by_name, pairs)
    placed: dict[str, tuple[str, Split]] = {}
    for cluster in _clusters([each for each in questions if each.decision_id not in left_out], pairs):
        for name, found in _place_cluster(cluster, known, by_name, settings, record, len(questions)):
            if isinstance(found, str):
                left_out[name] = found
            else:
                placed[name] = found
    return Placed(placed, left_out)


def _same_prompts(questions: Sequence[Placing]) -> list[tuple[str, str]]:
    """Return chains of pairs through the questions of each prompt; one that is held out stands first, so that all meet it."""
    by_prompt: dict[str, list[Placing]] = {}
    for each in questions:
        by_prompt.setdefault(each.prompt, []).append(each)
    order = (Split.TEST, Split.VALIDATION, None)
    pairs: list[tuple[str, str]] = []
    for same in by_prompt.values():
        first, *rest = sorted(same, key=lambda each: (order.index(each.fixed), each.decision_id))
        pairs += [(first.decision_id, each.decision_id) for each in rest]
    return pairs


def _apart(by_name: Mapping[str, Placing], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return what must not be learnt because a held-out question is like it or of the same customer."""
    left_out: dict[str, str] = {}
    for strict in (Split.TEST, Split.VALIDATION):
        for one, other in [pair for each in pairs for pair in (each, each[::-1])]:
            if by_name[one].fixed is strict and by_name[other].fixed not in (strict, Split.TEST) and one not in left_out:
                left_out.setdefault(other, f"twin_of_{strict.value}")
        held = {each.customer_id for each in by_name.values() if each.fixed is strict and each.customer_id}
        for name, each in by_name.items():
            if each.customer_id in held and each.fixed not in (strict, Split.TEST):
                left_out.setdefault(name, "joins_splits")
    return left_out


def _clusters(questions: Sequence[Placing], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return near-duplicates, conversations and customers of one file's split together."""
    fixed = {each.decision_id: each.fixed for each in questions}
    groups: Groups[str] = Groups(sorted(fixed))
    first_of: dict[Hashable, str] = {}
    for each in questions:
        groups.join(each.decision_id, first_of.setdefault(("conversation", each.conversation_id), each.decision_id))
        if each.customer_id:
            groups.join(each.decision_id, first_of.setdefault(("customer", each.customer_id), each.decision_id))
    for one, other in pairs:
        if one in fixed and other in fixed and fixed[one] is fixed[other]:
            groups.join(one, other)
    return groups.members()


def _place_cluster(
    cluster: Sequence[str],
    known: Mapping[str, kept.Decision],
    by_name: Mapping[str, Placing],
    settings: DistillSettings,
    record: Record,
    size: int,
) -> Iterator[tuple[str, tuple[str, Split] | str]]:
    decided = [known[name] for name in sorted(cluster) if name in known]
    splits = {each.split for each in decided}
    fixed = by_name[cluster[0]].fixed
    cluster_id = decided[0].cluster_id if decided else f"cluster_{hashlib.sha256(min(cluster).encode()).hexdigest()[:16]}"
    is_large = len(cluster) > max(_SMALLEST_LARGE_CLUSTER, settings.choose.largest_cluster_share * size)
    drawn = (
        Split.TRAIN if is_large else _drawn(cluster_id, settings.choose.split_salt or record.fact("split_salt"), settings)
    )
    wanted = fixed or (decided[0].split if decided else drawn)
    for name in sorted(cluster):
        if name in known:
            decision = known[name]
            moved = fixed is not None and decision.split is not fixed
            yield name, "joins_splits" if moved else (decision.cluster_id, decision.split)
        else:
            yield name, "joins_splits" if splits - {wanted} else (cluster_id, wanted)


def _drawn(cluster_id: str, salt: str, settings: DistillSettings) -> Split:
    """Return the split of a cluster of the training file: its salted hash as a number from 0 to 1, against the shares."""
    assert settings.datasets is not None
    has_test = settings.datasets.test is not None or settings.datasets.validation is not None
    has_validation = settings.datasets.test is not None and settings.datasets.validation is not None
    test_share = 0.0 if has_test else settings.choose.test_share
    validation_share = 0.0 if has_validation else settings.choose.validation_share
    at = int(hashlib.sha256(f"{salt} {cluster_id}".encode()).hexdigest()[:13], 16) / 16**13
    if at < test_share:
        return Split.TEST
    return Split.VALIDATION if at < test_share + validation_share else Split.TRAIN
