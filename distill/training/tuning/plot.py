"""The picture of a study: how the held-out loss fell from trial to trial, and how it hangs together with each parameter.

In: the finished trials. Out: an SVG file. Draws without a screen; knows nothing of the study's inner workings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from distill.training.tuning.study import Tried

# The keys that are drawn by their logarithm, and to which base.
_LOGARITHMIC = {"learning_rate": 10, "rank": 2}
# What tells the ways to end apart, also without colour.
_MARKS = {"complete": ("o", "tab:blue"), "pruned": ("x", "tab:grey")}


def draw_study(trials: Sequence[Tried], present: Mapping[str, float], importances: Mapping[str, float], path: Path) -> None:
    """Draw the history and one slice for each [train] key that was tried.

    `present` holds these keys with their present values; `importances` the share of the differences that a key explains.
    """
    measured = [each for each in trials if each.validation_nll is not None]
    with matplotlib.rc_context({"svg.hashsalt": "study"}):
        figure = Figure(figsize=(4 * (1 + len(present)), 4), layout="constrained")
        history, *slices = figure.subplots(1, 1 + len(present), sharey=True, squeeze=False)[0]
        _draw(history, measured, [each.trial for each in measured])
        complete = [each for each in measured if each.state == "complete"]
        bests = [min(float(other.validation_nll or 0) for other in complete[: place + 1]) for place in range(len(complete))]
        history.step([each.trial for each in complete], bests, where="post", color="tab:orange", label="best so far")
        failed = [each.trial for each in trials if each.state == "failed"]
        history.set(xlabel=f"trial{f' (failed: {len(failed)})' if failed else ''}", ylabel="held-out loss, nats a token")
        if len({each.validation_nll for each in measured}) > 1:
            history.set_yscale("log")
            history.yaxis.set_minor_formatter(StrMethodFormatter("{x:.3g}"))
            history.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        history.xaxis.set_major_locator(MaxNLocator(integer=True))
        history.legend()
        for axes, (key, value) in zip(slices, present.items(), strict=True):
            tried = [float(each.changes.get(key, value)) for each in measured]
            _draw(axes, measured, tried)
            axes.axvline(value, color="tab:grey", linestyle=":", label="present")
            share = f"\nexplains {importances[key]:.0%}" if key in importances else ""
            axes.set(xlabel=f"{key}{share}")
            # A logarithmic axis needs two ends.
            if key in _LOGARITHMIC and len({value, *tried}) > 1:
                axes.set_xscale("log", base=_LOGARITHMIC[key])
                axes.set_xticks(sorted({min(tried), value, max(tried)}), minor=False)
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(axes: Axes, trials: Sequence[Tried], places: Sequence[float]) -> None:
    for state, (mark, colour) in _MARKS.items():
        chosen = [(place, each.validation_nll) for place, each in zip(places, trials, strict=True) if each.state == state]
        if chosen:
            axes.scatter(
                *zip(*chosen, strict=True), marker=mark, color=colour, label="given up early" if state == "pruned" else state
            )
