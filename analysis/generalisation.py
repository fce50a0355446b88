"""Validation against training loss: in one pass the two are the same, whatever λ.

    python -m analysis generalisation 'runs/*/' --out runs/generalisation

As in P1, Fig. 19: at every evaluated step the validation loss is set against the training loss smoothed around that step.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.claims import Claim, equality_claim
from analysis.command import Options, Result
from analysis.compare import TRAIN, VALIDATION, ended, lost
from analysis.figures import Figure, Line, Panel, Style
from analysis.grouped import grouped, trunks_of
from analysis.pairing import Group, baseline_of, by_seed, pairs
from analysis.runs import Run, nats
from analysis.statistics import final, interval, smooth


def analyse(runs: list[Run], options: Options) -> Result:
    begun = grouped(trunks_of(runs), options)
    groups, looks, notes = begun.groups, begun.looks, begun.notes
    lines = [one for group in groups for run in group.runs for one in _points(group, run, looks[group.name], options)]
    claims: list[Claim] = []
    rows, finished = [], {run for group in groups for run in ended(group)}
    for group in groups:
        gaps = interval(by_seed([(run, gap(run)) for run in ended(group)]).values())
        row: dict[str, object] = {"run": group.name, "seeds": gaps.n, "gap at the end (nats)": gaps.text()}
        # a seed's own gap is that of its tokens: the difference between λ is paired
        base = baseline_of(group, groups)
        if base is not group:
            changes = [(run, gap(run) - gap(twin)) for run, twin in pairs(group, base) if {run, twin} <= finished]
            change = interval(by_seed(changes).values())
            if change.n:
                row[f"minus that of λ = {base.decay:g}"] = change.text()
                name = f"{group.name} minus {base.name}"
                endpoint = "generalisation gap at the end"
                claims.append(equality_claim(name, endpoint, change, options.margin, lost=lost(group, base)))
                row |= {"verdict": claims[-1].verdict, "90 % interval": claims[-1].inside}
                row |= {"condition": claims[-1].conditions} if claims[-1].conditions else {}
        rows.append(row)
    measured = [value for group in groups for run in ended(group) if np.isfinite(value := gap(run))]
    findings = []
    if measured:
        findings.append(
            f"Validation minus training loss at the end: {min(measured):+.4f} to {max(measured):+.4f} nats over "
            f"{len(measured)} runs (other {runs[0].unit}, so a constant offset is the {runs[0].unit}' own)."
        )
    # the verdict is a claim of its own, with the interval that it is made of
    findings += [claim.sentence for claim in claims]
    # equality is the diagonal: a point above it overfits
    unit = nats(runs)
    panel = Panel(f"training loss ({unit})", f"validation loss ({unit})", lines, diagonal=True)
    caption = "Every evaluation of every run, but for the first fifth; the grey line is equality."
    figure = Figure("generalisation", caption, [panel])
    return Result("generalisation", "Generalisation", findings, [figure], {"Gaps": pd.DataFrame(rows)}, notes, claims)


def gap(run: Run) -> float:
    """Validation loss minus the final training loss, at the run's last evaluation."""
    validation = run.column(VALIDATION)
    # step 0 has no training loss beside it
    if validation.empty or validation.index[-1] == 0:
        return float("nan")
    return float(validation.iloc[-1]) - final(run.column(TRAIN), int(validation.index[-1]))


def _points(group: Group, run: Run, look: Style, options: Options) -> list[Line]:
    training, validation = smooth(run.column(TRAIN), options.smoothing), run.column(VALIDATION)
    table = pd.concat([training, validation], axis=1).dropna().to_numpy()
    # the first fifth falls too steeply for a running mean
    table = table[len(table) // 5 :]
    if not len(table):
        return []
    return [
        Line(
            table[:, 0],
            table[:, 1],
            group.name,
            look.colour,
            look.dash,
            points=True,
            keys=look.keys,
        )
    ]
