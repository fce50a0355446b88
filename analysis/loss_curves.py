"""Training and validation loss over seeds; differences to the smallest λ; where the curves cross.

    python -m analysis loss_curves 'runs/quickstart-*' --out runs/curves

Differences are paired: a run minus its twin of the smallest λ (of the first group, where λ does not vary) with the same
seeds, which starts from the same weights and reads the same windows in every step, so that the noise they share cancels.
They are judged at the end, and in mid-run at the first value from 45 % of the run on, a place declared beforehand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.claims import Claim, corrected, difference_claim
from analysis.command import Options, Result
from analysis.compare import (
    TRAIN,
    VALIDATION,
    WHOLE,
    common_step,
    differences,
    divergence,
    lost,
    one_a_seed,
    over,
    paired_final,
    paired_midrun,
    reached,
    same_windows,
    sound,
)
from analysis.figures import SEEDS_DRAWN, Figure, Line, Panel, Style, after_the_start, seeds_together
from analysis.grouped import diverged_lines, grouped, trunks_of
from analysis.pairing import Group, baseline_of, by_seed, missing_baselines
from analysis.published import notes_on, published_lines
from analysis.published_levels import notes_on_levels, published_levels
from analysis.runs import LAMBDA, Run, nats
from analysis.seeds import disagreements
from analysis.statistics import crossing_interval, final, interval, smooth
from analysis.worth import worth_of

MID, BELOW = " in mid-run", "Below zero from "  # of a claim's endpoint, and before a crossing


def analyse(runs: list[Run], options: Options) -> Result:
    trunks = trunks_of(runs)
    begun = grouped(trunks, options)
    groups, looks, notes = begun.groups, begun.looks, begun.notes
    if len(trunks) < len(runs):
        notes.append(f"{len(runs) - len(trunks)} branches are left out; `python -m analysis bias_variance` shows them")
    # P1's points are of its training loss: under validation they would say another thing. Others print the end's validation
    published, levels = published_lines(trunks, options), published_levels(trunks, options)
    notes += notes_on(trunks) + notes_on_levels(trunks)
    panels = []
    for column, name, extra in ((TRAIN, "training", published), (VALIDATION, "validation", levels)):
        lines = _curves(groups, column, looks, options) + extra
        panels.append(Panel(options.xlabel, f"{name} loss ({nats(trunks)})", lines, limits=after_the_start(lines)))
    caption = f"Training loss (running mean) and validation loss. {SEEDS_DRAWN}"
    losses = Figure("loss", caption, panels)
    figures, rows, cautions = [losses], [], disagreements(groups)
    # the baseline has a row in the table, and no difference
    compared = [(group, baseline_of(group, groups)) for group in groups]
    if any(group is not base for group, base in compared):
        figures.append(_differences(compared, looks, options))
    # Holm's correction is over all groups: what holds of one alone may not hold of the largest of many
    told_of = [_claims(group, base, options, notes) for group, base in compared if group is not base]
    # a λ that has no pair of runs left was to be tested too
    absent = sum(not any(claim.primary for claim in told) for told in told_of)
    claims = corrected([claim for told in told_of for claim in told], absent)
    findings = list(cautions)
    for group, base in compared:
        told = [claim for claim in claims if claim.name == _name(group, base)]
        rows.append(_row(group) | _row_of(told))
        findings += _left_out(group, base, told) + [claim.sentence for claim in told]
    # a group whose own λ = 0 was not run is compared with nothing, or with another λ
    findings += missing_baselines(groups)
    tables = {"Losses": pd.DataFrame(rows)}
    return Result("loss_curves", "Loss curves", findings, figures, tables, notes, claims, cautions)


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


def _name(group: Group, base: Group) -> str:
    return f"{group.name} minus {base.name}"


def _row(group: Group) -> dict[str, object]:
    kept = sound(group)
    upto = common_step([run.last_step for run in kept])
    far = [run for run in kept if run.last_step >= upto]
    row: dict[str, object] = {"run": group.name, "seeds": len({run.seeds for run in far}), "step": upto}
    means = by_seed([(run, final(run.column(TRAIN), upto)) for run in far])
    row["training loss"] = round(interval(means.values()).mean, 4)
    ends = [(run, v.iloc[-1]) for run in far if len(v := run.column(VALIDATION).loc[1:upto])]
    row["validation loss"] = round(interval(by_seed(ends).values()).mean, 4)
    # the endpoint of the differences, where the runs have it: a mean of other windows than the column before
    whole = [(run, v.iloc[-1]) for run in far if len(v := run.column(WHOLE).loc[upto:upto])]
    if whole and len(whole) == len(far) and same_windows(far, WHOLE):
        row[f"validation loss {over(far[0], WHOLE)}"] = round(interval(by_seed(whole).values()).mean, 4)
    if len(kept) < len(group.runs):
        row["diverged"] = len(group.runs) - len(kept)
    return row


def _row_of(claims: list[Claim]) -> dict[str, object]:
    """The claims about a group as columns: training before validation, the end and its crossing before mid-run."""
    row: dict[str, object] = {}
    for name in ("training", "validation"):
        mine = [claim for claim in claims if claim.endpoint.startswith(name)]
        for claim in sorted(mine, key=lambda claim: MID in claim.endpoint):
            if MID in claim.endpoint:
                row[f"{name} difference{MID}"] = claim.interval.text()
                continue
            row[f"{name} difference"] = claim.interval.text()
            if claim.worth is not None:
                row[f"{name} difference in updates"] = claim.worth.short
            if claim.after:
                row[f"{name} crossing"] = claim.after.removeprefix(BELOW).removesuffix(" on.")
    # a column only where runs diverged: of all others there is no condition
    if conditions := list(dict.fromkeys(claim.conditions for claim in claims if claim.conditions)):
        row["condition"] = "; ".join(conditions)
    return row


def _left_out(group: Group, base: Group, told: list[Claim]) -> list[str]:
    """What is not among the claims, in sentences: runs that diverged, losses without a pair."""
    findings = []
    # divergence is a result: it is told, and not averaged away
    kept = sound(group)
    if gone := [run for run in group.runs if run not in kept]:
        steps = ", ".join(str(divergence(run)) for run in gone)
        findings.append(
            f"{group.name}: {len(gone)} of {len(group.runs)} runs diverged (step {steps}); not in its means."
        )
    for name in ("training", "validation"):
        if group is not base and not any(claim.endpoint.startswith(name) for claim in told):
            findings.append(
                f"{group.name}: no {name} losses to pair with those of {base.name} (same seeds, not diverged)."
            )
    return findings


def _claims(group: Group, base: Group, options: Options, notes: list[str]) -> list[Claim]:
    """Of training and validation loss: mid-run, and the end with the place of the crossing, if the end is decided. What some of
    the runs have and not all, and which is not used therefore, is noted."""
    claims, name, gone = [], _name(group, base), lost(group, base)
    # λ helps or harms; of other fields a loss is lower or higher
    words = ("helps", "harms") if LAMBDA in group.fields else ("lower", "higher")
    for column, kind in ((TRAIN, "training"), (VALIDATION, "validation")):
        paired = paired_final(group, base, column)
        if not paired.interval.n:
            continue
        if (middle := paired_midrun(group, base, column)) is not None:
            place = f"{kind} loss{MID}, step {middle.place}"
            words_of_loss = ("lower", "higher")
            claims.append(
                difference_claim(
                    name,
                    place,
                    middle.interval,
                    words_of_loss,
                    refused=middle.refused,
                    lost=gone,
                    of_interest=options.of_interest,
                )
            )
        end = difference_claim(
            name,
            f"{kind} loss at step {paired.place}" + (f", {paired.over}" if paired.over else ""),
            paired.interval,
            words,
            primary=column == VALIDATION,
            refused=paired.refused,
            lost=gone,
            of_interest=options.of_interest,
        )
        if paired.unused:
            notes.append(f"{name}: {paired.unused}, so its end is compared by {VALIDATION}, which all have")
        # A crossing is a claim about the end: without the end's there is none.
        curves = [smooth(curve, options.smoothing) for curve in paired.curves] if column == TRAIN else paired.curves
        if end.decided and end.verdict == words[0] and (crossing := crossing_interval(curves)) is not None:
            end = replace(end, after=f"{BELOW}{crossing.text()} on.")
        # what a difference of nats is worth to a reader who thinks in updates
        claims.append(replace(end, worth=worth_of(paired, base, column, options.smoothing)))
    return claims
