"""How much personal data redaction finds, and how much else it touches: `python -m tests.bench.redaction [--data DIR] [--json FILE]`.

In: texts of our own with values planted in them, ordinary sentences, and, where it is there, the folder of real conversations. Out: a
table of recall and precision by kind with every miss, the share of sentences touched, and whether anything with a valid checksum is
left, which is looked for here by arithmetic and not by the recognisers' own patterns.
"""

import argparse
import json
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conversations.redaction import RedactionRules, Redactor
from tests.bench.machine import hardware, written
from tests.bench.personal_texts import REGIONS, Planted, iban_length, ordinary_sentences, planted_texts

DATA = Path(__file__).parents[2] / "../shared/data"
_EXAMPLES = 6
_GROUPINGS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3)}


@dataclass
class KindResult:
    """What was found of one kind. `hidden` is whatever no longer stands in the text, `found` what also got the right kind."""

    planted: int = 0
    hidden: int = 0
    found: int = 0
    given: int = 0
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float:
        """The share of planted values that do not get through."""
        return self.hidden / self.planted if self.planted else 1.0

    @property
    def precision(self) -> float:
        """The share of this kind's placeholders that stand for a planted value of this kind."""
        return self.found / self.given if self.given else 1.0


@dataclass
class FileResult:
    """What was touched in one file of real conversations, and what with a valid checksum is left."""

    messages: int = 0
    touched: int = 0
    seconds: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def measure_planted(rules: RedactionRules, seed: int, of_each_kind: int) -> dict[str, KindResult]:
    """Return what is found of the planted values, by kind."""
    results: dict[str, KindResult] = defaultdict(KindResult)
    for planted in planted_texts(seed, of_each_kind):
        redactor = Redactor(rules)
        _count(results, planted, redactor.redact(planted.text), redactor.placeholders.originals)
    return dict(results)


def measure_ordinary(rules: RedactionRules, seed: int, count: int) -> tuple[int, list[str]]:
    """Return how many ordinary sentences there were, and those that were touched, as they became."""
    sentences = list(ordinary_sentences(seed, count))
    redacted = [(sentence, Redactor(rules).redact(sentence)) for sentence in sentences]
    return len(sentences), [f"{text!r} -> {became!r}" for text, became in redacted if text != became]


def measure_file(rules: RedactionRules, path: Path) -> FileResult:
    """Return what is touched in the messages of a file, the system's left out."""
    result = FileResult()
    for message in _messages(path):
        redactor = Redactor(rules)
        began = time.perf_counter()
        redacted = redactor.redact(message)
        result.seconds += time.perf_counter() - began
        result.messages += 1
        result.touched += redacted != message
        result.left += checksums_left(redacted)
        for name, original in redactor.placeholders.originals.items():
            kind = name[1:].split("_")[0]
            result.by_kind[kind] = result.by_kind.get(kind, 0) + 1
            place = message.find(original)
            if len(result.examples.setdefault(kind, [])) < _EXAMPLES:
                result.examples[kind].append(
                    f"{message[max(0, place - 30) : place]}[{original}]{message[place + len(original) :][:15]}"
                )
    return result


def checksums_left(text: str) -> list[str]:
    """Return every card-shaped number whose Luhn sum is right and every IBAN whose mod 97 is, by brute force."""
    plain = unicodedata.normalize("NFKC", "".join(_plain(character) for character in text))
    return [*_cards_left(plain), *_ibans_left(plain)]


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return "-" if category == "Pd" else "" if category == "Cf" else " " if character.isspace() else character


def _cards_left(plain: str) -> Iterator[str]:
    runs = [(run, place) for run, place in _runs(plain) if run.isdigit()]
    for first, (run, start) in enumerate(runs):
        # Letters that touch it make it a part of a serial number or a checksum; a date makes a time stamp.
        touched = plain[start - 1 : start].isalnum() or plain[start + len(run) : start + len(run) + 1].isalnum()
        if 13 <= len(run) <= 19 and not touched and run[:2] not in ("19", "20") and _luhn(run):
            yield run
        for count in (3, 4, 5):
            group = runs[first : first + count]
            gaps = [plain[place + len(each) : following] for (each, place), (_, following) in pairwise(group)]
            digits = "".join(each for each, _ in group)
            if (
                tuple(len(each) for each, _ in group) in _GROUPINGS
                and all(gap in (" ", "-") for gap in gaps)
                and _luhn(digits)
            ):
                yield digits


def _ibans_left(plain: str) -> Iterator[str]:
    for run, start in _runs(plain):
        upper = run.upper()
        length = iban_length(upper[:2])
        if length is None or not upper[2:4].isdigit():
            continue
        code = "".join(character for character in plain[start : start + 2 * length].upper() if character not in " -")[
            :length
        ]
        if (
            len(code) == length
            and code.isascii()
            and code.isalnum()
            and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1
        ):
            yield code


def _runs(plain: str) -> list[tuple[str, int]]:
    """Return the runs of letters and digits with where each begins; a run of digits within letters is one of its own too."""
    runs: list[tuple[str, int]] = []
    start = 0
    for place in range(1, len(plain) + 1):
        if place == len(plain) or plain[place].isalnum() != plain[start].isalnum():
            if plain[start].isalnum():
                runs.append((plain[start:place], start))
            start = place
    return runs


def _luhn(digits: str) -> bool:
    return sum(sum(divmod(int(each) * (1 + place % 2), 10)) for place, each in enumerate(reversed(digits))) % 10 == 0


def _count(results: dict[str, KindResult], planted: Planted, redacted: str, originals: dict[str, str]) -> None:
    mine = results[planted.kind]
    mine.planted += 1
    if planted.value in redacted or _is_mostly_left(planted.value, redacted):
        mine.missed.append(repr(planted.text))
    else:
        mine.hidden += 1
    for name, original in originals.items():
        kind = name[1:].split("_")[0]
        results[kind].given += 1
        is_value = kind == planted.kind and (
            planted.value in original or (original in planted.value and 2 * len(original) > len(planted.value))
        )
        if is_value:
            results[kind].found += 1
        else:
            results[kind].wrong.append(f"{kind} {original!r} in {planted.text!r}")


def _is_mostly_left(value: str, redacted: str) -> bool:
    """Tell whether half of a value or more still stands there in one piece."""
    half = max(4, (len(value) + 1) // 2)
    return any(value[start : start + half] in redacted for start in range(len(value) - half + 1))


def _messages(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            for message in json.loads(line)["messages"]:
                if message["role"] != "system":
                    yield message["content"]


def _print(
    console: Console, kinds: dict[str, KindResult], ordinary: tuple[int, Sequence[str]], files: dict[str, FileResult]
) -> None:
    table = Table("kind", "planted", "hidden", "recall", "right kind", "given", "precision", title="Planted values")
    for kind, each in kinds.items():
        table.add_row(
            kind, str(each.planted), str(each.hidden), f"{each.recall:.1%}", str(each.found), str(each.given), f"{each.precision:.1%}"
        )  # fmt: skip
    console.print(table)
    for kind, each in kinds.items():
        for told, examples in (("missed", each.missed), ("wrong", each.wrong)):
            for example in examples:
                console.print(f"{told} {kind}: {example}", markup=False, highlight=False)
    count, touched = ordinary
    console.print(f"Ordinary sentences: {len(touched)} of {count} touched ({len(touched) / count:.2%})")
    for example in touched:
        console.print(f"  {example}", markup=False, highlight=False)
    table = Table(
        "file", "messages", "touched", "share", "by kind", "valid checksums left", "ms a message", title="Real conversations"
    )
    for name, result in files.items():
        by_kind = ", ".join(f"{kind} {number}" for kind, number in sorted(result.by_kind.items()))
        table.add_row(
            name, str(result.messages), str(result.touched), f"{result.touched / max(1, result.messages):.2%}", by_kind,
            str(len(result.left)), f"{1000 * result.seconds / max(1, result.messages):.2f}",
        )  # fmt: skip
    if files:
        console.print(table, f"Timed on {hardware()}.")
    for name, result in files.items():
        for kind, examples in result.examples.items():
            for example in examples:
                console.print(f"{name} {kind}: {example!r}", markup=False, highlight=False)
        for left in result.left:
            console.print(f"{name} LEFT: {left}", markup=False, highlight=False)


def main() -> None:
    """Print the tables to standard error and the figures as JSON."""
    parser = argparse.ArgumentParser(description="measure redaction")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of real conversations, one JSON object a line")
    parser.add_argument("--json", type=Path, help="write the same as JSON")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--of-each-kind", type=int, default=1000)
    parser.add_argument("--ordinary", type=int, default=5000)
    parser.add_argument("--no-regions", action="store_true", help="configure no country")
    options = parser.parse_args()
    rules = RedactionRules(regions=() if options.no_regions else REGIONS)
    kinds = measure_planted(rules, options.seed, options.of_each_kind)
    ordinary = measure_ordinary(rules, options.seed, options.ordinary)
    files = {path.name: measure_file(rules, path) for path in sorted(options.data.glob("*.jsonl"))}
    console = Console(width=200, stderr=True)
    _print(console, kinds, ordinary, files)
    if not files:
        console.print(f"{options.data}: no .jsonl files; real conversations were not measured")
    found = {
        "subject": "redaction",
        "hardware": hardware(),
        "kinds": {
            kind: {**asdict(each), "recall": each.recall, "precision": each.precision} for kind, each in kinds.items()
        },
        "ordinary": {"sentences": ordinary[0], "touched": ordinary[1]},
        "files": {name: asdict(result) for name, result in files.items()},
    }
    written(found, options.json)


if __name__ == "__main__":
    main()
