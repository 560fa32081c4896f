"""How well the judge agrees with people: the operators' blind votes, and the judge's own ruling on the same two answers.

In: pairs of rulings. Out: the share on which both say the same, and Cohen's kappa, which takes off what chance alone would give.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from conversations.messages import Json
from conversations.votes import Choice


@dataclass(frozen=True)
class Agreement:
    """The share of votes on which judge and operator agree, and kappa; None where there is nothing to tell it from.

    `n` counts the votes that the judge ruled on too, `unscored` those on which it said nothing.
    """

    value: float | None
    kappa: float | None
    n: int
    unscored: int

    def as_json(self) -> dict[str, Json]:
        """Return the agreement as `judge.json` holds it."""
        return {"value": self.value, "kappa": self.kappa, "n": self.n, "unscored": self.unscored}


def agreement_of(rulings: Sequence[tuple[Choice, Choice | None]]) -> Agreement:
    """Return how an operator's choices and the judge's agree; None stands where the judge said nothing."""
    both = [(person, judge) for person, judge in rulings if judge is not None]
    unscored = len(rulings) - len(both)
    if not both:
        return Agreement(None, None, 0, unscored)
    same = sum(person is judge for person, judge in both) / len(both)
    kappa = cohens_kappa(both)
    return Agreement(round(same, 6), None if kappa is None else round(kappa, 6), len(both), unscored)


def cohens_kappa(both: Sequence[tuple[Choice, Choice]]) -> float | None:
    """Return (observed - expected) / (1 - expected) agreement (Cohen 1960); None where chance alone would agree always."""
    of_people, of_judge = Counter(person for person, _ in both), Counter(judge for _, judge in both)
    # In whole numbers, so that a certain agreement is exactly 1.
    expected = sum(of_people[choice] * of_judge[choice] for choice in Choice)
    whole = len(both) ** 2
    if expected == whole:
        return None
    observed = sum(person is judge for person, judge in both) * len(both)
    return (observed - expected) / (whole - expected)
