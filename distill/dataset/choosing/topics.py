"""Topics: what a question is about, in the handbook's words, or in the customers' own where the handbook names no topics.

In: the vectors of questions. Out: one topic for each. A topic orders figures and balances sets; it decides no split.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from distill.dataset.handbook.articles import Handbook
from distill.dataset.similarity import Vectors, load_embedder, words

_SAME_TOPIC = 0.45
_MAX_TOPICS = 60
_ROUNDS = 3
_OTHER = "other"


def topics_of(
    questions: Sequence[str], vectors: Vectors, handbook: Handbook | None, earlier: Mapping[str, Vectors]
) -> list[str]:
    """Return the topic of each question, in order. `earlier` are the vectors of what was decided before, by its topic.

    A question stays with an earlier topic that it is like enough to; the others make topics of their own.
    """
    if not questions:
        return []
    if handbook is not None and any(article.topic for article in handbook.articles):
        whole = [f"{article.title}. {' '.join(s.text for s in article.sections)}"[:2000] for article in handbook.articles]
        nearest = (vectors @ load_embedder().embed(whole).T).argmax(axis=1)
        return [handbook.articles[int(place)].topic or handbook.articles[int(place)].title for place in nearest]
    names = sorted(name for name in earlier if name != _OTHER)
    fixed = _of_length_one(np.stack([earlier[name].mean(axis=0) for name in names])) if names else vectors[:0]
    middles = _refined(vectors, fixed, _leaders(vectors, fixed))
    if not len(middles):
        return [_OTHER] * len(questions)
    likeness = vectors @ middles.T
    best = likeness.argmax(axis=1)
    topic_of = np.where(likeness.max(axis=1) >= _SAME_TOPIC, best, -1).tolist()
    members: list[list[str]] = [[] for _ in middles]
    for question, topic in zip(questions, topic_of, strict=True):
        if topic >= len(names):
            members[topic].append(question)
    names += _names(members[len(names) :], set(names))
    return [names[topic] if topic >= 0 else _OTHER for topic in topic_of]


def _leaders(vectors: Vectors, fixed: Vectors) -> list[int]:
    """Return the questions that lead a topic: each the first one that is like no topic before it."""
    nearest = (vectors @ fixed.T).max(axis=1) if len(fixed) else np.full(len(vectors), -1.0, np.float32)
    leaders: list[int] = []
    while len(fixed) + len(leaders) < _MAX_TOPICS and float(nearest.min()) < _SAME_TOPIC:
        leaders.append(int((nearest < _SAME_TOPIC).argmax()))
        nearest = np.maximum(nearest, vectors @ vectors[leaders[-1]])
    return leaders


def _refined(vectors: Vectors, fixed: Vectors, leaders: Sequence[int]) -> Vectors:
    """Move each leader to the middle of what follows it, a few times (k-means on the sphere); earlier topics stay where they are."""
    middles: Vectors = np.concatenate([fixed, vectors[list(leaders)]])
    for _ in range(_ROUNDS if leaders else 0):
        likeness = vectors @ middles.T
        nearest = np.where(likeness.max(axis=1) >= _SAME_TOPIC, likeness.argmax(axis=1), -1)
        for topic in range(len(fixed), len(middles)):
            followers = vectors[nearest == topic]
            if len(followers):
                middles[topic] = _of_length_one(followers.mean(axis=0, keepdims=True))[0]
    return middles


def _of_length_one(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9), np.float32)


def _names(topics: Sequence[Sequence[str]], taken: set[str]) -> list[str]:
    """Name each topic by the two words that it says most and the others least."""
    counts = [
        Counter(word for question in questions for word in set(words(question)) if len(word) > 3) for questions in topics
    ]
    spread = Counter(word for count in counts for word in count)
    names: list[str] = []
    for place, count in enumerate(counts):
        typical = sorted(count, key=lambda word: (-count[word] / spread[word], -count[word], word))[:2]
        name = " ".join(typical) or f"topic {place}"
        while name in taken:
            name += " too"
        taken.add(name)
        names.append(name)
    return names
