"""Figures as data, drawn twice: by matplotlib for paper (PNG, SVG), by plotly for the report; their numbers go to CSV.

λ is a sequence: viridis from dark (small) to light. Whatever else differs is a dash, so that colour is never alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.runs import LAMBDA, Group, Run, shown

POINTS = 800  # a line has at most so many, each the mean of its neighbours
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "x": "x"}


@dataclass(frozen=True)
class Line:
    """`keys`: what the report's reader can switch it on and off by (λ, precision, seed). On paper its points are drawn at
    x·`aside`, so that lines do not hide each other."""

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: str
    dash: str = "solid"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    points: bool = False
    faint: bool = False
    aside: float = 1.0
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Heat:
    """`z` is (len(y), len(x)); lines of equal x·y are drawn over it."""

    x: list[float]
    y: list[float]
    z: np.ndarray
    colour_title: str

    def log_product(self) -> np.ndarray:
        """log₁₀ of x·y, NaN where it is 0."""
        product = np.outer(self.y, self.x)
        return np.log10(np.where(product > 0, product, np.nan))


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


def shade(place: int, places: int) -> str:
    return colors.to_hex(plt.get_cmap("viridis")(0.8 * place / max(1, places - 1)))


def styles(groups: list[Group]) -> dict[str, Style]:
    """Colour by λ (by the group itself where λ does not vary), dash by everything else."""
    varied = LAMBDA in groups[0].fields if groups else False
    rest = {g.name: tuple((n, shown(v)) for n, v in g.fields.items() if n != LAMBDA) for g in groups}
    places: list[float] = sorted({g.decay for g in groups}) if varied else [float(i) for i in range(len(groups))]
    others = list(dict.fromkeys(rest.values()))
    found = {}
    for i, group in enumerate(groups):
        colour = shade(int(places.index(group.decay)) if varied else i, len(places))
        dash = list(DASHES)[others.index(rest[group.name]) % len(DASHES)] if varied else list(DASHES)[i % len(DASHES)]
        keys = {"λ": f"{group.decay:g}", "precision": group.precision}
        found[group.name] = Style(colour, dash, keys)
    return found


def line(curve: pd.Series, name: str, style: Style, seed: str = "mean", **more: Any) -> Line:
    """A curve by its index, thinned to POINTS. `seed`: whose it is; "" for a line that no seed's switch hides."""
    x, y = thin(curve)
    return Line(x, y, name, style.colour, style.dash, keys=style.keys | ({"seed": seed} if seed else {}), **more)


def band(table: pd.DataFrame, name: str, style: Style, **more: Any) -> Line:
    """The mean over seeds and its interval (analysis.statistics.mean_and_band)."""
    x, y = thin(table["mean"])
    low = high = None
    if table["low"].notna().any():
        low, high = thin(table["low"])[1], thin(table["high"])[1]
    return Line(x, y, name, style.colour, style.dash, low, high, keys={**style.keys, "seed": "mean"}, **more)


def seed_lines(curves: list[tuple[Run, pd.Series]], style: Style) -> list[Line]:
    """Every seed's own curve, faint; none where there is one."""
    if len(curves) < 2:
        return []
    return [line(curve, f"seed {run.seeds}", style, run.seeds, faint=True) for run, curve in curves]


def after_the_start(lines: list[Line]) -> tuple[float, float] | None:
    """From the lowest value to those a twentieth into the lines: the first steps would flatten everything else."""
    known = [one.y for one in lines if len(one.y) > 2]
    if not known:
        return None
    low, high = min(float(np.nanmin(y)) for y in known), max(float(y[max(1, len(y) // 20)]) for y in known)
    return (low - 0.05 * (high - low), high) if np.isfinite(low) and np.isfinite(high) else None


def thin(curve: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def save(figure: Figure, out: Path) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    columns = min(2, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    drawing, axes = plt.subplots(
        rows, columns, figsize=(5.6 * columns, 3.9 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(figure.panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        _draw(axis, panel)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        across = max(
            1, round(10 * columns * 5.6 / (6 + max(map(len, handles))))
        )  # as many as fit, about ten letters an inch
        place: dict[str, Any] = {
            "loc": "outside lower center",
            "ncols": min(across, len(handles)),
            "frameon": False,
            "fontsize": 9,
        }
        drawing.legend(handles.values(), handles.keys(), **place)
    paths = [out / f"{figure.name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths[:2]:
        drawing.savefig(path, dpi=150)
    plt.close(drawing)
    numbers(figure).to_csv(paths[2], index=False)
    return paths


def _draw(axis: Axes, panel: Panel) -> None:
    if panel.zero:
        axis.axhline(0, color="0.5", linewidth=0.8)
    if panel.heat is not None:
        _draw_heat(axis, panel.heat)
    for one in panel.lines:
        style: dict[str, Any] = {"color": one.colour, "label": None if one.faint else one.name}
        if one.points:
            axis.plot(one.x * one.aside, one.y, linestyle="none", marker=MARKERS[_marker(one)], markersize=4, **style)
        else:
            axis.plot(
                one.x,
                one.y,
                DASHES[one.dash],
                linewidth=0.6 if one.faint else 1.4,
                alpha=0.35 if one.faint else 1,
                **style,
            )
        if one.low is not None and one.high is not None and not one.points:
            axis.fill_between(one.x, one.low, one.high, color=one.colour, alpha=0.18, linewidth=0)
        elif one.low is not None and one.high is not None:
            axis.vlines(one.x * one.aside, one.low, one.high, color=one.colour, linewidth=1)
    if panel.diagonal and panel.lines:
        ends = [min(one.x.min() for one in panel.lines), max(one.x.max() for one in panel.lines)]
        axis.plot(ends, ends, color="0.5", linewidth=0.8)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=panel.title)
    if panel.xlog:
        axis.set_xscale("log")
    if panel.ylog:
        axis.set_yscale("log")
    if panel.ticks:
        axis.set_xticks(list(panel.ticks), list(panel.ticks.values()))
        axis.set_xticks([], minor=True)
    if panel.limits is not None and panel.limits[0] < panel.limits[1]:
        axis.set_ylim(*panel.limits)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_heat(axis: Axes, heat: Heat) -> None:
    mesh = axis.pcolormesh(range(len(heat.x)), range(len(heat.y)), heat.z, cmap="viridis_r", shading="nearest")
    axis.figure.colorbar(mesh, ax=axis, label=heat.colour_title)
    axis.set_xticks(range(len(heat.x)), [f"{v:g}" for v in heat.x])
    axis.set_yticks(range(len(heat.y)), [f"{v:g}" for v in heat.y])
    logs = heat.log_product()
    if min(logs.shape) > 1 and np.isfinite(logs).all(axis=1).sum() > 1:
        drawn = axis.contour(logs, levels=6, colors="white", linewidths=0.7, linestyles="solid")
        axis.clabel(drawn, fmt=lambda value: f"ηλ = {10**value:.2g}", fontsize=7)


def _marker(one: Line) -> str:
    return list(MARKERS)[list(DASHES).index(one.dash)]


def numbers(figure: Figure) -> pd.DataFrame:
    """Every point of a figure, one a row."""
    tables = []
    for i, panel in enumerate(figure.panels):
        for one in panel.lines:
            columns = {"panel": panel.title or panel.ylabel, "line": one.name, **one.keys, "x": one.x, "y": one.y}
            tables.append(pd.DataFrame(columns | {"low": one.low, "high": one.high}))
        if panel.heat is not None:
            y, x = np.meshgrid(panel.heat.y, panel.heat.x, indexing="ij")
            tables.append(pd.DataFrame({"panel": i, "x": x.ravel(), "row": y.ravel(), "y": panel.heat.z.ravel()}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"panel": [], "x": [], "y": []})


def plotly(figure: Figure) -> list[dict[str, Any]]:
    """One plotly figure (data and layout) a panel; traces carry their keys as `meta`."""
    return [_plotly_panel(panel) for panel in figure.panels]


def _plotly_panel(panel: Panel) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for one in panel.lines:
        shared = {"legendgroup": one.name, "meta": one.keys, "visible": not one.faint}
        if one.low is not None and one.high is not None and not one.points:
            around = {
                "mode": "lines",
                "line": {"width": 0},
                "showlegend": False,
                "hoverinfo": "skip",
                "x": _list(one.x),
            }
            data.append({"type": "scatter", **shared, **around, "y": _list(one.low)})
            fill = {"fill": "tonexty", "fillcolor": _faded(one.colour)}
            data.append({"type": "scatter", **shared, **around, "y": _list(one.high), **fill})
        trace = {"type": "scatter", "x": _list(one.x), "y": _list(one.y), "name": one.name, **shared}
        trace["showlegend"] = not one.faint
        trace["mode"] = "markers" if one.points else "lines"
        trace["line"] = {"color": one.colour, "dash": one.dash, "width": 1 if one.faint else 2}
        if one.points:
            trace["marker"] = {"color": one.colour, "size": 7, "symbol": _marker(one)}
            if one.low is not None and one.high is not None:
                spread = {"array": _list(one.high - one.y), "arrayminus": _list(one.y - one.low)}
                trace["error_y"] = {"type": "data", "symmetric": False, **spread}
        data.append(trace)
    if panel.diagonal and panel.lines:
        ends = [float(min(np.min(one.x) for one in panel.lines)), float(max(np.max(one.x) for one in panel.lines))]
        grey = {"color": "#888", "width": 1}
        data.append(
            {
                "type": "scatter",
                "x": ends,
                "y": ends,
                "mode": "lines",
                "line": grey,
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
    xaxis: dict[str, Any] = {"title": {"text": panel.xlabel}, "type": "log" if panel.xlog else "linear"}
    yaxis: dict[str, Any] = {
        "title": {"text": panel.ylabel},
        "type": "log" if panel.ylog else "linear",
        "zeroline": panel.zero,
    }
    if panel.limits is not None and panel.limits[0] < panel.limits[1]:
        yaxis["range"] = [float(np.log10(v)) if panel.ylog else v for v in panel.limits]
    if panel.ticks:
        xaxis |= {"tickvals": list(panel.ticks), "ticktext": list(panel.ticks.values())}
    if panel.heat is not None:
        heat = panel.heat
        labels = {"x": [f"{v:g}" for v in heat.x], "y": [f"{v:g}" for v in heat.y]}
        product = [[f"ηλ = {a * b:.3g}" for a in heat.x] for b in heat.y]
        cells = {"z": [_list(row) for row in heat.z], "text": product, "colorscale": "Viridis", "reversescale": True}
        data.append({"type": "heatmap", **labels, **cells, "colorbar": {"title": {"text": heat.colour_title}}})
        lines = {"coloring": "none", "showlabels": True, "labelfont": {"color": "#fff"}, "labelformat": ".1f"}
        shared = {"showscale": False, "hoverinfo": "skip", "contours": lines, "line": {"color": "#fff", "width": 1}}
        data.append(
            {"type": "contour", **labels, "z": [_list(row) for row in heat.log_product()], "ncontours": 8, **shared}
        )
        xaxis["type"] = yaxis["type"] = "category"
    return {"data": data, "layout": {"title": {"text": panel.title}, "xaxis": xaxis, "yaxis": yaxis}}


def _list(values: np.ndarray) -> list[float | None]:
    """Six digits, gaps as null: JSON has no NaN."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _faded(colour: str) -> str:
    red, green, blue = (round(255 * part) for part in colors.to_rgb(colour))
    return f"rgba({red},{green},{blue},0.18)"
