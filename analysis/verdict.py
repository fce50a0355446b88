"""One declared comparison: on which side of zero the difference is claimed, or within which margin, and what its runs say of it.

The words are those of the study's plan (docs/study/plan.md): holds, does not hold, undecided.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from analysis.claims import OF_INTEREST
from analysis.hypotheses import INSIDE, LEVEL, equivalence, p_value
from analysis.statistics import LEAST_SEEDS, Interval


@dataclass(frozen=True)
class Test:
    """`parts`: the differences, and on which side of zero each is claimed; of "the same" on none, but within the `margin`."""

    parts: tuple[tuple[Interval, int], ...]
    margin: float | None = None

    @property
    def n(self) -> int:
        return min(difference.n for difference, _ in self.parts)

    @property
    def p(self) -> float:
        """Of no difference, or of one as large as the margin; of two parts the larger. 1 where one is on the other side."""
        if self.n < LEAST_SEEDS:
            return 1.0
        return max(self._p(difference, side) for difference, side in self.parts)

    def _p(self, difference: Interval, side: int) -> float:
        if self.margin is None:
            return p_value(difference) if difference.mean * side > 0 else 1.0
        # two one-sided tests, of which that of the nearer margin decides
        error = difference.half(INSIDE) / stats.t.ppf((1 + INSIDE) / 2, difference.n - 1)
        return float(stats.t.sf((self.margin - abs(difference.mean)) / error, difference.n - 1))

    def verdict(self, adjusted: float) -> str:
        """The plan's words, with Holm's p value: holds, does not hold, undecided."""
        if self.n < LEAST_SEEDS:
            return f"no claim: {self.n} seeds"
        if adjusted < LEVEL:
            return "holds"
        for difference, side in self.parts:
            if self.margin is not None:
                beyond = abs(difference.mean) - difference.half(INSIDE) > self.margin
            else:
                against = difference.excludes_zero and difference.mean * side < 0
                beyond = against or equivalence(difference, OF_INTEREST).startswith("the same")
            if beyond:
                return "does not hold"
        return "undecided"
