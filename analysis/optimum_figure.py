"""Measurements at the end of runs over η·λ, or over η where no run has decay: the optimum of the test error, P1's U."""

from __future__ import annotations

import numpy as np

from analysis.endpoint import Endpoint
from analysis.figures import BARS_DRAWN, SEQUENCE, Figure, Line, Panel, bar
from analysis.pairing import Group
from analysis.products import along, by_product

BESIDE = 1.03  # lines of one panel, so that their bars do not hide each other


def optimum_figure(settings: dict[str, list[Group]], tested: list[Endpoint], others: list[Endpoint]) -> list[Figure]:
    """One figure, or none where no setting has three products: a panel for the test errors, and one for each other endpoint.

    `settings`: cells that differ in η and λ alone, by what else they are.
    """
    # the test errors together, to see what the average and the iterate make of one η
    panels = [
        Panel(_xlabel(settings), label, lines, xlog=True)
        for label, endpoints in (("test error", tested), *((_label(end), [end]) for end in others))
        if (lines := _lines(settings, endpoints))
    ]
    if not panels:
        return []
    caption = (
        f"Each setting's cells by ηλ, or by η where no run has decay; cells of one product are one point. {BARS_DRAWN}"
    )
    return [Figure("optimum", caption, panels)]


def _lines(settings: dict[str, list[Group]], endpoints: list[Endpoint]) -> list[Line]:
    lines: list[Line] = []
    for rest, members in settings.items():
        for endpoint in endpoints:
            # a setting with too few products has no place here, whatever the others have
            found = by_product(members, endpoint)
            if found is None:
                continue
            x, values = found
            bars = [bar(list(column)) for column in values.T]
            y, low, high = (np.array([getattr(one, part) for one in bars]) for part in ("mean", "low", "high"))
            name = f"{rest}, {endpoint.words}" if rest else endpoint.words
            colour = SEQUENCE[len(lines) % len(SEQUENCE)]
            lines.append(Line(x, y, name, colour, low=low, high=high, points=True, aside=BESIDE ** len(lines)))
    return lines


def _label(endpoint: Endpoint) -> str:
    return f"{endpoint.words} ({endpoint.unit})" if endpoint.unit else endpoint.words


def _xlabel(settings: dict[str, list[Group]]) -> str:
    return " or ".join(sorted({along(members) for members in settings.values()}, reverse=True))
