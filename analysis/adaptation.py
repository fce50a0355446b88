"""Whether the λ that was best before going on with other data is the best after it.

    python -m analysis adaptation configs/sweeps/small_adaptation.json

Trunks of several λ have branches that go on with other data (branch.data other). Before: a trunk's validation loss on its own data,
at the step where its branch starts. After: the branch's validation loss on the other data, at its end. 2602.11137 finds that more
decay makes a better start at an equal or higher loss before. The best λ before is chosen by the seeds that are compared, so every
comparison with it is exploratory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from analysis.best_decay import place_of
from analysis.claims import Claim, difference_claim, table_of_claims
from analysis.command import Options, Result
from analysis.compare import VALIDATION, is_ended
from analysis.figures import BARS_DRAWN, Figure, Line, Panel, bar, styles
from analysis.pairing import Group, by_seed, group_runs
from analysis.runs import LAMBDA, SEEDS, STARTS, Run, differing_fields, find_run
from analysis.statistics import LEAST_SEEDS, Interval, interval, rank_correlation
from configs.errors import InputError

WORDS = LOWER, HIGHER = "lower", "higher"
# Where a branch starts, and what has words of its own.
IGNORED = ("branch.origin", "branch.digest", "branch.norms", SEEDS, STARTS, LAMBDA, "data.")
PHASES = {"before": "before, on the trunk's data", "after": "after, on the other data"}


@dataclass(frozen=True)
class Adapted:
    """Trunks of one λ, and the losses of each seed before and after one kind of branch."""

    group: Group
    before: dict[str, float]
    after: dict[str, float]


def is_adapted(run: Run) -> bool:
    """Whether a run went on with other data than its trunk's."""
    return run.origin is not None and run.fields.get("branch.data") == "other"


def analyse(runs: list[Run], options: Options) -> Result:
    """InputError where no branch on other data is among the runs with its trunk."""
    branches = [(run, trunk) for run in runs if is_adapted(run) and (trunk := _trunk(run, runs)) is not None]
    if not branches:
        raise InputError(
            "no branch on other data is among these runs with its trunk; a sweep's stage makes some: "
            '"set": {"branch.data.path": DIR} (configs/sweeps/small_adaptation.json)'
        )
    trunks = list({id(trunk): trunk for _, trunk in branches}.values())
    # trunks make the groups: a branch's own λ is another question
    names = options.by or [name for name in differing_fields(trunks) if not name.startswith(SEEDS)]
    groups, notes = group_runs(trunks, names)
    findings, panels, tables, claims = [], [], [], []
    for title, members in _settings(branches).items():
        cells = [_adapted(group, members, notes) for group in groups]
        # a λ of which no seed has both ends is in neither order
        cells = [cell for cell in cells if cell.before.keys() & cell.after.keys()]
        if not cells:
            continue
        best = {phase: min(cells, key=partial(_mean, phase=phase)) for phase in PHASES}
        made = [_claim(title, cell, best["before"], options) for cell in cells if cell is not best["before"]]
        findings += [_sum(title, cells, best, made), *(claim.sentence for claim in made)]
        tables += [_row(title, cell, best["before"]) for cell in cells]
        panels += _panels(title, cells)
        claims += made
    if not tables:
        raise InputError("no branch on other data has ended with a validation loss, and its trunk one at that step")
    figure = Figure(
        "adaptation", f"Validation loss against λ, before going on with other data and after. {BARS_DRAWN}", panels
    )
    shown = {
        "Before and after": pd.DataFrame(tables),
        "After, minus the λ that was best before": table_of_claims(claims),
    }
    return Result("adaptation", "Other data after λ", findings, [figure], shown, notes, claims)


def _trunk(run: Run, runs: list[Run]) -> Run | None:
    return find_run(run.origin[0], runs) if run.origin is not None else None


def _settings(branches: Sequence[tuple[Run, Run]]) -> dict[str, list[tuple[Run, Run]]]:
    """Branches by what they differ in beside the trunk's λ and seeds: the step they start from, the data, η, their own λ."""
    every = [run for run, _ in branches]
    names = [name for name in differing_fields(every) if not name.startswith(IGNORED)]
    datas = {run.fields.get("data.digest") or run.fields.get("data.path") for run in every}
    steps = {run.origin[1] for run in every if run.origin}
    # A stage sets one λ, or keeps the trunk's. A trunk that has the λ that is set belongs to both.
    set_to = {run.decay for run, trunk in branches if run.decay != trunk.decay}
    is_kept = not set_to or any(run.decay == trunk.decay and run.decay not in set_to for run, trunk in branches)
    settings: dict[str, list[tuple[Run, Run]]] = {}
    for run, trunk in branches:
        own = [f"λ {run.decay:g} after"] if run.decay in set_to else []
        own += ["the trunk's λ after"] if is_kept and run.decay == trunk.decay else []
        parts = [f"{name.rpartition('.')[2]} {run.fields.get(name)}" for name in names]
        parts += [f"on {str(run.fields.get('data.path')).rpartition('/')[2]}"] if len(datas) > 1 else []
        parts += [f"from step {run.origin[1]:,}"] if len(steps) > 1 and run.origin else []
        for words in own:
            several = len(set_to) + is_kept > 1
            settings.setdefault(", ".join([*parts, words] if several else parts), []).append((run, trunk))
    return dict(sorted(settings.items()))


def _adapted(group: Group, branches: Sequence[tuple[Run, Run]], notes: list[str]) -> Adapted:
    before, after = [], []
    for run, trunk in branches:
        if trunk not in group.runs:
            continue
        # the very weights that the branch starts from, or none
        losses, ends = trunk.column(VALIDATION), run.column(VALIDATION)
        step = run.origin[1] if run.origin else 0
        if step not in losses.index or ends.empty or not is_ended(run):
            notes.append(
                f"{run.path.name} or its trunk has no validation loss at step {step} and at the branch's end: left out"
            )
            continue
        before.append((trunk, float(losses[step])))
        after.append((trunk, float(ends.iloc[-1])))
    return Adapted(group, by_seed(before), by_seed(after))


def _mean(cell: Adapted, phase: str) -> float:
    return float(np.mean(list(getattr(cell, phase).values())))


def _change(cell: Adapted, base: Adapted, phase: str) -> Interval:
    """Of the seeds that both have."""
    ours, theirs = getattr(cell, phase), getattr(base, phase)
    return interval(ours[seed] - theirs[seed] for seed in ours if seed in theirs)


def _claim(title: str, cell: Adapted, base: Adapted, options: Options) -> Claim:
    return difference_claim(
        f"{title + ': ' if title else ''}{cell.group.name} minus {base.group.name}",
        "validation loss after going on with other data",
        _change(cell, base, "after"),
        WORDS,
        condition="the λ that was best before is chosen by these seeds",
        of_interest=options.of_interest,
    )


def _sum(title: str, cells: Sequence[Adapted], best: dict[str, Adapted], claims: Sequence[Claim]) -> str:
    """Whether the best before stays the best, by the declared rule, and how the two orders agree."""
    start = f"{title}: " if title else ""
    lower = [claim.name.partition(" minus ")[0].rpartition(": ")[2] for claim in claims if claim.verdict == LOWER]
    behind = [claim for claim in claims if claim.verdict == HIGHER]
    first = best["before"].group.name
    # one that is surely lower is enough against it; for it all must be surely higher
    if lower:
        verdict = f"{first} is lowest before, and {', '.join(lower)} lower after: the best λ does not stay the best"
    elif claims and len(behind) == len(claims):
        verdict = f"{first} is lowest before and after: the best λ stays the best"
    else:
        verdict = f"{first} is lowest before, {best['after'].group.name} has the lowest mean after: undecided"
    # of seeds that lack a λ the order would be one of fewer
    seeds = [seed for seed in cells[0].before if all(seed in cell.before and seed in cell.after for cell in cells)]
    if len(cells) > LEAST_SEEDS and len(seeds) >= LEAST_SEEDS:
        rho = rank_correlation(([cell.before[s] for cell in cells], [cell.after[s] for cell in cells]) for s in seeds)
        verdict += f"; Spearman's ρ of the two orders over {len(cells)} λ: {rho.text()}"
    return f"{start}{verdict} (exploratory)."


def _row(title: str, cell: Adapted, base: Adapted) -> dict[str, object]:
    return {
        "setting": title,
        "trunks": cell.group.name,
        "seeds": len(cell.after),
        "before": interval(cell.before.values()).text(),
        "after": interval(cell.after.values()).text(),
        "before, minus the best": "" if cell is base else _change(cell, base, "before").text(),
        "after, minus it": "" if cell is base else _change(cell, base, "after").text(),
    }


def _panels(title: str, cells: Sequence[Adapted]) -> list[Panel]:
    """A panel before and one after; λ = 0 has a place of its own, left of the others."""
    decays = sorted({cell.group.decay for cell in cells})
    places = {decay: place_of(decay, [d for d in decays if d > 0]) for decay in decays}
    ticks = {place: f"{decay:g}" for decay, place in places.items()}
    looks, panels = styles([cell.group for cell in cells]), []
    for phase, words in PHASES.items():
        lines = []
        # a point a λ, and no line between: nothing was measured there
        for cell in cells:
            value, look = bar(list(getattr(cell, phase).values())), looks[cell.group.name]
            x, y, low, high = (np.array([v]) for v in (places[cell.group.decay], value.mean, value.low, value.high))
            has_bar = bool(np.isfinite(low).all())
            one = Line(x, y, cell.group.name, look.colour, look.dash, points=True, keys=look.keys)
            lines.append(replace(one, low=low, high=high) if has_bar else one)
        panels.append(
            Panel(
                "weight decay λ of the trunk", f"validation loss (nats) {words}", lines, title, xlog=True, ticks=ticks
            )
        )
    return panels
