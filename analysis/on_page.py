"""Figures for the report, as plotly takes them: one figure (data and layout) a panel; the reader's browser draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colors

from analysis.figures import Figure, Line, Panel, marker
from analysis.grid import EMPTY, Heat


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
        xaxis |= {
            "tickvals": list(panel.ticks),
            "ticktext": [tick.replace("\n", "<br>") for tick in panel.ticks.values()],
        }
    if panel.heat is not None:
        data += _heat_traces(panel.heat)
        # The axes are of the logarithms: a logarithmic axis of plotly has no place for 0.
        for axis, one in ((xaxis, panel.heat.across), (yaxis, panel.heat.up)):
            axis |= {"type": "linear", "zeroline": False, "tickvals": _list(one.places), "ticktext": one.labels}
            axis |= {"range": [one.bounds[0], one.bounds[-1]], "showgrid": False}
    more = _heat_layout(panel.heat) if panel.heat is not None else {}
    return {"data": data, "layout": {"title": {"text": panel.title}, "xaxis": xaxis, "yaxis": yaxis, **more}}


def _traces(one: Line) -> list[dict[str, Any]]:
    """A line as plotly draws it: the band's two edges first, so that the line lies over them."""
    shared = {"legendgroup": one.entry, "meta": one.keys, "visible": not one.faint}
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
    trace["line"] = {"color": one.colour, "dash": one.dash, "width": 1 if one.faint or one.thin_line else 2}
    if one.points:
        trace["marker"] = {"color": one.colour, "size": 7, "symbol": marker(one)}
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
    """Cells, what stands in them, and lines of equal ηλ over them."""
    z, across, up = heat.spread_out(), heat.across, heat.up
    low, high = heat.range()
    # the heat map's own text would be left out where it is wide: the texts are a trace of their own
    colours = {"z": [_list(row) for row in z], "x": across.bounds, "y": up.bounds, "zmin": low, "zmax": high}
    look = {"colorscale": "Viridis", "reversescale": True, "hoverinfo": "skip"}
    bar = {"title": {"text": heat.colour_title, "side": "right"}, "thickness": 14, "nticks": 6}
    traces: list[dict[str, Any]] = [{"type": "heatmap", **colours, **look, "colorbar": bar}]
    for product, ends in heat.equal_products():
        place = {"x": _list(ends[:, 0]), "y": _list(ends[:, 1])}
        line = {"mode": "lines", "line": {"color": "#fff", "width": 1.5}, "showlegend": False, "hoverinfo": "skip"}
        traces.append({"type": "scatter", **place, **line, "name": f"ηλ = {product:g}"})
    cells = heat.cells()
    words = {
        "text": [heat.cell_text(*cell).replace("\n", "<br>") for cell in cells],
        "mode": "text",
        "showlegend": False,
    }
    place = {
        "x": [float(across.places[column]) for _, column in cells],
        "y": [float(up.places[row]) for row, _ in cells],
    }
    hover = [
        f"η = {heat.x[column]:g}, λ = {heat.y[row]:g}"
        + (f"<br>ηλ = {heat.x[column] * heat.y[row]:.3g}" if heat.products else "")
        for row, column in cells
    ]
    font = {"size": 10, "color": ["#fff" if heat.is_dark(*cell) else "#000" for cell in cells]}
    return [*traces, {"type": "scatter", **words, **place, "textfont": font, "hovertext": hover, "hoverinfo": "text"}]


def _heat_layout(heat: Heat) -> dict[str, Any]:
    """Names of the lines of equal ηλ, on plates because a cell may be of any colour; grey where a cell is empty."""
    across, up = heat.across, heat.up
    plate = {
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "top",
        "bgcolor": "rgba(255,255,255,0.7)",
        "borderpad": 1,
    }
    # a little along the line: plotly hides what stands on the very edge
    starts = [(product, ends[0] + 0.02 * (ends[1] - ends[0])) for product, ends in heat.equal_products()]
    names = [
        {"x": float(start[0]), "y": float(start[1]), "text": f"ηλ = {product:g}", "font": {"size": 9}, **plate}
        for product, start in starts
    ]
    empty = [
        dict(zip(("x0", "x1", "y0", "y1"), map(float, (*across.edges[column], *up.edges[row])), strict=True))
        for row, column in heat.cells()
        if not np.isfinite(heat.z[row, column])
    ]
    grey = {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": EMPTY}
    return {"annotations": names, "shapes": [{**grey, **ends} for ends in empty]}


def _list(values: np.ndarray) -> list[float | None]:
    """Six digits, gaps as null: JSON has no NaN."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _faded(colour: str) -> str:
    red, green, blue = (round(255 * part) for part in colors.to_rgb(colour))
    return f"rgba({red},{green},{blue},0.18)"
