"""Balance: no topic, and neither first turns nor later ones, fills the training set beyond its share.

In: the decisions that may be learnt. Out: those to leave out, with the reason. It always says the same of the same rows. The rule:
no share is asked of a group that is smaller than an equal one (a set with one topic is not cut at all), and no group loses more
than half its rows, nor more than the other groups hold together, because a set that is out of balance teaches more than one that is
hardly there, and one odd conversation is no reason to throw others away. What people answered or approved goes last.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

TOPIC_SURPLUS = "topic_surplus"
DEPTH_SURPLUS = "depth_surplus"
_MOST_LEFT_OUT_OF_A_GROUP = 0.5


@dataclass(frozen=True)
class Weighed:
    """What balance knows of a decision."""

    decision_id: str
    topic: str
    turn_depth: int
    weight: float


def surplus(rows: Sequence[Weighed], *, max_topic_share: float, max_depth_share: float) -> dict[str, str]:
    """Return the decisions to leave out, each with its reason."""
    left_out = dict.fromkeys(_beyond(rows, {row.decision_id: row.topic for row in rows}, max_topic_share), TOPIC_SURPLUS)
    rest = [row for row in rows if row.decision_id not in left_out]
    is_first = {row.decision_id: row.turn_depth <= 1 for row in rest}
    return left_out | dict.fromkeys(_beyond(rest, is_first, max_depth_share), DEPTH_SURPLUS)


def _beyond(rows: Sequence[Weighed], group_of: Mapping[str, Hashable], share: float) -> list[str]:
    allowed = allowed_rows(Counter(group_of[row.decision_id] for row in rows), share)
    kept: Counter[Hashable] = Counter()
    beyond: list[str] = []
    for row in sorted(rows, key=lambda each: (-each.weight, hashlib.sha256(each.decision_id.encode()).digest())):
        group = group_of[row.decision_id]
        kept[group] += 1
        if kept[group] > allowed[group]:
            beyond.append(row.decision_id)
    return beyond


def allowed_rows(counts: Mapping[Hashable, int], share: float) -> dict[Hashable, int]:
    """Return how many rows each group may keep, so that none is more than its share of what is kept, as far as the rule lets."""
    if not counts:
        return {}
    share = max(share, 1 / len(counts))
    total = sum(counts.values())
    least = {group: count - min(int(count * _MOST_LEFT_OUT_OF_A_GROUP), total - count) for group, count in counts.items()}
    low, high = 0, max(counts.values())
    # The greatest limit that is no more than its share of what it leaves; what a limit leaves grows slower than the limit.
    while low < high:
        limit = (low + high + 1) // 2
        if limit <= share * sum(min(count, limit) for count in counts.values()):
            low = limit
        else:
            high = limit - 1
    return {group: min(count, max(low, least[group])) for group, count in counts.items()}
