"""Every run of a sweep; the best λ with an interval; one change from the best; each λ at its own η; loss over η × λ.

    python -m analysis sweep configs/sweeps/small_wd_precision.json --out runs/sweep

The best λ is the minimum of a parabola through the losses of λ > 0 in log λ; its interval is Student's t of the seeds' own
minima (analysis/vertex.py). λ = 0 has no logarithm and stands apart. All runs are judged by one loss, the validation over the
whole split at the end where all have it (analysis/endpoint.py).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.arms import alone, are_several
from analysis.between_settings import between_settings, gains_by_setting
from analysis.claims import Lost, survival
from analysis.command import Options, Result
from analysis.compare import TRAIN, VALIDATION, WHOLE, divergence, has_diverged, twins, unlike_kernels
from analysis.endpoint import Endpoint, endpoint_of
from analysis.figures import BARS_DRAWN, DASHES, TOLD_APART, Figure, Line, Panel, bar
from analysis.landscape import heat_maps
from analysis.one_change import by_rule, one_change
from analysis.own_rate import at_own_rates
from analysis.pairing import Group, by_rest, group_runs, missing_baselines
from analysis.published_levels import notes_on_levels, published_points, settings_under
from analysis.runs import LAMBDA, RATE, Run, field_name, shown
from analysis.seeds import disagreements
from analysis.settings_figure import settings_figure
from analysis.settled import e_folds_of, notes_on_e_folds
from analysis.statistics import LEAST_SEEDS, final, seed_count
from analysis.tuning import rule_by_rule
from analysis.vertex import best_decay


def analyse(runs: list[Run], options: Options) -> Result:
    groups, notes = group_runs(runs, options.by)
    # a branch or a matched run has no λ of its own over a whole run
    whole = alone(runs)
    trunks = group_runs(whole, options.by)[0] if whole else []
    notes += unlike_kernels(twins(trunks)) + notes_on_e_folds(runs)
    # one kind of loss for all: others are of other tokens, and differ by more than λ does
    endpoint = endpoint_of(trunks)
    notes.append(endpoint.note)
    # every run is in the table, also those that no figure shows
    table = pd.DataFrame([_row(group, run) for group in groups for run in group.runs])
    cautions = disagreements(trunks)
    findings, lines, fits = list(cautions), [], []
    families = by_rest(trunks, (LAMBDA,))
    # others print losses of validation: beside training losses they would say another thing
    printed = settings_under(whole) if endpoint.column in (VALIDATION, WHOLE) else []
    decays = sorted({group.decay for group in trunks} | {row.weight_decay for one in printed for row in one.case.rows})
    positive = [decay for decay in decays if decay > 0]
    for i, (rest, members) in enumerate(families.items()):
        lines += _lines(rest, members, i, endpoint, positive)
        sentence, fit = _best(rest, members, endpoint)
        findings += sentence
        fits += fit
    several = are_several(whole)
    changed, one_by_one = by_rule(trunks, endpoint) if several else one_change(trunks, endpoint)
    # of λ alone the sentence above has said it
    findings += changed if len(families) > 1 else []
    said, pilot = rule_by_rule(whole, endpoint, options.pilot_from) if several else ([], {})
    findings += said
    told, rates, claims = at_own_rates(by_rest(trunks, (LAMBDA, RATE)), endpoint, options.of_interest)
    # under another rule or algorithm λ is another thing, and no pair of gains is of one decay
    by_setting = {} if several else by_rest(trunks, (LAMBDA, RATE))
    gains = gains_by_setting(by_setting, endpoint, options.pilot_from)
    across = between_settings(gains, endpoint, options.of_interest)
    findings += told + [claim.sentence for claim in across] + missing_baselines(trunks)
    figures = []
    if any(len(members) > 1 for members in families.values()):
        ticks = {place_of(decay, positive): f"{decay:g}" for decay in decays}
        lines += published_points(printed, lambda decay: place_of(decay, positive))
        notes += notes_on_levels(whole) if printed else []
        panel = Panel("weight decay λ", f"{endpoint.words} (nats)", lines, xlog=True, ticks=ticks)
        figures.append(Figure("decay", f"Loss at the end of the runs against λ. {BARS_DRAWN}", [panel]))
    figures += [*settings_figure(gains, endpoint), *heat_maps(trunks, endpoint)]
    tables = {
        "Runs": table,
        "Best λ": pd.DataFrame(fits),
        "One change from the lowest": one_by_one,
        "Each decay at its own best η": pd.DataFrame(rates),
        "The same λ between settings": pd.DataFrame([claim.row() for claim in across]),
        **pilot,
    }
    return Result("sweep", "Sweep", findings, figures, tables, notes, claims + across, cautions)


def _row(group: Group, run: Run) -> dict[str, object]:
    told = {field: shown(value) for field, value in group.fields.items()}
    row: dict[str, object] = {field_name(field): told.pop(field) for field in (LAMBDA, RATE) if field in told}
    row["seeds"] = run.seeds
    # losses come before a run's state and its long name: of a wide table only the first columns are seen
    validation, folds = run.column(VALIDATION), e_folds_of(run)
    row["training loss"] = round(final(run.column(TRAIN)), 4)
    row["validation loss"] = round(float(validation.iloc[-1]), 4) if len(validation) else None
    # a column only where there is something in it
    if len(whole := run.column(WHOLE)):
        row["final validation loss"] = round(float(whole.iloc[-1]), 4)
    row["Σηλ"] = round(folds, 4) if folds is not None else None
    row |= {field_name(field): value for field, value in told.items()}
    row |= {"state": run.state, "step": run.last_step, "steps": run.fields.get("schedule.steps")}
    row["diverged at"] = divergence(run)
    return row | {"reason": run.status.get("reason", ""), "run": run.path.name}


def _lines(rest: str, members: list[Group], index: int, endpoint: Endpoint, positive: list[float]) -> list[Line]:
    values = [(place_of(g.decay, positive), bar(list(endpoint.seed_losses(g).values()))) for g in members]
    # a λ of which no run has ended has no point
    values = [(place, value) for place, value in values if value.n]
    if not values or not positive:
        return []
    x, y, low, high = (np.array(c, float) for c in zip(*[(p, v.mean, v.low, v.high) for p, v in values], strict=True))
    # one seed at any λ, and no interval is drawn
    bars = (low, high) if np.isfinite(low).all() else (None, None)
    colour, dash = TOLD_APART[index % len(TOLD_APART)], list(DASHES)[index % len(DASHES)]
    keys = {"precision": members[0].precision}
    return [
        Line(
            x,
            y,
            rest or "mean over seeds",
            colour,
            dash,
            low=bars[0],
            high=bars[1],
            points=True,
            aside=1.04**index,
            keys=keys,
        )
    ]


def place_of(decay: float, positive: list[float]) -> float:
    """Where λ stands on a logarithmic axis. λ = 0 stands left of all others."""
    return decay or min(positive, default=1.0) / 4


def _best(rest: str, members: list[Group], endpoint: Endpoint) -> tuple[list[str], list[dict[str, object]]]:
    losses, cells = {g.decay: endpoint.seed_losses(g) for g in members}, {g.decay: g for g in members}
    table = pd.DataFrame({decay: pd.Series(row) for decay, row in losses.items() if row})
    # seeds that every λ has: else a lucky seed would choose the λ
    shared = table.dropna()
    if table.shape[1] < 2 or shared.empty:
        return [], []
    lowest = shared.mean().idxmin()
    # the lowest of a few means is a fact; that it would be again is a claim
    if len(shared) < LEAST_SEEDS:
        claim = " (no claim)"
    else:
        seeds = set(shared.index)
        best = cells[float(str(lowest))]
        gaps = {
            d: endpoint.difference(cell, best, seeds) for d, cell in cells.items() if d in shared and cell is not best
        }
        alike = [f"{decay:g}" for decay, gap in gaps.items() if not gap.low > 0]
        claim = f", and of λ = {', '.join(alike)} it cannot be told that they are higher" if alike else ""
    sentence = (
        f"{f'{rest}: over' if rest else 'Over'} the {seed_count(len(shared))} that every λ has, the lowest mean "
        f"{endpoint.words} is {shared[lowest].mean():.4f} at λ = {lowest:g}{claim}"
    )
    # a seed that diverged at one λ is left out at all of them
    gone = survival(
        [Lost(f"λ = {group.decay:g}", sum(map(has_diverged, group.runs)), len(group.runs)) for group in members]
    )
    sentence += f" ({gone})" if gone else ""
    fit = best_decay(table, members[0].runs[0].rule)
    if fit is None:
        return [sentence + "; a parabola needs three λ above zero."], []
    row: dict[str, object] = {"runs": rest or "–", "decay": float(f"{fit.decay:.4g}"), "seeds": fit.seeds}
    row |= {
        "low": float(f"{fit.low:.4g}"),
        "high": float(f"{fit.high:.4g}"),
        "at an end": fit.at_end,
        "no interval": fit.why,
    }
    row |= {"condition": gone} if gone else {}
    return [f"{sentence}; the parabola's minimum is at λ = {fit.text()}."], [row]
