"""Figures drawn twice: by matplotlib for paper (PNG, SVG), by plotly for the report; their numbers go to CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from analysis.figures import DASHES, MARKERS, Figure, Heat, Line, Panel


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
        across = min(
            len(handles), max(1, round(10 * columns * 5.6 / (6 + max(map(len, handles)))))
        )  # ten letters an inch
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": across, "frameon": False, "fontsize": 9}
        drawing.legend(handles.values(), handles.keys(), **place)
        drawing.set_size_inches(5.6 * columns, 3.9 * rows + 0.2 * -(-len(handles) // across))
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
