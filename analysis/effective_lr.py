"""Effective learning rates over time, rotation and size against their equilibrium, matched runs over their reference.

    python -m analysis.effective_lr runs/small_matched_lr --out runs/effective

The effective learning rate of update s is η_s/‖w_{s−1}‖, of SGD η_s/‖w_{s−1}‖² (P1); the Adam effective learning rate,
rotation and size are probed (log.probe_every); predictions are those of record/probes.py, under pure noise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.command import Options, Result, main_of
from analysis.compare import TRAIN
from analysis.figures import Figure, Line, Panel, Style, line, styles
from analysis.runs import Group, Run, group_runs
from analysis.statistics import final, mean_and_band, smooth
from configs.cost import kind_of

Read = Callable[[Run], pd.Series]
RATE_LABEL = "effective LR η/‖w‖ (SGD: η/‖w‖²)"
LATE = 0.1  # the equilibrium is read off this last fraction of the probes


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = [run for run in runs if run.origin is None] or runs
    groups, notes = group_runs(trunks, options.by)
    looks = styles(groups)
    panels = [
        Panel(options.xlabel, RATE_LABEL, _lines(groups, looks, options, effective_lr), ylog=True),
        Panel(
            options.xlabel, "mean Adam effective LR", _lines(groups, looks, options, _probe("probe/adam_lr")), ylog=True
        ),
    ]
    figures = [Figure("effective_lr", "Effective learning rates, means over seeds.", [p for p in panels if p.lines])]
    kinds = sorted(
        {
            column.rpartition("kind:")[2]
            for run in trunks
            for column in map(str, run.probes)
            if "/rotation/kind:" in column
        }
    )
    if kinds:
        figures += [
            _by_kind("effective_lr_by_kind", "effective_lr", RATE_LABEL, kinds, groups, looks, options),
            _by_kind("rotation", "rotation", "rotation (radians per update)", kinds, groups, looks, options),
            _by_kind("relative_update", "update", "relative update ‖Δw‖/‖w‖", kinds, groups, looks, options),
            _by_kind("size", "rms", "root mean square of w", kinds, groups, looks, options),
        ]
    else:
        notes.append("no run was probed (log.probe_every): no Adam effective LR, rotation or size")
    equilibrium = pd.DataFrame([row for group in groups for kind in kinds if (row := _equilibrium(group, kind))])
    matched, rows, findings = _matched(trunks, looks, groups, options, notes)
    figures += matched
    if len(equilibrium):
        worst = equilibrium.iloc[int((equilibrium["rotation measured/predicted"] - 1).abs().argmax())]
        middle = equilibrium["rotation measured/predicted"].median()
        findings.append(
            f"Over the last tenth of the probes rotation is {middle:.2f} of the prediction (median over {len(equilibrium)} "
            f"kinds and runs), farthest {worst['rotation measured/predicted']:.2f} ({worst['run']}, {worst['kind']}). The "
            "prediction holds for pure noise at a constant learning rate, once 1/(ηλ) steps have passed."
        )
    tables = {"Equilibrium": equilibrium, "Matched runs": pd.DataFrame(rows)}
    return Result("effective_lr", "Effective learning rate", findings, figures, tables, notes)


def effective_lr(run: Run) -> pd.Series:
    """η_s/‖w_{s−1}‖ of update s; for SGD η_s/‖w_{s−1}‖² (P1, by scale invariance)."""
    norm = run.column("weights/norm") ** (2 if run.fields.get("optim.algorithm") == "sgd" else 1)
    return (run.column("optim/lr") / pd.Series(norm.to_numpy(), index=norm.index + 1)).dropna()


def _probe(column: str) -> Read:
    def read(run: Run) -> pd.Series:
        return run.probes[column].dropna() if column in run.probes else pd.Series(dtype=float)

    return read


def _lines(groups: list[Group], looks: dict[str, Style], options: Options, read: Read) -> list[Line]:
    lines = []
    for group in groups:
        curves = [options.placed(run, curve) for run in group.runs if len(curve := read(run))]
        if curves:
            lines.append(line(mean_and_band(curves)["mean"], group.name, looks[group.name]))
    return lines


def _by_kind(
    name: str,
    quantity: str,
    ylabel: str,
    kinds: list[str],
    groups: list[Group],
    looks: dict[str, Style],
    options: Options,
) -> Figure:
    panels = []
    for kind in kinds:
        lines = _lines(groups, looks, options, _probe(f"probe/{quantity}/kind:{kind}"))
        for group in groups if quantity in ("rotation", "rms") else []:
            curves = [c for run in group.runs if len(c := predicted(run, quantity, kind))]
            if curves:
                look = looks[group.name]
                curve = options.placed(group.runs[0], mean_and_band(curves)["mean"])
                lines.append(line(curve, f"{group.name}, predicted", Style(look.colour, "dot", look.keys)))
        panels.append(Panel(options.xlabel, ylabel, lines, title=kind, ylog=True))
    caption = {"rotation": " Dotted: √(2ηλ(1−β₁)/(1+β₁)).", "rms": " Dotted: √(η/2λ)."}.get(quantity, "")
    return Figure(name, f"{ylabel[0].upper()}{ylabel[1:]} by kind of tensor.{caption}", [p for p in panels if p.lines])


def predicted(run: Run, quantity: str, kind: str) -> pd.Series:
    """The predicted rotation or RMS of a kind: the mean over its tensors that decay."""
    prefix = f"probe/predicted_{quantity}/"
    columns = [c for c in map(str, run.probes) if c.startswith(prefix) and kind_of(c.removeprefix(prefix)) == kind]
    return run.probes[columns].mean(axis=1).dropna() if columns else pd.Series(dtype=float)


def _equilibrium(group: Group, kind: str) -> dict[str, object] | None:
    row: dict[str, object] = {"run": group.name, "kind": kind}
    for quantity in ("rotation", "rms"):
        values = []
        for run in group.runs:
            measured, expected = _probe(f"probe/{quantity}/kind:{kind}")(run), predicted(run, quantity, kind)
            ratio = (measured / expected).dropna()
            values.append(float(ratio.iloc[-max(1, round(len(ratio) * LATE)) :].mean()) if len(ratio) else float("nan"))
        if np.isnan(values).all():
            return None
        row[f"{quantity} measured/predicted"] = round(float(np.nanmean(values)), 3)
    return row


def _matched(
    runs: list[Run], looks: dict[str, Style], groups: list[Group], options: Options, notes: list[str]
) -> tuple[list[Figure], list[dict[str, object]], list[str]]:
    """Runs with schedule.match laid over their reference, beside the run they would be without it."""
    name_of = {run.path: group.name for group in groups for run in group.runs}
    rates, distances, rows, findings = [], [], [], []
    for run in runs:
        if run.reference is None:
            continue
        reference = find_run(run.reference, runs)
        if reference is None:
            notes.append(f"{run.path.name}: its reference {run.reference} is not among these runs")
            continue
        ours, theirs = effective_lr(run), effective_lr(reference)
        apart = (ours / theirs).map(math.log).abs().max()
        look = looks[name_of[run.path]]
        rates += [
            line(options.placed(run, theirs), f"{name_of[reference.path]} (reference)", looks[name_of[reference.path]]),
            line(options.placed(run, ours), name_of[run.path], Style(look.colour, "dash", look.keys)),
        ]
        row: dict[str, object] = {"run": run.path.name, "reference": reference.path.name, "state": run.state}
        row["effective LR apart (max, relative)"] = float(f"{np.expm1(apart):.2g}")
        plain = _unmatched(run, runs)
        for other, title in ((run, "matched"), (plain, "λ = 0")):
            if other is None:
                continue
            difference = (other.column(TRAIN) - reference.column(TRAIN)).dropna()
            late = smooth(difference, options.smoothing).iloc[len(difference) // 10 :]
            row[f"{title}: loss apart (max, nats)"] = round(float(late.abs().max()), 4) if len(late) else None
            row[f"{title}: at the end"] = round(final(difference), 4)
            style = Style(looks[name_of[other.path]].colour, "dash" if other is run else "dashdot", look.keys)
            curve = options.placed(run, smooth(difference, options.smoothing))
            distances.append(line(curve, f"{title} − {name_of[reference.path]}", style))
        if plain is not None and "matched: loss apart (max, nats)" in row:
            key = "{}: loss apart (max, nats)".format
            findings.append(
                f"{name_of[reference.path]} ({run.fields.get('precision')}): the run without decay at its effective learning rate "
                f"stays within {row[key('matched')]} nats of its smoothed loss, the one at its own within {row[key('λ = 0')]}; at "
                f"the end {row['matched: at the end']:+} and {row['λ = 0: at the end']:+} (one seed: no claim)."
            )
        rows.append(row)
    if not rows:
        return [], [], findings
    panels = [
        Panel(options.xlabel, RATE_LABEL, rates, ylog=True),
        Panel(
            options.xlabel,
            "training loss minus the reference's (nats)",
            distances,
            zero=True,
            limits=_around(distances),
        ),
    ]
    return (
        [Figure("matched", "Runs without decay that follow a decayed run's effective learning rate.", panels)],
        rows,
        findings,
    )


def _around(lines: list[Line]) -> tuple[float, float]:
    limit = 1.2 * max((float(np.nanmax(np.abs(one.y[len(one.y) // 10 :]))) for one in lines if len(one.y)), default=1.0)
    return -limit, limit


def find_run(path: Path, runs: list[Run]) -> Run | None:
    """The run of this folder, or, where folders were moved, of this name."""
    for run in runs:
        if run.path.resolve() == path.resolve():
            return run
    return next((run for run in runs if run.path.name == path.name), None)


def _unmatched(run: Run, runs: list[Run]) -> Run | None:
    """The run that differs from a matched one in nothing but not being matched."""
    skip = ("schedule.match", "branch", "name")
    mine = {k: v for k, v in run.fields.items() if not k.startswith(skip)}
    for other in runs:
        if other.reference is None and {k: v for k, v in other.fields.items() if not k.startswith(skip)} == mine:
            return other
    return None


def main(argv: list[str] | None = None) -> int:
    return main_of("effective_lr", analyse, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
