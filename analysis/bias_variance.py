"""What a checkpoint's loss is made of: branches at a tiny η leave its bias alone.

    python -m analysis bias_variance runs/small_tiny_lr --out runs/bias_variance

A branch at a tiny learning rate removes the variance of its checkpoint's loss and leaves the bias (P1, Fig. 6). Of each
checkpoint with a branch: its loss, the loss at the branch's end, the variance part (their difference), the bias part
(the branch's end above that of the best checkpoint of all, seed by seed), and the averages of the weights that were kept,
as branches that cost nothing (analysis/cheap_branch.py). Losses are validation losses: fixed tokens, and in one
pass the same as training losses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import pandas as pd

from analysis.best_decay import place_of
from analysis.branches import condition_of, families, notes_on_rates
from analysis.cheap_branch import averages, averages_in, judged, removed, same_as_branches, updates_of
from analysis.claims import Claim, difference_claim, table_of_claims
from analysis.command import Options, Result
from analysis.compare import VALIDATION, has_diverged, is_ended, lost, one_a_seed, reached, sound, twins
from analysis.effective_lr import effective_lr
from analysis.figures import BARS_DRAWN, Figure, Line, Panel, Style, bar, seeds_together, shade
from analysis.grouped import grouped
from analysis.pairing import Group, baseline_of
from analysis.published import comparable, curves, published_line
from analysis.runs import LAMBDA, Run, nats
from analysis.statistics import Interval, interval
from configs.errors import InputError

BESIDE = 1.008  # of a group's points beside the one's before: less than a hundredth of the axis
PARTS = {"loss": "loss", "branch": "branch end", "variance": "variance part", "bias": "bias part"}


def analyse(runs: list[Run], options: Options) -> Result:
    trunks, branches, notes = families(runs)
    if not branches:
        raise InputError(
            "no branch of one of these runs is among them; make some: python train.py --config CONFIG --branch RUN@STEP "
            "--set optim.lr=1e-5 …, or a sweep with a stage, as configs/sweeps/small_tiny_lr.json"
        )
    # a branch is compared with its own trunk as well as trunks with one another
    own = [(trunk, branch) for (path, _), branch in branches.items() for trunk in trunks if str(trunk.path) == path]
    begun = grouped(trunks, options, lambda groups: [*twins(groups), *own])
    groups, looks = begun.groups, begun.looks
    table = decompose(groups, branches)
    if table.empty:
        raise InputError("no checkpoint with a branch has a validation loss at its step and at its branch's end")
    summary = pd.DataFrame([_row(key, rows) for key, rows in table.groupby(["group", "step"], sort=False)])
    figures = [_curves(groups, table, looks, options), _parts(groups, table, looks, options)]
    figures += [_against_rate(table, looks), _against_decay(table)]
    claims = _claims(groups, table, branches, options.of_interest) + same_as_branches(
        groups, table, partial(_lost_by, branches), condition_of(branches), options.margin
    )
    # of many comparisons those that are decided are told in sentences, all of them in a table
    findings = [claim.sentence for claim in claims if claim.decided]
    if claims:
        findings.append(f"{len(findings)} of {len(claims)} comparisons of checkpoints decided (table: Verdicts).")
    findings += removed(table)
    notes += [
        *notes_on_rates(branches),
        f"bias parts stand above the lowest branch end, which is that of {_best(table)}",
    ]
    tables = {"Checkpoints": summary, "Verdicts": table_of_claims(claims)}
    return Result(
        "bias_variance", "Bias and variance of the loss", findings, figures, tables, notes + begun.notes, claims
    )


def decompose(groups: list[Group], branches: dict[tuple[str, int], Run]) -> pd.DataFrame:
    """One row a checkpoint and seed: group, λ, seeds, step, steps, loss, branch, variance, bias, effective_lr, and each average."""
    rows = []
    for group in groups:
        for trunk in sound(group):
            losses, rates = trunk.column(VALIDATION), effective_lr(trunk)
            for (path, step), branch in branches.items():
                ends = branch.column(VALIDATION)
                # only whole pairs: the trunk evaluated at this very step, the branch at its end
                if path != str(trunk.path) or step not in losses.index or not is_ended(branch) or ends.empty:
                    continue
                row = {"group": group.name, "λ": group.decay, "seeds": trunk.seeds, "step": step, "loss": losses[step]}
                row |= {"branch": ends.iloc[-1], "variance": losses[step] - ends.iloc[-1]}
                row |= {name: curve.get(step, np.nan) for name, curve in averages(trunk).items()}
                rows.append(row | {"effective_lr": rates.get(step, np.nan), "steps": trunk.fields["schedule.steps"]})
    table = pd.DataFrame(rows)
    if len(table):
        best_group, step = _lowest(table)
        # each seed against its own: what seeds differ by is no bias
        best = table[(table["group"] == best_group) & (table["step"] == step)].groupby("seeds")["branch"].mean()
        table["bias"] = table["branch"] - table["seeds"].map(best)
        table = table.sort_values("step", kind="stable")
    return table


def _lowest(table: pd.DataFrame) -> tuple[str, int]:
    """Group and step of the checkpoint whose branches end lowest."""
    # one that all seeds have: a cell of fewer would be low by luck
    cells = table.groupby(["group", "step"])["branch"].agg(["mean", "size"])
    group, step = cells[cells["size"] == cells["size"].max()]["mean"].idxmin()
    return str(group), int(step)


def _best(table: pd.DataFrame) -> str:
    group, step = _lowest(table)
    return f"{group} at step {step:,}"


def over_seeds(rows: pd.DataFrame, part: str) -> Interval:
    """One value a seed."""
    return interval(rows.groupby("seeds")[part].mean())


def _row(key: tuple[Hashable, ...], rows: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"run": key[0], "step": key[1], "seeds": rows["seeds"].nunique()}
    for part, title in (PARTS | {name: f"average, {updates_of(name)}" for name in averages_in(rows)}).items():
        value = over_seeds(rows, part)
        if value.n:
            row[title] = round(value.mean, 4)
        # an interval where something is estimated, and not for every column
        if np.isfinite(value.high) and part not in ("loss", "branch"):
            row[f"{title} ±"] = round(value.high - value.mean, 4)
    return row


def _curves(groups: list[Group], table: pd.DataFrame, looks: dict[str, Style], options: Options) -> Figure:
    lines: list[Line] = []
    for i, group in enumerate(groups):
        beside = BESIDE**i
        curves_of = reached(one_a_seed([(run, run.column(VALIDATION)) for run in sound(group)]))
        placed = [options.placed(run, curve) for run, curve in curves_of]
        each = [(run, curve) for (run, _), curve in zip(curves_of, placed, strict=True)]
        lines += seeds_together(placed, each, group.name, looks[group.name])
        rows = table[table["group"] == group.name]
        lines += _points(
            rows,
            "branch",
            f"{group.name}, branch end",
            looks[group.name],
            options.per_step(group.runs[0]),
            aside=beside,
        )
        cross = Style(looks[group.name].colour, "dashdot", looks[group.name].keys)
        for name in averages_in(rows):
            title = f"{group.name}, average over {updates_of(name)}"
            lines += _points(rows, name, title, cross, options.per_step(group.runs[0]), aside=beside)
        # only under runs of the paper's recipe
        published = curves("branches").get(group.runs[0].fields[LAMBDA]) if comparable(group.runs[0]) else None
        if published is not None:
            lines.append(published_line(published, group.decay, options, {}, ", branch end"))
    # the first tenth of a trunk falls by several nats, and would flatten what is looked at
    late = [one.y if one.points else one.y[len(one.y) // 10 :] for one in lines if len(one.y)]
    low, high = min(np.nanmin(y) for y in late), max(np.nanmax(y) for y in late)
    every = [run for group in groups for run in group.runs]
    panel = Panel(options.xlabel, f"validation loss ({nats(every)})", lines, limits=(float(low - 0.02), float(high)))
    return Figure(
        "branches",
        f"Trunks (lines) and where their tiny-learning-rate branches end, at the step they start from. {BARS_DRAWN}",
        [panel],
    )


def _points(
    rows: pd.DataFrame, part: str, name: str, look: Style, scale: float = 1, x: str = "step", aside: float = 1.0
) -> list[Line]:
    """Mean and interval over seeds, a point a step; `aside` as of Line, or bars of one step would hide each other."""
    points = [
        (
            rows[x][rows["step"] == step].mean() * scale,
            bar(list(rows[rows["step"] == step].groupby("seeds")[part].mean())),
        )
        for step in dict.fromkeys(rows["step"])
    ]
    points = [(place, value) for place, value in points if value.n]
    if not points:
        return []
    columns = [np.array([getattr(value, end) for _, value in points]) for end in ("mean", "low", "high")]
    places = np.array([place for place, _ in points], dtype=float)
    # one seed at any of the points, and no bar is drawn at all
    several = np.isfinite(columns[1]).all()
    low, high = (columns[1], columns[2]) if several else (None, None)
    keys = {**look.keys, "seed": "mean"}
    return [Line(places, columns[0], name, look.colour, look.dash, low, high, points=True, keys=keys, aside=aside)]


def _parts(groups: list[Group], table: pd.DataFrame, looks: dict[str, Style], options: Options) -> Figure:
    panels = []
    for part in ("variance", "bias"):
        lines: list[Line] = []
        for i, group in enumerate(groups):
            rows, look = table[table["group"] == group.name], looks[group.name]
            lines += _points(rows, part, group.name, look, options.per_step(group.runs[0]), aside=BESIDE**i)
        panels.append(Panel(options.xlabel, f"{PARTS[part]} of the loss (nats)", lines, zero=True))
    caption = (
        f"Variance part: loss minus branch end. Bias part: branch end above that of {_best(table)}, seed by seed. "
        + BARS_DRAWN
    )
    return Figure("parts", caption, panels)


def _against_rate(table: pd.DataFrame, looks: dict[str, Style]) -> Figure:
    panels = []
    for part in ("variance", "bias"):
        groups = table.dropna(subset=["effective_lr"]).groupby("group", sort=False)
        lines = [
            one for name, rows in groups for one in _points(rows, part, str(name), looks[str(name)], x="effective_lr")
        ]
        panels.append(
            Panel("effective LR η/‖w‖ at the checkpoint", f"{PARTS[part]} (nats)", lines, xlog=True, zero=True)
        )
    return Figure("parts_against_rate", "Both parts against the effective learning rate of the trunk.", panels)


def _against_decay(table: pd.DataFrame) -> Figure:
    """One line a checkpoint; λ = 0 at the left end."""
    decays, steps = sorted(set(table["λ"])), sorted(set(table["step"]))
    # λ = 0 has a place of its own, left of the others
    places = {decay: place_of(decay, [d for d in decays if d > 0]) for decay in decays}
    panels = []
    for part in ("variance", "bias"):
        rows = table.assign(place=table["λ"].map(places))
        lines = []
        for i, step in enumerate(steps):
            look = Style(shade(i, len(steps)), "solid", {})
            here = rows[rows["step"] == step]
            # one line a group: precisions are not joined
            for _, family in here.groupby("group", sort=False):
                lines += _points(family, part, f"step {step:,}", look, x="place", aside=1.04**i)
        ticks = {place: f"{decay:g}" for decay, place in places.items()}
        panels.append(Panel("weight decay λ", f"{PARTS[part]} (nats)", lines, xlog=True, zero=True, ticks=ticks))
    return Figure("parts_against_decay", "Both parts against λ, at every checkpoint with a branch.", panels)


def _paired(rows: pd.DataFrame, base: pd.DataFrame, step: int, part: str) -> Interval:
    # seed by seed, where both have the checkpoint
    ours, theirs = (t[t["step"] == step].groupby("seeds")[part].mean() for t in (rows, base))
    return interval(list((ours - theirs).dropna()))


def _lost_by(branches: dict[tuple[str, int], Run], step: int) -> Callable[[Run], bool]:
    """Whether a trunk, or its branch from this step, diverged: then the checkpoint is in no comparison."""

    def is_lost(trunk: Run) -> bool:
        branch = branches.get((str(trunk.path), step))
        return has_diverged(trunk) or (branch is not None and has_diverged(branch))

    return is_lost


def _claims(
    groups: list[Group], table: pd.DataFrame, branches: dict[tuple[str, int], Run], of_interest: float
) -> list[Claim]:
    """At the two `judged` checkpoints, against the smallest λ."""
    claims = []
    for group in groups:
        base = baseline_of(group, groups)
        rows, reference = (table[table["group"] == g.name] for g in (group, base))
        steps = sorted(set(rows["step"]) & set(reference["step"]))
        if group is base or not steps:
            continue
        # mid-run the order is the other one: both are told
        for step in judged(steps):
            gone = lost(group, base, _lost_by(branches, step))
            for part in ("loss", "branch", "variance"):
                if (value := _paired(rows, reference, step, part)).n:
                    name, endpoint = (
                        f"{group.name} minus {base.name}",
                        f"{PARTS[part]} at the checkpoint of step {step:,}",
                    )
                    words, under = ("lower", "higher"), condition_of(branches)
                    claims.append(
                        difference_claim(
                            name, endpoint, value, words, condition=under, lost=gone, of_interest=of_interest
                        )
                    )
    return claims
