"""What the analyses have in common: options, results, and how runs are loaded and results shown (analysis/__main__.py)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from analysis.arms import PILOT
from analysis.claims import OF_INTEREST, SAME, Claim
from analysis.draw import save
from analysis.figures import Figure
from analysis.probed_windows import unlike_windows
from analysis.reading import load_run
from analysis.runs import Run, find_runs, given_twice
from analysis.statistics import SMOOTHING
from configs.errors import InputError
from record.run import FINISHED
from record.sweep_runs import is_sweep_file


@dataclass(frozen=True)
class Options:
    by: list[str] | None = None  # fields that make a curve; None: all that differ
    tokens: bool = False  # tokens for steps on the x axis
    smoothing: float = SMOOTHING
    margin: float = SAME  # nats within which two losses, or gaps, are the same
    of_interest: float = OF_INTEREST  # nats, the smallest difference of losses that matters
    pilot_from: int = (
        PILOT  # of several rules, seeds from here up are a pilot's: they choose η and λ, and enter no claim
    )

    @property
    def xlabel(self) -> str:
        return "tokens" if self.tokens else "step (updates)"

    def placed(self, run: Run, curve: pd.Series) -> pd.Series:
        """The curve over what the x axis shows."""
        return pd.Series(curve.to_numpy(), index=curve.index * self.per_step(run)) if self.tokens else curve

    def per_step(self, run: Run) -> int:
        """What a step is on the x axis: 1, or its tokens. InputError for a run that has none."""
        if not self.tokens:
            return 1
        if run.unit == "images":
            raise InputError(f"--x tokens: {run.path} is a run on images, and has no tokens; leave --x out")
        return int(run.fields["batch.tokens_per_step"])


@dataclass
class Result:
    """What an analysis answers. `findings` are sentences derived from numbers; `notes` say what was left out or mixed. Figures and
    tables without content are dropped. `claims`: the comparisons; a finding that is one is its sentence. `cautions`: those of the
    findings that say how to read the others."""

    name: str
    title: str
    findings: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figures = [f for f in self.figures if any(p.lines or p.heat is not None for p in f.panels)]
        self.tables = {title: table for title, table in self.tables.items() if len(table)}


Analysis = Callable[[list[Run], Options], Result]


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m analysis {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, help="also write every figure (PNG, SVG, CSV) and table (CSV) into this folder"
    )
    return parser


def add_runs(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    parser.add_argument(
        "runs", nargs=nargs, metavar="RUN", help="run folder, archive of a run, folder of either, glob, or sweep file"
    )
    parser.add_argument(
        "--runs-root", type=Path, help="where the runs, or archives of runs, of sweep files lie; default runs"
    )
    parser.add_argument(
        "--by", help="fields that make a curve, e.g. optim.weight_decay,precision; default: all that differ"
    )
    parser.add_argument("--x", choices=("steps", "tokens"), default="steps")
    parser.add_argument("--smoothing", type=float, default=SMOOTHING, help="running mean, as a fraction of a run")
    parser.add_argument(
        "--margin",
        type=float,
        default=SAME,
        help=f"nats within which two losses, or gaps, are the same; default {SAME:g}",
    )
    parser.add_argument(
        "--of-interest",
        type=float,
        default=OF_INTEREST,
        help=f"the smallest difference of losses that matters, in nats, which seeds are counted for; default {OF_INTEREST:g}",
    )
    parser.add_argument(
        "--pilot-seeds-from",
        type=int,
        default=PILOT,
        metavar="N",
        help=f"of several rules, runs of seeds N and above are a pilot's: they choose η and λ, and enter no claim; default {PILOT}",
    )


def options_of(args: argparse.Namespace) -> Options:
    if not 0 <= args.smoothing <= 0.5:
        raise InputError(f"--smoothing {args.smoothing:g} is no fraction of a run; try 0.02, at most 0.5")
    for name, value, plan in (("margin", args.margin, SAME), ("of-interest", args.of_interest, OF_INTEREST)):
        if not 0 < value < math.inf:
            raise InputError(
                f"--{name} {value:g} is no difference of losses in nats above zero; the plan's is {plan:g}"
            )
    if args.pilot_seeds_from < 1:
        raise InputError(f"--pilot-seeds-from {args.pilot_seeds_from} leaves no seed for claims; the plan's is {PILOT}")
    by = [name.strip() for name in args.by.split(",")] if args.by else None
    return Options(by, args.x == "tokens", args.smoothing, args.margin, args.of_interest, args.pilot_seeds_from)


def root_of(args: argparse.Namespace) -> Path:
    """Where the runs of sweep files lie. InputError for --runs-root without such a file: it would do nothing."""
    if args.runs_root is None:
        return Path("runs")
    if not any(is_sweep_file(pattern) for pattern in args.runs):
        raise InputError(
            f"--runs-root {args.runs_root} says where the runs of a sweep file lie, and no RUN is one; give the sweep's file "
            f"(configs/sweeps/NAME.json), or {args.runs_root}/NAME itself as RUN"
        )
    root: Path = args.runs_root
    return root


def load_runs(patterns: list[str], root: Path) -> tuple[list[Run], list[str]]:
    """The runs, and notes on what was missing, damaged or void in them. A folder that cannot be read is left out by name.

    InputError if none can be read.
    """
    # one damaged folder of a hundred must not end the analysis of the others
    paths, notes = find_runs(patterns, root)
    # a bar for many folders only: few are read in a second
    runs, left_out = [], []
    for path in tqdm(paths, desc="read", unit=" runs", disable=len(paths) < 20, leave=False, mininterval=2):
        try:
            runs.append(load_run(path))
        except InputError as error:
            left_out.append(str(error))
    if not runs:
        raise InputError("; ".join(left_out[:3]) + (f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""))
    notes += [f"left out: {why}" for why in left_out]
    twice = given_twice(runs)
    notes += [f"left out: {run.file}: this run is given a second time" for run in twice]
    runs = [run for run in runs if run not in twice]
    for run in runs:
        notes += run.problems
        if run.superseded:
            notes.append(f"{run.path}: {run.superseded} rows were superseded when the run resumed, and are left out")
        if run.metrics.empty:
            notes.append(f"{run.path}: nothing recorded yet ({run.state})")
        elif run.last_step and run.column("train/loss").empty:
            notes.append(f"{run.path}: {len(run.metrics)} rows without a training loss")
        if "nonfinite" in run.metrics:
            notes.append(f"{run.path}: {run.metrics['nonfinite'].notna().sum()} rows hold values that were not finite")
    if thin := [run for run in runs if run.every > 1]:
        notes.append(
            f"{len(thin)} of {len(runs)} runs were archived by every {max(run.every for run in thin)}th update: means over updates "
            "are of fewer rows, and divergence is what the run's end says"
        )
    # their means are of other steps than those of finished runs
    if unfinished := [run for run in runs if run.state not in FINISHED]:
        names = ", ".join(f"{run.path.name} {run.state} at step {run.last_step}" for run in unfinished[:5])
        notes.append(
            f"{len(unfinished)} of {len(runs)} runs are not finished: {names}{', …' if len(unfinished) > 5 else ''}"
        )
    return runs, notes


def late_notes(runs: list[Run]) -> list[str]:
    """What was wrong with files that are read only where an analysis asks for them, and what the runs' probes do not share."""
    return [problem for run in runs for problem in run.late_problems] + unlike_windows(runs)


def show(result: Result, notes: list[str], out: Path | None) -> None:
    # the sentences first, the tables that they rest on below
    print(result.title)
    for finding in result.findings:
        print(f"- {finding}")
    for title, table in result.tables.items():
        print(f"\n{title}\n{table.to_string(index=False, na_rep='')}")
    # what was left out or mixed, after what was said
    for note in [*notes, *result.notes]:
        print(f"note: {note}")
    if out is not None:
        for path in write(result, out):
            print(path)


def write(result: Result, out: Path) -> list[Path]:
    """Every figure and table of a result as files; returns them."""
    paths = [path for figure in result.figures for path in save(figure, out)]
    # numbered: titles are sentences, and no names of files
    for i, table in enumerate(result.tables.values(), 1):
        paths.append(out / f"{result.name}_table{i}.csv")
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(paths[-1], index=False)
    return paths
