"""Runs on images: error, loss and norm over epochs; what goes with η·λ, or with η; the best test error.

    python -m analysis overtraining 'runs/small_eta_lambda/*/' --out runs/overtraining

The test split is the validation split. An average of the weights (averages.ema) stands beside the iterate it is of: a large η
hides in the iterate's noise what the average has gained. Branches are fine-tuned runs, and stand at the epoch where they began.
Where the learning rate has phases, what P1 says of a large one is asked before its first drop too. On the
sphere no run has decay, and all is asked of η alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.branches import families
from analysis.command import Options, Result
from analysis.compare import is_ended
from analysis.endpoint import Endpoint, FineTuned, LargePhase
from analysis.figures import Figure, Line, Panel, Style
from analysis.grouped import Read, diverged_lines, grouped, mean_line, trunks_of
from analysis.landscape import heat_maps
from analysis.optimum_figure import optimum_figure
from analysis.pairing import Group, by_rest, by_seed
from analysis.products import Relation, optimum, relation
from analysis.runs import LAMBDA, RATE, Run
from configs.errors import InputError


@dataclass(frozen=True)
class Quantity:
    """`column`: of the iterate; an average's has its name behind it. `expected`: +1 where P1 has it rise with ηλ, −1 fall, 0 else.
    `mapped`: has a heat map."""

    column: str
    words: str
    unit: str
    expected: int = 0
    mapped: bool = False


TEST_ERROR = Quantity("val/error", "test error", "", mapped=True)
QUANTITIES = (
    TEST_ERROR,
    Quantity("val/loss", "test cross-entropy", "nats"),
    Quantity("train_eval/error", "training error", ""),
    Quantity("train_eval/loss", "training cross-entropy", "nats", expected=1, mapped=True),
    Quantity("train_eval/objective", "objective CE + ½λ‖w‖²", "nats"),
    Quantity("weights/norm", "norm ‖w‖", ""),
    # where a run was measured (measures.every); names as in weights/measures.py
    Quantity("measure/jacobian_norm", "Jacobian norm", "", expected=-1, mapped=True),
    Quantity("measure/noise_scale", "noise scale σ²", "", expected=1, mapped=True),
    Quantity("measure/hessian_trace", "Hessian trace", ""),
)
TUNED = "_fine-tuned"  # behind a column's name: of a run's branch
OF_BRANCHES = ("val/error", "val/loss", "train_eval/loss", "weights/norm", "measure/hessian_trace")
NOISE_RATIO = "measure/noise_ratio"  # E‖g‖² over the loss, where a run was measured: Proposition 2's c
EPOCH = "steps_per_epoch"  # of a run's plan


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    if not any(TEST_ERROR.column in run.metrics for run in trunks):
        raise InputError(f"no run has recorded {TEST_ERROR.column}; give runs on images that were evaluated")
    begun = grouped(trunks, options)
    groups, looks, notes = begun.groups, begun.looks, begun.notes
    kinds = averages_of(trunks)
    xlabel, placed = _across(trunks, options)
    panels = [
        Panel(xlabel, _label(quantity), _curves(groups, looks, options, quantity.column + kind, placed), _title(kind))
        for quantity in QUANTITIES
        for kind in kinds
        if any(quantity.column + kind in run.metrics for run in trunks)
    ]
    branches, more = families(runs)[1:] if any(run.origin for run in runs) else ({}, [])
    panels += [
        Panel(xlabel, _label(quantity), tuned, "fine-tuned, where its branch began")
        for quantity in QUANTITIES
        if quantity.column in OF_BRANCHES and (tuned := _fine_tuned(quantity.column, branches, groups, looks, placed))
    ]
    notes += more
    panels = [panel for panel in panels if panel.lines]
    caption = "Means over seeds at every evaluation. Of an average the statistics of batch normalisation are its own."
    figures = [Figure("overtraining", caption, panels)]
    ends = _endpoints(trunks, kinds, branches)
    # after the drop all have one small η, and what a large one held is gone
    in_phases = all(run.fields.get("schedule.kind") == "multistep" for run in trunks)
    before = [
        (quantity, LargePhase(end.column, f"{_words(quantity, kind)} before the drop", "", quantity.unit))
        for (quantity, kind), end in ends.items()
        if in_phases and quantity.expected
    ]
    for (quantity, kind), endpoint in ends.items():
        if quantity.mapped:
            name = "heat_" + (quantity.column + kind).replace("/", "_")
            figures += heat_maps(groups, endpoint, name, quantity.words)
    findings, rows = [], []
    asked = [*((quantity, end) for (quantity, _), end in ends.items()), *before]
    tested = [end for quantity, end in asked if quantity is TEST_ERROR]
    settings = by_rest(groups, (LAMBDA, RATE))
    for rest, members in settings.items():
        start = f"{rest}: " if rest else ""
        # relations within one setting of all other fields
        related = [found for q, end in asked if (found := relation(members, end, q.expected)) is not None]
        rows += [_row(rest, one) for one in related]
        findings += [start + _told(one) for one in related if one.expected]
        findings += [start + text for end in tested if (text := _optimum(members, end))]
    figures += optimum_figure(settings, tested, [end for quantity, end in asked if quantity.expected])
    tables = {"At the end": _ends(groups, ends), "Rank correlation with ηλ": pd.DataFrame(rows)}
    if ratios := [row for group in groups if (row := _noise_ratio(group))]:
        tables["Noise of the gradient over the loss (Proposition 2)"] = pd.DataFrame(ratios)
    if not rows:
        notes.append(
            "no relation with ηλ: that needs ended runs at four products of η and λ above 0 or more, or, where no run has decay, "
            "at four η"
        )
    return Result("overtraining", "The over-training regime", findings, figures, tables, notes)


def _endpoints(
    trunks: list[Run], kinds: list[str], branches: dict[tuple[str, int], Run]
) -> dict[tuple[Quantity, str], Endpoint]:
    """One for each measurement, of the iterate and of each average; and the test error where the last branch of a run ended."""
    ends: dict[tuple[Quantity, str], Endpoint] = {
        (quantity, kind): Endpoint(quantity.column + kind, f"{_words(quantity, kind)} at the end", "", quantity.unit)
        for quantity in QUANTITIES
        for kind in kinds
        if any(len(run.column(quantity.column + kind)) for run in trunks)
    }
    if branches:
        # P1's U on the sphere is of these: no noise of a large η is left in them
        words = f"{TEST_ERROR.words}, fine-tuned from the last branch"
        ends[TEST_ERROR, TUNED] = FineTuned(TEST_ERROR.column, words, "", TEST_ERROR.unit, branches)
    return ends


def averages_of(runs: list[Run]) -> list[str]:
    """What stands behind a column's name: nothing for the iterate, then each average that some run has evaluated."""
    before = f"{TEST_ERROR.column}_"
    columns = {str(column) for run in runs for column in run.metrics}
    return ["", *sorted("_" + column.removeprefix(before) for column in columns if column.startswith(before))]


def _title(kind: str) -> str:
    return kind.removeprefix("_").replace("ema_", "average ") if kind else "iterate"


def _words(quantity: Quantity, kind: str) -> str:
    return f"{quantity.words} of the {_title(kind)}"


def _label(quantity: Quantity) -> str:
    return f"{quantity.words} ({quantity.unit})" if quantity.unit else quantity.words


Placed = Callable[[Run, pd.Series], pd.Series]


def _across(runs: list[Run], options: Options) -> tuple[str, Placed]:
    """What the x axis shows: epochs where every run's plan knows them, else what the options say."""
    # all or none: one axis cannot count both
    epochs = [run.plan.get(EPOCH) for run in runs]
    if not all(isinstance(steps, int | float) and steps > 0 for steps in epochs):
        return options.xlabel, options.placed
    return "epoch", lambda run, curve: pd.Series(curve.to_numpy(), index=curve.index / run.plan[EPOCH])


def _curves(groups: list[Group], looks: dict[str, Style], options: Options, column: str, placed: Placed) -> list[Line]:
    read: Read = lambda run: placed(run, run.column(column))  # noqa: E731
    return [
        line
        for group in groups
        for draw in (mean_line, diverged_lines)
        # placed already: steps stay what the reader gives
        for line in draw(group, looks[group.name], Options(), read)
    ]


def _fine_tuned(
    column: str, branches: dict[tuple[str, int], Run], groups: list[Group], looks: dict[str, Style], placed: Placed
) -> list[Line]:
    """A point for each checkpoint that has a branch: the mean over seeds of what the branches have at their end."""
    lines = []
    for group in groups:
        # an unfinished branch has not annealed, and its error would be too high
        ends: dict[int, list[tuple[Run, float]]] = {}
        for run in group.runs:
            for (path, step), branch in branches.items():
                values = branch.column(column)
                if path == str(run.path) and is_ended(branch) and len(values):
                    ends.setdefault(step, []).append((run, float(values.iloc[-1])))
        if ends:
            means = {step: float(np.mean(list(by_seed(values).values()))) for step, values in sorted(ends.items())}
            curve = placed(group.runs[0], pd.Series(means))
            look = looks[group.name]
            x, y = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
            lines.append(Line(x, y, group.name, look.colour, look.dash, points=True, keys=look.keys))
    return lines


def _ends(groups: list[Group], ends: dict[tuple[Quantity, str], Endpoint]) -> pd.DataFrame:
    """A row a group: means over its seeds' ended runs."""
    rows = []
    for group in groups:
        row: dict[str, object] = {"run": group.name}
        for (quantity, kind), endpoint in ends.items():
            values = list(endpoint.seed_losses(group).values())
            # of the first measurement: others may lack a run that did not record them
            row.setdefault("seeds", len(values))
            row[f"{quantity.words}, {_title(kind)}"] = round(float(np.mean(values)), 4) if values else None
        rows.append(row)
    return pd.DataFrame(rows)


def _noise_ratio(group: Group) -> dict[str, object]:
    """Proposition 2 along a run, c₁·L ≤ E‖g‖² ≤ c₂·L: least and largest ratio of its measurements, means over seeds. Empty of runs
    that were not measured twice."""
    measured = [(run, run.column(NOISE_RATIO)) for run in group.runs if len(run.column(NOISE_RATIO)) > 1]
    if not measured:
        return {}
    least, largest, apart = (
        list(by_seed([(run, float(of(ratio))) for run, ratio in measured]).values())
        for of in (np.min, np.max, lambda ratio: np.max(ratio) / np.min(ratio))
    )
    means = {"c₁": least, "c₂": largest, "c₂/c₁": apart}
    return {"run": group.name, "seeds": len(least)} | {name: float(np.mean(found)) for name, found in means.items()}


def _row(rest: str, one: Relation) -> dict[str, object]:
    row: dict[str, object] = {
        "measurement": one.endpoint.words,
        "with": one.along,
        "ρ": one.text,
        "verdict": one.verdict,
    }
    return row | {"cells": one.cells, "seeds": one.rho.n} | ({"runs": rest} if rest else {})


def _told(one: Relation) -> str:
    return f"{one.endpoint.words} against {one.along} over {one.cells} cells: ρ = {one.text}, {one.verdict}."


def _optimum(members: list[Group], endpoint: Endpoint) -> str:
    """A sentence on where the test error is lowest along ηλ; empty for fewer than three products."""
    best = optimum(members, endpoint)
    if best is None:
        return ""
    sides = [f"{name} {side.text()}" for name, side in (("smallest", best.below), ("largest", best.above))]
    return (
        f"The lowest {endpoint.words} is {best.value:.4f} at {best.along} = {best.product:.3g}: {best.verdict} (the "
        f"{' and the '.join(sides)} above it)."
    )
