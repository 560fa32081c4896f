"""What only many answers together show: copies that belong to another topic, and too many that say "I don't know".

In: rows with their answers and verdicts. Out: the decisions whose answers are not to be learnt, each with what was found. The same
right answer may well stand under several topics; a copy is rejected only where it fits another topic's question far better than
the one it was given to.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversations.messages import Role
from distill.dataset.similarity import near_duplicate_clusters, words
from distill.dataset.verifying.knowledge import content_of
from distill.rows import AnswerRow, ChosenRow

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

_MIN_CONTENT_WORDS = 6
# Likeness in meaning of an answer to its question: right pairs have 0.5 to 0.8, strangers 0 to 0.3.
_STRANGER_FIT = 0.3
_POOR_FIT = 0.5
_BETTER_BY = 0.15
_CLEAR_MAJORITY = 3


@dataclass(frozen=True)
class Given:
    """An answer that nothing speaks against so far, with its row."""

    row: ChosenRow
    answer: AnswerRow


def copies_of_other_topics(
    given: Sequence[Given], jaccard: float, embed: Callable[[], Embed], grounded: Collection[str]
) -> dict[str, str]:
    """Return the decisions whose answer is a near copy of one that belongs to another topic, with that topic.

    `grounded` are decisions whose answers fit a handbook passage that they cite: what the handbook says may be said anywhere.
    `embed` opens the embedding model, and is called only when one answer stands under several topics.
    """
    texts: dict[str, list[Given]] = defaultdict(list)
    for each in given:
        if len(content_of(words(each.answer.text))) >= _MIN_CONTENT_WORDS:
            texts[each.answer.text].append(each)
    if not texts:
        return {}
    suspected = []
    for cluster in near_duplicate_clusters({text: text for text in texts}, jaccard):
        group = [each for text in cluster for each in texts[text]]
        topics = Counter(each.row.topic for each in group)
        if len(topics) > 1 and any(each.row.decision_id not in grounded for each in group):
            suspected.append((group, topics))
    if not suspected:
        return {}
    likeness = _likeness([each for group, _ in suspected for each in group], embed())
    found: dict[str, str] = {}
    for group, topics in suspected:
        best = {topic: max(likeness[each.row.decision_id] for each in group if each.row.topic == topic) for topic in topics}
        at_home = {each.row.topic for each in group if each.row.decision_id in grounded}
        for each in group:
            if each.row.decision_id not in grounded:
                owner = _owner(each.row.topic, likeness[each.row.decision_id], topics, best, at_home)
                if owner is not None:
                    found[each.row.decision_id] = f"an answer of the topic {owner!r}"
    return found


def _owner(
    own: str, fit: float, topics: Mapping[str, int], best: Mapping[str, float], at_home: Collection[str]
) -> str | None:
    """Return the topic that an answer was copied from, or None where it may well be this topic's own.

    An answer that fits many topics a little is a general one. A copy is a stranger to its question, or alone among many of the
    other topic; and it fits the other topic better, or rests on the handbook there (`at_home`).
    """
    if fit >= _POOR_FIT:
        return None
    owners = []
    for topic, count in topics.items():
        is_clear = count >= _CLEAR_MAJORITY * topics[own]
        is_candidate = topic != own and (is_clear or (fit < _STRANGER_FIT and count >= topics[own]))
        if is_candidate and (best[topic] >= fit + _BETTER_BY or (is_clear and fit < _STRANGER_FIT and topic in at_home)):
            owners.append(topic)
    return max(owners, key=lambda topic: (best[topic], topic)) if owners else None


def declined_surplus(declined: Sequence[str], answered: int, max_share: float) -> list[str]:
    """Return the declining answers beyond their share of the training part; a student that only declines is no use."""
    ordered = sorted(declined, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    # declined / (declined + answered) <= share
    allowed = len(ordered) if max_share >= 1 else int(answered * max_share / (1 - max_share))
    return ordered[allowed:]


def _likeness(given: Sequence[Given], embed: Embed) -> Mapping[str, float]:
    """Return how near each answer is in meaning to what its customer asked, by decision."""
    asked = ["\n".join([m.content for m in each.row.messages if m.role is Role.USER][-2:]) for each in given]
    alone = [[m.content for m in each.row.messages if m.role is Role.USER][-1:] or [""] for each in given]
    said = embed([each.answer.text for each in given])
    last, both = embed([text[0] for text in alone]), embed(asked)
    near = np.maximum((said * last).sum(axis=1), (said * both).sum(axis=1))
    return {each.row.decision_id: float(value) for each, value in zip(given, near, strict=True)}
