"""P1's claims of the over-training regime, on images, by the rules declared for the small sweeps.

    python -m analysis declared_images 'docs/study/records/small_*'

What is claimed and how it is judged was written before the runs (docs/study/images.md). Runs are told by the folder of their sweep,
and every cell that was declared is asked for: one that has not run leaves its comparison without a claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.command import Options, Result
from analysis.image_cells import (
    ERROR,
    FITTED,
    LEARNED,
    TRAIN_ERROR,
    TRAIN_LOSS,
    Cell,
    Cells,
    at_end,
    cells_of,
    difference,
    matrix,
    mean,
    of_errors,
    over_seeds,
    u_shape,
)
from analysis.parts import Declared, Part
from analysis.products import ranks
from analysis.runs import Run
from analysis.statistics import Interval, interval, rank_correlation
from analysis.verdict import Comparison
from configs.errors import InputError

ERROR_OF_INTEREST = 0.005  # of an error: half a percentage point, what P1's own figures can be read to
STARTS = tuple(range(310, 3101, 310))  # of the flows: every tenth epoch
LATE = STARTS[4:]  # of a run's later half
GRID_AVERAGE, FLOW_AVERAGE = "_ema_0.999", "_ema_0.99"
AVERAGED, TUNED = "the average", "fine-tuning"


def _below(one: Interval) -> Comparison:
    """A difference of errors that is claimed below zero."""
    return Comparison(((one, -1),), of_interest=ERROR_OF_INTEREST)


def analyse(runs: list[Run], options: Options) -> Result:
    given = {claim.sweep: cells for claim in CLAIMS if (cells := cells_of(claim.sweep, claim.seeds, runs)).runs}
    if not given:
        raise InputError(
            f"none of these {len(runs)} runs lies in the folder of a sweep that a claim was declared for: "
            f"{', '.join(claim.sweep for claim in CLAIMS)}"
        )
    table = pd.DataFrame([row for one in CLAIMS if one.sweep in given for row in one.rows(given[one.sweep])])
    told = table.drop_duplicates("sweep")
    findings = [f"{row['claim']} ({row['sweep']}, {row['runs']} runs): {row['verdict']}." for _, row in told.iterrows()]
    notes = [f"{name}: {text}" for name, cells in given.items() for text in (*cells.notes, *_notes(cells))]
    return Result("declared_images", "P1's claims on images", findings, [], {"Claims": table}, notes)


def _notes(cells: Cells) -> list[str]:
    """How many runs the loop calls diverged, and which cells have not learned."""
    every = [run for runs in cells.runs.values() for run in runs] + list(cells.branches.values())
    diverged = sum(run.state == "diverged" for run in every)
    dull = [_named(cell) for cell in cells.runs if cells.is_dull(cell)]
    notes = [f"{diverged} runs end as diverged, and count where they came to their last update"] if diverged else []
    return notes + ([f"have not learned (training error of {LEARNED:g} or more): {'; '.join(dull)}"] if dull else [])


def corners(cells: Cells, declared: tuple[Cell, ...]) -> list[Part]:
    """A large η with decay ends lowest of the four corners, after η has fallen."""
    # of the large η the cell with decay: tuples are in the order of η, then λ
    best = max(declared)
    parts = []
    for other in (cell for cell in declared if cell != best):
        further = difference(cells.ends(other, TRAIN_ERROR), cells.ends(best, TRAIN_ERROR))
        # a small η that has not had the updates to fit is no rival
        rival = other[0] == best[0]
        untrained = not rival and mean(further) > FITTED
        why = f"its training error lies {mean(further):.2f} above: it was not trained as far" if untrained else ""
        parts.append(Part(f"below {_named(other)}", {"test error": _below(cells.minus(best, other))}, why, key=rival))
    return parts


def _named(cell: Cell) -> str:
    return f"η = {cell[0]:g}, λ = {cell[1]:g}"


def sphere(cells: Cells, declared: tuple[Cell, ...]) -> list[Part]:
    """Fine-tuned test error over η is a U, and the training loss that the first phase holds rises with η."""
    # a trunk's own end is what the first phase held, its branch's what it had learned
    order = sorted(declared)
    tuned = [cells.tuned(cell) for cell in order]
    fits = [mean(cells.tuned(cell, TRAIN_ERROR)) for cell in order]
    lowest = int(np.argmin([mean(one) for one in tuned]))
    untrained = fits[0] > fits[lowest] + FITTED
    why = f"at the smallest η the training error is {fits[0]:.2f}, it was not trained as far" if untrained else ""
    held = matrix([cells.ends(cell, TRAIN_LOSS) for cell in order])
    rho = rank_correlation((np.arange(len(order)), row) for row in held)
    return [
        Part("the fine-tuned test error is a U over η", {"ends minus lowest": _u(tuned)}, why, key=True),
        Part(
            "the training loss of the first phase rises with η",
            {"Spearman's ρ": Comparison(((rho, 1),), of_interest=0)},
        ),
    ]


def _u(columns: Sequence[dict[str, float]]) -> Comparison:
    ends = u_shape(matrix(columns))
    return Comparison(tuple((end, 1) for end in ends), of_interest=ERROR_OF_INTEREST)


def flows(cells: Cells, declared: tuple[Cell, ...]) -> list[Part]:
    """What decay gains at one η is there in the average and after fine-tuning, and what hides it in the iterate is noise: over the
    later half of the runs."""
    # of the large η the cells with decay and without: tuples are in the order of η, then λ
    best = max(declared)
    none = (best[0], 0.0, best[2])
    gains: dict[str, list[dict[str, float]]] = {AVERAGED: [], TUNED: []}
    gaps: dict[str, list[dict[str, float]]] = {AVERAGED: [], TUNED: []}
    for step in LATE:
        averaged = _reader(ERROR + FLOW_AVERAGE, step)
        gains[AVERAGED].append(difference(cells.seeds(best, averaged), cells.seeds(none, averaged)))
        gains[TUNED].append(difference(cells.tuned(best, step=step), cells.tuned(none, step=step)))
        for cell in (cell for cell in declared if cell[1]):
            iterate = cells.seeds(cell, _reader(ERROR, step))
            gaps[AVERAGED].append(difference(cells.seeds(cell, averaged), iterate))
            gaps[TUNED].append(difference(cells.tuned(cell, step=step), iterate))
    # of a seed the mean over η and checkpoints: the noise of all of them is what is asked about
    parts = [(f"decay gains at the large η, seen by {way}", gain, True) for way, gain in gains.items()]
    parts += [(f"{way} lies below the iterate", gap, False) for way, gap in gaps.items()]
    return [
        Part(said, {"test error": _below(of_errors(over_seeds(found).values()))}, key=key) for said, found, key in parts
    ]


def _reader(column: str, step: int) -> Callable[[Run], float]:
    """Reads the column at an update of a run that came to its end; NaN where it has none."""
    return lambda run: float(run.column(column).get(step, np.nan)) if np.isfinite(at_end(run, column)) else np.nan


def grid(cells: Cells, declared: tuple[Cell, ...]) -> list[Part]:
    """Over η × λ: what rises and falls along both, where the average's test error is lowest, and whether ηλ alone decides."""
    # a cell that has not run stays, and leaves what needs it without a claim
    decayed = [cell for cell in declared if cell[1]]
    learned = [cell for cell in decayed if not cells.is_dull(cell)]
    readings = {
        "the training loss rises with η and with λ": (TRAIN_LOSS, 1),
        "the noise scale rises with η and with λ": ("measure/noise_scale", 1),
        "the Jacobian norm of the average falls with η and with λ": ("measure/jacobian_norm" + GRID_AVERAGE, -1),
    }
    parts = [
        Part(words, {"Spearman's ρ with η at one λ; with λ at one η": _along(cells, learned, column, side)})
        for words, (column, side) in readings.items()
    ]
    # cells of one ηλ are one place, their mean
    lines = _lines(learned)
    places = [over_seeds([cells.ends(cell, ERROR + GRID_AVERAGE) for cell in line]) for line in lines]
    parts.append(Part("the average's test error is lowest inside", {"ends minus lowest": _u(places)}))
    # two halves of the declared lines: what η adds at small ηλ must not make up for what it takes at large
    whole = [[cell for cell in line if cell in learned] for line in _lines(decayed) if len(line) > 1]
    halves = tuple(
        (_eta_at_one_product(cells, half), 0) for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :])
    )
    words = "largest minus smallest η at one ηλ: the smaller half of the ηλ; the larger"
    parts.append(Part("ηλ alone decides the average's test error", {words: Comparison(halves, ERROR_OF_INTEREST)}))
    return parts


def _eta_at_one_product(cells: Cells, lines: Sequence[Sequence[Cell]]) -> Interval:
    """The average's test error at the largest η minus that at the smallest, mean over lines of two cells or more."""
    error = ERROR + GRID_AVERAGE
    gaps = [difference(cells.ends(line[-1], error), cells.ends(line[0], error)) for line in lines if len(line) > 1]
    return of_errors(over_seeds(gaps).values())


def _lines(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of one ηλ each, in the order of ηλ, those of a line in the order of η."""
    places = ranks(np.array([cell[0] * cell[1] for cell in cells])) if cells else np.array([], dtype=int)
    return [[cell for cell, at in zip(cells, places, strict=True) if at == place] for place in sorted(set(places))]


def _along(cells: Cells, learned: Sequence[Cell], column: str, side: int) -> Comparison:
    """Spearman's ρ along η, mean over λ, and along λ, mean over η: that a reading goes with ηλ could be either's alone."""
    found = []
    for fixed, moved in ((1, 0), (0, 1)):
        rows = [
            [cell for cell in learned if cell[fixed] == value] for value in sorted({cell[fixed] for cell in learned})
        ]
        rhos = []
        # of two values a rank correlation is a coin
        for row in (row for row in rows if len(row) > 2):
            ends = [cells.ends(cell, column) for cell in sorted(row, key=lambda cell: cell[moved])]
            rhos.append({seed: _rho([one[seed] for one in ends]) for seed in over_seeds(ends)})
        found.append((interval(over_seeds(rhos).values()), side))
    return Comparison(tuple(found), of_interest=0)


def _rho(values: Sequence[float]) -> float:
    """Spearman's ρ of values in order with their places."""
    return rank_correlation([(np.arange(len(values)), np.array(values))]).mean


def passes(cells: Cells, declared: tuple[Cell, ...]) -> list[Part]:
    """At one number of updates, decay lowers the test error both in many passes over few images and in one over many."""
    # the size between says how the gain moves, and decides nothing
    sizes = sorted({cell[2] for cell in declared})
    return [
        Part(
            f"decay helps with {size:,} images",
            {
                f"λ = {lam:g} minus 0": _below(cells.minus((rate, lam, at), (rate, 0.0, at)))
                for rate, lam, at in declared
                if at == size and lam
            },
        )
        for size in (sizes[0], sizes[-1])
    ]


MLP_CORNERS = tuple((rate, lam, 1000) for rate in (0.4, 0.02) for lam in (0.0, 0.01))
RESNET_CORNERS = tuple((rate, lam, 0) for rate in (0.08, 0.001) for lam in (0.0, 0.0125))
SPHERE = tuple((rate, 0.0, 1000) for rate in (0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05))
FLOWS = ((0.4, 0.0, 1000), (0.1, 0.01, 1000), (0.2, 0.01, 1000), (0.4, 0.01, 1000))
GRID = tuple((rate, lam, 1000) for rate in (0.05, 0.1, 0.2, 0.4) for lam in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08))
PASSES = tuple((0.05, lam, images) for images in (250, 1000, 4000) for lam in (0.0, 0.01, 0.03, 0.1))
LOWEST = "a large η with decay has the lowest test error"
CLAIMS = (
    Declared(LOWEST, "small_overtraining_mlp", MLP_CORNERS, 5, corners),
    Declared(LOWEST, "small_overtraining", RESNET_CORNERS, 3, corners),
    Declared("on the sphere the test error is a U over η", "small_sphere", SPHERE, 5, sphere, (3100,)),
    Declared("average and fine-tuning show what the iterate's noise hides", "small_flows", FLOWS, 3, flows, STARTS),
    Declared("ηλ decides, and the best lies inside", "small_eta_lambda", GRID, 5, grid),
    Declared("decay helps in many passes and in one", "small_onepass_images", PASSES, 5, passes),
)
