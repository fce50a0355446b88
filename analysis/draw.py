"""Figures for paper (PNG, SVG) by matplotlib, and their numbers as CSV; analysis/on_page.py draws them for the report."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.figures import DASHES, MARKERS, Figure, Panel, marker
from analysis.grid import EMPTY, Heat


def save(figure: Figure, out: Path) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    # two panels beside each other fill a page's width
    columns = min(2, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    drawing, axes = plt.subplots(
        rows, columns, figsize=(5.6 * columns, 3.9 * rows), squeeze=False, layout="constrained"
    )
    # an odd number of panels leaves one place empty
    for axis in axes.flat[len(figure.panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        _draw(axis, panel)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            # a curve that stands in several panels has one entry
            handles.setdefault(name, handle)
    if handles:
        # One legend for all panels, below them: about ten letters an inch, and six for the sample of the line.
        width = round(10 * columns * 5.6)
        # what is wider than the page goes on in the next line
        entries = [textwrap.fill(name, width - 6) for name in handles]
        letters = 6 + min(width - 6, max(map(len, handles)))
        across = min(len(entries), max(1, round(width / letters)))
        rows_below = -(-len(entries) // across) * max(entry.count("\n") + 1 for entry in entries)
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": across, "frameon": False, "fontsize": 9}
        drawing.legend(handles.values(), entries, **place)
        # the legend's rows come on top: the panels keep their height
        drawing.set_size_inches(5.6 * columns, 3.9 * rows + 0.2 * rows_below)
    paths = [out / f"{figure.name}.{suffix}" for suffix in ("png", "svg", "csv")]
    for path in paths[:2]:
        drawing.savefig(path, dpi=150)
    plt.close(drawing)
    # what is drawn can be drawn again by anyone
    numbers(figure).to_csv(paths[2], index=False)
    return paths


def _draw(axis: Axes, panel: Panel) -> None:
    if panel.zero:
        axis.axhline(0, color="0.5", linewidth=0.8)
    if panel.heat is not None:
        _draw_heat(axis, panel.heat)
    for one in panel.lines:
        # faint lines are the seeds of a mean: they have no entry of their own
        style: dict[str, Any] = {"color": one.colour, "label": None if one.faint else one.entry}
        if one.points:
            axis.plot(one.x * one.aside, one.y, linestyle="none", marker=MARKERS[marker(one)], markersize=4, **style)
        else:
            axis.plot(
                one.x,
                one.y,
                DASHES[one.dash],
                linewidth=0.6 if one.faint else 0.9 if one.thin_line else 1.4,
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
    # as many letters as a panel is high
    axis.set(xlabel=panel.xlabel, ylabel=textwrap.fill(panel.ylabel, 44), title=panel.title)
    if panel.xlog:
        axis.set_xscale("log")
    if panel.ylog:
        axis.set_yscale("log")
    if panel.ticks:
        names = list(panel.ticks.values())
        # about sixty letters stand beside each other below a panel
        crowded = sum(max(map(len, name.split("\n"))) for name in names) > 60
        turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if crowded else {}
        axis.set_xticks(list(panel.ticks), names, **turned)
        # a logarithmic axis would write its own numbers between them
        axis.set_xticks([], minor=True)
    if panel.limits is not None and panel.limits[0] < panel.limits[1]:
        axis.set_ylim(*panel.limits)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_heat(axis: Axes, heat: Heat) -> None:
    z, across, up = heat.spread_out(), heat.across, heat.up
    low, high = heat.range()
    colours = matplotlib.colormaps["viridis_r"].with_extremes(bad="none")
    mesh = axis.pcolormesh(across.bounds, up.bounds, z, cmap=colours, vmin=low, vmax=high)
    # an arrow at the bar's end where higher losses share the last colour
    axis.figure.colorbar(mesh, ax=axis, label=heat.colour_title, extend="max" if np.nanmax(z) > high else "neither")
    axis.set_xticks(across.places, across.labels)
    axis.set_yticks(up.places, up.labels)
    for product, ends in heat.equal_products():
        axis.plot(ends[:, 0], ends[:, 1], color="white", linewidth=0.9)
        # on a plate, because its cell may be of any colour
        plate = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8}
        axis.annotate(f"ηλ = {product:g}", ends[0], fontsize=6, va="top", bbox=plate)
    for row, column in heat.cells():
        colour = "white" if heat.is_dark(row, column) else "black"
        place = across.places[column], up.places[row]
        # an empty cell is grey and says why; the gap beside zero is no cell, and white
        if not np.isfinite(heat.z[row, column]):
            axis.fill_between(across.edges[column], *up.edges[row], color=EMPTY, linewidth=0)
        axis.text(*place, heat.cell_text(row, column), ha="center", va="center", fontsize=6, color=colour)


def numbers(figure: Figure) -> pd.DataFrame:
    """Every point of a figure, one a row."""
    tables = []
    for i, panel in enumerate(figure.panels):
        for one in panel.lines:
            # long form, so that figures of any shape are read by the same few lines
            columns = {"panel": panel.title or panel.ylabel, "line": one.name, **one.keys, "x": one.x, "y": one.y}
            tables.append(pd.DataFrame(columns | {"low": one.low, "high": one.high}))
        if panel.heat is not None:
            y, x = np.meshgrid(panel.heat.y, panel.heat.x, indexing="ij")
            tables.append(pd.DataFrame({"panel": i, "x": x.ravel(), "row": y.ravel(), "y": panel.heat.z.ravel()}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"panel": [], "x": [], "y": []})
