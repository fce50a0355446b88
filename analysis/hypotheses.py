"""Tests of what runs show: a p value, equivalence within a margin, Holm's correction, counts, and how many seeds a claim needs.

"Undecided" is never "the same": that two settings are equal is a claim of its own, with a margin that was declared before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from analysis.statistics import LEAST_SEEDS, Interval

LEVEL = 0.05
POWER = 0.8
INSIDE = 0.9  # confidence of the interval that lies inside the margin: two one-sided tests at 5 % each
MOST_SEEDS = 1000  # a claim that needs more is out of reach
SMALLEST = 1e-300  # of a p value


def p_value(difference: Interval) -> float:
    """Two-sided, of no difference: the level at which the interval would just touch zero. NaN for fewer than three seeds."""
    half = difference.half(1 - LEVEL)
    if not math.isfinite(half):
        return math.nan
    if half == 0:  # seeds that agree to the last bit, as copies do
        return 1.0 if difference.mean == 0 else SMALLEST
    # By its own interval and not by t alone: the documents' part is normal, and the two add in quadrature.
    logs = (math.log(SMALLEST), 0.0)

    def beyond(log_p: float) -> float:
        return difference.half_beyond(math.exp(log_p) / 2) - abs(difference.mean)

    if beyond(logs[0]) <= 0:
        return SMALLEST
    return math.exp(optimize.brentq(beyond, *logs)) if difference.mean else 1.0


def equivalence(difference: Interval, margin: float) -> str:
    """Two one-sided tests at 5 % (Schuirmann 1987): the same if the 90 % interval lies inside ± margin, else `differs` if the 95 %
    interval excludes zero, else `undecided`."""
    half = difference.half(INSIDE)
    # A small difference that is certain and inside the margin is what "the same within" says.
    if math.isfinite(half) and abs(difference.mean) + half < margin:
        return f"the same within ±{margin:g}"
    return "differs" if difference.excludes_zero else "undecided"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): any below 0.05 holds, with 5 % for one false claim among all. NaN is no test."""
    order = [int(i) for i in np.argsort(p_values) if math.isfinite(p_values[int(i)])]
    adjusted, largest = [math.nan] * len(p_values), 0.0
    # the smallest is multiplied by how many there are, the next by one less; never below the one before
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def count_p_value(one: int, of_one: int, other: int, of_other: int) -> float:
    """Fisher's exact test, two-sided, of two counts: so many runs of so many, for example diverged ones."""
    table = [[one, of_one - one], [other, of_other - other]]
    return float(stats.fisher_exact(table).pvalue)


def least_count_p_value(runs: int, others: int) -> float:
    """The smallest p value that counts of so many runs can have: that of all against none."""
    return min(count_p_value(runs, runs, 0, others), count_p_value(0, runs, others, others))


def power(deviation: float, difference: float, seeds: int, documents: float = 0.0) -> float:
    """How often a difference is told from zero by the 95 % t interval of so many seeds whose paired differences have `deviation`.

    Noncentral t. `documents`: a standard error that more seeds leave as it is; with it the power is an approximation.
    """
    error = math.hypot(deviation / math.sqrt(seeds), documents)
    if error == 0 or abs(difference) > 30 * error:  # beyond, the noncentral t has no more digits
        return 1.0
    critical, shift = stats.t.ppf(1 - LEVEL / 2, seeds - 1), abs(difference) / error
    # far out scipy has no digits for the other tail, which is nothing there
    other = float(np.nan_to_num(stats.nct.cdf(-critical, seeds - 1, shift)))
    return float(stats.nct.sf(critical, seeds - 1, shift)) + other


def seeds_needed(deviation: float, difference: float, documents: float = 0.0) -> int | None:
    """The fewest seeds whose interval tells `difference` from zero four times of five; None where MOST_SEEDS would not."""
    if not (math.isfinite(deviation) and math.isfinite(difference)) or difference == 0:
        return None
    if power(deviation, difference, MOST_SEEDS, documents) < POWER:
        return None
    # power grows with seeds: the first that is enough, by halving
    low, high = LEAST_SEEDS, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(deviation, difference, middle, documents) >= POWER else (middle + 1, high)
    return low


def drowned(difference: float, documents: float) -> bool:
    """Whether the documents' standard error alone hides the difference more often than one time of five, however many the seeds."""
    return documents > 0 and float(stats.norm.sf(stats.norm.isf(LEVEL / 2) - abs(difference) / documents)) < POWER


def detectable(deviation: float, seeds: int, documents: float = 0.0) -> float:
    """The difference that so many seeds tell from zero four times of five. `documents`: as of `power`."""
    if seeds < 2 or not deviation > 0:
        return math.nan
    most = 100 * math.hypot(deviation, documents)
    return float(optimize.brentq(lambda d: power(deviation, d, seeds, documents) - POWER, 0.0, most))
