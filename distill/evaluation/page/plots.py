"""The report's pictures, as SVG that stands in the page itself.

In: a report as `report.json` holds it. Out: an SVG for each picture that there is something to draw of, with what it shows in words.
The same report gives the same bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from conversations.messages import Json
from distill.evaluation.page.drawing import COLOURS, dot, legend, percent_axis, svg_of, time_ticks
from distill.evaluation.page.words import MODEL_TITLES, dollars, number, part, share, spread

_MOST_TOPICS = 20


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
            dot(axes, name, found, place)
        axes.set_yticks(
            range(len(rows)), [f"{MODEL_TITLES[name]}\n{number(found['value']):.1%}" for name, found in rows.items()]
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        percent_axis(axes)

    told = "; ".join(f"{MODEL_TITLES[name]} {share(found)}" for name, found in rows.items())
    meaning = "A mark is the mean over the held-out questions, the line its 95 % interval. Overlapping lines alone say nothing of a "
    meaning += "difference: the gate compares question by question."
    return Picture(f"{metric.capitalize()}", svg_of("quality", draw, 0.6 * len(rows) + 0.7, told), meaning)


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
                    dot(axes, name, found, place + (offset - (len(models) - 1) / 2) * 0.25)
            most = max((number(part(found).get("n")) or 0 for found in part(of_group).values()), default=0)
            labels.append(f"{_short(name_of(group))} ({most:.0f})")
        axes.set_yticks(range(len(groups)), labels)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        percent_axis(axes)
        legend(axes, models)

    told = "; ".join(
        f"{name_of(group)}: " + ", ".join(f"{MODEL_TITLES[name]} {share(part(of).get(name))}" for name in models)
        for group, of in groups.items()
    )
    left = len(part(report.get(key))) - len(groups)
    more = f" The {left} smallest groups are in report.json alone." if left else ""
    return Picture(
        title, svg_of(key, draw, 0.42 * len(groups) + 1.0, told), f"{meaning} In brackets the number of questions.{more}"
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
            axes.step(edges[1:], shares, where="post", color=COLOURS[name], linestyle=style, linewidth=1.6)
        axes.set_xscale("log")
        # The edges reach as far as every model's answers; some models may not be drawn.
        first = edges[min(sum(share == 0 for share in shares) for *_, shares in curves)]
        axes.set_xlim(first, edges[-1])
        time_ticks(axes, first, edges[-1])
        axes.set(xlabel="time to the whole answer")
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_ylabel("answers that are there")
        axes.grid(alpha=1, linewidth=0.6)
        legend(axes, list(dict.fromkeys(name for name, *_ in curves)), lines=True)

    told = "; ".join(
        f"{MODEL_TITLES[name]}, p50 / p95 one at a time: {spread(part(part(report['models'])[name]).get('latency_ms'))}"
        for name in counts
    )
    meaning = "Further left is faster. Unbroken: asked one at a time, as a lone customer meets it. Broken: many asked at once, where "
    meaning += "each waits for the others."
    return Picture("How long an answer takes", svg_of("latency", draw, 3.0, told), meaning)


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
            axes.barh(place, cost, height=0.5, color=COLOURS[name])
            axes.annotate(dollars(cost), (cost, place), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(costs)), [MODEL_TITLES[name] for name in costs])
        axes.set_ylim(len(costs) - 0.5, -0.5)
        axes.set_xlim(0, max(costs.values()) * 1.3 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${value:.4g}"))
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)

    told = "; ".join(f"{MODEL_TITLES[name]} {dollars(cost)}" for name, cost in costs.items())
    meaning = "A student's turns cost what its machine costs while it is busy, at the concurrency of the evaluation; a teacher's what "
    meaning += "its provider bills. A model without a bar was not measured, or cannot be compared."
    return Picture("Cost of 1,000 turns", svg_of("cost", draw, 0.55 * len(costs) + 0.8, told), meaning)


def _training(report: Mapping[str, Json]) -> Picture | None:
    curves = part(report.get("training"))
    loss, held_out = (_points(curves.get(key)) for key in ("loss", "validation_nll"))
    if not loss and not held_out:
        return None

    def draw(axes: Axes) -> None:
        if loss:
            axes.plot(*zip(*loss, strict=True), color=COLOURS["candidate"], linewidth=0.9, label="loss of each step")
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True),
                color=COLOURS["teacher"],
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
    return Picture("How the training went", svg_of("training", draw, 3.0, "; ".join(ends)), meaning)


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
