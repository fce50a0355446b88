"""What a difference of final losses is worth in updates: how many of its own last updates change the baseline's loss by as much.

The baseline's slope is that of a straight line through its loss (training: smoothed) over the last fifth of the run, seed by
seed. Difference over slope is a ratio of two means over the same seeds, so its interval is Fieller's (1954), with the documents'
error of the difference added as everywhere. It is bounded only where the slope is told from zero. A difference beyond what the
line covers, a fifth of the run, is not told in updates: a curve is no straight line for longer.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis.claims import Worth
from analysis.compare import TRAIN, Paired, sound
from analysis.pairing import Group, by_seed
from analysis.statistics import CONFIDENCE, LEAST_SEEDS, NORMAL, SMOOTHING, smooth

LATE = 0.2  # the last fraction of a run that the line is laid through


def worth_of(paired: Paired, base: Group, column: str, smoothing: float = SMOOTHING) -> Worth | None:
    """Of a difference at the end of the runs; None for fewer than three seeds, or where the runs are not at their end."""
    if paired.refused or len(paired.ends) < LEAST_SEEDS:
        return None
    slopes = by_seed([(run, _slope(run.column(column), paired.upto, column, smoothing)) for run in sound(base)])
    seeds = list(paired.ends)
    reach = LATE * paired.upto
    s = np.array([slopes.get(seed, math.nan) for seed in seeds])
    nothing = Worth(base.name, math.nan, math.nan, math.nan, math.nan, reach)
    if not np.isfinite(s).all():
        return replace(nothing, why=f"the baseline has fewer than two losses in its last {reach:,.0f} updates")
    d, error = np.array([paired.ends[seed] for seed in seeds]), paired.interval.documents
    return fieller(replace(nothing, slope=float(s.mean())), d, s, error if math.isfinite(error) else 0.0)


def _slope(curve: pd.Series, upto: int, column: str, smoothing: float) -> float:
    """Least squares over the last fifth, in nats per update; NaN for fewer than two values."""
    # validation is on fixed tokens and needs no smoothing
    curve = curve.loc[1:upto]
    late = (smooth(curve, smoothing) if column == TRAIN else curve).loc[(1 - LATE) * upto :]
    return float(np.polyfit(late.index.to_numpy(float), late.to_numpy(float), 1)[0]) if len(late) > 1 else math.nan


def fieller(nothing: Worth, d: np.ndarray, s: np.ndarray, documents: float = 0.0) -> Worth:
    """The ratio of the means of differences `d` and slopes `s`, both by seed, with its 95 % interval.

    `nothing`: with the base, the slope and the reach. A ratio r is inside where the mean of d − r·s is not told from zero, which is
    a quadratic in r.
    """
    n = len(d)
    t = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    (var_d, cov), (_, var_s) = np.cov(d, s) / n
    mean_d, mean_s = float(d.mean()), float(s.mean())
    # (mean_d − r·mean_s)² ≤ t²·(var_d − 2r·cov + r²·var_s) + (z·documents)²
    a = mean_s**2 - t**2 * var_s
    b = mean_d * mean_s - t**2 * cov
    c = mean_d**2 - t**2 * var_d - (NORMAL * documents) ** 2
    if a <= 0:
        return replace(nothing, why="the baseline's slope at its end is not told from zero")
    if mean_s > 0:
        return replace(nothing, why="the baseline's loss rises at its end")
    updates = mean_d / mean_s
    if abs(updates) > nothing.reach:
        covered = -mean_s * nothing.reach
        return replace(
            nothing, why=f"it is more than the {covered:.4f} nats of the baseline's last {nothing.reach:,.0f} updates"
        )
    half = math.sqrt(max(0.0, b * b - a * c))
    return replace(nothing, updates=updates, low=(b - half) / a, high=(b + half) / a)
