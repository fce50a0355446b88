"""What depends on η·λ over a grid of runs: rank correlations with it, and whether the lowest value lies inside.

P1 (arXiv 2310.04415, its grids): noise scale and training loss rise with ηλ, the Jacobian's norm falls, and the test error has an
optimum between. Cells of λ = 0 have no such product, and are left out. Where no cell has decay (P1's runs on the sphere,
Conjecture 3), the same is asked of η alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.endpoint import Endpoint
from analysis.levels import NEAR, rate_of
from analysis.pairing import Group
from analysis.statistics import LEAST_SEEDS, Interval, interval, rank_correlation, seed_count

PRODUCT = "ηλ"
LEAST_PRODUCTS = 4  # of three products in a row, one order of six is monotone by chance


@dataclass(frozen=True)
class Relation:
    """Spearman's ρ between ηλ (or η: `along`) and a measurement over `cells` cells, of each seed by itself: mean and t interval
    over seeds, with bounds cut at ±1. Cells of one ηλ share a rank, so that even a perfect order stays a little inside.

    `expected`: +1 where P1 has it rise, −1 fall, 0 where it says nothing."""

    along: str
    endpoint: Endpoint
    cells: int
    rho: Interval
    expected: int

    @property
    def verdict(self) -> str:
        """By the declared rule: seeds enough, and an interval without zero."""
        if self.rho.n < LEAST_SEEDS:
            return f"no claim: {seed_count(self.rho.n)}"
        if not self.rho.excludes_zero:
            return "undecided: the interval holds zero"
        direction = "rises" if self.rho.mean > 0 else "falls"
        if not self.expected:
            return direction
        return f"{direction}, as in P1" if self.rho.mean * self.expected > 0 else f"{direction}, against P1"

    @property
    def text(self) -> str:
        bounds = f" [{self.rho.low:+.2f}, {self.rho.high:+.2f}]" if math.isfinite(self.rho.low) else ""
        return f"{self.rho.mean:+.2f}{bounds}"


@dataclass(frozen=True)
class Optimum:
    """The lowest mean of a measurement over products, or over η: `along`. `below`, `above`: the smallest and the largest product's
    minus the lowest's, in pairs of seeds. The product is chosen by the same seeds' means: of close ones the intervals are a little
    narrow."""

    along: str
    product: float
    value: float
    below: Interval
    above: Interval
    at_end: bool

    @property
    def verdict(self) -> str:
        if self.at_end:
            return "at an end of the grid"
        if min(self.below.n, self.above.n) < LEAST_SEEDS:
            return f"inside, no claim: {seed_count(self.below.n)}"
        # both ends must be worse: an optimum beside a plateau is none
        return "inside" if min(self.below.low, self.above.low) > 0 else "undecided: an end is not told from the lowest"


def along(groups: list[Group]) -> str:
    """What these cells are ordered by: ηλ, or η where none of them has decay."""
    return PRODUCT if any(group.decay > 0 for group in groups) else "η"


def by_cell(groups: list[Group], endpoint: Endpoint) -> tuple[pd.DataFrame, NDArray[np.floating]]:
    """The measurement at the end, a row a seed and a column a cell of λ above 0, without gaps; and each cell's ηλ. Where no cell
    has decay all are there, with their η.

    A cell without any ended run (all diverged) is left out for all seeds; then seeds that lack a cell are.
    """
    decayed = along(groups) == PRODUCT
    cells = [group for group in groups if group.decay > 0 or not decayed]
    ends = [pd.Series(endpoint.seed_losses(group), dtype=float) for group in cells]
    kept = [i for i, values in enumerate(ends) if len(values)]
    if not kept:
        return pd.DataFrame(), np.array([])
    table = pd.concat([ends[i] for i in kept], axis=1, keys=range(len(kept))).dropna()
    return table, np.array([rate_of(cells[i]) * (cells[i].decay if decayed else 1) for i in kept])


def ranks(products: NDArray[np.floating]) -> NDArray[np.intp]:
    """The place of each product among the different ones. η and λ are written with few digits: products within 2 % are one."""
    order = np.argsort(products, kind="stable")
    ordered = products[order]
    # a new place where the step to the next is larger than that
    steps = np.concatenate([[0], np.cumsum(ordered[1:] > ordered[:-1] * (1 + NEAR))]) if len(products) else ordered
    places = np.empty(len(products), dtype=np.intp)
    places[order] = steps
    return places


def by_product(groups: list[Group], endpoint: Endpoint) -> tuple[NDArray[np.floating], NDArray[np.floating]] | None:
    """The different products in order, (n,), and the measurement at each, a row a seed and a column a product: cells on one line
    of equal ηλ are one, their mean. None for fewer than three products: two make no optimum."""
    table, products = by_cell(groups, endpoint)
    if table.empty or len(set(places := ranks(products))) < 3:
        return None
    lines = [places == place for place in range(places.max() + 1)]
    values = np.stack([table.to_numpy()[:, line].mean(axis=1) for line in lines], axis=1)
    return np.array([products[line].mean() for line in lines]), values


def relation(groups: list[Group], endpoint: Endpoint, expected: int) -> Relation | None:
    """None for fewer than LEAST_PRODUCTS different products, or where no seed has all cells."""
    table, products = by_cell(groups, endpoint)
    if table.empty or len(set(places := ranks(products))) < LEAST_PRODUCTS:
        return None
    rho = rank_correlation((places, row) for row in table.to_numpy())
    return Relation(along(groups), endpoint, table.shape[1], rho, expected)


def optimum(groups: list[Group], endpoint: Endpoint) -> Optimum | None:
    """The lowest of the means at one product each; None for fewer than three products."""
    found = by_product(groups, endpoint)
    if found is None:
        return None
    products, values = found
    best = int(values.mean(axis=0).argmin())
    ends = [interval(values[:, end] - values[:, best]) for end in (0, -1)]
    at_end = best in (0, len(products) - 1)
    return Optimum(along(groups), float(products[best]), float(values[:, best].mean()), ends[0], ends[1], at_end)
