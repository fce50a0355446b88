"""Run folders as data: how runs are found, what each was, and its measurements as a table."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from configs.errors import InputError
from configs.images import ImageModel
from configs.schema import Model
from configs.tensors import TensorSpec, tensor_table
from record.archive_file import is_archive
from record.blocks import ValidationBlocks
from record.checkpoints import split_address
from record.contents import read_final_blocks, read_probes, read_scores, read_starts
from record.evaluations import Evaluation
from record.metrics import Log
from record.run import UNKNOWN
from record.sweep_runs import is_run, is_sweep_file, runs_of_sweep

LAMBDA, RATE, PRECISION = "optim.weight_decay", "optim.lr", "precision"
RULE, ALGORITHM = "optim.decay_rule", "optim.algorithm"
STARTS, FOLLOWS = "starts from", "follows"  # fields made here, of a branch and of a matched run
SCALED = "η by ‖w‖ of"  # made here too, of a branch with branch.lr_by_norm_of: the λ of the run that η is scaled by
SYMBOLS = {LAMBDA: "λ", RATE: "η"}
SEEDS = "seeds."
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Run:
    """`fields` are the dotted fields of the resolved configuration, `varied` those that make the experiment.

    `metrics` has one row per step, columns as in record/metrics.py, NaN where a row has no such value; `superseded` rows
    were voided by a resume.
    """

    path: Path
    fields: dict[str, Any]
    varied: set[str]
    status: dict[str, Any]
    plan: dict[str, Any]
    metrics: pd.DataFrame
    problems: list[str]
    superseded: int
    file: Path  # what it was read from: the folder `path`, or an archive
    every: int = 1  # of an archive by every so many updates: that number

    @property
    def state(self) -> str:
        return str(self.status.get("state", UNKNOWN))

    @property
    def decay(self) -> float:
        return float(self.fields.get(LAMBDA) or 0.0)

    @property
    def rule(self) -> str:
        # a run of an older version may lack the field: then it was the default of all versions
        return str(self.fields.get(RULE) or "decoupled")

    @property
    def algorithm(self) -> str:
        return str(self.fields.get(ALGORITHM) or "adam")

    @property
    def last_step(self) -> int:
        return int(self.metrics.index[-1]) if len(self.metrics) else 0

    @property
    def seeds(self) -> str:
        """The run's seeds as one text. Runs of the same seeds have the same data order and initial weights: they are paired."""
        return seeds_text({name: value for name, value in self.fields.items() if name.startswith(SEEDS)})

    @property
    def origin(self) -> tuple[Path, int] | None:
        """Trunk and step of a branch."""
        given = self.fields.get("branch.origin")
        if not given:
            return None
        path, step = split_address(str(given))
        return None if step is None else (path, step)

    @property
    def reference(self) -> Path | None:
        """The run whose effective learning rate this one follows."""
        given = self.fields.get("schedule.match.reference")
        return Path(given) if given else None

    def column(self, name: str) -> pd.Series:
        """One measurement by step, without gaps; empty where the run never recorded it."""
        if name not in self.metrics:
            return pd.Series(dtype=float)
        return pd.to_numeric(self.metrics[name], errors="coerce").dropna()

    @cached_property
    def probe_log(self) -> Log:
        """The probes. Where they cannot be read the log has no rows: the run's other measurements count without them."""
        try:
            return read_probes(self.file, self.fields["schedule.steps"])
        except (OSError, ValueError) as error:
            return Log([], [str(error)], 0, torn=False)

    @cached_property
    def probes(self) -> pd.DataFrame:
        """As `metrics`, columns as in record/probe_columns.py; empty for a run that was not probed."""
        return table_of(self.probe_log.rows)

    @property
    def late_problems(self) -> list[str]:
        """What was wrong with the probes and the scores at tasks, if an analysis has read them. Most analyses do not."""
        problems = [*self.probe_log.problems] if "probe_log" in vars(self) else []
        return problems + (self.evaluations[1] if "evaluations" in vars(self) else [])

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every trainable tensor, by the model that the run recorded; empty where that is no model of ours."""
        # of the recorded fields only those that today's schema has: a run of another version may have more
        section = ImageModel if self.unit == "images" else Model
        names = {f"model.{name}": name for name in section.model_fields}
        try:
            model = section.model_validate({names[key]: value for key, value in self.fields.items() if key in names})
        except ValidationError:
            return {}
        return tensor_table(model)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """What each tensor is for; empty as `tensors`."""
        return {name: tensor.kind for name, tensor in self.tensors.items()}

    @property
    def unit(self) -> str:
        """What its batches are counted in: tokens or images."""
        return unit_of(self.fields)

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """What the run was computed by, a row a start. A run of an older version has fewer fields."""
        return read_starts(self.file)

    @property
    def data(self) -> dict[str, Any]:
        """What the latest start recorded of the data (Manifest.described); empty for a run of an older version."""
        data = self.starts[-1].get("data") if self.starts else None
        return data if isinstance(data, dict) else {}

    @cached_property
    def evaluations(self) -> tuple[list[Evaluation], list[str]]:
        """What tasks were asked of its checkpoints, and a sentence on each file that was damaged."""
        try:
            return read_scores(self.file)
        except (OSError, ValueError) as error:
            return [], [str(error)]

    @cached_property
    def final_blocks(self) -> ValidationBlocks | None:
        """The last validation, block by block; None for a run that recorded none."""
        return read_final_blocks(self.file)

    @property
    def n_parameters(self) -> int | None:
        """None where the plan is missing, or damaged."""
        size = self.plan.get("n_parameters")
        return size if isinstance(size, int) and size > 0 else None

    @property
    def tokens_per_parameter(self) -> float | None:
        """Of the whole run, as planned."""
        steps, batch = self.fields.get("schedule.steps"), self.fields.get("batch.tokens_per_step")
        if self.n_parameters is None or not isinstance(steps, int) or not isinstance(batch, int):
            return None
        return steps * batch / self.n_parameters


def unit_of(fields: dict[str, Any]) -> str:
    """What batches are counted in by a run's recorded fields. Runs before data.kind are all on tokens."""
    return "images" if fields.get("data.kind") == "images" else "tokens"


def nats(runs: list[Run]) -> str:
    """The unit of these runs' losses, for an axis."""
    units = {run.unit for run in runs}
    return f"nats per {units.pop().removesuffix('s')}" if len(units) == 1 else "nats"


def seeds_text(seeds: dict[str, Any]) -> str:
    """Field → seed as one text: where all are one number, that number is the name."""
    values = [seeds[name] for name in sorted(seeds)]
    return json.dumps(values[0]) if len(set(values)) == 1 else json.dumps(values)


def find_runs(patterns: list[str], root: Path = Path("runs")) -> tuple[list[Path], list[str]]:
    """The runs that `patterns` name, each once: run folders, archives of runs, folders of either, globs, and sweep files, whose
    runs, or archives of them, lie in `root`.

    Returns (folders and archives, notes on what is missing). InputError for a pattern without a run.
    """
    folders: list[Path] = []
    notes: list[str] = []
    for pattern in patterns:
        # a sweep file, a run folder, a folder of runs, or a glob over either
        if is_sweep_file(pattern):
            runs, lacking = runs_of_sweep(pattern, root)
            notes += lacking
        else:
            paths = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern)))
            # one level down, not deeper: a checkpoint's folder is no run
            inner = [folder for path in paths for folder in ([path] if is_run(path) else sorted(path.glob("*")))]
            runs = [path for path in inner if is_run(path)]
        if not runs:
            raise InputError(
                f"{pattern!r} names no run folder (a folder with config.json), no archive, nor a folder of them"
            )
        folders += [path for path in runs if path not in folders]
    return folders, notes


def given_twice(runs: list[Run]) -> list[Run]:
    """The archives of runs that are given as folders, or as archives, too: they must not count twice."""
    kept: list[Run] = []
    twice: list[Run] = []
    # folders first: a folder may have come further since it was archived
    for run in sorted(runs, key=lambda run: is_archive(run.file)):
        again = is_archive(run.file) and any(_is_same(run, other) for other in kept)
        (twice if again else kept).append(run)
    return twice


def _is_same(one: Run, other: Run) -> bool:
    """Whether two of one name are one experiment. The name alone does not tell it: --run-dir gives any."""
    return one.path.name == other.path.name and one.varied == other.varied and not differing_fields([one, other])


def find_run(path: Path, runs: list[Run]) -> Run | None:
    """The run of this folder, or, where folders were moved, of this name."""
    for run in runs:
        # the very folder first: two sweeps may hold runs of one name
        if run.path.resolve() == path.resolve():
            return run
    return next((run for run in runs if run.path.name == path.name), None)


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows if rows else {"step": [], "tokens": []}).set_index("step", drop=False)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} → {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat


def differing_fields(runs: list[Run]) -> list[str]:
    """The experiment's fields in which the runs are not all alike; λ, η and precision first."""
    # `varied` and not all fields: cadences and paths differ between runs and make no other experiment
    names = set().union(*(run.varied for run in runs))
    differing = [name for name in names if len({json.dumps(run.fields.get(name)) for run in runs}) > 1]
    return sorted(differing, key=importance)


def importance(field: str) -> tuple[int, str]:
    return {LAMBDA: 0, RATE: 1, PRECISION: 2}.get(field, 3), field


def label(run: Run, fields: list[str]) -> str:
    """A legend entry: the run's values of `fields`, or its folder's name."""
    return ", ".join(f"{field_name(name)} = {shown(run.fields.get(name))}" for name in fields) or run.path.name


def field_name(field: str) -> str:
    return SYMBOLS.get(field, field.rpartition(".")[2])


def shown(value: Any) -> str:
    """A field's value in few letters; of a path its last part."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        # a digest of 64 letters says nothing that its first twelve do not
        text = value.rstrip("/").rpartition("/")[2]
        return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
    return "–" if value is None else json.dumps(value)
