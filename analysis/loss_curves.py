"""Training and validation loss over seeds; differences to the smallest λ; where the curves cross.

    python -m analysis loss_curves 'runs/quickstart-*' --out runs/curves

Differences are paired: a run minus its twin of the smallest λ (of the first group, where λ does not vary) with the same
seeds, which starts from the same weights and reads the same windows in every step, so that the noise they share cancels.
They are judged at the end, and in mid-run at the first value from 45 % of the run on, a place declared beforehand.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.command import Options, Result
from analysis.compare import (
    TRAIN,
    VALIDATION,
    common_step,
    differences,
    divergence,
    one_a_seed,
    paired_final,
    paired_midrun,
    reached,
    sound,
)
from analysis.figures import SEEDS_DRAWN, Figure, Line, Panel, Style, after_the_start, seeds_together
from analysis.grouped import diverged_lines, grouped, trunks_of
from analysis.pairing import Group, baseline_of, by_seed
from analysis.published import notes_on, published_lines
from analysis.runs import LAMBDA, Run
from analysis.seeds import disagreements
from analysis.statistics import crossing_interval, final, interval, smooth


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    begun = grouped(trunks, options)
    groups, looks, notes = begun.groups, begun.looks, begun.notes
    if len(trunks) < len(runs):
        notes.append(f"{len(runs) - len(trunks)} branches are left out; `python -m analysis bias_variance` shows them")
    published = published_lines(trunks, options)
    notes += notes_on(trunks)
    panels = []
    for column, name, extra in ((TRAIN, "training", published), (VALIDATION, "validation", [])):
        lines = _curves(groups, column, looks, options) + extra
        panels.append(Panel(options.xlabel, f"{name} loss (nats per token)", lines, limits=after_the_start(lines)))
    # the paper's points are of its training loss: under validation they would say another thing
    caption = f"Training loss (running mean) and validation loss. {SEEDS_DRAWN}"
    losses = Figure("loss", caption, panels)
    figures, rows, findings = [losses], [], disagreements(groups)  # first: they say how to read the others
    # the baseline has a row in the table, and no difference
    compared = [(group, baseline_of(group, groups)) for group in groups]
    if any(group is not base for group, base in compared):
        figures.append(_differences(compared, looks, options))
    for group, base in compared:
        row, finding = _row(group, base, options)
        rows.append(row)
        findings += finding
    return Result("loss_curves", "Loss curves", findings, figures, {"Losses": pd.DataFrame(rows)}, notes)


def _curves(groups: list[Group], column: str, looks: dict[str, Style], options: Options) -> list[Line]:
    lines = []
    for group in groups:
        kept = sound(group)
        # validation is on fixed tokens and needs no smoothing
        curves = [(run, run.column(column)) for run in group.runs]
        if column == TRAIN:
            curves = [(run, smooth(curve, options.smoothing)) for run, curve in curves]
        lines += _mean_lines(group.name, [(r, c) for r, c in curves if r in kept], looks[group.name], options)
        lines += diverged_lines(group, looks[group.name], options, dict(curves).__getitem__)
    return lines


def _mean_lines(name: str, curves: list[tuple[Run, pd.Series]], look: Style, options: Options) -> list[Line]:
    curves = one_a_seed(curves)
    if not curves:
        return []
    compared = [options.placed(run, curve) for run, curve in reached(curves)]
    # every seed to its own end, the mean to the step that all of it have
    each = [(run, options.placed(run, curve)) for run, curve in curves]
    return seeds_together(compared, each, name, look)


def _differences(compared: list[tuple[Group, Group]], looks: dict[str, Style], options: Options) -> Figure:
    panels = []
    for column, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        lines: list[Line] = []
        for group, base in compared:
            if group is not base:
                curves = differences(group, base, column)
                if column == TRAIN:
                    curves = [(run, smooth(curve, options.smoothing)) for run, curve in curves]
                lines += _mean_lines(f"{group.name} − {base.name}", curves, looks[group.name], options)
        # differences are large in the first tenth, where nothing is judged
        late = [np.abs(one.y[len(one.y) // 10 :]) for one in lines if len(one.y) > 2]
        limit = 1.2 * max((float(np.nanmax(y)) for y in late), default=0.0)
        limits = (-limit, limit) if limit else None
        panels.append(Panel(options.xlabel, f"{name} loss − baseline's (nats)", lines, limits=limits, zero=True))
    return Figure(
        "loss_difference",
        f"Paired differences to the baseline: the same but for the smallest λ, or else the first. {SEEDS_DRAWN}",
        panels,
    )


def _row(group: Group, base: Group, options: Options) -> tuple[dict[str, object], list[str]]:
    kept = sound(group)
    upto = common_step([run.last_step for run in kept])
    far = [run for run in kept if run.last_step >= upto]
    row: dict[str, object] = {"run": group.name, "seeds": len({run.seeds for run in far}), "step": upto}
    means = by_seed([(run, final(run.column(TRAIN), upto)) for run in far])
    row["training loss"] = round(interval(means.values()).mean, 4)
    ends = [(run, v.iloc[-1]) for run in far if len(v := run.column(VALIDATION).loc[1:upto])]
    row["validation loss"] = round(interval(by_seed(ends).values()).mean, 4)
    findings = []
    # divergence is a result: it is told, and not averaged away
    if gone := [run for run in group.runs if run not in kept]:
        row["diverged"] = len(gone)
        steps = ", ".join(str(divergence(run)) for run in gone)
        findings.append(
            f"{group.name}: {len(gone)} of {len(group.runs)} runs diverged (step {steps}); not in its means."
        )
    if group is base:
        return row, findings
    for column, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        paired = paired_final(group, base, column)
        if not paired.interval.n:
            findings.append(
                f"{group.name}: no {name} losses to pair with those of {base.name} (same seeds, not diverged)."
            )
            continue
        row[f"{name} difference"] = paired.interval.text()
        # λ helps or harms; of other fields a loss is lower or higher
        words = paired.verdict() if LAMBDA in group.fields else paired.verdict("lower", "higher")
        curves = [smooth(curve, options.smoothing) for curve in paired.curves] if column == TRAIN else paired.curves
        where = ""
        # A crossing is a claim about the end: without the end's there is none.
        if words in ("helps", "lower") and (place := crossing_interval(curves)) is not None:
            row[f"{name} crossing"] = place.text()
            where = f" Below zero from {place.text()} on."
        if (middle := paired_midrun(group, base, column)) is not None:
            row[f"{name} difference in mid-run"] = middle.interval.text()
            findings.append(
                f"{group.name} minus {base.name}, {name} loss in mid-run, step {middle.place}: {middle.interval.text()}: "
                f"{middle.verdict('lower', 'higher')}."
            )
        findings.append(
            f"{group.name} minus {base.name}, {name} loss at step {paired.place}: {paired.interval.text()}: {words}.{where}"
        )
    return row, findings
