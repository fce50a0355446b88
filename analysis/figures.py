"""Figures as data: lines, panels, heat maps, and how they look; analysis/draw.py and analysis/on_page.py draw them.

λ is a sequence: viridis from dark (small) to light. Whatever else differs is a dash, so that colour is never alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colors

from analysis.grid import Heat
from analysis.pairing import Group
from analysis.runs import LAMBDA, Run, shown
from analysis.statistics import LEAST_SEEDS, Interval, interval, mean_and_band

SEEDS_DRAWN = f"Bands: 95 % t intervals over {LEAST_SEEDS} seeds or more; of fewer each seed is a line."
BARS_DRAWN = f"Bars: 95 % t intervals over {LEAST_SEEDS} seeds or more; of two seeds, from one to the other."
INTERVALS_DRAWN = f"Bars: 95 % intervals over {LEAST_SEEDS} seeds or more, with the documents' error where it is known."
SEQUENCE = (
    "#440154",
    "#31688e",
    "#35b779",
    "#b5a000",
)  # four of viridis, dark to light, where there are no runs to shade
TOLD_APART = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # by every eye (Okabe and Ito); without an order
POINTS = 800  # a line has at most so many, each the mean of its neighbours
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "x": "x"}


@dataclass(frozen=True)
class Line:
    """`keys`: by what the report's reader can switch the line on and off (λ, precision, seed). On paper its points are drawn at
    x·`aside`, so that lines do not hide each other."""

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: str
    dash: str = "solid"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    points: bool = False
    faint: bool = False  # a seed of a mean that is drawn: shown only where it is asked for
    thin_line: bool = False  # one of two seeds, without a mean
    group: str = ""  # under whose entry of the legend it stands; empty: its own
    aside: float = 1.0
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        return self.group or self.name


@dataclass(frozen=True)
class Panel:
    xlabel: str
    ylabel: str
    lines: list[Line] = field(default_factory=list)
    title: str = ""
    xlog: bool = False
    ylog: bool = False
    limits: tuple[float, float] | None = None
    zero: bool = False  # a line at zero
    diagonal: bool = False
    heat: Heat | None = None
    ticks: dict[float, str] = field(default_factory=dict)  # of the x axis, by place; empty: as the library likes


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    panels: list[Panel]


@dataclass(frozen=True)
class Style:
    colour: str
    dash: str
    keys: dict[str, str]


def marker(one: Line) -> str:
    """The marker says what the dash would: which precision, or what else differs."""
    return list(MARKERS)[list(DASHES).index(one.dash)]


def shade(place: int, places: int) -> str:
    return colors.to_hex(matplotlib.colormaps["viridis"](0.8 * place / max(1, places - 1)))


def styles(groups: list[Group]) -> dict[str, Style]:
    """Colour by λ (by the group itself where λ does not vary), dash by everything else."""
    # groups are made by the same fields, so the first tells of all
    varied = LAMBDA in groups[0].fields if groups else False
    rest = {g.name: tuple((n, shown(v)) for n, v in g.fields.items() if n != LAMBDA) for g in groups}
    # equal steps of colour, whatever the distances of λ
    places: list[float] = sorted({g.decay for g in groups}) if varied else [float(i) for i in range(len(groups))]
    others = list(dict.fromkeys(rest.values()))
    looks = {}
    for i, group in enumerate(groups):
        # without λ the groups have colours and dashes in turn: neither has a meaning then
        colour = shade(int(places.index(group.decay)) if varied else i, len(places))
        dash = list(DASHES)[others.index(rest[group.name]) % len(DASHES)] if varied else list(DASHES)[i % len(DASHES)]
        keys = {"λ": f"{group.decay:g}", "precision": group.precision}
        looks[group.name] = Style(colour, dash, keys)
    return looks


def line(curve: pd.Series, name: str, style: Style, seed: str = "mean", **more: Any) -> Line:
    """A curve by its index, thinned to POINTS. `seed`: whose it is; "" for a line that no seed's switch hides."""
    x, y = thin(curve)
    return Line(x, y, name, style.colour, style.dash, keys=style.keys | ({"seed": seed} if seed else {}), **more)


def seeds_together(compared: list[pd.Series], each: list[tuple[Run, pd.Series]], name: str, style: Style) -> list[Line]:
    """What stands for a group: the mean of its `compared` curves with its band, and each seed's own curve, faint.

    Two seeds are drawn as they are, thin, and one as one line: the t band of two is 12.7 standard errors wide, and hides all.
    """
    if not compared:
        return []
    if len(compared) < LEAST_SEEDS:
        # they stand for the mean, so the mean's switch shows them
        two = len(each) > 1
        names = [f"{name}, seed {run.seeds}" if two else name for run, _ in each]
        pairs = zip(names, each, strict=True)
        return [line(curve, own, style, group=name, thin_line=two) for own, (_, curve) in pairs]
    table = mean_and_band(compared)
    x, y = thin(table["mean"])
    low, high = thin(table["low"])[1], thin(table["high"])[1]
    mean = Line(x, y, name, style.colour, style.dash, low, high, keys={**style.keys, "seed": "mean"})
    return [mean, *(line(curve, f"seed {run.seeds}", style, run.seeds, faint=True) for run, curve in each)]


def bar(values: list[float]) -> Interval:
    """What a point and its bar show of some seeds: mean and t interval; of two the bar ends at them, of one there is none."""
    whole = interval(values)
    if whole.n == 0 or whole.n >= LEAST_SEEDS:
        return whole
    finite = [value for value in values if np.isfinite(value)]
    return Interval(whole.mean, min(finite), max(finite), whole.n) if whole.n > 1 else whole


def numbered(name: str, place: int) -> str:
    """The name of the figure of this place, of several that are alike: gains, gains2, gains3."""
    return f"{name}{place + 1 if place else ''}"


def by_name(
    told: list[tuple[str, Interval]], xlabel: str, ylabel: str, *lines: tuple[float, str], title: str = ""
) -> Panel:
    """A point and its interval under each name, in their order; and dashed `lines` (height, name) over all of them."""
    x = np.arange(len(told), dtype=float)
    y, low, high = (np.array([getattr(one, part) for _, one in told], float) for part in ("mean", "low", "high"))
    drawn = [Line(x, y, "mean over seeds", TOLD_APART[0], low=low, high=high, points=True)]
    ends = np.array([-0.4, len(told) - 0.6])
    drawn += [Line(ends, np.full(2, height), name, TOLD_APART[1 + i], "dash") for i, (height, name) in enumerate(lines)]
    ticks = dict(zip(x.tolist(), (name for name, _ in told), strict=True))
    return Panel(xlabel, ylabel, drawn, title, zero=True, ticks=ticks)


def after_the_start(lines: list[Line]) -> tuple[float, float] | None:
    """The y axis from the lowest value to the highest a twentieth into the lines. The first steps would flatten the rest."""
    curves = [one.y for one in lines if len(one.y) > 2]
    if not curves:
        return None
    low, high = min(float(np.nanmin(y)) for y in curves), max(float(y[max(1, len(y) // 20)]) for y in curves)
    return (low - 0.05 * (high - low), high) if np.isfinite(low) and np.isfinite(high) else None


def thin(curve: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    # more points than pixels make files large, and lines no finer
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    # x is averaged as y is: a point stands in the middle of what it stands for
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
