"""What of the best λ stays when the run becomes longer: λ itself, ηλ, or Σ = λ·Ση.

    python -m analysis transfer docs/study/records/study_s24 docs/study/records/study_s48

Of each setting the λ at the lowest point of each seed's own parabola, with Student's t over seeds (analysis/vertex.py), and the
same as ηλ and as Σ. By the declared rule (docs/study/plan.md, claim 9) one of the three transfers if one value of it lies inside
the intervals of all settings. Beside it, exploratory: the power of the number of updates with which each of them moves.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.command import Options, Result
from analysis.compare import sound
from analysis.endpoint import Endpoint, endpoint_of
from analysis.figures import BARS_DRAWN, Figure, Line, Panel
from analysis.grouped import trunks_of
from analysis.levels import rate_of
from analysis.pairing import Group, by_rest, group_runs
from analysis.runs import LAMBDA, Run
from analysis.settled import e_folds_of
from analysis.statistics import Interval, interval
from analysis.vertex import Vertex, best_decay, seeds_own
from configs.errors import InputError

QUANTITIES = ("λ", "ηλ", "Σ")
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe and Ito's


@dataclass(frozen=True)
class Best:
    """The best λ of a setting. `scale`: of each quantity, what λ is multiplied by. `own`: seeds → λ."""

    setting: str
    steps: int
    tokens: float | None  # per parameter
    vertex: Vertex
    own: pd.Series
    scale: dict[str, float]

    def bounds(self, quantity: str) -> tuple[float, float]:
        return self.vertex.low * self.scale[quantity], self.vertex.high * self.scale[quantity]

    def text(self, quantity: str) -> str:
        low, high = self.bounds(quantity)
        return f"{self.vertex.decay * self.scale[quantity]:.3g} [{low:.3g}, {high:.3g}]"


def analyse(runs: list[Run], options: Options) -> Result:
    alone = [run for run in trunks_of(runs) if run.reference is None]
    groups, notes = group_runs(alone, options.by) if alone else ([], [])
    endpoint = endpoint_of(groups)
    notes.append(endpoint.note)
    found: list[Best] = []
    for rest, members in by_rest(groups, (LAMBDA,)).items():
        best = _best(rest, members, endpoint)
        if isinstance(best, Best):
            found.append(best)
        elif best:
            notes.append(f"{rest or 'all runs'}: {best}")
    # the shortest first: what is drawn is relative to it
    found.sort(key=lambda best: best.steps)
    # one length has nothing to transfer to
    if len({best.steps for best in found}) < 2:
        raise InputError(
            "what transfers is asked of two numbers of updates or more, each with three λ above zero and four seeds whose lowest "
            f"point lies inside; these runs have {len({best.steps for best in found})} such{_why(notes)}"
        )
    table = pd.DataFrame([_row(best) for best in found])
    laws = pd.DataFrame([_law(quantity, found) for quantity in QUANTITIES])
    findings = [_sentence(row) for row in laws.to_dict("records")]
    tables = {"The best at each setting": table, "What transfers": laws}
    return Result("transfer", "What of the best λ transfers", findings, [_figure(found)], tables, notes)


def _sentence(row: dict[Hashable, object]) -> str:
    inside = f": {row['inside all intervals']} lies inside all intervals" if row["inside all intervals"] else ""
    moves = f"It moves as the number of updates to the power {row['power of the updates']} (exploratory)."
    return f"{row['quantity']} {row['verdict']}{inside}. {moves}"


def _best(rest: str, members: list[Group], endpoint: Endpoint) -> Best | str:
    """Or why there is none; empty where nothing was searched."""
    losses = {group.decay: endpoint.seed_losses(group) for group in members}
    table = pd.DataFrame({decay: pd.Series(column) for decay, column in losses.items() if column})
    vertex = best_decay(table, members[0].runs[0].rule)
    if vertex is None:
        return ""
    # a place without an interval shares a value with everything
    if vertex.why:
        return f"no interval of the best λ, so not used: {vertex.why}"
    # Ση, by which λ becomes Σ: one for all runs of a setting, up to λ's few digits
    folds = [seen / g.decay for g in members if g.decay for run in sound(g) if (seen := e_folds_of(run)) is not None]
    if not folds:
        return "Σηλ is no number of e-folds under its rule, so not used"
    run = members[0].runs[0]
    scale = {"λ": 1.0, "ηλ": rate_of(members[0]), "Σ": float(np.mean(folds))}
    return Best(rest, int(run.fields["schedule.steps"]), run.tokens_per_parameter, vertex, seeds_own(table), scale)


def _row(best: Best) -> dict[str, object]:
    row = {"setting": best.setting, "updates": best.steps, "tokens per parameter": round(best.tokens or 0.0, 1)}
    return row | {"seeds": best.vertex.seeds} | {f"best {quantity}": best.text(quantity) for quantity in QUANTITIES}


def _law(quantity: str, found: list[Best]) -> dict[str, object]:
    lows, highs = zip(*(best.bounds(quantity) for best in found), strict=True)
    # the declared rule: intervals that share a value
    shared = max(lows) <= min(highs)
    inside = f"{max(lows):.3g} to {min(highs):.3g}" if shared else ""
    row: dict[str, object] = {"quantity": quantity, "settings": len(found), "inside all intervals": inside}
    row |= {"power of the updates": power_of_updates(quantity, found).text(2).rpartition(" (")[0]}
    return row | {"verdict": "transfers" if shared else "does not transfer"}


def power_of_updates(quantity: str, found: list[Best]) -> Interval:
    """p of (quantity) ∝ (updates)^p, by a straight line through each seed's own, over the seeds that all settings have."""
    updates = np.log([best.steps for best in found])
    shared = pd.concat([np.log(best.own * best.scale[quantity]) for best in found], axis=1).dropna()
    return interval(float(np.polyfit(updates, row, 1)[0]) for row in shared.to_numpy())


def _why(notes: list[str]) -> str:
    reasons = [note for note in notes if "not used" in note]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _figure(found: list[Best]) -> Figure:
    """Relative to the shortest run's, so that the three share an axis."""
    x = np.array([best.steps for best in found], dtype=float)
    lines = []
    for i, (quantity, colour) in enumerate(zip(QUANTITIES, COLOURS, strict=True)):
        unit = found[0].vertex.decay * found[0].scale[quantity]
        middle = np.array([best.vertex.decay * best.scale[quantity] for best in found]) / unit
        low, high = (np.array([best.bounds(quantity)[end] for best in found]) / unit for end in (0, 1))
        lines.append(Line(x, middle, quantity, colour, low=low, high=high, points=True, aside=1.0 + 0.02 * (i - 1)))
    ticks = {float(best.steps): f"{best.steps:,}" for best in found}
    panel = Panel("updates", "best, over that of the shortest run", lines, xlog=True, ylog=True, ticks=ticks)
    caption = f"The best λ, ηλ and Σ = λ·Ση over the length of the run: what lies level transfers. {BARS_DRAWN}"
    return Figure("transfer", caption, [panel])
