"""How much decay a cell has, over cells of several learning rates: its λ, or its λ·Ση where that is what the sweep repeats.

A run's decay acts as Σηλ. A sweep that compares learning rates may therefore choose λ so that λ·Ση is one of a few values at
every η (configs/sweeps/study_s48_tuning.json). Then no λ above zero stands at two η, and cells are alike in λ·Ση.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.compare import ended
from analysis.pairing import Group
from analysis.runs import RATE

NEAR = 0.02  # relative: λ is written with three digits, so the sums of one intended value differ by up to 1 %


@dataclass(frozen=True)
class Level:
    """Cells of one amount of decay. `name`: in words; `value`: λ, or λ·Ση where `sums`; `cells` by their learning rate."""

    name: str
    value: float
    cells: list[Group]


def rate_of(group: Group) -> float:
    return float(group.runs[0].fields[RATE])


def decay_sum(group: Group) -> float:
    """λ·Ση of the group's ended runs, as they recorded it; NaN where none did."""
    sums = [float(values.iloc[-1]) for run in ended(group) if len(values := run.column("optim/decay_sum"))]
    return float(np.mean(sums)) if sums else float("nan")


def same_sum(one: Group, other: Group) -> bool:
    """Whether two cells have the same λ·Ση, as far as λ is written. Without decay both have none, and that is no sum."""
    a, b = decay_sum(one), decay_sum(other)
    return bool(a > 0 and b > 0 and abs(a - b) <= NEAR * max(a, b))


def sums_repeat(groups: list[Group]) -> bool:
    """Whether λ·Ση, and no λ above zero itself, stands at more than one learning rate."""
    decayed = [group for group in groups if group.decay > 0]
    rates: dict[float, set[float]] = {}
    for group in decayed:
        rates.setdefault(group.decay, set()).add(rate_of(group))
    # λ itself is the plainer thing to compare at
    if any(len(at) > 1 for at in rates.values()):
        return False
    return any(
        same_sum(one, other) and rate_of(one) != rate_of(other)
        for i, one in enumerate(decayed)
        for other in decayed[:i]
    )


def levels(members: list[Group]) -> list[Level]:
    """Groups that differ in λ and η alone, by their amount of decay, the smallest first."""
    sums, made = sums_repeat(members), []
    # a run that has not recorded its sum stands by its λ
    amount = {id(g): total if sums and np.isfinite(total := decay_sum(g)) else g.decay for g in members}
    left = sorted(members, key=lambda group: amount[id(group)])
    while left:
        first = left[0]
        if first.decay == 0:
            cells, name, value = [g for g in left if g.decay == 0], "λ = 0", 0.0
        elif sums and np.isfinite(decay_sum(first)):
            cells = [group for group in left if group is first or same_sum(first, group)]
            value = float(np.mean([decay_sum(group) for group in cells]))
            name = f"λ·Ση = {value:.3g}"
        else:
            cells, name, value = [g for g in left if g.decay == first.decay], f"λ = {first.decay:g}", first.decay
        made.append(Level(name, value, sorted(cells, key=rate_of)))
        left = [group for group in left if group not in cells]
    return made
