"""How the report's pictures are drawn: colours that are the page's own, marks with intervals, axes, and an SVG that stands in a page.

In: what draws onto axes. Out: an SVG element. The same drawing gives the same bytes; without a screen, without a font of its own.
"""

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from conversations.messages import Json
from distill.evaluation.page.words import MODEL_TITLES, number

# What is drawn in these becomes the page's colours.
_INK, _LINE = "#000001", "#000002"
COLOURS = {"base": "#000010", "candidate": "#000011", "released": "#000012", "teacher": "#000013"}
_MARKS = {"base": "s", "candidate": "o", "released": "D", "teacher": "^"}
_VARIABLES = {
    _INK: "--ink",
    _LINE: "--line",
    COLOURS["base"]: "--base",
    COLOURS["candidate"]: "--candidate",
    COLOURS["released"]: "--released",
    COLOURS["teacher"]: "--teacher",
}
# A phone shows a picture of this width, in inches, nearly as large as it is.
_WIDTH = 5.0
_STYLE = {
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    # A topic may hold a dollar sign.
    "text.parse_math": False,
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


def dot(axes: Axes, model: str, found: Mapping[str, Json], place: float) -> None:
    """Draw a model's estimate as a mark with its interval, at a height."""
    value, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=COLOURS[model], linewidth=1.6, solid_capstyle="butt")
    axes.plot([value], [place], _MARKS[model], color=COLOURS[model], markersize=6)


def percent_axis(axes: Axes) -> None:
    """Make the horizontal axis one of shares, with room for what lies outside."""
    low, high = axes.get_xlim()
    axes.set_xlim(min(0.0, low) if low < 0 else -0.02, max(1.02, high))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)


def legend(axes: Axes, models: Sequence[str], *, lines: bool = False) -> None:
    """Say above the drawing which mark, or which line, is which model's."""
    for name in models:
        axes.plot([], [], "-" if lines else _MARKS[name], color=COLOURS[name], label=MODEL_TITLES[name])
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(models), handlelength=1.2)


def time_ticks(axes: Axes, low: float, high: float) -> None:
    """Mark a logarithmic axis of milliseconds between two ends, in the unit that a person would say."""
    steps = [base * 10**power for power in range(-1, 8) for base in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    shown = inside if len(inside) <= 6 else [step for step in inside if math.log10(step) % 1 < 1e-9]
    axes.set_xticks(shown, [f"{step / 1000:g} s" if step >= 1000 else f"{step:g} ms" for step in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def svg_of(name: str, draw: Callable[[Axes], None], height: float, told: str) -> str:
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
