"""Run folders as data: what a run was, and its measurements as a table."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from record.metrics import read_metrics
from record.run import RunFolder


@dataclass(frozen=True)
class Run:
    """`fields` are the dotted fields of the resolved configuration, `varied` those that make the experiment.

    `metrics` has one row per step, columns as in record/metrics.py, NaN where a row has no such value.
    """

    path: Path
    fields: dict[str, Any]
    varied: set[str]
    state: str
    metrics: pd.DataFrame
    problems: list[str]


def find_runs(patterns: list[str]) -> list[Path]:
    """Run folders that folders and globs name, in order, each once. ValueError for a pattern without a run."""
    found: list[Path] = []
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).is_dir() else sorted(map(Path, glob.glob(pattern)))
        runs = [path for path in paths if RunFolder(path).config.is_file()]
        if not runs:
            raise ValueError(f"{pattern!r} names no run folder (a folder with config.json)")
        found += [path for path in runs if path not in found]
    return found


def load_run(path: Path) -> Run:
    """Read a run folder; works on unfinished runs. ValueError if it has no readable configuration."""
    folder = RunFolder(path)
    try:
        config = json.loads(folder.config.read_text(encoding="utf-8"))
        experiment = folder.read_experiment() or {}
        status = folder.read_status() or {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable run folder: {error}") from None
    rows, problems = read_metrics(folder.metrics)
    metrics = pd.DataFrame(rows if rows else {"step": [], "tokens": []}).set_index("step", drop=False)
    return Run(path, flatten(config), set(flatten(experiment)), status.get("state", "unknown"), metrics, problems)


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
    """The experiment's fields in which the runs are not all alike."""
    names = set().union(*(run.varied for run in runs)) - {"data.digest"}
    return sorted(name for name in names if len({json.dumps(run.fields.get(name)) for run in runs}) > 1)


def label(run: Run, fields: list[str]) -> str:
    """A legend entry: the run's values of `fields`, or its folder's name."""
    shown = {"optim.weight_decay": "λ", "optim.lr": "η"}
    return (
        ", ".join(f"{shown.get(name, name.rpartition('.')[2])} = {run.fields.get(name)}" for name in fields)
        or run.path.name
    )
