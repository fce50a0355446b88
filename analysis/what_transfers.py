"""What of the best λ stays in longer runs or wider networks: λ itself, ηλ, or Σ = λ·Ση.

    python -m analysis transfer docs/study/records/study_s24 docs/study/records/study_s48

Of each length (or width) the λ at the lowest point of each seed's own parabola, with Student's t over seeds (analysis/vertex.py),
and the same as ηλ and as Σ. By the declared rule (docs/study/plan.md, claim 9) one of the three is ruled out if no value of it lies
inside the intervals of all lengths. Intervals that share a value do not show that it transfers: wide ones always do. So the power
of the number of updates with which each of them moves stands beside, in pairs of one seed, exploratory.

τ/T, the share of the run over which AdamW averages (2405.13698: τ = 1/(ηλ) updates of T), is 1/Σ times the mean of η over its peak:
under one schedule, what is said of Σ is said of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.arms import judged_runs
from analysis.claims import Lost, survival
from analysis.command import Options, Result
from analysis.compare import ended, has_diverged
from analysis.endpoint import Endpoint, endpoint_of, lowest
from analysis.figures import BARS_DRAWN, TOLD_APART, Figure, Line, Panel, numbered
from analysis.levels import rate_of
from analysis.pairing import STEPS, Group, by_rest, group_by_length
from analysis.runs import LAMBDA, RATE, Run, field_name, label
from analysis.settled import e_folds_of
from analysis.statistics import Interval, interval
from analysis.vertex import Vertex, best_decay, seeds_own
from configs.errors import InputError

QUANTITIES = ("λ", "ηλ", "Σ")


@dataclass(frozen=True)
class Axis:
    """What runs are compared over: a `field`, whose values are `unit`s. `beside`: what may differ with it. In words: the `column`
    of its values, what the quantities are a power `of`, the `title` of their table, `along` what and over the `first` of which the
    figure draws them."""

    name: str
    field: str
    unit: str
    beside: tuple[str, ...]
    column: str
    of: str
    title: str
    along: str
    first: str

    @property
    def power(self) -> str:
        """The column of powers."""
        return f"power of the {self.column}"


# A longer run has another best η, another warm-up, and may need more data; a wider network has another best η and other weights.
LENGTH = Axis(
    name="length",
    field=STEPS,
    unit="updates",
    beside=(RATE, "schedule.warmup_steps", "data.digest"),
    column="updates",
    of="number of updates",
    title="What transfers",
    along="over the length of the run",
    first="shortest run",
)
WIDTH = Axis(
    name="width",
    field="model.n_embd",
    unit="units of width",
    beside=(RATE, "model.n_head", "model.init_std", "model.mlp_width"),
    column="width",
    of="width",
    title="What transfers to another width",
    along="over the width of the network",
    first="narrowest network",
)


@dataclass(frozen=True)
class Best:
    """The best λ at a place on an axis. `scale`: of each quantity, what λ is multiplied by. `own`: seeds → λ. `gone`: what it is
    conditional on."""

    at: int
    run: Run
    vertex: Vertex
    own: pd.Series
    scale: dict[str, float]
    gone: str

    def bounds(self, quantity: str) -> tuple[float, float]:
        return self.vertex.low * self.scale[quantity], self.vertex.high * self.scale[quantity]

    def text(self, quantity: str) -> str:
        low, high = self.bounds(quantity)
        return f"{self.vertex.decay * self.scale[quantity]:.3g} [{low:.3g}, {high:.3g}]"


def analyse(runs: list[Run], options: Options) -> Result:
    kept, notes = judged_runs(runs, options.pilot_from)
    groups, mixed = group_by_length(kept, options.by) if kept else ([], [])
    endpoint = endpoint_of(groups)
    notes += [*mixed, endpoint.note]
    findings: list[str] = []
    tables: dict[str, pd.DataFrame] = {}
    figures: list[Figure] = []
    for axis in (LENGTH, WIDTH):
        best_rows: list[dict[str, object]] = []
        law_rows: list[dict[str, object]] = []
        # what is no part of the comparison is the same in all of it
        for rest, members in by_rest(groups, (LAMBDA, axis.field, *axis.beside)).items():
            found = _places(axis, rest, members, endpoint, notes)
            # one length has nothing to transfer to
            if len(found) < 2:
                continue
            notes += _beside(axis, rest, found)
            start = {"runs": rest} if rest else {}
            best_rows += [start | _row(axis, best) for best in found]
            laws = [_law(axis, quantity, found) for quantity in QUANTITIES]
            law_rows += [start | law for law in laws]
            findings += [_sentence(axis, rest, law) for law in laws]
            figures.append(_figure(axis, found, len(figures)))
        if law_rows:
            tables |= {f"The best at each {axis.name}": pd.DataFrame(best_rows), axis.title: pd.DataFrame(law_rows)}
    if not findings:
        why = "; ".join(note for note in notes if "not used" in note)
        raise InputError(
            "what transfers is asked of two numbers of updates or more, or two widths, each with three λ above zero at one η and "
            f"four seeds whose lowest point lies inside{f' ({why})' if why else ''}; configs/sweeps/study_s24.json and "
            "study_s48.json are two"
        )
    return Result("transfer", "What of the best λ transfers", findings, figures, tables, notes)


def _places(axis: Axis, rest: str, members: list[Group], endpoint: Endpoint, notes: list[str]) -> list[Best]:
    """The best λ of each length that has one, the shortest first; a note on each that has none."""
    # a length may have been run at several η: they are told apart later
    by_place: dict[int, list[Group]] = {}
    for group in members:
        # images have no n_embd
        if axis.field in group.runs[0].fields:
            by_place.setdefault(int(group.runs[0].fields[axis.field]), []).append(group)
    found = []
    # one place alone is told nothing of: it is no comparison that lacks something
    for place, cells in sorted(by_place.items()) if len(by_place) > 1 else ():
        best = _best(place, cells, endpoint)
        if isinstance(best, Best):
            found.append(best)
        elif best:
            notes.append(f"{f'{rest}, ' if rest else ''}{place:,} {axis.unit}: {best}")
    return found


def _best(place: int, cells: list[Group], endpoint: Endpoint) -> Best | str:
    """Or why there is none; empty where nothing was searched."""
    # of several η that of the lowest cell: λ is compared at one
    top = lowest(cells, endpoint)
    cells = [group for group in cells if top and rate_of(group) == rate_of(top[0])]
    losses = {group.decay: endpoint.seed_losses(group) for group in cells}
    table = pd.DataFrame({decay: pd.Series(column) for decay, column in losses.items() if column})
    vertex = best_decay(table, cells[0].runs[0].rule) if cells else None
    if vertex is None:
        return ""
    # a place without an interval shares a value with everything
    if vertex.why:
        return f"no interval of the best λ, so not used: {vertex.why}"
    # Ση, by which λ becomes Σ, of whole runs alone: one for all of a length, up to λ's few digits
    folds = [seen / g.decay for g in cells if g.decay for run in ended(g) if (seen := e_folds_of(run)) is not None]
    if not folds:
        return "Σηλ is no number of e-folds under its rule, so not used"
    scale = {"λ": 1.0, "ηλ": rate_of(cells[0]), "Σ": float(np.mean(folds))}
    gone = survival([Lost(g.name, sum(map(has_diverged, g.runs)), len(g.runs)) for g in cells])
    return Best(place, cells[0].runs[0], vertex, seeds_own(table), scale, gone)


def _beside(axis: Axis, rest: str, found: list[Best]) -> list[str]:
    """What differs with the length, and may be what moves the best λ."""
    names = [name for name in axis.beside if len({str(best.run.fields.get(name)) for best in found}) > 1]
    if not names:
        return []
    told = "; ".join(f"{best.at:,} {axis.unit}: {label(best.run, names)}" for best in found)
    return [
        f"{f'{rest}: ' if rest else ''}with the {axis.name} differ {', '.join(map(field_name, names))} ({told}): what is "
        f"said of the {axis.name} is said of all of them together"
    ]


def _sentence(axis: Axis, rest: str, law: dict[str, object]) -> str:
    inside = f": {law['inside all intervals']} lies inside all intervals" if law["inside all intervals"] else ""
    moves = f"It moves as the {axis.of} to the power {law[axis.power]} (exploratory)."
    return f"{f'{rest}: ' if rest else ''}{law['quantity']} is {law['verdict']}{inside}. {moves}"


def _row(axis: Axis, best: Best) -> dict[str, object]:
    tokens = best.run.tokens_per_parameter
    row: dict[str, object] = {axis.column: best.at, "η": float(best.run.fields[RATE])}
    row |= {"tokens per parameter": round(tokens, 1) if tokens else None, "seeds": best.vertex.seeds}
    row |= {f"best {quantity}": best.text(quantity) for quantity in QUANTITIES}
    return row | ({"condition": best.gone} if best.gone else {})


def _law(axis: Axis, quantity: str, found: list[Best]) -> dict[str, object]:
    lows, highs = zip(*(best.bounds(quantity) for best in found), strict=True)
    # the declared rule: intervals that share a value
    shared = max(lows) <= min(highs)
    power = power_of(quantity, found)
    verdict = "not ruled out" if shared else "ruled out"
    # two intervals may overlap where the pairs of seeds tell them apart
    verdict += ", but moves in pairs" if shared and power.excludes_zero else ""
    row: dict[str, object] = {"quantity": quantity, f"{axis.name}s": len(found)}
    row |= {"inside all intervals": f"{max(lows):.3g} to {min(highs):.3g}" if shared else ""}
    return row | {axis.power: power.text(2).rpartition(" (")[0], "verdict": verdict}


def power_of(quantity: str, found: list[Best]) -> Interval:
    """p of (quantity) ∝ (updates)^p, or of the width, by a straight line through each seed's own, over the seeds that all have."""
    places = np.log([best.at for best in found])
    shared = pd.concat([np.log(best.own * best.scale[quantity]) for best in found], axis=1).dropna()
    return interval(float(np.polyfit(places, row, 1)[0]) for row in shared.to_numpy())


def _figure(axis: Axis, found: list[Best], place: int) -> Figure:
    """Relative to the shortest run's, or the narrowest network's, so that the three share an axis."""
    x = np.array([best.at for best in found], dtype=float)
    lines = []
    for i, (quantity, colour) in enumerate(zip(QUANTITIES, TOLD_APART[1:4], strict=True)):
        unit = found[0].vertex.decay * found[0].scale[quantity]
        middle = np.array([best.vertex.decay * best.scale[quantity] for best in found]) / unit
        low, high = (np.array([best.bounds(quantity)[end] for best in found]) / unit for end in (0, 1))
        lines.append(Line(x, middle, quantity, colour, low=low, high=high, points=True, aside=1.0 + 0.02 * (i - 1)))
    ticks = {float(best.at): f"{best.at:,}" for best in found}
    panel = Panel(axis.column, f"best, over that of the {axis.first}", lines, xlog=True, ylog=True, ticks=ticks)
    caption = f"The best λ, ηλ and Σ = λ·Ση {axis.along}: what lies level transfers. {BARS_DRAWN}"
    return Figure(numbered("transfer", place), caption, [panel])
