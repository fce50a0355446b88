"""Loss over η × λ as a heat map: what stands in each cell, which cells the lowest cannot be told from, why a cell is empty."""

from __future__ import annotations

import numpy as np

from analysis.compare import divergence
from analysis.endpoint import Endpoint
from analysis.figures import Figure, Panel
from analysis.grid import NOISES, Heat
from analysis.levels import rate_of
from analysis.pairing import Group, by_rest
from analysis.runs import LAMBDA, RATE
from analysis.statistics import LEAST_SEEDS
from configs.decay_laws import product_acts


def heat_maps(groups: list[Group], endpoint: Endpoint, name: str = "heat", what: str = "loss") -> list[Figure]:
    """One panel a combination of all fields but η and λ; no figure where neither varies with the other. `what`: in a word."""
    panels = []
    for rest, members in by_rest(groups, (LAMBDA, RATE)).items():
        decays = sorted({group.decay for group in members})
        rates = sorted({rate_of(group) for group in members})
        # a single row or column is the figure of λ alone
        if len(decays) < 2 or len(rates) < 2:
            continue
        heat = _heat(members, decays, rates, endpoint)
        if np.isfinite(heat.z).any():
            panels.append(Panel("learning rate η", "weight decay λ", title=rest, heat=heat))
    return [Figure(name, _caption(panels, what, endpoint.unit), panels)]


def _heat(members: list[Group], decays: list[float], rates: list[float], endpoint: Endpoint) -> Heat:
    z = np.full((len(decays), len(rates)), np.nan)
    words = [["not run"] * len(rates) for _ in decays]
    losses: dict[tuple[int, int], dict[str, float]] = {}
    cells: dict[tuple[int, int], Group] = {}
    for group in members:
        place = decays.index(group.decay), rates.index(rate_of(group))
        ends = endpoint.seed_losses(group)
        # empty where nothing ended: a diverged run has no loss to colour
        if ends:
            losses[place], z[place], cells[place] = ends, np.mean(list(ends.values())), group
        words[place[0]][place[1]] = "" if ends else _why_empty(group)
    for place, word in _beside_lowest(cells, z, endpoint).items():
        words[place[0]][place[1]] = word
    # every cell's own seeds around its own mean, together: a cell of two seeds alone says little of the noise
    spreads = [np.array(list(ends.values())) for ends in losses.values() if len(ends) > 1]
    degrees = sum(len(values) - 1 for values in spreads)
    noise = (
        float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in spreads) / degrees))
        if degrees
        else float("nan")
    )
    run = members[0].runs[0]
    # lines of equal ηλ only where runs on one of them decay alike
    acts = product_acts(run.rule, run.algorithm)
    return Heat(
        rates, decays, z, f"{endpoint.words} ({endpoint.unit})" if endpoint.unit else endpoint.words, noise, words, acts
    )


def _why_empty(group: Group) -> str:
    gone = sum(divergence(run) is not None for run in group.runs)
    # every run of an empty cell has diverged, or has not come to its end
    return "diverged" if gone == len(group.runs) else "not finished"


def _beside_lowest(
    cells: dict[tuple[int, int], Group], z: np.ndarray, endpoint: Endpoint
) -> dict[tuple[int, int], str]:
    """What is said of cells beside their loss: the lowest, and those that it cannot be told from, by pairs of seeds."""
    if not cells:
        return {}
    lowest = min(cells, key=lambda place: z[place])
    words = {lowest: "lowest"}
    for place, group in cells.items():
        if place == lowest:
            continue
        difference = endpoint.difference(group, cells[lowest])
        if not (difference.n >= LEAST_SEEDS and difference.low > 0):
            words[place] = "≈"
    return words


def _caption(panels: list[Panel], what: str, unit: str) -> str:
    noises = [panel.heat.noise for panel in panels if panel.heat is not None and np.isfinite(panel.heat.noise)]
    unit = f" {unit}" if unit else ""
    alike = (
        f", and over at least {NOISES:g} standard deviations of a cell's seeds ({NOISES:g} × {max(noises):.2g}{unit}), so that "
        "noise looks alike"
        if noises
        else "; one seed a cell, so the noise is not known"
    )
    words = {word for panel in panels if panel.heat for row in panel.heat.words for word in row}
    told = {
        "≈": f"≈: cannot be told from the lowest (fewer than {LEAST_SEEDS} shared seeds, or the 95 % interval holds zero). ",
        "diverged": "Grey, diverged: all its runs did. ",
        "not finished": "Grey, not finished: no run has ended. ",
        "not run": "Grey, not run: no such run is among these. ",
    }
    lines = " Lines: equal ηλ." if any(panel.heat.products for panel in panels if panel.heat) else ""
    return (
        f"Mean {what} over η and λ, both logarithmic; λ = 0 has no logarithm and stands apart.{lines} Colours run from the "
        f"lowest {what} to twice as far above it as the median cell{alike}; all that is higher has the last colour. "
        + "".join(text for word, text in told.items() if word in words)
    ).strip()
