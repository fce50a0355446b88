"""Runs against runs: training loss, divergence, and differences paired by seeds."""

from __future__ import annotations

from functools import cache

import pandas as pd

from analysis.runs import Group, Run, pairs
from analysis.statistics import MARGIN, Interval, diverged_at, final, interval

TRAIN, VALIDATION = "train/loss", "val/loss"


def every_loss(run: Run) -> pd.Series:
    """Training loss of every recorded update, NaN where it was not finite."""
    if TRAIN not in run.metrics:
        return pd.Series(dtype=float)
    return pd.to_numeric(run.metrics[TRAIN], errors="coerce").loc[1:]


@cache
def divergence(run: Run) -> int | None:
    """The step from which the run has diverged, by its loss or because it ended so; None if it has not."""
    found = diverged_at(every_loss(run), run.fields.get("numerics.divergence_margin") or MARGIN)
    return run.last_step if found is None and run.state == "diverged" else found


def sound(group: Group) -> list[Run]:
    """The group's runs that did not diverge: an interval over others says nothing."""
    return [run for run in group.runs if divergence(run) is None]


def differences(group: Group, base: Group, column: str) -> list[tuple[Run, pd.Series]]:
    """`column` of each run minus that of its twin in `base` (same seeds), at the steps that both have."""
    alive = {id(run) for g in (group, base) for run in sound(g)}
    found = [
        (run, (run.column(column) - twin.column(column)).dropna())
        for run, twin in pairs(group, base)
        if id(run) in alive and id(twin) in alive
    ]
    return [(run, curve) for run, curve in found if len(curve)]


def paired_final(group: Group, base: Group, column: str) -> tuple[Interval, int]:
    """The difference at the end, over seeds, and the step up to which all pairs have come."""
    curves = [curve for _, curve in differences(group, base, column)]
    upto = common_step([int(curve.index[-1]) for curve in curves])
    curves = [curve.loc[:upto] for curve in curves if curve.index[-1] >= upto]
    return interval([final(curve) if column == TRAIN else float(curve.iloc[-1]) for curve in curves]), upto


def common_step(last: list[int]) -> int:
    """Where unfinished runs are compared: the furthest step that two of them have come to; those behind it are left out."""
    return sorted(last, reverse=True)[min(1, len(last) - 1)] if last else 0


def verdict(found: Interval, what: str = "helps", harm: str = "harms") -> str:
    """The declared rule in words, of a difference of losses."""
    if found.n < 2:
        return "one seed: no claim" if found.n else "nothing to compare"
    if not found.excludes_zero:
        return "undecided: the interval holds zero"
    return what if found.mean < 0 else harm
