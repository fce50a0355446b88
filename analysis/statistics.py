"""What may be said of a few noisy runs: intervals over seeds, paired differences, crossings, divergence, an optimum.

The rule for every claim, declared here before any run: a difference counts when the 95 % t interval over seeds of the
paired differences (same initial weights, same windows in every step) excludes zero. One seed yields no claim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
FINAL = 0.02  # a run's final training loss is the mean over this fraction of its updates, the last ones
MIDRUN = 0.45  # where in a run the order of mid-run is judged, declared beforehand: at the first value from here on
SMOOTHING = 0.02  # the window of the running mean, as a fraction of the run
# Updates whose median is the smoothed loss that divergence is judged by, as while training (record/watch.py).
WINDOW = 64
HUGE = 1e30  # stands for infinity, which a rolling median takes for a gap
MARGIN = 0.5  # nats above its running minimum from which a smoothed loss counts as diverged


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds; `low` and `high` are NaN where n < 2."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return bool(self.low > 0 or self.high < 0)

    def text(self, digits: int = 4) -> str:
        spread = f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]" if self.n > 1 else ""
        return f"{self.mean:+.{digits}f}{spread} ({seed_count(self.n)})"


def seed_count(n: int) -> str:
    return f"{n} seed{'s' if n != 1 else ''}"


def interval(values: Iterable[float]) -> Interval:
    """Student's t over the finite values."""
    # a run without a value (NaN) is no seed
    sample = np.array([value for value in values if np.isfinite(value)], dtype=float)
    if len(sample) < 2:
        return Interval(float(sample.mean()) if len(sample) else float("nan"), float("nan"), float("nan"), len(sample))
    # the quantile has n − 1 degrees of freedom: with two seeds it is 12.7, not 1.96
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    mean = float(sample.mean())
    return Interval(mean, mean - float(half), mean + float(half), len(sample))


def smooth(curve: pd.Series, fraction: float = SMOOTHING) -> pd.Series:
    """A centred running mean over `fraction` of the curve."""
    return curve.rolling(max(1, round(len(curve) * fraction)), center=True, min_periods=1).mean()


def final(curve: pd.Series, upto: int | None = None) -> float:
    """The mean over the last FINAL of a curve (at least one value), or of its part up to a step."""
    # at least one value: a run of ten updates has a final loss too
    curve = curve if upto is None else curve[curve.index <= upto]
    return float(curve.iloc[-max(1, round(len(curve) * FINAL)) :].mean()) if len(curve) else float("nan")


def mean_and_band(curves: list[pd.Series]) -> pd.DataFrame:
    """Over seeds, step by step where all have a value: columns mean, low, high (t interval; NaN for one seed)."""
    # steps that only some seeds recorded would be means over other seeds
    table = pd.concat(curves, axis=1).dropna()
    mean, n = table.mean(axis=1), len(curves)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * table.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half})


def crossing(difference: pd.Series) -> float | None:
    """The step from which a difference stays below zero to the end, between the points by interpolation; None if it does not.

    A difference that was never above zero crosses nowhere: None as well.
    """
    values, steps = difference.to_numpy(), difference.index.to_numpy(dtype=float)
    # the last step at or above zero; from the next one on it stays below
    above = np.flatnonzero(values >= 0)
    if not (values > 0).any() or above[-1] == len(values) - 1:
        return None
    # a straight line between the two
    i = above[-1]
    return float(steps[i] + (steps[i + 1] - steps[i]) * values[i] / (values[i] - values[i + 1]))


@dataclass(frozen=True)
class Crossing:
    """Where the mean of `n` differences crosses zero; before `low` its 95 % t band lay above zero at last, from `high` on it
    lies below zero (NaN: never, or one seed)."""

    step: float
    low: float
    high: float
    n: int

    def text(self) -> str:
        if self.n < 2:
            return f"step {self.step:,.0f} (1 seed)"
        low, high = (f"{end:,.0f}" if np.isfinite(end) else "…" for end in (self.low, self.high))
        return f"step {self.step:,.0f} [{low}, {high}] ({seed_count(self.n)})"


def crossing_interval(curves: list[pd.Series]) -> Crossing | None:
    """The crossing of the mean over seeds, with the steps between which its t band holds zero; None if the mean does not cross."""
    if not curves:
        return None
    band = mean_and_band(curves)
    step = crossing(band["mean"])
    if step is None:
        return None
    steps = band.index.to_numpy(dtype=float)
    # where the band last lies above zero, and where it last does not lie below
    above, not_below = np.flatnonzero((band["low"] > 0) & (steps <= step)), np.flatnonzero(~(band["high"] < 0))
    low = steps[above[-1]] if len(above) else np.nan
    high = steps[not_below[-1] + 1] if len(not_below) and not_below[-1] + 1 < len(steps) else np.nan
    return Crossing(step, float(low), float(high), len(curves))


def diverged_at(loss: pd.Series, margin: float = MARGIN) -> int | None:
    """The first step from which the smoothed loss stays `margin` nats above its running minimum, to the end; None if it does not.

    `loss` has NaN where it was not finite, which counts as infinitely high; the smoothed loss is the median of the last WINDOW.
    """
    # a median forgets single spikes; an infinite loss counts as high and not as missing
    smoothed = loss.fillna(HUGE).rolling(WINDOW, min_periods=WINDOW).median().iloc[WINDOW - 1 :]
    if smoothed.empty:
        return None
    values = smoothed.to_numpy()
    below = np.flatnonzero(~((values > np.minimum.accumulate(values) + margin) | (values >= HUGE / 2)))
    first = int(below[-1]) + 1 if len(below) else 0
    return int(smoothed.index[first]) if first < len(values) else None


def optimum(table: pd.DataFrame, draws: int = 2000) -> dict[str, float] | None:
    """The λ > 0 with the lowest loss: the minimum of a parabola through the mean losses in log λ, within the λ tried.

    `table`: losses, a row a seed and a column a λ. Seeds that lack a λ are left out: a seed's own level would tilt the
    parabola. Returns `decay`, `seeds`, `low` and `high` (quantiles of a bootstrap over whole seeds, which for a few seeds is too
    narrow; NaN for one), and `inside`: the fraction of draws whose minimum is not at an end. None for fewer than three λ > 0.
    """
    # λ = 0 has no logarithm; a seed that lacks some λ would move the parabola by its own level.
    complete = table[[decay for decay in table if float(str(decay)) > 0]].dropna(axis=1, how="all").dropna()
    if complete.shape[1] < 3 or complete.empty:
        return None
    x, losses = np.log([float(str(decay)) for decay in complete]), complete.to_numpy(dtype=float)

    def lowest(rows: np.ndarray) -> float:
        parabola = np.polynomial.Polynomial.fit(x, rows.mean(axis=0), 2).convert()
        # a parabola that opens downwards, or has its vertex outside, is lowest at an end of the λ tried
        vertex = (
            -parabola.coef[1] / (2 * parabola.coef[2]) if len(parabola.coef) > 2 and parabola.coef[2] > 0 else x.min()
        )
        return float(min((x.min(), x.max(), float(np.clip(vertex, x.min(), x.max()))), key=parabola))

    best = lowest(losses)
    vertices = [best]
    low = high = float("nan")
    if len(losses) > 1:
        dice = np.random.default_rng(0)
        # Seeds are drawn with replacement: they are what varies, their λ stay together.
        vertices = [lowest(losses[dice.integers(0, len(losses), len(losses))]) for _ in range(draws)]
        low, high = np.exp(np.quantile(vertices, [0.025, 0.975]))
    inside = float(np.mean([x.min() < vertex < x.max() for vertex in vertices]))
    return {
        "decay": float(np.exp(best)),
        "seeds": len(losses),
        "low": float(low),
        "high": float(high),
        "inside": inside,
    }
