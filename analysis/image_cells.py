"""The runs of one sweep on images, cell by cell, and what each ended at.

A run counts if it came to its last update with finite values, even where its training loss has risen: that a large ηλ raises it is
one of the things that are asked. So a run that the loop calls diverged is counted, and told, and not left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.branches import families
from analysis.pairing import STEPS, by_seed
from analysis.runs import RATE, Run
from analysis.statistics import CONFIDENCE, Interval, interval
from record.run import FINISHED

Cell = tuple[float, float, int]  # η, λ, training images (0: all of them)
ERROR, TRAIN_ERROR, TRAIN_LOSS = "val/error", "train_eval/error", "train_eval/loss"
ROUNDING = math.sqrt(2 / 12) / 1000  # standard deviation of a difference of errors by rounding alone: 1,000 test images
LEARNED = 0.5  # of the training images: a network of a larger error has not learned, whatever its loss
FITTED = 0.05  # a run whose training error lies further above another's was not trained as far


@dataclass(frozen=True)
class Cells:
    """`runs`: by cell, those that are no branches. `branches`: (trunk's folder, step) → branch."""

    runs: dict[Cell, list[Run]]
    branches: dict[tuple[str, int], Run]
    notes: tuple[str, ...] = ()

    def ends(self, cell: Cell, column: str) -> dict[str, float]:
        """Seeds → the column at the end, of the runs that count."""
        return self.seeds(cell, lambda run: at_end(run, column))

    def tuned(self, cell: Cell, column: str = ERROR, step: int | None = None) -> dict[str, float]:
        """Seeds → the column at the end of the branch from `step`, by default the trunk's last update."""
        return self.seeds(cell, lambda run: self._tuned(run, column, run.last_step if step is None else step))

    def seeds(self, cell: Cell, read: Callable[[Run], float]) -> dict[str, float]:
        """Seeds → what is read of the cell's runs; without those of which it is not finite."""
        found = by_seed([(run, read(run)) for run in self.runs.get(cell, [])])
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def minus(self, cell: Cell, other: Cell, column: str = ERROR) -> Interval:
        """The difference of two cells' errors at the end, in pairs of seeds."""
        return of_errors(difference(self.ends(cell, column), self.ends(other, column)).values())

    def finished(self, cell: Cell, step: int | None = None) -> int:
        """Seeds of which the run has ended, or its branch from `step`, however it did."""
        trunks = self.runs.get(cell, [])
        asked = [(run, run if step is None else self.branches.get((str(run.path), step))) for run in trunks]
        return len({run.seeds for run, one in asked if one is not None and one.state in FINISHED})

    def is_dull(self, cell: Cell) -> bool:
        """Whether runs of it have ended, and its networks have not learned their training images: a network that says one class has
        not, nor one whose values were not finite. A cell that has not run is not said to be so."""
        return self.finished(cell) > 0 and not mean(self.ends(cell, TRAIN_ERROR)) < LEARNED

    def _tuned(self, run: Run, column: str, step: int) -> float:
        branch = self.branches.get((str(run.path), step))
        return at_end(branch, column) if branch is not None else math.nan


def cells_of(name: str, seeds: int, runs: list[Run]) -> Cells:
    """Those of the runs that lie in the sweep's folder, or in that of its archives, of the seeds 0 to `seeds` − 1."""
    own = [run for run in runs if run.file.parent.name == name and run.fields.get("seeds.init") in range(seeds)]
    # sweep by sweep: branches of two sweeps are never set against each other
    branched = any(run.origin for run in own)
    _, branches, notes = families(own) if branched else ([], {}, [])
    cells: dict[Cell, list[Run]] = {}
    for run in own:
        if run.origin is None:
            images = int(run.fields.get("data.train_images") or 0)
            cells.setdefault((float(run.fields[RATE]), run.decay, images), []).append(run)
    return Cells(cells, branches, tuple(notes))


def at_end(run: Run, column: str) -> float:
    """The column's value at the schedule's last update; NaN of a run that has not come to it."""
    values = run.column(column)
    came = run.state in FINISHED and len(values) > 0 and values.index[-1] == run.fields.get(STEPS)
    return float(values.iloc[-1]) if came else math.nan


def mean(values: dict[str, float]) -> float:
    """Over seeds; NaN of none."""
    return float(np.mean(list(values.values()))) if values else math.nan


def difference(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Seeds → the difference, of the seeds that both have."""
    return {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}


def over_seeds(several: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seeds → the mean of several readings, of the seeds that all of them have."""
    shared = [seed for seed in several[0] if all(seed in one for one in several)] if several else []
    return {seed: float(np.mean([one[seed] for one in several])) for seed in shared}


def matrix(columns: Sequence[dict[str, float]]) -> NDArray[np.floating]:
    """A row a seed that all have, a column a reading."""
    shared = [seed for seed in columns[0] if all(seed in one for one in columns)] if columns else []
    return np.array([[one[seed] for one in columns] for seed in shared]).reshape(len(shared), len(columns))


def of_errors(values: Iterable[float]) -> Interval:
    """The interval of differences of errors. Errors are thousandths, so that seeds may agree by rounding: the deviation is no
    smaller than rounding's."""
    found = interval(values)
    if not found.deviation < ROUNDING:
        return found
    # the interval is made anew from what it stands for
    wider = replace(found, deviation=ROUNDING)
    half = wider.half(CONFIDENCE)
    return replace(wider, low=wider.mean - half, high=wider.mean + half)


def u_shape(values: NDArray[np.floating]) -> tuple[Interval, Interval]:
    """Both ends minus the lowest, over rows of seeds and columns in order. Each seed's lowest is the column that the means of the
    other seeds choose, so that no seed has chosen what it is judged at."""
    below, above = [], []
    for i in range(len(values)) if len(values) > 1 else ():
        # the others' means, without seed i
        lowest = int(np.delete(values, i, axis=0).mean(axis=0).argmin())
        below.append(values[i, 0] - values[i, lowest])
        above.append(values[i, -1] - values[i, lowest])
    return of_errors(below), of_errors(above)
