"""The Jacobian's norm against the generalisation gap over many networks: rank correlations.

    python -m analysis jacobian_gap configs/sweeps/small_jacobian_gap.json --out runs/jacobian_gap

P2 (arXiv 1810.12281) finds that the norm of the input Jacobian does. The gap is test minus training error at the end of a run, and
the same of cross-entropy, which one confident mistake can make large. Training is over eval.train_images images with the labels
that were trained on, wrong ones too. Spearman's ρ is taken over the cells (all that differs but seeds) of each seed by itself; its
mean has the t interval over seeds, with bounds cut at ±1. It says how these networks lie, and not why: training for longer moves
both.
"""

from __future__ import annotations

import itertools
import math

import pandas as pd

from analysis.command import Options, Result
from analysis.endpoint import Endpoint
from analysis.figures import SEQUENCE, Figure, Line, Panel
from analysis.grouped import grouped, trunks_of
from analysis.mechanisms import FISHER, JACOBIAN, NEWTON
from analysis.optimisers import ERROR
from analysis.pairing import Group
from analysis.runs import Run
from analysis.statistics import LEAST_SEEDS, Interval, rank_correlation, seed_count
from configs.errors import InputError

GAPS = {"error": (ERROR, "train_eval/error"), "cross-entropy (nats)": ("val/loss", "train_eval/loss")}
MEASURES = {
    JACOBIAN: "input Jacobian ‖∂f/∂x‖",
    "measure/jacobian_norm": "parameter Jacobian ‖∂f/∂θ‖",
    NEWTON: "‖θ‖²_G",
    FISHER: "θᵀFθ",
    "weights/norm": "‖θ‖",
}
LEAST_CELLS = 4  # of three in a row, one order of six is monotone by chance


def analyse(runs: list[Run], options: Options) -> Result:
    """InputError where no run has both ends of a gap and one of MEASURES beside ‖θ‖."""
    begun = grouped(trunks_of(runs), options)
    # every network is a point: what it was trained with does not matter here, only where it ended
    ends = {name: _at_end(begun.groups, name) for pair in (*GAPS.values(), MEASURES) for name in pair}
    gaps = {words: ends[test] - ends[training] for words, (test, training) in GAPS.items()}
    bare = all(ends[name].dropna().empty for name in MEASURES if name.startswith("measure/"))
    if bare or all(gap.dropna().empty for gap in gaps.values()):
        raise InputError(
            "no run that ended has recorded a gap and a Jacobian; set eval.train_images, measures.every and "
            "measures.input_jacobian (configs/sweeps/small_jacobian_gap.json)"
        )
    rows, panels, findings = [], [], []
    for gap, measure in itertools.product(gaps, MEASURES):
        points = pd.DataFrame({"x": ends[measure], "gap": gaps[gap]}).dropna()
        # a seed that lacks a cell would be a mean over other networks
        table = pd.DataFrame(points.unstack("seed")).dropna()
        if len(table) < LEAST_CELLS:
            continue
        rho, words = _correlation(table), MEASURES[measure]
        text = f"{rho.mean:+.2f}" + (f" [{rho.low:+.2f}, {rho.high:+.2f}]" if math.isfinite(rho.low) else "")
        counts = {"cells": len(table), "seeds": rho.n, "networks": len(table) * rho.n}
        rows.append({"gap of": gap, "with": words, "ρ": text, **counts, "verdict": _verdict(rho)})
        # the finding names how many networks it is of: few make a large ρ by chance
        over = f"{counts['cells']} cells, {counts['networks']} networks"
        findings.append(f"{words} and the gap of {gap} over {over}: ρ = {text}, {_verdict(rho)}.")
        x, y = (table[part].to_numpy().ravel() for part in ("x", "gap"))
        # one colour: the question is whether the cloud rises, not which cell is where
        dots = Line(x, y, "a network", SEQUENCE[0], points=True)
        panels.append(Panel(words, f"test − training {gap}", [dots], xlog=True))
    caption = "Generalisation gap at the end against measures of the same weights, a point a network."
    figure = Figure("jacobian_gap", caption, panels)
    tables = {"Rank correlations": pd.DataFrame(rows)}
    return Result("jacobian_gap", "Jacobian and generalisation gap", findings, [figure], tables, begun.notes)


def _at_end(groups: list[Group], column: str) -> pd.Series:
    """The measurement at the end of every run that ended, by (cell, seed)."""
    endpoint = Endpoint(column, column, "")
    # a run that diverged or was stopped has no end, and is no network here
    values = {(g.name, seed): value for g in groups for seed, value in endpoint.seed_losses(g).items()}
    cells, seeds = zip(*values, strict=True) if values else ((), ())
    index = pd.MultiIndex.from_arrays([cells, seeds], names=["cell", "seed"])
    return pd.Series(list(values.values()), index=index, dtype=float)


def _correlation(table: pd.DataFrame) -> Interval:
    """Over cells, of each seed by itself: seeds are what an interval may be taken over, and cells are not."""
    return rank_correlation((table["x"][seed], table["gap"][seed]) for seed in table["x"])


def _verdict(rho: Interval) -> str:
    """By the declared rule: seeds enough, and an interval without zero."""
    if rho.n < LEAST_SEEDS:
        return f"no claim: {seed_count(rho.n)}"
    if not rho.excludes_zero:
        return "undecided: the interval holds zero"
    return "they rise together" if rho.mean > 0 else "one rises as the other falls"
