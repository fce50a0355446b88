"""How analyses of runs begin: which runs are compared, in which groups, how each is drawn; and the lines that all of them draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from analysis.command import Options
from analysis.compare import one_a_seed, reached, sound, twins, unlike_kernels
from analysis.figures import Line, Style, line, styles
from analysis.pairing import Group, group_runs
from analysis.runs import Run
from analysis.statistics import mean_and_band

Read = Callable[[Run], pd.Series]


@dataclass(frozen=True)
class Grouped:
    """`looks`: of each group, by its name. `notes`: what a group mixes, and what differs beside what is compared."""

    groups: list[Group]
    looks: dict[str, Style]
    notes: list[str]


def trunks_of(runs: list[Run]) -> list[Run]:
    """The runs that are no branches; the branches themselves where nothing else is given."""
    return [run for run in runs if run.origin is None] or runs


def grouped(
    runs: list[Run], options: Options, pairs: Callable[[list[Group]], Iterable[tuple[Run, Run]]] = twins
) -> Grouped:
    """`pairs`: the runs that the analysis sets against one another; by default each and its twin of the smallest λ."""
    # each pair once: twins may be set against each other for two reasons
    groups, notes = group_runs(runs, options.by)
    return Grouped(groups, styles(groups), notes + unlike_kernels(dict.fromkeys(pairs(groups))))


def mean_line(group: Group, look: Style, options: Options, read: Read, name: str = "") -> list[Line]:
    """The mean over the seeds of a group's sound runs; none where nothing was recorded."""
    # diverged runs are drawn by themselves
    curves = reached(one_a_seed([(run, read(run)) for run in sound(group)]))
    placed = [options.placed(run, curve) for run, curve in curves]
    return [line(mean_and_band(placed)["mean"], name or group.name, look)] if placed else []


def diverged_lines(group: Group, look: Style, options: Options, read: Read) -> list[Line]:
    """Each diverged run by itself: a mean over it and others would say nothing."""
    # by the same rule as the means leave them out
    kept = sound(group)
    curves = [(run, read(run)) for run in group.runs if run not in kept]
    return [
        line(options.placed(run, curve), f"{group.name}, seed {run.seeds}: diverged", look, "")
        for run, curve in curves
        if len(curve)
    ]


def probed(column: str) -> Read:
    """Reads one column of a run's probes, without gaps; empty where the run has none."""

    def read(run: Run) -> pd.Series:
        return run.probes[column].dropna() if column in run.probes else pd.Series(dtype=float)

    return read
