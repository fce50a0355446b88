"""The small procedure that tunes every rule alike: the best of an arm's cells, whether it lies inside, and what to run next.

From its start an arm runs all cells of one change: η a factor of 2 up and down, λ a factor of 3. Where one of them is the lowest,
the changes of that one are next, and so on, until the lowest has all of its own. Then η a factor of √2 up and down, and the same
again. An arm that has used up its cells stops where it is, and is said not to be inside (docs/rules-study.md declares it).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.arms import KNOBS, PILOT, Arm, arms_of, by_setting, is_pilot, values_of
from analysis.compare import divergence
from analysis.endpoint import Endpoint, lowest
from analysis.pairing import Group, group_runs
from analysis.runs import ALGORITHM, RULE, Run
from configs.schema import Optim
from record.run import FINISHED

COARSE, FINE, DECAY = 2.0, math.sqrt(2), 3.0  # factors on η, on η at last, and on λ
CELLS = 12  # of an arm, each on every seed of the pilot: the budget, one for all
INSIDE = "inside"
ROUNDED = 1.02  # values are written with three digits
SHARES = {"selective_projection": 1.0}  # the largest λ that a rule has a meaning for


@dataclass(frozen=True)
class Tuned:
    """An arm's lowest cell. `coming`: the cells to run next, each a value of the sweep's axis `optim`. `open_ended`: why it does
    not lie inside; empty where it does."""

    arm: Arm
    best: Group | None
    loss: float
    seeds: int
    coming: list[dict[str, Any]]
    open_ended: str

    @property
    def is_inside(self) -> bool:
        return self.best is not None and not self.open_ended

    @property
    def words(self) -> str:
        return INSIDE if self.is_inside else self.open_ended

    def row(self) -> dict[str, object]:
        rate, decay = values_of(self.best) if self.best else (math.nan, math.nan)
        return {
            "rule": self.arm.name,
            "best η": rate,
            "best λ": decay if self.arm.has_decay else "–",
            "loss": round(self.loss, 4),
            "seeds": self.seeds,
            "cells": f"{len(self.arm.cells)} of {CELLS}",
            "its neighbours": self.words,
        }


def rule_by_rule(runs: list[Run], endpoint: Endpoint, first: int = PILOT) -> tuple[list[str], dict[str, pd.DataFrame]]:
    """(a sentence, tables): where the pilot, seeds from `first` on, stands with each rule, and its next cells. Nothing without
    a pilot's runs."""
    rows, coming = [], []
    # the seeds of claims choose nothing
    groups = group_runs([run for run in runs if is_pilot(run, first)])[0]
    for rest, members in by_setting(groups).items():
        for one in (tuned(arm, endpoint) for arm in arms_of(members)):
            setting: dict[str, object] = {"runs": rest} if rest else {}
            rows.append(setting | one.row())
            coming += [setting | {"rule": one.arm.name, "cell": json.dumps(section)} for section in one.coming]
    if not rows:
        return [], {}
    inside = sum(row["its neighbours"] == INSIDE for row in rows)
    next_ones = f"{len(coming)} cells are next" if coming else "no cell is next"
    sentence = f"The pilot has the best of {inside} of {len(rows)} rules and algorithms inside its cells; {next_ones}."
    return [sentence], {"Each rule at its best": pd.DataFrame(rows), "Cells to run next": pd.DataFrame(coming)}


def tuned(arm: Arm, endpoint: Endpoint) -> Tuned:
    # a cell that lacks a seed of the others is not there yet
    seeds_of = {id(cell): len({run.seeds for run in cell.runs}) for cell in arm.cells}
    whole = [cell for cell in arm.cells if seeds_of[id(cell)] == max(seeds_of.values())]
    finished = [cell for cell in whole if all(is_finished(run) for run in cell.runs)]
    waiting = len(arm.cells) - len(finished)
    chosen = lowest(finished, endpoint)
    if chosen is None:
        why = f"{waiting} of its cells have not finished" if waiting else "no cell has a loss at its end"
        return Tuned(arm, None, math.nan, 0, [], why)
    best, seeds = chosen
    loss = float(np.mean([endpoint.seed_losses(best)[s] for s in seeds]))
    if waiting:
        return Tuned(arm, best, loss, len(seeds), [], f"{waiting} of its cells have not finished")
    changes = missing(best, finished, arm)
    coming = changes[: max(0, CELLS - len(arm.cells))]
    open_ended = ""
    if changes:
        words = ", ".join(what for what, _ in changes)
        open_ended = (
            f"to run: {words}" if coming else f"not inside ({words}), and the budget of {CELLS} cells is used up"
        )
    return Tuned(arm, best, loss, len(seeds), [_section(best, change) for _, change in coming], open_ended)


def is_finished(run: Run) -> bool:
    return run.state in FINISHED or divergence(run) is not None


def missing(best: Group, cells: list[Group], arm: Arm) -> list[tuple[str, dict[str, float]]]:
    """(in words, field → value) of every cell of one change from the best that is not among `cells`."""
    coarse = _steps(best, cells, arm, COARSE)
    # the finer step is for a cell that has all others
    return coarse or _steps(best, cells, arm, FINE)


def _steps(best: Group, cells: list[Group], arm: Arm, step: float) -> list[tuple[str, dict[str, float]]]:
    rate, decay = values_of(best)
    alike = [values_of(cell) for cell in cells if _others(cell) == _others(best)]
    rates = [one for one, other in alike if other == decay]
    decays = [other for one, other in alike if one == rate]
    wanted = [("η up", "lr", rate, rate * step, rates), ("η down", "lr", rate, rate / step, rates)]
    # what has no λ is searched in η alone, and λ = 0 is an arm of its own
    if arm.has_decay and decay > 0:
        most = SHARES.get(arm.rule, math.inf)
        up = most if decay * DECAY * ROUNDED >= most else decay * DECAY
        wanted += [("λ up", "weight_decay", decay, up, decays)] if decay * ROUNDED < most else []
        wanted += [("λ down", "weight_decay", decay, decay / DECAY, decays)]
    return [(what, {field: _written(to)}) for what, field, at, to, there in wanted if not _between(at, to, there)]


def _between(at: float, to: float, values: list[float]) -> bool:
    """Whether a value lies beyond `at`, and no further than `to`."""
    if to > at:
        return any(at * ROUNDED < value <= to * ROUNDED for value in values)
    return any(to / ROUNDED <= value < at / ROUNDED for value in values)


def _written(value: float) -> float:
    return float(f"{value:.3g}")


def _others(cell: Group) -> str:
    return json.dumps([cell.runs[0].fields.get(name) for name in KNOBS])


def _section(best: Group, change: dict[str, float]) -> dict[str, Any]:
    """The cell as a value of the sweep's axis `optim`: what is as by default is left out. One with a field of another section is
    a row of `cells`, by whole names."""
    fields = best.runs[0].fields
    section: dict[str, Any] = {}
    for name in sorted((ALGORITHM, RULE, *(knob for knob in KNOBS if knob.startswith("optim.")))):
        field = name.removeprefix("optim.")
        # as JSON: a list of a run's record is a tuple of the schema
        if name in fields and json.dumps(fields[name]) != json.dumps(Optim.model_fields[field].default):
            section[field] = fields[name]
    rate, decay = values_of(best)
    section |= {"lr": rate, "weight_decay": decay} | change
    elsewhere = {name: fields[name] for name in KNOBS if not name.startswith("optim.") and fields.get(name)}
    return {f"optim.{field}": value for field, value in section.items()} | elsewhere if elsewhere else section
