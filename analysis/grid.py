"""A heat map's geometry: cells at their values' logarithms, lines of equal product, and a range of colours above the noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NOISES = 4.0  # the colours span at least so many standard deviations over seeds: cells closer than that look alike
APART = 0.35  # how far the row or column of zero stands from the others, in steps of the grid
EMPTY = "#e4e4e4"  # the colour of a cell without a loss
LINES = 6  # at most so many lines of equal product


@dataclass(frozen=True)
class Axis:
    """Where values stand on a logarithmic axis: `places` are log₁₀ of them, `edges` the ends of each one's cell, (n, 2).

    0 has no logarithm: it stands before all others, with a gap, and `zero` is True.
    """

    values: list[float]
    places: np.ndarray
    edges: np.ndarray
    zero: bool

    @property
    def bounds(self) -> list[float]:
        """All ends in order, for libraries that take them so: the gap beside 0 is a cell of its own then."""
        return sorted({round(float(edge), 9) for edge in self.edges.ravel()})

    @property
    def labels(self) -> list[str]:
        return [f"{value:g}" for value in self.values]


def axis(values: list[float]) -> Axis:
    """`values` ascending, none below 0."""
    zero = bool(values) and values[0] == 0
    logs = np.log10([value for value in values if value > 0])
    steps = np.diff(logs)
    # one positive value alone has no neighbour to tell how wide its cell is: half a decade
    step = float(np.median(steps)) if len(steps) else 0.5
    # cells end half-way to the neighbours; the outermost are as wide outwards as inwards
    inner = (logs[:-1] + logs[1:]) / 2
    low = logs[0] - (steps[0] if len(steps) else step) / 2 if len(logs) else 0.0
    high = logs[-1] + (steps[-1] if len(steps) else step) / 2 if len(logs) else 0.0
    ends = np.concatenate([[low], inner, [high]])
    edges = np.stack([ends[:-1], ends[1:]], axis=1) if len(logs) else np.empty((0, 2))
    if zero:
        top = low - APART * step
        logs, edges = np.append(top - step / 2, logs), np.vstack([[top - step, top], edges])
    return Axis(list(values), logs, edges, zero)


@dataclass(frozen=True)
class Heat:
    """`z` is (len(y), len(x)), NaN where nothing was measured; `words` says of every cell what stands in it beside the number.

    `noise`: the standard deviation over seeds of a cell; NaN where it is not known. `products`: equal products of x and y mean
    something, and have lines.
    """

    x: list[float]
    y: list[float]
    z: np.ndarray
    colour_title: str
    noise: float = float("nan")
    words: list[list[str]] = field(default_factory=list)
    products: bool = True

    def range(self) -> tuple[float, float]:
        """The colours' ends: from the lowest z to twice as far as the median lies above it, at least NOISES of the noise.

        A single bad corner of a grid would else take all colours but one, and cells that only noise tells apart would differ.
        """
        values = self.z[np.isfinite(self.z)]
        low, middle, high = (float(v) for v in (values.min(), np.median(values), values.max()))
        top = min(high, low + 2 * (middle - low))
        top = max(top, low + NOISES * self.noise) if np.isfinite(self.noise) else top
        # all alike: a range needs two ends
        return low, top if top > low else low + 1e-6 * max(1.0, abs(low))

    @property
    def across(self) -> Axis:
        return axis(self.x)

    @property
    def up(self) -> Axis:
        return axis(self.y)

    def spread_out(self) -> np.ndarray:
        """z with an empty row or column where the gap beside 0 is."""
        z = self.z
        if self.up.zero and len(self.y) > 1:
            z = np.insert(z, 1, np.nan, axis=0)
        return np.insert(z, 1, np.nan, axis=1) if self.across.zero and len(self.x) > 1 else z

    def cells(self) -> list[tuple[int, int]]:
        return [(row, column) for row in range(len(self.y)) for column in range(len(self.x))]

    def cell_text(self, row: int, column: int) -> str:
        """The loss and what is said beside it, or why there is none."""
        value, word = self.z[row, column], self.words[row][column] if self.words else ""
        return "\n".join(part for part in (f"{value:.4f}" if np.isfinite(value) else "", word) if part)

    def is_dark(self, row: int, column: int) -> bool:
        """Whether white letters are read better than black ones: in the upper half of the colours, which get darker."""
        low, high = self.range()
        return bool(self.z[row, column] > low + 0.45 * (high - low))

    def equal_products(self) -> list[tuple[float, np.ndarray]]:
        """(product, its two ends as (2, 2) of log₁₀ x and log₁₀ y), straight lines within the cells of positive x and y."""
        if not self.products:
            return []
        # zero's own cells have no product
        across, up = (one.edges[int(one.zero) :] for one in (self.across, self.up))
        if not len(across) or not len(up):
            return []
        left, right, bottom, top = across[0, 0], across[-1, 1], up[0, 0], up[-1, 1]
        lines = []
        for product in round_products(left + bottom, right + top):
            # log y = log product − log x, cut at all four sides
            total = np.log10(product)
            start, stop = max(left, total - top), min(right, total - bottom)
            # a line that only touches a corner says nothing
            if stop - start > 0.05 * (right - left):
                lines.append((product, np.array([[start, total - start], [stop, total - stop]])))
        return lines


def round_products(low: float, high: float) -> list[float]:
    """At most LINES round numbers between 10^low and 10^high: 1, 2 and 5 of each decade, or 1 and 3, or decades alone."""
    exponents = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    chosen: list[float] = []
    for digits, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        chosen = [digit * 10.0**e for e in exponents if e % every == 0 for digit in digits]
        chosen = [value for value in chosen if low < np.log10(value) < high]
        if len(chosen) <= LINES:
            break
    return chosen
