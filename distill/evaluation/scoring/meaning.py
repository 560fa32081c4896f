"""How near answers are to other texts by what they mean: the cosine of sentence embeddings.

In: pairs of texts. Out: numbers from 0 to 1. The model is the one that finds near-duplicates in the dataset room.
"""

from collections.abc import Sequence

from distill.dataset.similarity import load_embedder


def similarities(pairs: Sequence[tuple[str, tuple[str, ...]]]) -> list[float]:
    """Return for each answer its best cosine with one of the texts beside it, of which each has one at least.

    Nothing is below 0, and an answer without a word is like nothing.

    Raises OperatorError when the embedding model is not installed.
    """
    if not pairs:
        return []
    texts = list(dict.fromkeys(text for answer, others in pairs for text in (answer, *others)))
    vectors = load_embedder().embed(texts)
    place = {text: at for at, text in enumerate(texts)}
    return [
        0.0
        if not answer.strip()
        else min(1.0, max(0.0, *(float(vectors[place[answer]] @ vectors[place[other]]) for other in others)))
        for answer, others in pairs
    ]
