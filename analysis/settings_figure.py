"""What λ does to the loss at the end, setting by setting: a point and its bar for every amount of decay."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from analysis.between_settings import Gain, gain_pairs, same_decay
from analysis.endpoint import Endpoint
from analysis.figures import BARS_DRAWN, TOLD_APART, Figure, Line, Panel, bar
from analysis.levels import decay_sum
from analysis.pairing import in_order
from analysis.runs import LAMBDA, RATE, field_name, shown
from analysis.statistics import LEAST_SEEDS, Interval

BESIDE = 0.12  # between points of one setting, so that their bars do not hide each other; settings are 1 apart


def settings_figure(gains: Mapping[str, list[Gain]], endpoint: Endpoint) -> list[Figure]:
    """One figure, or none where fewer than two settings have a gain. `gains`: by setting (analysis/between_settings.py)."""
    if not gains:
        return []
    # groups are made by the same fields, so that the first tells of all
    first = next(iter(gains.values()))[0][0].group
    names = [name for name in first.fields if name not in (LAMBDA, RATE)]
    ordered = sorted(gains.values(), key=lambda found: [in_order(found[0][0].group.fields[name]) for name in names])
    # a line for every amount of decay that some setting has
    lines: list[list[tuple[int, Gain]]] = []
    for place, found in enumerate(ordered):
        for gain in found:
            # a line has one point in a setting at most
            free = [line for line in lines if place not in (there for there, _ in line)]
            own = next((line for line in free if same_decay(line[0][1][0].group, gain[0].group)), None)
            if own is None:
                lines.append(own := [])
            own.append((place, gain))
    middle = (len(lines) - 1) / 2
    drawn = [_line(line, i, BESIDE * (i - middle), endpoint) for i, line in enumerate(lines)]
    ticks = {float(i): _tick(found[0], names) for i, found in enumerate(ordered)}
    label = ", ".join(field_name(name) for name in names)
    panel = Panel(label, f"{endpoint.words}, minus that of λ = 0 ({endpoint.unit})", drawn, zero=True, ticks=ticks)
    caption = f"What decay does to the loss in each setting, in pairs of a seed. Below zero it helps. {BARS_DRAWN}"
    return [Figure("settings", caption, [panel])]


def _line(line: list[tuple[int, Gain]], index: int, aside: float, endpoint: Endpoint) -> Line:
    bars = [_bar(gain, endpoint) for _, gain in line]
    x = np.array([place + aside for place, _ in line], float)
    y, low, high = (np.array([getattr(one, part) for one in bars], float) for part in ("mean", "low", "high"))
    # one seed has no bar
    low, high = (np.where(np.isfinite(one), one, y) for one in (low, high))
    colour = TOLD_APART[index % len(TOLD_APART)]
    return Line(x, y, _name([gain for _, gain in line]), colour, low=low, high=high, points=True)


def _bar(gain: Gain, endpoint: Endpoint) -> Interval:
    pairs = gain_pairs(gain).values()
    if len(pairs) < LEAST_SEEDS:
        return bar([endpoint.of(run) - endpoint.of(plain) for run, plain in pairs])
    # over the whole split the documents' error is in it
    return endpoint.contrast([{run: 1.0, plain: -1.0} for run, plain in pairs])


def _name(gains: list[Gain]) -> str:
    """λ, or λ·Ση where settings have another λ for it."""
    decays = {gain[0].group.decay for gain in gains}
    total = decay_sum(gains[0][0].group)
    return f"λ = {min(decays):g}" if len(decays) == 1 or not math.isfinite(total) else f"λ·Ση = {total:.3g}"


def _tick(gain: Gain, names: list[str]) -> str:
    """The setting's values, one a line: beside each other they would run into those of the next."""
    return "\n".join(str(shown(gain[0].group.fields[name])) for name in names)
