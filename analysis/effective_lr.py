"""Effective learning rates; rotation and size against their equilibrium; matched runs.

    python -m analysis effective_lr runs/small_matched_lr --out runs/effective

The effective learning rate of update s is η_s/‖w_{s−1}‖, of SGD η_s/‖w_{s−1}‖² (P1); the Adam effective learning rate,
rotation and size are probed (log.probe_every); predictions are those of record/probe_columns.py, under pure noise.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd

from analysis.claims import survival, table_of_claims
from analysis.command import Options, Result
from analysis.compare import TRAIN, divergence, is_ended, sound, twins
from analysis.figures import Figure, Line, Panel, Style, line
from analysis.grouped import Read, grouped, mean_line, probed, trunks_of
from analysis.matched_curve import gone, same_curve, unmatched
from analysis.pairing import Group, by_seed
from analysis.runs import Run, find_run
from analysis.settled import LATE, equilibrium, predicted
from analysis.statistics import final, interval, smooth
from configs.equilibrium import LR_POWERS

RATE_LABEL = "effective LR η/‖w‖ (SGD: η/‖w‖²)"
# What a quantity is compared with: in equilibrium the relative update is the rotation.
EXPECTED = {"rotation": "rotation", "update": "rotation", "rms": "rms"}
MATCHED, PLAIN = "matched", "at its own rate"
MEDIAN, MEAN, IDLE = "probe/adam_lr_median", "probe/adam_lr", "probe/adam_idle"
MEDIAN_LABEL = "Adam effective LR η/(√v + ε), median over weights"
MEAN_LABEL = "Adam effective LR η/(√v + ε), mean over all weights"


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    # a matched run is set against its reference as well as against its twin
    followed = [(run, leader) for run in trunks if run.reference and (leader := find_run(run.reference, trunks))]
    begun = grouped(trunks, options, lambda groups: [*twins(groups), *followed])
    groups, looks, notes = begun.groups, begun.looks, begun.notes
    # unused rows of the embedding rule the mean: it is drawn where nothing better was recorded
    label, column = (MEDIAN_LABEL, MEDIAN) if any(MEDIAN in run.probes for run in trunks) else (MEAN_LABEL, MEAN)
    reads = {RATE_LABEL: effective_lr, label: probed(column)}
    panels = [
        Panel(options.xlabel, label, _lines(groups, looks, options, read), ylog=True) for label, read in reads.items()
    ]
    caption = "Effective learning rates, means over seeds; Adam's is the median over weights with gradients, where it was recorded."
    drawn = [p for p in panels if p.lines]
    figures = [Figure("effective_lr", caption, drawn)] if drawn else []
    notes += [
        f"{run.path.name}: no effective learning rate, none is known of {name}; and no Adam's, it is not optim.algorithm adam"
        for run in trunks
        if (name := run.fields.get("optim.algorithm", "adam")) not in LR_POWERS
    ]
    if old := [run.path.name for run in trunks if MEAN in run.probes and MEDIAN not in run.probes]:
        notes.append(
            f"{len(old)} runs were recorded without a median, and have only the mean of Adam's: {', '.join(old[:5])}"
        )
    # the kinds of every probed run: models of one analysis may differ
    columns = {str(column) for run in trunks for column in run.probes}
    kinds = sorted({column.rpartition("kind:")[2] for column in columns if "/rotation/kind:" in column})
    notes += [
        f"{run.path}: its configuration has no model of this code's, so no kinds of tensors: no prediction is compared"
        for run in trunks
        if not run.kinds and any("/predicted_" in column for column in map(str, run.probes))
    ]
    if kinds:
        figures += [
            _by_kind("effective_lr_by_kind", "effective_lr", RATE_LABEL, kinds, groups, looks, options),
            _by_kind("rotation", "rotation", "rotation (radians per update)", kinds, groups, looks, options),
            _by_kind("relative_update", "update", "relative update ‖Δw‖/‖w‖", kinds, groups, looks, options),
            _by_kind("size", "rms", "root mean square of w", kinds, groups, looks, options),
        ]
    else:
        notes.append("no run was probed (log.probe_every): no Adam effective LR, rotation or size")
    settled, more = equilibrium(groups, kinds)
    matched, rows, findings = _matched(trunks, looks, groups, options, notes)
    claims = [claim for group in groups if (claim := same_curve(group, trunks, groups)) is not None]
    findings += [claim.sentence for claim in claims]
    adam = pd.DataFrame([row for group in groups if (row := _adam(group))])
    tables = {"Equilibrium": settled, "Adam effective LR at the end": adam, "Matched runs": pd.DataFrame(rows)}
    tables |= {"Matched curves": table_of_claims(claims)} if claims else {}
    return Result(
        "effective_lr", "Effective learning rate", [*findings, *more], [*figures, *matched], tables, notes, claims
    )


def effective_lr(run: Run) -> pd.Series:
    """η_s/‖w_{s−1}‖ of update s; for SGD η_s/‖w_{s−1}‖² (P1, by scale invariance). Empty for a torch.optim.NAME, of which no law
    is known.
    """
    power = LR_POWERS.get(run.fields.get("optim.algorithm", "adam"))
    if power is None:
        return pd.Series(dtype=float)
    # the norm before the update: the row of step s has the norm after it, so it counts for s + 1
    norm = run.column("weights/norm") ** power
    return (run.column("optim/lr") / pd.Series(norm.to_numpy(), index=norm.index + 1)).dropna()


def _adam(group: Group) -> dict[str, object] | None:
    """Median, mean and idle share of Adam's effective learning rate over the last probes; None where it was not probed."""
    row: dict[str, object] = {"run": group.name}
    for title, column in (("median", MEDIAN), ("mean", MEAN), ("idle share", IDLE)):
        late = [
            series.iloc[-max(1, round(len(series) * LATE)) :].mean()
            for run in sound(group)
            if len(series := probed(column)(run))
        ]
        # a run of an earlier version has the mean alone
        row[title] = float(f"{np.mean(late):.4g}") if late else None
    return row if row["mean"] is not None else None


def _lines(groups: list[Group], looks: dict[str, Style], options: Options, read: Read) -> list[Line]:
    return [one for group in groups for one in mean_line(group, looks[group.name], options, read)]


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
        lines = _lines(groups, looks, options, probed(f"probe/{quantity}/kind:{kind}"))
        # the effective learning rate has no prediction of its own
        for group in groups if quantity in EXPECTED else []:
            dotted = Style(looks[group.name].colour, "dot", looks[group.name].keys)
            read = partial(predicted, quantity=EXPECTED[quantity], kind=kind)
            lines += mean_line(group, dotted, options, read, f"{group.name}, predicted")
        panels.append(Panel(options.xlabel, ylabel, lines, title=kind, ylog=True))
    caption = {
        "rotation": " Dotted: the equilibrium's, AdamW's √(2ηλ(1−β₁)/(1+β₁)).",
        "update": " Dotted: the predicted rotation.",
        "rms": " Dotted: the equilibrium's, AdamW's √(η/2λ).",
    }.get(quantity, "")
    return Figure(name, f"{ylabel[0].upper()}{ylabel[1:]} by kind of tensor.{caption}", [p for p in panels if p.lines])


def _matched(
    runs: list[Run], looks: dict[str, Style], groups: list[Group], options: Options, notes: list[str]
) -> tuple[list[Figure], list[dict[str, object]], list[str]]:
    """Runs with schedule.match laid over their references, and beside the runs that they would be without it."""
    group_of = {run: group.name for group in groups for run in group.runs}
    rates: list[Line] = []
    distances: list[Line] = []
    rows, findings = [], []
    for group in groups:
        ends: dict[str, list[tuple[Run, float]]] = {MATCHED: [], PLAIN: []}
        for run in group.runs:
            reference = find_run(run.reference, runs) if run.reference else None
            # an unmatched run is passed over; a reference that was not given is said
            if reference is None:
                if run.reference:
                    notes.append(f"{run.path.name}: its reference {run.reference} is not among these runs")
                continue
            # One seed's curves are drawn for all: they lie on each other.
            if not ends[MATCHED]:
                rates += _laid_over(run, reference, looks[group.name], looks[group_of[reference]], group_of, options)
            row = _kept_rate(run, reference)
            for title, other in ((MATCHED, run), (PLAIN, unmatched(run, runs))):
                if other is None:
                    continue
                difference = (other.column(TRAIN) - reference.column(TRAIN)).dropna()
                curve = smooth(difference, options.smoothing)
                row |= _distance(title, difference, curve)
                if not ends[title]:
                    dash = "dash" if other is run else "dashdot"
                    style = Style(looks[group_of[other]].colour, dash, looks[group.name].keys)
                    name = f"{group_of[other]} − {group_of[reference]}"
                    distances.append(line(options.placed(run, curve), name, style, ""))
                # the end of a run that stopped or diverged is no end
                if is_ended(other) and is_ended(reference):
                    ends[title].append((run, final(difference)))
            rows.append(row)
        if ends[MATCHED]:
            texts = [f"{title} {interval(by_seed(losses).values()).text()}" for title, losses in ends.items() if losses]
            claim = "" if len(by_seed(ends[MATCHED])) > 1 else " One seed: no claim."
            claim += f" {text[0].upper()}{text[1:]}." if (text := survival(gone(group, runs))) else ""
            findings.append(f"{group.name}, minus its reference's final training loss: {'; '.join(texts)} nats.{claim}")
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
    caption = "Runs without decay that follow a decayed run's effective learning rate; the first seed of each."
    return [Figure("matched", caption, panels)] if rows else [], rows, findings


def _kept_rate(run: Run, reference: Run) -> dict[str, object]:
    """How well a matched run has kept to the effective learning rate that it follows."""
    # In logarithms, so that too high and too low by the same factor are equally far.
    apart = (effective_lr(run) / effective_lr(reference)).map(math.log).abs().max()
    row: dict[str, object] = {"run": run.path.name, "reference": reference.path.name, "state": run.state}
    return row | {
        "diverged at": divergence(run),
        "effective LR apart (max, relative)": float(f"{math.expm1(apart):.2g}"),
    }


def _distance(title: str, difference: pd.Series, curve: pd.Series) -> dict[str, object]:
    """Columns of how far a loss is from the reference's: the largest smoothed distance, and the one at the end."""
    # The first tenth is left out, as in the figure: losses fall by nats there.
    late = curve.iloc[len(curve) // 10 :].abs()
    return {
        f"{title}: loss apart (max, nats)": round(float(late.max()), 4) if len(late) else None,
        f"{title}: at the end": round(final(difference), 4),
    }


def _laid_over(
    run: Run, reference: Run, look: Style, theirs: Style, group_of: dict[Run, str], options: Options
) -> list[Line]:
    return [
        line(options.placed(run, effective_lr(reference)), f"{group_of[reference]} (reference)", theirs, ""),
        line(options.placed(run, effective_lr(run)), group_of[run], Style(look.colour, "dash", look.keys), ""),
    ]


def _around(lines: list[Line]) -> tuple[float, float]:
    # symmetric, so that the line at zero stands in the middle
    limit = 1.2 * max((float(np.nanmax(np.abs(one.y[len(one.y) // 10 :]))) for one in lines if len(one.y)), default=1.0)
    return -limit, limit
