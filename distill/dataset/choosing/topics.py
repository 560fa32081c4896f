"""Topics: what a question is about, in the handbook's words, or in the customers' own where there is no handbook.

In: questions. Out: one topic for each. A topic orders figures and balances sets; it decides nothing else.
"""

from collections import Counter
from collections.abc import Sequence

from distill.dataset.handbook.articles import Handbook
from distill.dataset.similarity import load_embedder, words

_SAME_TOPIC = 0.45
_MAX_TOPICS = 60
_OTHER = "other"


def topics_of(questions: Sequence[str], handbook: Handbook | None) -> list[str]:
    """Return the topic of each question, in order."""
    if not questions:
        return []
    vectors = load_embedder().embed(questions)
    if handbook is not None and handbook.articles:
        whole = [f"{article.title}. {' '.join(s.text for s in article.sections)}"[:2000] for article in handbook.articles]
        nearest = (vectors @ load_embedder().embed(whole).T).argmax(axis=1)
        return [handbook.articles[int(place)].topic for place in nearest]
    # Leaders in order: a question joins the first leader it is like enough to, or leads a topic of its own.
    leaders: list[int] = []
    topic_of: list[int] = []
    for place in range(len(questions)):
        likeness = vectors[leaders] @ vectors[place]
        best = int(likeness.argmax()) if leaders else -1
        if leaders and float(likeness[best]) >= _SAME_TOPIC:
            topic_of.append(best)
        elif len(leaders) < _MAX_TOPICS:
            leaders.append(place)
            topic_of.append(len(leaders) - 1)
        else:
            topic_of.append(-1)
    names = _names([[q for q, topic in zip(questions, topic_of, strict=True) if topic == t] for t in range(len(leaders))])
    return [names[topic] if topic >= 0 else _OTHER for topic in topic_of]


def _names(topics: Sequence[Sequence[str]]) -> list[str]:
    """Name each topic by the two words that it says most and the others least."""
    counts = [
        Counter(word for question in questions for word in set(words(question)) if len(word) > 3) for questions in topics
    ]
    spread = Counter(word for count in counts for word in count)
    names: list[str] = []
    for place, count in enumerate(counts):
        typical = sorted(count, key=lambda word: (-count[word] / spread[word], -count[word], word))[:2]
        names.append(" ".join(typical) or f"topic {place}")
    return names
