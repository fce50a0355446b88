"""float32 against the other precisions at each λ: parity of the losses, divergence, spikes, norms.

    python -m analysis precision configs/sweeps/small_wd_precision.json --out runs/precision

That a precision ends where float32 ends is a claim of its own: the same within --margin (0.01 nats), differs, or undecided.
A run has diverged from the first step on from which its smoothed loss (the median of 64 updates) stays a margin above its running
minimum to the end: numerics.divergence_margin, or half a nat. A run that ended `diverged` has as well. How many runs diverged is
compared with float32 by Fisher's exact test, two-sided, setting by setting: runs of other settings with the same seeds are no
further samples.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analysis.claims import Claim, equality_claim
from analysis.command import Options, Result
from analysis.compare import (
    FACTORS,
    TRAIN,
    VALIDATION,
    divergence,
    every_loss,
    has_diverged,
    is_ended,
    lost,
    paired_final,
    taken,
    twins,
)
from analysis.figures import Figure, Line, Panel, Style, after_the_start
from analysis.grouped import Read, diverged_lines, grouped, mean_line, trunks_of
from analysis.hypotheses import LEVEL, count_p_value, least_count_p_value
from analysis.pairing import Group, pairs
from analysis.runs import LAMBDA, PRECISION, RATE, Run, nats
from analysis.statistics import smooth
from analysis.worth import worth_of


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
    counts = [row for group in groups if (row := _counts(group, groups)) is not None]
    findings += [_count_sentence(row) for row in counts if row["diverged"] or row["diverged in float32"]]
    claims: list[Claim] = []
    gaps: list[dict[str, object]] = []
    for group in groups:
        # float32 itself, or a group that has no float32 runs, has no row
        if (base := _float32(group, groups)) is not None:
            told, compared = _gaps(group, base, options)
            claims, gaps = claims + told, gaps + compared
    findings += [claim.sentence for claim in claims]
    # every panel: means of sound runs, and each diverged run by itself
    losses = _lines(groups, looks, options, _losses)
    panels = [
        Panel(options.xlabel, f"training loss ({nats(runs)})", losses, limits=after_the_start(losses)),
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
    tables = {
        "Loss gap to float32": pd.DataFrame(gaps),
        "Diverged runs against float32": pd.DataFrame(counts),
        "Runs": cells.drop(columns="group"),
    }
    return Result("precision", "Precision", findings, [figure], tables, notes, claims)


def _cell(group: Group, run: Run, options: Options) -> dict[str, object]:
    row: dict[str, object] = {
        "group": group.name,
        "precision": group.precision,
        "η": run.fields.get(RATE),
    }
    row |= {"λ": run.fields.get(LAMBDA), "seeds": run.seeds, "state": run.state, "step": run.last_step}
    # a precision rounds as its kernels do: two more factors of a row
    row |= {key: " and ".join(taken(run, key)) or None for key in FACTORS}
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


def _gaps(group: Group, base: Group, options: Options) -> tuple[list[Claim], list[dict[str, object]]]:
    """Losses at the end, training and validation: the claim of parity of each, and a row with the difference's own verdict."""
    claims: list[Claim] = []
    rows: list[dict[str, object]] = []
    for column, kind in ((TRAIN, "training"), (VALIDATION, "validation")):
        paired = paired_final(group, base, column)
        row: dict[str, object] = {"run": group.name, "loss": kind, "step": paired.place}
        # all diverged, or no seeds in common: a row that says so, and no number
        if not paired.interval.n:
            rows.append(row | {"gap": "–", "verdict": "no pair of sound runs with the same seeds"})
            continue
        name, place = f"{group.name} minus float32", f"{kind} loss at step {paired.place}"
        claim = equality_claim(
            name, place, paired.interval, options.margin, refused=paired.refused, lost=lost(group, base)
        )
        claims.append(replace(claim, worth=worth_of(paired, base, column, options.smoothing)))
        row |= {"gap": paired.interval.text(), "verdict": paired.verdict("lower", "higher")}
        # "undecided" of the difference is never parity: that has an interval of its own
        row |= {"90 % interval": claims[-1].inside, "parity": claims[-1].verdict}
        if (worth := claims[-1].worth) is not None:
            row["in updates of float32"] = worth.short
        rows.append(row | ({"condition": claims[-1].conditions} if claims[-1].conditions else {}))
    return claims, rows


def _outcomes(group: Group) -> dict[str, bool]:
    """Seeds → whether a run of theirs diverged, of the runs that are over: a run still on its way has not survived yet."""
    outcomes: dict[str, bool] = {}
    for run in group.runs:
        gone = has_diverged(run)
        # copies of a run are one sample
        if gone or is_ended(run):
            outcomes[run.seeds] = outcomes.get(run.seeds, False) or gone
    return outcomes


def _counts(group: Group, groups: list[Group]) -> dict[str, object] | None:
    """Diverged runs beside those of float32 at the same setting, with Fisher's p; None where there is nothing to compare."""
    base = _float32(group, groups)
    if base is None or not (mine := _outcomes(group)) or not (theirs := _outcomes(base)):
        return None
    row: dict[str, object] = {"run": group.name, "diverged": sum(mine.values()), "runs": len(mine)}
    row |= {"diverged in float32": sum(theirs.values()), "runs in float32": len(theirs)}
    p = count_p_value(sum(mine.values()), len(mine), sum(theirs.values()), len(theirs))
    # what no outcome could show is said before what this one shows
    if least_count_p_value(len(mine), len(theirs)) >= LEVEL:
        verdict = f"cannot reach {LEVEL:g} with {len(mine)} and {len(theirs)} runs"
    elif p < LEVEL:
        verdict = "more often" if sum(mine.values()) / len(mine) > sum(theirs.values()) / len(theirs) else "less often"
    else:
        verdict = "undecided"
    return row | {"p (Fisher)": float(f"{p:.3g}"), "verdict": verdict}


def _count_sentence(row: dict[str, object]) -> str:
    return (
        f"{row['run']}: {row['diverged']} of {row['runs']} runs diverged, {row['diverged in float32']} of "
        f"{row['runs in float32']} in float32: Fisher's exact p = {row['p (Fisher)']:.2g}: {row['verdict']} (exploratory)."
    )


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
