"""The training's curves: the loss of each step and the held-out loss, over the tokens that were computed.

In: the run's `metrics.jsonl`. Out: at most so many points a curve, each the mean of its neighbours where there were more.
"""

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from conversations.errors import OperatorError
from conversations.messages import Json

MOST_POINTS = 300


def training_curves(path: Path) -> Json:
    """Return `loss` and `validation_nll` (nats a scored token) as lists of [tokens, value]; None where nothing was noted.

    Raises OperatorError where a line is no JSON.
    """
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "validation_nll": []}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            noted = json.loads(line)
        except json.JSONDecodeError as error:
            raise OperatorError(
                f"{path}:{number}: no JSON ({error}); expected a figure of the training; remove that line"
            ) from None
        for key, curve in curves.items():
            tokens, value = noted.get("tokens"), noted.get(key)
            if isinstance(tokens, int | float) and isinstance(value, int | float) and isfinite(value):
                curve.append((float(tokens), float(value)))
    if not any(curves.values()):
        return None
    return {key: _thinned(curve) for key, curve in curves.items()}


def _thinned(curve: Sequence[tuple[float, float]]) -> list[Json]:
    """Return the curve in at most MOST_POINTS pieces of neighbours, each as [its last tokens, its mean]."""
    pieces = min(len(curve), MOST_POINTS)
    points: list[Json] = []
    for place in range(pieces):
        piece = curve[place * len(curve) // pieces : (place + 1) * len(curve) // pieces]
        points.append([piece[-1][0], round(sum(value for _, value in piece) / len(piece), 6)])
    return points
