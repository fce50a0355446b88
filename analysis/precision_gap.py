"""float32 against the other precisions at each λ: loss, divergence, spikes, norms.

    python -m analysis precision configs/sweeps/small_wd_precision.json --out runs/precision

A run has diverged from the first step on from which its smoothed loss (the median of 64 updates) stays a margin above its running
minimum to the end: numerics.divergence_margin, or half a nat. A run that ended `diverged` has as well.
"""

from __future__ import annotations

import pandas as pd

from analysis.command import Options, Result
from analysis.compare import TRAIN, divergence, every_loss, paired_final, twins
from analysis.figures import Figure, Line, Panel, Style, after_the_start
from analysis.grouped import Read, diverged_lines, grouped, mean_line, trunks_of
from analysis.pairing import Group, pairs
from analysis.runs import LAMBDA, PRECISION, RATE, Run
from analysis.statistics import smooth


def analyse(runs: list[Run], options: Options) -> Result:
    begun = grouped(trunks_of(runs), options, lambda groups: [*_against_float32(groups), *twins(groups)])
    groups, looks, notes = begun.groups, begun.looks, begun.notes
    if len({group.precision for group in groups}) < 2:
        notes.append(f"all runs have the precision {groups[0].precision}: nothing to compare it with")
    # a row a run first: how many diverged, and where, before any mean
    cells = pd.DataFrame([_cell(group, run, options) for group in groups for run in group.runs])
    diverged = cells["diverged at"].notna()
    findings = [f"{int(diverged.sum())} of {len(cells)} runs diverged."]
    for name, rows in cells[diverged].groupby("group", sort=False):
        steps = ", ".join(f"{step:,.0f}" for step in rows["diverged at"])
        findings.append(f"{name}: {len(rows)} of {int((cells['group'] == name).sum())}, at step {steps}.")
    gaps = [row for group in groups if (row := _gap(group, groups)) is not None]
    for row in gaps:
        findings.append(
            f"{row['run']} minus float32, training loss at step {row['step']}: {row['gap']}: {row['verdict']}."
        )
    # every panel: means of sound runs, and each diverged run by itself
    losses = _lines(groups, looks, options, _losses)
    panels = [
        Panel(options.xlabel, "training loss (nats per token)", losses, limits=after_the_start(losses)),
        Panel(
            options.xlabel,
            "norm of the weights ‖w‖",
            _lines(groups, looks, options, lambda run: run.column("weights/norm")),
        ),
        Panel(options.xlabel, "largest weight max|w|", _lines(groups, looks, options, _largest)),
        Panel(options.xlabel, "gradient norm before clipping", _lines(groups, looks, options, _gradients), ylog=True),
    ]
    figure = Figure(
        "precision", "Means over seeds; runs that diverged each for itself.", [p for p in panels if p.lines]
    )
    tables = {"Loss gap to float32": pd.DataFrame(gaps), "Runs": cells.drop(columns="group")}
    return Result("precision", "Precision", findings, [figure], tables, notes)


def _cell(group: Group, run: Run, options: Options) -> dict[str, object]:
    row: dict[str, object] = {
        "group": group.name,
        "precision": group.precision,
        "η": run.fields.get(RATE),
    }
    row |= {"λ": run.fields.get(LAMBDA), "seeds": run.seeds, "state": run.state, "step": run.last_step}
    row["diverged at"] = divergence(run)
    # with gaps where it was not finite
    losses = every_loss(run)
    row["lowest smoothed loss"] = (
        round(float(smooth(losses, options.smoothing).min()), 4) if losses.notna().any() else None
    )
    row["updates with a spike"] = len(run.column("spike/loss").index.union(run.column("spike/grad_norm").index))
    row["skipped updates"] = int(run.column("nonfinite/skipped").max()) if len(run.column("nonfinite/skipped")) else 0
    norm, largest = run.column("weights/norm"), _largest(run)
    row["‖w‖"] = round(float(norm.iloc[-1]), 3) if len(norm) else None
    row["max|w|"] = round(float(largest.iloc[-1]), 4) if len(largest) else None
    return row | {"run": run.path.name}


def _float32(group: Group, groups: list[Group]) -> Group | None:
    """The float32 runs that are alike in all else."""
    # alike in all but the precision, λ included
    rest = {name: value for name, value in group.fields.items() if name != PRECISION}
    same = [
        g for g in groups if g.precision == "fp32" and {n: v for n, v in g.fields.items() if n != PRECISION} == rest
    ]
    return same[0] if same and group.precision != "fp32" else None


def _against_float32(groups: list[Group]) -> list[tuple[Run, Run]]:
    """Every run and its twin in float32."""
    return [pair for group in groups if (base := _float32(group, groups)) for pair in pairs(group, base)]


def _gap(group: Group, groups: list[Group]) -> dict[str, object] | None:
    base = _float32(group, groups)
    # float32 itself, or a group that has no float32 runs
    if base is None:
        return None
    paired = paired_final(group, base, TRAIN)
    # all diverged, or no seeds in common: a row that says so, and no number
    if not paired.interval.n:
        return {
            "run": group.name,
            "step": paired.place,
            "gap": "–",
            "verdict": "no pair of sound runs with the same seeds",
        }
    return {
        "run": group.name,
        "step": paired.place,
        "gap": paired.interval.text(),
        "verdict": paired.verdict("lower", "higher"),
    }


def _losses(run: Run) -> pd.Series:
    return smooth(run.column(TRAIN))


def _gradients(run: Run) -> pd.Series:
    return smooth(run.column("optim/grad_norm"))


def _largest(run: Run) -> pd.Series:
    return run.probes["probe/max"].dropna() if "probe/max" in run.probes else pd.Series(dtype=float)


def _lines(groups: list[Group], looks: dict[str, Style], options: Options, read: Read) -> list[Line]:
    lines = []
    for group in groups:
        lines += mean_line(group, looks[group.name], options, read)
        lines += diverged_lines(group, looks[group.name], options, read)
    return lines
