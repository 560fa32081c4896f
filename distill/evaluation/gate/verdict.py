"""What a check of the gate says, and what the gate says of them all.

In: checks, each with its sentence and its numbers. Out: one of three outcomes. A check that could not tell is never a yes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations.messages import Json


class CheckOutcome(StrEnum):
    """What one check found."""

    PASSED = "passed"
    FAILED = "failed"
    UNCLEAR = "unclear"


class GateOutcome(StrEnum):
    """What the gate says."""

    PROMOTE = "promote"
    REFUSE = "refuse"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Check:
    """One bound that a candidate was held against. `told` is a sentence with the value, its n, its interval and the bound."""

    name: str
    outcome: CheckOutcome
    told: str
    value: float | None = None
    bound: float | None = None

    def as_json(self) -> dict[str, Json]:
        """Return the check as reports hold it."""
        return {
            "name": self.name,
            "outcome": self.outcome.value,
            "told": self.told,
            "value": None if self.value is None else round(self.value, 6),
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Verdict:
    """The gate's word, the sentences that decided it, and every check."""

    outcome: GateOutcome
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()

    def as_json(self) -> dict[str, Json]:
        """Return the verdict as reports hold it."""
        return {
            "outcome": self.outcome.value,
            "reasons": list(self.reasons),
            "checks": [check.as_json() for check in self.checks],
        }


def no_score(answers: int) -> str:
    """Return how many answers the metric gave no number, or one that no score can be."""
    return f"{answers} answer has no score from 0 to 1" if answers == 1 else f"{answers} answers have no score from 0 to 1"


def passed(name: str, told: str, value: float | None = None, bound: float | None = None) -> Check:
    """Return a check that holds."""
    return Check(name, CheckOutcome.PASSED, told, value, bound)


def failed(name: str, told: str, value: float | None = None, bound: float | None = None) -> Check:
    """Return a check that a candidate does not hold."""
    return Check(name, CheckOutcome.FAILED, told, value, bound)


def unclear(name: str, told: str, value: float | None = None, bound: float | None = None) -> Check:
    """Return a check that cannot be told."""
    return Check(name, CheckOutcome.UNCLEAR, told, value, bound)


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """Return refusal where a check failed, else "inconclusive" where one is unclear or none was made, else promotion."""
    for found, outcome in (
        (CheckOutcome.FAILED, GateOutcome.REFUSE),
        (CheckOutcome.UNCLEAR, GateOutcome.INCONCLUSIVE),
    ):
        # What leaves two checks unclear is one reason.
        reasons = tuple(dict.fromkeys(check.told for check in checks if check.outcome is found))
        if reasons:
            return Verdict(outcome, reasons, tuple(checks))
    if not checks:
        return Verdict(GateOutcome.INCONCLUSIVE, ("nothing was checked",))
    return Verdict(GateOutcome.PROMOTE, tuple(check.told for check in checks), tuple(checks))
