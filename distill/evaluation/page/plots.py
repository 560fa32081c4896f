"""The report's pictures, as SVG that stands in the page itself.

In: a report as `report.json` holds it. Out: an SVG for each picture that there is something to draw of, with what it shows in words.
Colours are the page's own, so that a picture is light or dark as the page is. The same report gives the same bytes.
"""

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from conversations.messages import Json
from distill.evaluation.page.words import MODEL_TITLES, dollars, number, part, share, spread

# What is drawn in these becomes the page's colours.
_INK, _LINE = "#000001", "#000002"
_COLOURS = {"base": "#000010", "candidate": "#000011", "released": "#000012", "teacher": "#000013"}
_MARKS = {"base": "s", "candidate": "o", "released": "D", "teacher": "^"}
_VARIABLES = {
    _INK: "--ink",
    _LINE: "--line",
    _COLOURS["base"]: "--base",
    _COLOURS["candidate"]: "--candidate",
    _COLOURS["released"]: "--released",
    _COLOURS["teacher"]: "--teacher",
}
# A phone shows a picture of this width, in inches, nearly as large as it is.
_WIDTH = 5.0
_MOST_TOPICS = 20
_STYLE = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """One picture: its title, the SVG, and what it means in a sentence."""

    title: str
    svg: str
    meaning: str


def pictures(report: Mapping[str, Json]) -> list[Picture]:
    """Return the report's pictures; one that nothing was measured for is left out."""
    metric = str(report["quality_metric"]).replace("_", " ")
    drawn = (
        _quality(report, metric),
        _groups(report, "by_topic", f"{metric.capitalize()} by topic", "A topic in which one mark lies far left of the others is "
                "where that model is weak. Few questions make a wide interval."),
        _groups(report, "by_depth", f"{metric.capitalize()} by depth", "How many messages the customer had written when the question "
                "was asked, that question among them: does the student lose the thread?", name_of=_depth),
        _latency(report),
        _cost(report),
        _training(report),
    )  # fmt: skip
    return [picture for picture in drawn if picture is not None]


def _quality(report: Mapping[str, Json], metric: str) -> Picture | None:
    rows = {
        name: found
        for name, model in part(report["models"]).items()
        if (found := part(part(part(model).get("quality")).get(str(report["quality_metric"]))))
    }
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        for place, (name, found) in enumerate(rows.items()):
            _dot(axes, name, found, place)
        axes.set_yticks(range(len(rows)), [MODEL_TITLES[name] for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _percent(axes)

    told = "; ".join(f"{MODEL_TITLES[name]} {share(found)}" for name, found in rows.items())
    meaning = "A mark is the mean over the held-out questions, the line its 95 % interval. Overlapping lines alone say nothing of a "
    meaning += "difference: the gate compares question by question."
    return Picture(f"{metric.capitalize()}", _svg("quality", draw, 0.55 * len(rows) + 0.7, told), meaning)


def _groups(
    report: Mapping[str, Json], key: str, title: str, meaning: str, *, name_of: Callable[[str], str] = str
) -> Picture | None:
    """Return a dot plot: a line for each group, a mark for each model but the base."""
    groups = dict(list(part(report.get(key)).items())[:_MOST_TOPICS])
    models = [name for name in ("candidate", "released", "teacher") if any(name in part(of) for of in groups.values())]
    if not groups or not models:
        return None

    def draw(axes: Axes) -> None:
        labels: list[str] = []
        for place, (group, of_group) in enumerate(groups.items()):
            for offset, name in enumerate(models):
                found = part(part(of_group).get(name))
                if found:
                    _dot(
                        axes,
                        name,
                        found,
                        place + (offset - (len(models) - 1) / 2) * 0.25,
                        label=name if place == 0 else None,
                    )
            most = max((number(part(found).get("n")) or 0 for found in part(of_group).values()), default=0)
            labels.append(f"{_short(name_of(group))} ({most:.0f})")
        axes.set_yticks(range(len(groups)), labels)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        _percent(axes)
        _legend(axes, models)

    told = "; ".join(
        f"{name_of(group)}: " + ", ".join(f"{MODEL_TITLES[name]} {share(part(of).get(name))}" for name in models)
        for group, of in groups.items()
    )
    left = len(part(report.get(key))) - len(groups)
    more = f" The {left} smallest groups are in report.json alone." if left else ""
    return Picture(
        title, _svg(key, draw, 0.42 * len(groups) + 1.0, told), f"{meaning} In brackets the number of questions.{more}"
    )


def _latency(report: Mapping[str, Json]) -> Picture | None:
    """Return the share of answers that were there after so long, from the stored histogram."""
    histogram = part(report.get("latency"))
    edges = [each for edge in _list(histogram.get("edges_ms")) if (each := number(edge)) is not None]
    counts = {name: part(counted) for name, counted in part(histogram.get("models")).items() if name in _comparable(report)}
    curves: list[tuple[str, str, list[float]]] = []
    for name, counted in counts.items():
        for how in ("one_at_a_time", "together"):
            found = [number(count) or 0.0 for count in _list(counted.get(how))]
            if sum(found):
                curves.append((name, how, [sum(found[: place + 1]) / sum(found) for place in range(len(found))]))
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for name, how, shares in curves:
            style = "-" if how == "one_at_a_time" else (0, (4, 2))
            axes.step(edges[1:], shares, where="post", color=_COLOURS[name], linestyle=style, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        _time_ticks(axes, edges[0], edges[-1])
        axes.set(xlabel="time to the whole answer")
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_ylabel("answers that are there")
        axes.grid(alpha=1, linewidth=0.6)
        _legend(axes, list(dict.fromkeys(name for name, *_ in curves)), lines=True)

    told = "; ".join(
        f"{MODEL_TITLES[name]}, p50 / p95 one at a time: {spread(part(part(report['models'])[name]).get('latency_ms'))}"
        for name in counts
    )
    meaning = "Further left is faster. Unbroken: asked one at a time, as a lone customer meets it. Broken: many asked at once, where "
    meaning += "each waits for the others."
    return Picture("How long an answer takes", _svg("latency", draw, 3.0, told), meaning)


def _cost(report: Mapping[str, Json]) -> Picture | None:
    comparable = {name: part(part(report["models"])[name]) for name in _comparable(report)}
    costs = {
        name: found
        for name, model in comparable.items()
        if (found := number(model.get("cost_usd_per_1000_turns"))) is not None
    }
    if not costs:
        return None

    def draw(axes: Axes) -> None:
        for place, (name, cost) in enumerate(costs.items()):
            axes.barh(place, cost, height=0.5, color=_COLOURS[name])
            axes.annotate(f" {dollars(cost)}", (cost, place), va="center")
        axes.set_yticks(range(len(costs)), [MODEL_TITLES[name] for name in costs])
        axes.set_ylim(len(costs) - 0.5, -0.5)
        axes.set_xlim(0, max(costs.values()) * 1.3 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${value:.4g}"))
        axes.grid(axis="x", linewidth=0.6)

    told = "; ".join(f"{MODEL_TITLES[name]} {dollars(cost)}" for name, cost in costs.items())
    meaning = "A student's turns cost what its machine costs while it is busy, at the concurrency of the evaluation; a teacher's what "
    meaning += "its provider bills. A model without a bar was not measured, or cannot be compared."
    return Picture("Cost of 1,000 turns", _svg("cost", draw, 0.55 * len(costs) + 0.8, told), meaning)


def _training(report: Mapping[str, Json]) -> Picture | None:
    curves = part(report.get("training"))
    loss, held_out = (_points(curves.get(key)) for key in ("loss", "validation_nll"))
    if not loss and not held_out:
        return None

    def draw(axes: Axes) -> None:
        if loss:
            axes.plot(*zip(*loss, strict=True), color=_COLOURS["candidate"], linewidth=0.9, label="loss of each step")
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True),
                color=_COLOURS["teacher"],
                marker="o",
                markersize=4,
                linewidth=1.4,
                label="held-out loss",
            )
        values = [value for _, value in (*loss, *held_out)]
        if min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set(xlabel="tokens computed", ylabel="nats a token")
        axes.grid(linewidth=0.6)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.5)

    ends = [
        f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for name, points in (("loss", loss), ("held-out loss", held_out))
        if points
    ]
    meaning = (
        "Both should fall. A held-out loss that rises while the other falls is learning by heart; the weights of its lowest "
    )
    meaning += "point are kept."
    return Picture("How the training went", _svg("training", draw, 3.0, "; ".join(ends)), meaning)


def _dot(axes: Axes, model: str, found: Mapping[str, Json], place: float, label: str | None = None) -> None:
    value, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=_COLOURS[model], linewidth=1.6, solid_capstyle="butt")
    axes.plot([value], [place], _MARKS[model], color=_COLOURS[model], markersize=6, label=label)


def _percent(axes: Axes) -> None:
    low, high = axes.get_xlim()
    axes.set_xlim(min(0.0, low) if low < 0 else -0.02, max(1.02, high))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes, models: Sequence[str], *, lines: bool = False) -> None:
    for name in models:
        axes.plot([], [], "-" if lines else _MARKS[name], color=_COLOURS[name], label=MODEL_TITLES[name])
    handles, labels = axes.get_legend_handles_labels()
    known = {label: handle for handle, label in zip(handles, labels, strict=True) if label in MODEL_TITLES.values()}
    axes.legend(
        known.values(), known.keys(), loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(known), handlelength=1.2
    )


def _time_ticks(axes: Axes, low: float, high: float) -> None:
    steps = [base * 10**power for power in range(-1, 8) for base in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    shown = inside if len(inside) <= 6 else [step for step in inside if math.log10(step) % 1 < 1e-9]
    axes.set_xticks(shown, [f"{step / 1000:g} s" if step >= 1000 else f"{step:g} ms" for step in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _comparable(report: Mapping[str, Json]) -> list[str]:
    return [name for name, model in part(report["models"]).items() if part(model).get("comparable") is not False]


def _depth(depth: str) -> str:
    return f"message {depth}"


def _short(text: str) -> str:
    return text if len(text) <= 22 else text[:21] + "…"


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _points(value: Json) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for each in _list(value):
        tokens, figure = (number(cell) for cell in _list(each))
        if tokens is not None and figure is not None:
            points.append((tokens, figure))
    return points


def _svg(name: str, draw: Callable[[Axes], None], height: float, told: str) -> str:
    """Return a picture as an SVG element that may stand beside others in one page."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The names of parts must not meet those of other pictures in the page.
    svg = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # The size is the page's matter.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(told)}"', 1)
