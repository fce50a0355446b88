"""What may be said of a few noisy runs: intervals over seeds, paired differences, crossings, divergence, an optimum.

The rule for every claim, declared here before any run: a difference counts when the 95 % t interval over seeds of the
paired differences (same initial weights, same windows in every step) excludes zero. Fewer than three seeds yield no claim.
How much other validation documents would have changed a difference is added where runs end with eval.final_tokens
(analysis/document_noise.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
NORMAL = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
LEAST_SEEDS = 3  # for any claim: two that agree by luck would make one
FINAL = 0.02  # a run's final training loss is the mean over this fraction of its updates, the last ones
MIDRUN = 0.45  # where in a run the order of mid-run is judged, declared beforehand: at the first value from here on
LATEST = 0.7  # and no later than here: a run with few evaluations may have no value in mid-run
SMOOTHING = 0.02  # the window of the running mean, as a fraction of the run
# Updates whose median is the smoothed loss that divergence is judged by, as while training (record/watch.py).
WINDOW = 64
HUGE = 1e30  # stands for infinity, which a rolling median takes for a gap
MARGIN = 0.5  # nats above its running minimum from which a smoothed loss counts as diverged


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds and its 95 % interval; `low` and `high` are NaN where n < LEAST_SEEDS.

    `documents`: the standard error that the validation documents add (analysis/document_noise.py), already in the bounds; NaN if
    not known. `deviation`: the standard deviation over seeds, NaN for one.
    """

    mean: float
    low: float
    high: float
    n: int
    documents: float = math.nan
    deviation: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        return bool(self.low > 0 or self.high < 0)

    def half(self, confidence: float) -> float:
        """Half the width of the interval of this confidence; NaN for fewer than LEAST_SEEDS seeds."""
        return self.half_beyond((1 - confidence) / 2)

    def half_beyond(self, tail: float) -> float:
        """The same, by the probability of one tail: 1e-20 cannot be written as a confidence, 1 − 2e-20 rounds to 1."""
        if self.n < LEAST_SEEDS:
            return math.nan
        seeds = stats.t.isf(tail, self.n - 1) * self.deviation / math.sqrt(self.n)
        # in quadrature: which seeds were drawn and which documents have nothing to do with each other
        documents = stats.norm.isf(tail) * self.documents if math.isfinite(self.documents) else 0.0
        return math.hypot(seeds, documents)

    def with_documents(self, error: float) -> Interval:
        """Wider by the documents' standard error; as it is where that is NaN."""
        if not math.isfinite(error):
            return self
        wider = replace(self, documents=error)
        half = wider.half(CONFIDENCE)
        return replace(wider, low=self.mean - half, high=self.mean + half)

    def text(self, digits: int = 4) -> str:
        spread = f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]" if math.isfinite(self.low) else ""
        shown = seed_count(self.n)
        if spread and math.isfinite(self.documents):
            alone = replace(self, documents=math.nan).half(CONFIDENCE)
            shown += f"; ±{alone:.{digits}f} by seeds, ±{self.documents * NORMAL:.{digits}f} by documents"
        return f"{self.mean:+.{digits}f}{spread} ({shown})"


def seed_count(n: int) -> str:
    return f"{n} seed{'s' if n != 1 else ''}"


def interval(values: Iterable[float]) -> Interval:
    """Student's t over the finite values; no bounds for fewer than LEAST_SEEDS."""
    # a run without a value (NaN) is no seed
    sample = np.array([value for value in values if np.isfinite(value)], dtype=float)
    mean = float(sample.mean()) if len(sample) else math.nan
    deviation = float(sample.std(ddof=1)) if len(sample) > 1 else math.nan
    alone = Interval(mean, math.nan, math.nan, len(sample), deviation=deviation)
    # the quantile has n − 1 degrees of freedom: with two seeds it is 12.7, and a band of that says nothing
    half = alone.half(CONFIDENCE)
    return replace(alone, low=mean - half, high=mean + half)


def rank_correlation(samples: Iterable[tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]) -> Interval:
    """Spearman's ρ of each sample by itself, of which there is one a seed; their mean and t interval, with bounds cut at ±1."""
    with warnings.catch_warnings():
        # what is the same everywhere has no rank: its ρ is NaN, and no seed
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        rho = interval(float(stats.spearmanr(x, y).statistic) for x, y in samples)
    return replace(rho, low=max(rho.low, -1.0), high=min(rho.high, 1.0))


def smooth(curve: pd.Series, fraction: float = SMOOTHING) -> pd.Series:
    """A centred running mean over `fraction` of the curve."""
    return curve.rolling(max(1, round(len(curve) * fraction)), center=True, min_periods=1).mean()


def final(curve: pd.Series, upto: int | None = None) -> float:
    """The mean over the last FINAL of a curve (at least one value), or of its part up to a step."""
    # at least one value: a run of ten updates has a final loss too
    curve = curve if upto is None else curve[curve.index <= upto]
    return float(curve.iloc[-max(1, round(len(curve) * FINAL)) :].mean()) if len(curve) else float("nan")


def mean_and_band(curves: list[pd.Series]) -> pd.DataFrame:
    """Over seeds, step by step where all have a value: columns mean, low, high (t interval; NaN for fewer than LEAST_SEEDS)."""
    # steps that only some seeds recorded would be means over other seeds
    table = pd.concat(curves, axis=1).dropna()
    mean, n = table.mean(axis=1), len(curves)
    # two seeds are drawn, each by itself: a band of 12.7 standard errors would hide them
    enough = n >= LEAST_SEEDS
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * table.std(axis=1, ddof=1) / np.sqrt(n) if enough else np.nan
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
    lies below zero (NaN: never, or fewer seeds than LEAST_SEEDS)."""

    step: float
    low: float
    high: float
    n: int

    def text(self) -> str:
        if self.n < LEAST_SEEDS:
            return f"step {self.step:,.0f} ({seed_count(self.n)})"
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
