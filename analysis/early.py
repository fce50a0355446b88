"""From where in a run the order of λ is that of its end, and what choosing earlier costs.

    python -m analysis early docs/study/records/study_s48

A reading is the validation loss at a step, that of an average of the weights, or that of the end of a branch from a checkpoint,
at a constant η or cooled down (docs/study/plan.md, claim 11). Of each seed: Kendall's τ over λ between reading and endpoint (1: the
same order, −1: the opposite one), and how much higher the λ that is lowest in the reading ends than the one that ends lowest. Where
all seeds have one order the interval of τ has no width: that is no precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis.arms import judged_runs
from analysis.branches import families
from analysis.cheap_branch import averages, updates_of
from analysis.claims import Lost, survival, too_few
from analysis.command import Options, Result
from analysis.compare import VALIDATION, ended, has_diverged, is_ended
from analysis.endpoint import Endpoint, endpoint_of
from analysis.figures import TOLD_APART, Figure, Line, Panel, Style, line, numbered
from analysis.pairing import STEPS, Group, by_rest, group_by_length
from analysis.runs import LAMBDA, Run
from analysis.statistics import LEAST_SEEDS, Interval, interval
from configs.errors import InputError

LEAST = 3  # λ of one setting: two have one order, and a coin tells it half of the time
PLACE = 0.25  # of the run, declared: the first reading from here on is judged
ENOUGH = 0.5  # declared: an order is told where the interval of τ lies above
TABLED = (0.1, 0.25, 0.45, 0.6, 0.7, 0.75, 0.9)  # of the run: from each place the first reading; the figure has all
LOSS, BRANCH, COOLED = "validation loss", "branch's end", "cool-down's end"
Ends = dict[float, dict[str, Run]]  # λ → seeds → the run


@dataclass(frozen=True)
class Told:
    """What a reading at `step` of `steps` tells of the end, over `decays`: τ, its bounds cut at ±1, and the `cost` in nats."""

    step: int
    steps: int
    decays: tuple[float, ...]
    tau: Interval
    cost: Interval

    @property
    def share(self) -> float:
        return self.step / self.steps

    @property
    def is_told(self) -> bool:
        return len(self.decays) >= LEAST and self.tau.low > ENOUGH

    @property
    def verdict(self) -> str:
        """By the declared rule: told where the interval of τ lies above ENOUGH; not where it lies below."""
        if len(self.decays) < LEAST:
            return f"{len(self.decays)} λ: one order, and no verdict"
        if self.tau.n < LEAST_SEEDS:
            return too_few(self.tau.n)
        if self.tau.low > ENOUGH:
            return f"the order is told (τ above {ENOUGH:g})"
        if self.tau.high < ENOUGH:
            return f"the order is not told (τ below {ENOUGH:g})"
        return f"undecided: the interval holds {ENOUGH:g}"


def analyse(runs: list[Run], options: Options) -> Result:
    trunks, notes = judged_runs(runs, options.pilot_from)
    # a branch on other data ends with losses of other tokens
    own = [run for run in runs if run.origin is not None and run.fields.get("branch.data") != "other"]
    # branches whose η falls answer another question than those at one small η
    cooled = [run for run in own if run.fields.get("schedule.kind") != "constant"]
    kinds = {BRANCH: [run for run in own if run not in cooled], COOLED: cooled}
    found = {name: families([*trunks, *some]) for name, some in kinds.items()}
    branches = {name: family[1] for name, family in found.items()}
    on_branches = [f"{name}: {note}" for name, family in found.items() for note in family[2]]
    groups, mixed = group_by_length(trunks, options.by) if trunks else ([], [])
    endpoint = endpoint_of(groups)
    # λ is ordered within one model, one η, one of everything else
    settings = {rest: members for rest, members in by_rest(groups, (LAMBDA,)).items() if len(members) >= LEAST}
    if not settings:
        raise InputError(
            f"an order over λ needs {LEAST} λ of one setting; these runs have {len({g.decay for g in groups})} λ in "
            f"{len(groups)} groups that differ in more"
        )
    findings: list[str] = []
    rows: list[dict[str, object]] = []
    figures: list[Figure] = []
    for rest, members in settings.items():
        start = f"{rest}: " if rest else ""
        told = {name: _over_the_run(table, members, endpoint) for name, table in _readings(members, branches).items()}
        told = {name: places for name, places in told.items() if places}
        gone = survival([Lost(g.name, sum(map(has_diverged, g.runs)), len(g.runs)) for g in members])
        findings += _judged(start, told.get(LOSS, []), endpoint, gone)
        findings += [said for name, places in told.items() if name != LOSS for said in _first(start, name, places)]
        rows += [_row(rest, name, one, gone) for name, places in told.items() for one in _tabled(places)]
        if told:
            figures.append(_figure(rest, told, len(figures)))
    notes += [*on_branches, *mixed, endpoint.note]
    tables = {"What early readings tell": pd.DataFrame(rows)}
    return Result("early", "How early the order of λ is known", findings, figures, tables, notes)


def _readings(
    members: list[Group], branches: Mapping[str, Mapping[tuple[str, int], Run]]
) -> dict[str, dict[Run, pd.Series]]:
    """By the reading's name: of every run that ended its values by step."""
    readings: dict[str, dict[Run, pd.Series]] = {LOSS: {}}
    for run in (run for group in members for run in ended(group)):
        readings[LOSS][run] = run.column(VALIDATION).loc[1:]
        for column, values in averages(run).items():
            readings.setdefault(f"average over {updates_of(column)}", {})[run] = values.loc[1:]
        # branches of this trunk alone, each where it left it
        for name, some in branches.items():
            own = {step: b for (path, step), b in some.items() if path == str(run.path) and is_ended(b)}
            ends = {step: float(b.column(VALIDATION).iloc[-1]) for step, b in own.items() if len(b.column(VALIDATION))}
            if ends:
                readings.setdefault(name, {})[run] = pd.Series(ends).sort_index()
    return readings


def _over_the_run(values: Mapping[Run, pd.Series], members: list[Group], endpoint: Endpoint) -> list[Told]:
    """Of every step at which two λ or more of a seed were read."""
    # copies of a run are one seed; a run without the endpoint has no place in the order
    ends: Ends = {
        g.decay: {r.seeds: r for r in ended(g) if r in values and np.isfinite(endpoint.of(r))} for g in members
    }
    if not any(ends.values()):
        return []
    told, steps = [], int(members[0].runs[0].fields[STEPS])
    for step in sorted({int(step) for series in values.values() for step in series.index}):
        here = {d: {s: r for s, r in own.items() if step in values[r].index} for d, own in ends.items()}
        here = {decay: own for decay, own in here.items() if own}
        # seeds that have all of these λ
        seeds = sorted(set.intersection(*(set(own) for own in here.values()))) if here else []
        if len(here) > 1 and seeds:
            told.append(_told([{d: own[s] for d, own in here.items()} for s in seeds], values, step, steps, endpoint))
    return told


def _told(
    by_seed: list[dict[float, Run]], values: Mapping[Run, pd.Series], step: int, steps: int, endpoint: Endpoint
) -> Told:
    """Of each seed by itself: what a user with one seed would have seen."""
    taus, weights = [], []
    for runs in by_seed:
        read = [float(values[run][step]) for run in runs.values()]
        ends = [endpoint.of(run) for run in runs.values()]
        taus.append(float(stats.kendalltau(read, ends).statistic))
        chosen, best = (list(runs.values())[int(np.argmin(column))] for column in (read, ends))
        weights.append({chosen: 1.0, best: -1.0} if chosen is not best else {chosen: 0.0})
    tau, cost = interval(taus), endpoint.contrast(weights)
    tau = replace(tau, low=max(tau.low, -1.0), high=min(tau.high, 1.0))
    return Told(step, steps, tuple(by_seed[0]), tau, replace(cost, low=max(cost.low, 0.0)))


def _judged(start: str, places: list[Told], endpoint: Endpoint, gone: str) -> list[str]:
    """The declared place's verdict, and from where on the order is told."""
    # a reading at the end is the end; λ with another cadence are read together at some steps alone
    most = max((len(one.decays) for one in places), default=0)
    early = [one for one in places if one.share < 1 and len(one.decays) == most >= LEAST]
    judged = next((one for one in early if one.share >= PLACE), None)
    if judged is None:
        return []
    names = ", ".join(f"{decay:g}" for decay in judged.decays)
    sentence = (
        f"{start}the {LOSS} at step {judged.step:,} ({judged.share:.0%}) orders λ = {names} with τ = {_shown(judged.tau)} to their "
        f"{endpoint.words}: {judged.verdict}. The λ that is lowest there ends {_nats(judged.cost)} above the lowest"
    )
    sentence += f" ({gone})." if gone else "."
    if judged.tau.n < LEAST_SEEDS:
        return [sentence]
    # the last place where it is not told, and the first behind it
    failing = [one for one in early if not one.is_told]
    later = [one for one in early if not failing or one.step > failing[-1].step]
    since = "At no reading before the end is it told, to remain so"
    if later:
        since = f"From step {later[0].step:,} ({later[0].share:.0%}) on it is told"
    return [f"{sentence} {since} (exploratory: the place is picked)."]


def _first(start: str, name: str, places: list[Told]) -> list[str]:
    """Where another reading first tells the order. Exploratory: the place is picked."""
    one = next((one for one in places if one.is_told and one.share < 1), None)
    if one is None:
        return []
    where = f"{start}by the {name} the order is told first at step {one.step:,} ({one.share:.0%})"
    return [
        f"{where}, τ = {_shown(one.tau)}; the λ that is lowest there ends {_nats(one.cost)} above the lowest (exploratory)."
    ]


def _tabled(places: list[Told]) -> list[Told]:
    """The first reading from each of the places on; of branches, which are few, all."""
    if len(places) <= len(TABLED):
        return places
    first = [next((one for one in places if one.share >= place), None) for place in TABLED]
    return list(dict.fromkeys(one for one in first if one is not None))


def _row(rest: str, name: str, told: Told, gone: str) -> dict[str, object]:
    row: dict[str, object] = {"setting": rest} if rest else {}
    row |= {
        "reading": name,
        "step": told.step,
        "of the run": f"{told.share:.1%}",
        "λ": len(told.decays),
        "seeds": told.tau.n,
    }
    row |= {
        "τ with the end": _shown(told.tau),
        "verdict": told.verdict,
        "cost of choosing there (nats)": _nats(told.cost),
    }
    return row | ({"condition": gone} if gone else {})


def _shown(tau: Interval) -> str:
    return tau.text(2).rpartition(" (")[0]


def _nats(cost: Interval) -> str:
    return cost.text().rpartition(" (")[0].replace("+", "")


def _figure(rest: str, told: dict[str, list[Told]], place: int) -> Figure:
    panels = [
        Panel("share of the run", "Kendall's τ with the end", _lines(told, "tau"), zero=True),
        Panel("share of the run", "nats lost by choosing there", _lines(told, "cost"), zero=True),
    ]
    caption = (
        f"{f'{rest}: h' if rest else 'H'}ow far an early reading has the order of λ that the end has (1: the same, 0: none, −1: "
        "the opposite), and how much higher the λ that is lowest in it ends than the lowest. Bands: 95 % t intervals over seeds."
    )
    return Figure(numbered("early", place), caption, panels)


def _lines(told: dict[str, list[Told]], part: str) -> list[Line]:
    drawn = []
    for i, (name, places) in enumerate(told.items()):
        style = Style(TOLD_APART[i % len(TOLD_APART)], "solid", {})
        means = pd.Series({one.share: getattr(one, part).mean for one in places})
        bounds = {end: np.array([getattr(getattr(one, part), end) for one in places]) for end in ("low", "high")}
        # of two seeds there is no band
        if not np.isfinite(bounds["low"]).all():
            bounds = {}
        drawn.append(line(means, name, style, "", points=len(places) < LEAST, **bounds))
    return drawn
