"""The best λ: the lowest point of a parabola through the losses in log λ, and a t interval of the seeds' own lowest points.

A bootstrap over a few seeds draws from a handful of resamples (ten of three seeds), and its 95 % interval covers 75 to 80 %.
Student's t of the seeds' own vertices covers 95 %, as long as every seed has its vertex inside the λ tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import interval

LEAST = 4  # seeds: of three the interval spans a factor of several, and one vertex decides it
WIDE = 30.0  # λ over a larger factor lie on no one parabola
# Of a penalty in the loss less: under Adam its strength follows the gradients' size, which changes with it.
WIDE_L2 = 10.0


@dataclass(frozen=True)
class Vertex:
    """The best λ of the mean losses of `seeds` seeds; `low` and `high` NaN where `why` says why there is no interval."""

    decay: float
    seeds: int
    low: float
    high: float
    at_end: int  # seeds whose own lowest point is no point between the λ tried
    why: str = ""

    def text(self) -> str:
        spread = f" [{self.low:.3g}, {self.high:.3g}]" if math.isfinite(self.low) else f" (no interval: {self.why})"
        return f"{self.decay:.3g}{spread}"


def best_decay(table: pd.DataFrame, rule: str = "decoupled") -> Vertex | None:
    """Of losses, a row a seed and a column a λ; λ = 0 has no logarithm and stands apart. None for fewer than three λ > 0.

    Seeds that lack a λ are left out: a seed's own level would tilt the parabola. `rule`: optim.decay_rule.
    """
    complete = _decayed(table)
    if complete.shape[1] < 3 or complete.empty:
        return None
    decays, losses = np.array(complete.columns, dtype=float), complete.to_numpy(dtype=float)
    mean = lowest_point(np.log(decays), losses.mean(axis=0))
    own = np.log(seeds_own(table).dropna())
    at_end = len(losses) - len(own)
    factor, widest = decays.max() / decays.min(), WIDE_L2 if rule == "l2_loss" else WIDE
    why = ""
    if len(losses) < LEAST:
        why = f"fewer than {LEAST} seeds"
    elif at_end:
        why = f"{at_end} of {len(losses)} seeds have their lowest point at an end of the λ tried; try others"
    elif factor > widest * (1 + 1e-9):
        why = f"the λ tried span a factor of {factor:,.0f}, which no parabola fits"
    low = high = math.nan
    if not why:
        seeds = interval(own)
        # the t interval of the mean of the seeds' vertices, laid around it: of few seeds the two places differ little
        low, high = math.exp(seeds.low), math.exp(seeds.high)
        mean = seeds.mean
    return Vertex(math.exp(mean), len(losses), low, high, at_end, why)


def seeds_own(table: pd.DataFrame) -> pd.Series:
    """Of such losses the λ at the lowest point of each seed's own parabola, NaN where that is an end of the λ tried."""
    complete = _decayed(table)
    x = np.log(np.array(complete.columns, dtype=float))
    places = pd.Series(
        {seed: lowest_point(x, row.to_numpy(dtype=float)) for seed, row in complete.iterrows()}, dtype=float
    )
    return places.where((places > x.min()) & (places < x.max())).map(np.exp)


def _decayed(table: pd.DataFrame) -> pd.DataFrame:
    """λ above zero, and the seeds that have all of them."""
    return table[[decay for decay in table if float(str(decay)) > 0]].dropna(axis=1, how="all").dropna()


def lowest_point(x: NDArray[np.floating], losses: NDArray[np.floating]) -> float:
    """Where a parabola through the losses is lowest between the ends of x, one of which it is where it opens downwards."""
    parabola = np.polynomial.Polynomial.fit(x, losses, 2).convert()
    ends = (float(x.min()), float(x.max()))
    # three coefficients, the last above zero: else there is no lowest point but at an end
    if len(parabola.coef) == 3 and parabola.coef[2] > 0:
        place = float(-parabola.coef[1] / (2 * parabola.coef[2]))
        if ends[0] <= place <= ends[1]:
            return place
    return min(ends, key=parabola)
