"""What likeness promises: no near-duplicate is missed, and a handbook is embedded once."""

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from distill.dataset.handbook.answering import HandbookTeacher
from distill.dataset.handbook.articles import Handbook
from distill.dataset.similarity import (
    DIMENSIONS,
    load_embedder,
    near_duplicate_groups,
    near_duplicate_pairs,
    near_duplicates_of,
    trigram_jaccard,
)

WORDS = (
    "my",
    "box",
    "lamp",
    "line",
    "bill",
    "is",
    "was",
    "slow",
    "coral",
    "again",
    "since",
    "the",
    "a",
    "on",
    "off",
    "not",
    "help",
)


def texts_of(seed: int) -> list[str]:
    """Texts out of few words, so that many are alike, and some are the same but for case and punctuation."""
    chance = random.Random(seed)
    made = [" ".join(chance.choice(WORDS) for _ in range(chance.randint(3, 12))) for _ in range(60)]
    for _ in range(120):
        spoken = chance.choice(made).split()
        spoken[chance.randrange(len(spoken))] = chance.choice(WORDS)
        made.append(chance.choice([str.upper, str.title, lambda text: f"{text}!"])(" ".join(spoken)))
    return made


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_join_finds_what_looking_at_every_pair_finds(seed: int, threshold: float) -> None:
    texts = {f"t{place:03d}": text for place, text in enumerate(texts_of(seed))}
    alike = [(one, other) for one, other in combinations(texts, 2) if trigram_jaccard(texts[one], texts[other]) >= threshold]
    assert alike and near_duplicate_pairs(texts, threshold) == alike
    held_out = list(texts.values())[:40]
    rest = list(texts.values())[40:]
    near = {place for place, text in enumerate(rest) if any(trigram_jaccard(text, other) >= threshold for other in held_out)}
    assert near_duplicates_of(held_out, rest, threshold) == near
    group = {name: name for name in texts}

    def find(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for one, other in alike:
        group[max(find(one), find(other))] = min(find(one), find(other))
    labels = dict(zip(texts, near_duplicate_groups(list(texts.values()), threshold), strict=True))
    assert all((find(one) == find(other)) == (labels[one] == labels[other]) for one, other in combinations(texts, 2))


def test_a_handbook_is_embedded_once_and_anew_when_it_changes_or_its_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "a.md").write_text("# The lamp\n\nThe lamp is coral when the line is down.\n", encoding="utf-8")
    kept = tmp_path / "vectors"
    seeing = HandbookTeacher(Handbook.load(tmp_path / "book"), load_embedder(), kept)
    (file,) = kept.glob("*")
    good = np.load(file)
    assert good.shape[1] == DIMENSIONS and np.allclose(np.linalg.norm(good, axis=1), 1, atol=1e-5)
    # Whoever reads the file uses what stands in it.
    np.save(file, np.zeros_like(good))
    blind = HandbookTeacher(Handbook.load(tmp_path / "book"), load_embedder(), kept)
    asked = ["The lamp is coral"]
    assert float(blind.scores(asked).max()) < float(seeing.scores(asked).max()) - 1
    file.write_bytes(b"broken")
    load_embedder()._kept.clear()
    HandbookTeacher(Handbook.load(tmp_path / "book"), load_embedder(), kept)
    assert np.allclose(np.load(file), good, atol=1e-5)
    (tmp_path / "book" / "b.md").write_text("# The bill\n\nThe bill comes on the first.\n", encoding="utf-8")
    HandbookTeacher(Handbook.load(tmp_path / "book"), load_embedder(), kept)
    (after,) = kept.glob("*")
    assert after != file and len(np.load(after)) > len(good)
