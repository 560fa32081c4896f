"""Whether a judge prefers a place or a length to what an answer says.

In: every comparison that a judge made, with the lengths of its answers. Out: figures for a manifest, and warnings where they
are beyond chance. A judge without bias names the first place half of the time in each order, whatever the answers are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from distill.dataset.verifying.rulings import Side

# Few comparisons say nothing, and a small leaning does no harm once both orders are asked.
_MIN_COMPARISONS = 10
_MAX_CHANCE = 0.01
_STRONG_LEANING = 0.15


class Preference(StrEnum):
    """Which of two answers is better; unscored where the judge did not say."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNSCORED = "unscored"


@dataclass(frozen=True)
class Compared:
    """One comparison as it was made: what was said in each order (None: nothing readable), and how long the answers were."""

    preference: Preference
    first_as_a: Side | None
    second_as_a: Side | None
    first_words: int
    second_words: int


@dataclass(frozen=True)
class Bias:
    """What all comparisons of a judge show. Shares are None where nothing was there to count.

    `win_rate_of_first` counts a tie as half a win; `longer_wins` is of the comparisons that one answer won by words alone
    apart. A flip is a pair where the judge named the same place in both orders.
    """

    comparisons: int
    unscored: int
    ties: int
    flips: int
    win_rate_of_first: float | None
    place_a_wins_in_order: float | None
    place_a_wins_in_reverse: float | None
    longer_wins: float | None
    longer_wins_of: int
    flags: tuple[str, ...]


def bias_of(comparisons: Sequence[Compared]) -> Bias:
    """Return the figures over all comparisons."""
    scored = [each for each in comparisons if each.preference is not Preference.UNSCORED]
    in_order = [each.first_as_a for each in comparisons if each.first_as_a in (Side.A, Side.B)]
    in_reverse = [each.second_as_a for each in comparisons if each.second_as_a in (Side.A, Side.B)]
    won = [each for each in scored if each.preference is not Preference.TIE and each.first_words != each.second_words]
    longer = sum((each.preference is Preference.FIRST) == (each.first_words > each.second_words) for each in won)
    flips = sum(each.first_as_a is each.second_as_a and each.first_as_a in (Side.A, Side.B) for each in scored)
    wins = sum(_worth(each.preference) for each in scored)
    place_a = sum(side is Side.A for side in (*in_order, *in_reverse))
    flags = []
    if _is_leaning(place_a, len(in_order) + len(in_reverse)):
        flags.append("prefers a place")
    if _is_leaning(longer, len(won)):
        flags.append("prefers a length")
    return Bias(
        comparisons=len(comparisons),
        unscored=len(comparisons) - len(scored),
        ties=sum(each.preference is Preference.TIE for each in scored),
        flips=flips,
        win_rate_of_first=_share(wins, len(scored)),
        place_a_wins_in_order=_share(sum(side is Side.A for side in in_order), len(in_order)),
        place_a_wins_in_reverse=_share(sum(side is Side.A for side in in_reverse), len(in_reverse)),
        longer_wins=_share(longer, len(won)),
        longer_wins_of=len(won),
        flags=tuple(flags),
    )


def _worth(preference: Preference) -> float:
    return {Preference.FIRST: 1.0, Preference.TIE: 0.5}.get(preference, 0.0)


def _is_leaning(wins: int, of: int) -> bool:
    """Tell whether a share is far from a half and not by chance (binomial test, two-sided)."""
    if of < _MIN_COMPARISONS or abs(wins / of - 0.5) < _STRONG_LEANING:
        return False
    from scipy.stats import binomtest

    return float(binomtest(wins, of).pvalue) < _MAX_CHANCE


def _share(part: float, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
