"""The data card: what a data set is made of, on one page and as figures.

In: the counts of the four stages and the figures of the rows. Out: `assemble/data_card.json` and `data_card.html`, which needs
nothing but itself. Holds no customer's words except in the names of topics, and nothing that differs from one machine to another.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conversations.messages import Json, Split
from distill.dataset.assembling.figures import Figures
from distill.run import Counts, Run, Stage, write_whole

TEMPLATE = Path(__file__).with_name("data_card.html.jinja")
_STAGES = (Stage.CHOOSE, Stage.TEACH, Stage.VERIFY)
_MOST_BARS = 24


@dataclass(frozen=True)
class Bar:
    """A line of a chart: its parts in per cent of the longest line, by split."""

    name: str
    total: int
    parts: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class Chart:
    """Bars under a title; `more` are the lines that are left to the JSON file."""

    title: str
    bars: tuple[Bar, ...]
    more: int = 0


def write_card(run: Run, counts: Counts, details: Mapping[str, Json], figures: Figures) -> None:
    """Write both files of the card into the stage's folder."""
    told = card_of(run, counts, details, figures)
    folder = run.stage_folder(Stage.ASSEMBLE)
    write_whole(folder / "data_card.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    write_whole(folder / "data_card.html", page(told))


def card_of(run: Run, counts: Counts, details: Mapping[str, Json], figures: Figures) -> dict[str, Json]:
    """Return the figures of the card."""
    finished = {stage: run.manifest(stage) for stage in _STAGES}
    stages: dict[str, Json] = {
        stage.value: {
            **manifest.counts.model_dump(by_alias=True),
            "unscored_by_reason": manifest.details.get("unscored_by_reason", {}),
        }
        for stage, manifest in finished.items()
    }
    stages[Stage.ASSEMBLE.value] = {
        **counts.model_dump(by_alias=True),
        "unscored_by_reason": details.get("unscored_by_reason", {}),
    }
    return {
        "details": dict(details),
        "clusters": {split.value: len(names) for split, names in figures.clusters.items()},
        "handbook_passages": len(figures.passages),
        "chosen_because": finished[Stage.CHOOSE].details.get("by_reason", {}),
        "stages": stages,
        "counts": {kind: figures.table(kind) for kind in sorted(figures.kinds())},
    }


def page(told: Mapping[str, Json]) -> str:
    """Return the card as one page of HTML."""
    from jinja2 import Environment, StrictUndefined

    counts = told["counts"]
    assert isinstance(counts, dict)
    charts = [_chart(kind, table) for kind, table in counts.items() if kind not in ("task", "weight", "author")]
    charts.sort(key=lambda chart: (chart.title != "Topic", chart.title))
    learnt = [_chart(kind, counts[kind]) for kind in ("author", "weight") if kind in counts]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        card=told,
        details=told["details"],
        charts=charts,
        learnt=learnt,
        chosen=_plain_chart("Why they were chosen", told["chosen_because"]),
        splits=[split.value for split in Split],
    )


def _chart(kind: str, table: Json) -> Chart:
    assert isinstance(table, dict)
    counted = {
        name: {split: number for split, number in parts.items() if isinstance(number, int)}
        for name, parts in table.items()
        if isinstance(parts, dict)
    }
    if kind in ("topic", "teacher", "language", "author"):
        counted = dict(sorted(counted.items(), key=lambda each: (-sum(each[1].values()), each[0])))
    longest = max((sum(parts.values()) for parts in counted.values()), default=1) or 1
    bars = [
        Bar(
            name.replace("_", " "),
            sum(parts.values()),
            tuple((split, number, round(100 * number / longest, 2)) for split, number in parts.items() if number),
        )
        for name, parts in counted.items()
    ]
    return Chart(kind.capitalize(), tuple(bars[:_MOST_BARS]), len(bars[_MOST_BARS:]))


def _plain_chart(title: str, table: Json) -> Chart:
    counted = {name: number for name, number in table.items() if isinstance(number, int)} if isinstance(table, dict) else {}
    return _chart(title, {name: {"chosen": number} for name, number in sorted(counted.items(), key=lambda each: -each[1])})
