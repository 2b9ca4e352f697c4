"""Verdicts on differences that a claim says are positive.

The interval that decides is Student's over seeds, or with one seed that over test images; see statistics.py.

    equal           it lies within ± EQUAL_WITHIN points, or within the margin that the claim states
    holds           it lies above zero, or above minus that margin
    does not hold   it lies below
    undecided       none of these, or one seed has no interval

Of several differences the worst counts. Many are tested at once, so each verdict is also given with Holm's correction:
one whose adjusted p-value is above 5 % becomes undecided.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from src.reporting.statistics import LEVEL, Difference, holm

HOLDS, FAILS, EQUAL, UNDECIDED, NOT_RUN = "holds", "does not hold", "equal", "undecided", "not run"
VERDICTS = (HOLDS, FAILS, EQUAL, UNDECIDED, NOT_RUN)
EQUAL_WITHIN = 0.5  # points


@dataclass(frozen=True)
class Comparison:
    """A difference and what its claim grants.

    margin: how far the difference may stay below zero; negative, how far it has to lie above. equal_within: None, or
    negative, where nothing counts as equal.
    """

    difference: Difference
    margin: float = 0.0
    equal_within: float | None = EQUAL_WITHIN

    @property
    def verdict(self) -> str:
        ends = self.difference.deciding
        if ends is None:
            return UNDECIDED
        low, high = ends
        if self.equal_within is not None and -self.equal_within <= low and high <= self.equal_within:
            return EQUAL
        if low > -self.margin:
            return HOLDS
        return FAILS if high < -self.margin else UNDECIDED

    @property
    def p_value(self) -> float:
        """Of the verdict: two-sided, of the difference being minus the margin, or of it being no smaller than equal.

        At most one of these two can be true, so all may be corrected as one family. nan where no interval
        decides.
        """
        if self.verdict == EQUAL and self.equal_within is not None:
            return self.difference.p_equal(self.equal_within)
        return self.difference.p_difference(-self.margin)


def overall(verdicts: Iterable[str]) -> str:
    """The verdict on a claim, from those on its differences."""
    verdicts = list(verdicts)
    return next((verdict for verdict in (FAILS, UNDECIDED, EQUAL, HOLDS) if verdict in verdicts), NOT_RUN)


def corrected(comparisons: Sequence[Comparison]) -> list[str]:
    """Their verdicts with Holm's correction for all of them."""
    p_values = np.array([comparison.p_value for comparison in comparisons], float)
    adjusted = np.ones(len(comparisons))
    known = ~np.isnan(p_values)
    adjusted[known] = holm(p_values[known].tolist())
    return [comparison.verdict if p <= 1 - LEVEL else UNDECIDED for comparison, p in zip(comparisons, adjusted)]
