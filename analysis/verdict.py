"""One declared comparison: on which side of zero the difference is claimed, or within which margin, and what its runs say of it.

The words are those of the study's plan (docs/study/plan.md): holds, does not hold, undecided.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from analysis.claims import OF_INTEREST
from analysis.hypotheses import INSIDE, LEVEL, SMALLEST, equivalence, p_value
from analysis.statistics import LEAST_SEEDS, Interval


@dataclass(frozen=True)
class Comparison:
    """`differences`: each with the sign that is claimed, +1 or −1. Of a claim that two are the same the sign is 0, and the
    difference must lie within the `margin`.
    `of_interest`: a smaller difference is none; 0 where there is no such number, as of a rank correlation."""

    differences: tuple[tuple[Interval, int], ...]
    margin: float | None = None
    of_interest: float = OF_INTEREST

    @property
    def n(self) -> int:
        return min(difference.n for difference, _ in self.differences)

    @property
    def p(self) -> float:
        """Of no difference, or of one as large as the margin; the largest of several. 1 where one is on the other side."""
        if self.n < LEAST_SEEDS:
            return 1.0
        return max(self._p(difference, side) for difference, side in self.differences)

    def _p(self, difference: Interval, side: int) -> float:
        if self.margin is None:
            return p_value(difference) if difference.mean * side > 0 else 1.0
        room = self.margin - abs(difference.mean)
        error = difference.half(INSIDE) / stats.t.ppf((1 + INSIDE) / 2, difference.n - 1)
        if error == 0:  # seeds that agree to the last bit
            return SMALLEST if room > 0 else 1.0
        # two one-sided tests, of which that of the nearer margin decides
        return float(stats.t.sf(room / error, difference.n - 1))

    def verdict(self, adjusted: float) -> str:
        """The plan's words, with Holm's p value: holds, does not hold, undecided."""
        if self.n < LEAST_SEEDS:
            return f"no claim: {self.n} seed{'' if self.n == 1 else 's'}"
        if adjusted < LEVEL:
            return "holds"
        # what is not told from its claim may still be told from the opposite
        for difference, side in self.differences:
            if self.margin is not None:
                beyond = abs(difference.mean) - difference.half(INSIDE) > self.margin
            else:
                against = difference.excludes_zero and difference.mean * side < 0
                small = self.of_interest > 0 and equivalence(difference, self.of_interest).startswith("the same")
                beyond = against or small
            if beyond:
                return "does not hold"
        return "undecided"
