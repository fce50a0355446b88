"""From a sweep file to its cells: one base configuration, axes over its fields, and stages that depend on earlier ones.

    {"name": "wd", "base": "../quickstart.json",
     "axes": {"optim.weight_decay": [0, 0.15], "seeds.*": [0, 1]},
     "stages": [{"name": "tiny", "branch_every": 1000, "set": {"optim.lr": 1e-4, "schedule.steps": 500}}]}

A cell is known by its configuration, never by its number: adding a value to an axis renames and renumbers nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import model_validator

from configs.cadence import saved_and_kept
from configs.echo import cut, shown
from configs.errors import InputError
from configs.load import (
    RUN_KEYS,
    SWEEP_KEYS,
    load_config,
    merge,
    nest,
    parse_override,
    read_json,
    validate_as,
)
from configs.schema import Section, setting
from configs.sweep_cell import Cell, Summary, make_cell

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"
CELLS = 10_000  # of a sweep: what one can still look through; ten axes of ten values would have 10^10


class Stage(Section):
    """Runs made from the runs of an earlier stage: branches of their checkpoints, or runs that refer to their folders."""

    name: str = setting(..., "names the stage and its runs", pattern=NAME)
    of: str | None = setting(None, "the stage whose runs these start from; null: the one before")
    where: dict[str, list[Any]] = setting({}, "only from runs whose fields have these values")
    branch_every: int | None = setting(None, "a branch from every checkpoint whose step is a multiple of n", ge=1)
    branch_at: tuple[int, ...] = setting((), "a branch from the checkpoint of each of these steps")
    set: dict[str, Any] = setting(
        {},
        "fields of these runs; in strings {run} stands for the earlier run's folder, {undecayed} for that of its twin of λ = 0",
    )
    axes: dict[str, list[Any]] = setting({}, "as of the sweep")
    cells: list[dict[str, Any]] = setting([], "as of the sweep")


class Sweep(Section):
    name: str = setting(..., "names the sweep's folder", pattern=NAME)
    base: str = setting(..., "configuration, relative to this file")
    set: dict[str, Any] = setting({}, "fields of every run")
    axes: dict[str, list[Any]] = setting(
        {}, "field → values, all combinations; 'a,b' → rows of values that go together; 'section.*' → all its fields"
    )
    cells: list[dict[str, Any]] = setting([], "further runs: field → value")
    stages: list[Stage] = setting([], "runs that depend on earlier runs")
    limit: int | None = setting(None, "tasks of the job array that run at once", ge=1)

    @model_validator(mode="after")
    def _stages_are_distinct(self) -> Sweep:
        names = ["main", *(stage.name for stage in self.stages)]
        if len(names) != len(set(names)):
            raise InputError(f"stages must have distinct names, and not 'main': {shown(names[1:])}")
        for index, stage in enumerate(self.stages):
            if (stage.of or "main") not in names[: index + 1]:
                raise InputError(
                    f"stage {stage.name!r} is of {shown(stage.of)}; earlier stages: {cut(', '.join(names[: index + 1]))}"
                )
        return self


Stages = dict[str, list[Cell]]


def load_sweep(path: str | Path) -> Sweep:
    """InputError that names the file and every problem."""
    given = read_json(Path(path))
    given.pop("$schema", None)
    if RUN_KEYS & set(given) and not SWEEP_KEYS & set(given):
        raise InputError(
            f"{cut(str(path))} is the configuration of one run, not a sweep; `python train.py --config {path}` trains it, and "
            "status.json in its run folder says how it is doing"
        )
    return validate_as(Sweep, given, str(path))


def expand(path: str | Path, runs: Path, summary: Summary, overrides: list[str] | None = None) -> tuple[Sweep, Stages]:
    """The cells of a sweep file by stage, in order; their folders lie in `runs`/<sweep>/.

    `summary(data.path)` gives what a plan needs to know of prepared data, or None. `overrides` are `section.key=value` for every
    run.
    Raises InputError that names the cell.
    """
    sweep = load_sweep(path)
    _, given = load_config(Path(path).parent / sweep.base)
    for field, value in sweep.set.items():
        given = merge(given, nest(field, value))
    for override in overrides or []:
        given = merge(given, parse_override(override))
    make = partial(make_cell, source=str(path), root=runs / sweep.name, summary=summary)
    _check_count(str(path), 1, sweep)
    stages = {"main": [make("main", _label(row), given, row) for row in _rows(sweep)]}
    previous = "main"
    for stage in sweep.stages:
        earlier = stages[stage.of or previous]
        parents = [cell for cell in earlier if _matches(cell, stage)]
        if not parents:
            raise InputError(
                f"{path}: stage {stage.name!r} finds no run of {stage.of or previous!r} with {shown(stage.where)}"
            )
        steps_of = [_branch_steps(stage, parent, path) for parent in parents]
        _check_count(f"{path}: stage {stage.name!r}", sum(map(len, steps_of)), stage)
        stages[stage.name] = [
            make(
                stage.name,
                _branch_label(stage, parent, step, row),
                parent.given,
                {**stage.set, **row},
                parent,
                step,
                earlier,
            )
            for parent, steps in zip(parents, steps_of, strict=True)
            for step in steps
            for row in _rows(stage)
        ]
        previous = stage.name
    _refuse_twins(path, all_cells(stages))
    return sweep, stages


def all_cells(stages: Stages) -> list[Cell]:
    """The cells of all stages, parents before what starts from them."""
    return [cell for cells in stages.values() for cell in cells]


def _check_count(where: str, starts: int, part: Sweep | Stage) -> None:
    """InputError for more cells than CELLS, before any is made. `starts`: how many runs or checkpoints each begins from."""
    grid = math.prod(map(len, part.axes.values())) if part.axes or not part.cells else 0
    if (count := starts * (grid + len(part.cells))) > CELLS:
        raise InputError(f"{where} has {shown(count)} cells, at most {CELLS:,}; use fewer values, or several sweeps")


def _rows(part: Sweep | Stage) -> list[dict[str, Any]]:
    """Field → value of each cell: all combinations of the axes, then the further cells."""
    axes = []
    for key, values in part.axes.items():
        fields = [field.strip() for field in key.split(",")]
        rows = [[value] if len(fields) == 1 else value for value in values]
        if any(not isinstance(row, list) or len(row) != len(fields) for row in rows):
            raise InputError(f"axis {cut(key)!r}: expected rows of {len(fields)} values, found {shown(values)}")
        axes.append([dict(zip(fields, row, strict=True)) for row in rows])
    grid = [{k: v for row in rows for k, v in row.items()} for rows in itertools.product(*axes)]
    return (grid if part.axes or not part.cells else []) + part.cells


def _label(row: dict[str, Any]) -> str:
    return "-".join(_short(field, value) for field, value in row.items())


def _branch_label(stage: Stage, parent: Cell, step: int | None, row: dict[str, Any]) -> str:
    place = stage.name + (f"{step:05d}" if step is not None else "")
    return "-".join(filter(None, [parent.label, place, _label({k: v for k, v in row.items() if k not in stage.set})]))


def _short(field: str, value: Any) -> str:
    """`optim.weight_decay`, 0.1 → weight_decay0.1; strings stand for themselves, a section for its fields; for folders' names."""
    if isinstance(value, dict):
        return _label(value)
    text = value if isinstance(value, str) else json.dumps(value)
    name = "" if isinstance(value, str) else field.removesuffix(".*").rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name + text).strip("_")


def _matches(cell: Cell, stage: Stage) -> bool:
    for field, values in stage.where.items():
        value: Any = cell.config
        for name in field.split("."):
            if not hasattr(value, name):
                raise InputError(f"stage {stage.name!r}, where: {cut(field)!r} is no field of a configuration")
            value = getattr(value, name)
        if value not in ([os.path.abspath(str(v)) for v in values] if field == "data.path" else values):
            return False
    return True


def _branch_steps(stage: Stage, parent: Cell, path: str | Path) -> list[int | None]:
    """The steps to branch from; [None] for a stage of runs that are no branches. InputError if a checkpoint is not kept."""
    steps, policy = parent.config.schedule.steps, parent.config.checkpoint
    wanted = {
        *stage.branch_at,
        *(range(stage.branch_every, steps + 1, stage.branch_every)[: CELLS + 1] if stage.branch_every else ()),
    }
    multiples, others = saved_and_kept(policy, steps)
    if missing := sorted(step for step in wanted - set(others) if step not in multiples):
        first, last = sorted({*multiples[:12], *others})[:12], sorted({*multiples[-5:], *others})[-5:]
        there = first if len(multiples) + len(others) < 12 else [*first[:5], "…", *last]
        raise InputError(
            f"{path}: stage {stage.name!r} branches from steps {shown(missing)} of {parent.label}, whose checkpoints are saved and "
            f"kept at {there}; set checkpoint.every or checkpoint.at"
        )
    return sorted(wanted) if stage.branch_every or stage.branch_at else [None]


def _refuse_twins(path: str | Path, cells: list[Cell]) -> None:
    seen: dict[Any, Cell] = {}
    for cell in cells:
        key = cell.config.model_dump_json(exclude={"name"})
        if (twin := seen.setdefault(key, cell)) is not cell:
            raise InputError(f"{path}: {cell.label} and {twin.label} are the same run; take one out")
