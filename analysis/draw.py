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
        letters = 6 + max(map(len, handles))
        across = min(len(handles), max(1, round(10 * columns * 5.6 / letters)))
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": across, "frameon": False, "fontsize": 9}
        drawing.legend(handles.values(), handles.keys(), **place)
        # the legend's rows come on top: the panels keep their height
        drawing.set_size_inches(5.6 * columns, 3.9 * rows + 0.2 * -(-len(handles) // across))
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
        # a logarithmic axis would write its own numbers between them
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
    # contours need two rows and two columns without λ = 0
    logs = heat.log_product()
    if min(logs.shape) > 1 and np.isfinite(logs).all(axis=1).sum() > 1:
        drawn = axis.contour(logs, levels=6, colors="white", linewidths=0.7, linestyles="solid")
        axis.clabel(drawn, fmt=lambda value: f"ηλ = {10**value:.2g}", fontsize=7)


def _marker(one: Line) -> str:
    # the marker says what the dash would: which precision, or what else differs
    return list(MARKERS)[list(DASHES).index(one.dash)]


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


def plotly(figure: Figure) -> list[dict[str, Any]]:
    """One plotly figure (data and layout) a panel; traces carry their keys as `meta`."""
    return [_plotly_panel(panel) for panel in figure.panels]


def _plotly_panel(panel: Panel) -> dict[str, Any]:
    data = [trace for one in panel.lines for trace in _traces(one)]
    if panel.diagonal and panel.lines:
        data.append(_diagonal(panel.lines))
    xaxis: dict[str, Any] = {"title": {"text": panel.xlabel}, "type": "log" if panel.xlog else "linear"}
    yaxis: dict[str, Any] = {
        "title": {"text": panel.ylabel},
        "type": "log" if panel.ylog else "linear",
        "zeroline": panel.zero,
    }
    # Limits that hold nothing (all values alike) are left to the library.
    if panel.limits is not None and panel.limits[0] < panel.limits[1]:
        # On a logarithmic axis plotly takes exponents.
        yaxis["range"] = [float(np.log10(v)) if panel.ylog else v for v in panel.limits]
    if panel.ticks:
        xaxis |= {"tickvals": list(panel.ticks), "ticktext": list(panel.ticks.values())}
    if panel.heat is not None:
        data += _heat_traces(panel.heat)
        # The values of λ and η are names here: equal cells, however far apart they lie.
        xaxis["type"] = yaxis["type"] = "category"
    return {"data": data, "layout": {"title": {"text": panel.title}, "xaxis": xaxis, "yaxis": yaxis}}


def _traces(one: Line) -> list[dict[str, Any]]:
    """A line as plotly draws it: the band's two edges first, so that the line lies over them."""
    shared = {"legendgroup": one.name, "meta": one.keys, "visible": not one.faint}
    traces: list[dict[str, Any]] = []
    if one.low is not None and one.high is not None and not one.points:
        # An edge has no width and no name. The upper one is filled down to the one before it.
        edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", "x": _list(one.x)}
        traces.append({"type": "scatter", **shared, **edge, "y": _list(one.low)})
        fill = {"fill": "tonexty", "fillcolor": _faded(one.colour)}
        traces.append({"type": "scatter", **shared, **edge, "y": _list(one.high), **fill})
    trace = {"type": "scatter", "x": _list(one.x), "y": _list(one.y), "name": one.name, **shared}
    trace["showlegend"] = not one.faint
    trace["mode"] = "markers" if one.points else "lines"
    trace["line"] = {"color": one.colour, "dash": one.dash, "width": 1 if one.faint else 2}
    if one.points:
        trace["marker"] = {"color": one.colour, "size": 7, "symbol": _marker(one)}
        if one.low is not None and one.high is not None:
            # Points have bars and no band: between them nothing was measured.
            spread = {"array": _list(one.high - one.y), "arrayminus": _list(one.y - one.low)}
            trace["error_y"] = {"type": "data", "symmetric": False, **spread}
    return [*traces, trace]


def _diagonal(lines: list[Line]) -> dict[str, Any]:
    """Where y = x, over the range of all points."""
    ends = [float(min(np.min(one.x) for one in lines)), float(max(np.max(one.x) for one in lines))]
    look = {"mode": "lines", "line": {"color": "#888", "width": 1}, "showlegend": False, "hoverinfo": "skip"}
    return {"type": "scatter", "x": ends, "y": ends, **look}


def _heat_traces(heat: Heat) -> list[dict[str, Any]]:
    """Cells, and lines of equal ηλ over them."""
    labels = {"x": [f"{v:g}" for v in heat.x], "y": [f"{v:g}" for v in heat.y]}
    product = [[f"ηλ = {a * b:.3g}" for a in heat.x] for b in heat.y]
    cells = {"z": [_list(row) for row in heat.z], "text": product, "colorscale": "Viridis", "reversescale": True}
    bar = {"colorbar": {"title": {"text": heat.colour_title}}}
    lines = {"coloring": "none", "showlabels": True, "labelfont": {"color": "#fff"}, "labelformat": ".1f"}
    look = {"showscale": False, "hoverinfo": "skip", "contours": lines, "line": {"color": "#fff", "width": 1}}
    contour = {"z": [_list(row) for row in heat.log_product()], "ncontours": 8, **look}
    return [{"type": "heatmap", **labels, **cells, **bar}, {"type": "contour", **labels, **contour}]


def _list(values: np.ndarray) -> list[float | None]:
    """Six digits, gaps as null: JSON has no NaN."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _faded(colour: str) -> str:
    red, green, blue = (round(255 * part) for part in colors.to_rgb(colour))
    return f"rgba({red},{green},{blue},0.18)"
