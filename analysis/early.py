"""From where in a run the order of λ is that of its end, and what choosing earlier costs.

    python -m analysis early docs/study/records/study_s48

A reading is the validation loss at a step, that of an average of the weights, or that of the end of a branch from a checkpoint
(docs/study/plan.md, claim 11). Of each seed: Kendall's τ over λ between reading and endpoint (1: the same order, −1: the opposite
one), and how much higher the λ that is lowest in the reading ends than the one that ends lowest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from analysis.branches import families
from analysis.cheap_branch import averages, updates_of
from analysis.claims import too_few
from analysis.command import Options, Result
from analysis.compare import VALIDATION, ended, is_ended
from analysis.endpoint import Endpoint, endpoint_of
from analysis.figures import Figure, Line, Panel, Style, line
from analysis.pairing import Group, by_rest, by_seed, group_runs
from analysis.runs import LAMBDA, Run
from analysis.statistics import LEAST_SEEDS, Interval, interval
from configs.errors import InputError

LEAST = 3  # λ of one setting: two have one order, and a coin tells it half of the time
PLACE = 0.25  # of the run, declared: the first reading from here on is judged
ENOUGH = 0.5  # declared: an order is told where the interval of τ lies above
TABLED = (0.1, 0.25, 0.45, 0.6, 0.75, 0.9)  # of the run: from each place the first reading; the figure has all
LOSS, BRANCH = "validation loss", "branch's end"
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's


@dataclass(frozen=True)
class Told:
    """What a reading at `step` of `steps` tells of the end, over `decays` λ: τ, its bounds cut at ±1, and the `cost` in nats."""

    step: int
    steps: int
    decays: int
    tau: Interval
    cost: Interval

    @property
    def share(self) -> float:
        return self.step / self.steps


def analyse(runs: list[Run], options: Options) -> Result:
    trunks, branches, notes = families(runs)
    trunks += [run for run in runs if run.origin is None and run.reference is None and run not in trunks]
    groups, mixed = group_runs(trunks, options.by)
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
        told = {name: _over_the_run(table, members, endpoint) for name, table in _readings(members, branches).items()}
        told = {name: places for name, places in told.items() if places}
        findings += _judged(rest, told.get(LOSS, []), members, endpoint)
        findings += [
            sentence for name, places in told.items() if name != LOSS for sentence in _first(rest, name, places)
        ]
        rows += [_row(rest, name, one) for name, places in told.items() for one in _tabled(places)]
        if told:
            figures.append(_figure(rest, told, len(figures)))
    notes += [*mixed, endpoint.note]
    tables = {"What early readings tell": pd.DataFrame(rows)}
    return Result("early", "How early the order of λ is known", findings, figures, tables, notes)


def _readings(members: list[Group], branches: Mapping[tuple[str, int], Run]) -> dict[str, dict[Run, pd.Series]]:
    """By the reading's name: of every run that ended its values by step."""
    readings: dict[str, dict[Run, pd.Series]] = {LOSS: {}}
    for run in (run for group in members for run in ended(group)):
        readings[LOSS][run] = run.column(VALIDATION).loc[1:]
        for column, values in averages(run).items():
            readings.setdefault(f"average over {updates_of(column)}", {})[run] = values.loc[1:]
        # branches of this trunk alone, each where it left it
        own = {step: b for (path, step), b in branches.items() if path == str(run.path) and is_ended(b)}
        ends = {step: float(b.column(VALIDATION).iloc[-1]) for step, b in own.items() if len(b.column(VALIDATION))}
        if ends:
            readings.setdefault(BRANCH, {})[run] = pd.Series(ends).sort_index()
    return readings


def _over_the_run(values: Mapping[Run, pd.Series], members: list[Group], endpoint: Endpoint) -> list[Told]:
    """Of every step at which two λ or more of a seed were read."""
    if not values:
        return []
    told, steps = [], int(next(iter(values)).fields["schedule.steps"])
    for step in sorted({int(step) for series in values.values() for step in series.index}):
        # a row a seed, a column a λ
        read = {
            group.decay: by_seed(
                [(run, float(values[run][step])) for run in ended(group) if step in values.get(run, ())]
            )
            for group in members
        }
        early = pd.DataFrame({decay: column for decay, column in read.items() if column}).dropna()
        late = pd.DataFrame({group.decay: endpoint.seed_losses(group) for group in members if group.decay in early})
        # seeds that have all of these λ, here and at the end
        both = early.index.intersection(late.dropna().index)
        if early.shape[1] > 1 and len(both):
            told.append(_told(early.loc[both], late.loc[both, early.columns], step, steps))
    return told


def _told(early: pd.DataFrame, late: pd.DataFrame, step: int, steps: int) -> Told:
    # each seed by itself: what a user with one seed would have seen
    pairs = list(zip(early.to_numpy(), late.to_numpy(), strict=True))
    tau = interval(float(stats.kendalltau(one, other).statistic) for one, other in pairs)
    tau = replace(tau, low=max(tau.low, -1.0), high=min(tau.high, 1.0))
    cost = interval(float(ends[np.argmin(read)] - ends.min()) for read, ends in pairs)
    return Told(step, steps, early.shape[1], tau, replace(cost, low=max(cost.low, 0.0)))


def _judged(rest: str, places: list[Told], members: list[Group], endpoint: Endpoint) -> list[str]:
    """The declared place's verdict, and from where on the order is told."""
    # a reading at the end is the end
    early = [one for one in places if one.share < 1]
    judged = next((one for one in early if one.share >= PLACE), None)
    if judged is None:
        return []
    names = ", ".join(f"{group.decay:g}" for group in members)
    head = f"{f'{rest}: ' if rest else ''}the {LOSS} at step {judged.step:,} ({judged.share:.0%})"
    sentence = (
        f"{head} orders λ = {names} with τ = {_shown(judged.tau)} to their {endpoint.words}: {verdict(judged.tau)}. The λ "
        f"that is lowest there ends {_nats(judged.cost)} above the lowest"
    )
    # the last place where it is not told, and the first behind it
    failing = [one for one in early if not one.tau.low > ENOUGH]
    later = [one for one in early if not failing or one.step > failing[-1].step]
    if later:
        since = f"The order is told from step {later[0].step:,} ({later[0].share:.0%}) on"
    else:
        since = "At no reading before the end, to which it would hold on, is the order told"
    return [f"{sentence}. {since}."]


def _first(rest: str, name: str, places: list[Told]) -> list[str]:
    """Where another reading first tells the order. Exploratory: the place is picked."""
    one = next((one for one in places if one.tau.low > ENOUGH and one.decays >= LEAST), None)
    if one is None:
        return []
    where = f"{f'{rest}: ' if rest else ''}by the {name} the order is told first at step {one.step:,} ({one.share:.0%})"
    return [
        f"{where}, τ = {_shown(one.tau)}; the λ that is lowest there ends {_nats(one.cost)} above the lowest (exploratory)."
    ]


def verdict(tau: Interval) -> str:
    """By the declared rule: told where the interval of τ lies above ENOUGH; not where it lies below."""
    if tau.n < LEAST_SEEDS:
        return too_few(tau.n)
    if tau.low > ENOUGH:
        return f"the order is told (τ above {ENOUGH:g})"
    if tau.high < ENOUGH:
        return f"the order is not told (τ below {ENOUGH:g})"
    return f"undecided: the interval holds {ENOUGH:g}"


def _tabled(places: list[Told]) -> list[Told]:
    """The first reading from each of the places on; of branches, which are few, all."""
    if len(places) <= len(TABLED):
        return places
    first = [next((one for one in places if one.share >= place), None) for place in TABLED]
    return list(dict.fromkeys(one for one in first if one is not None))


def _row(rest: str, name: str, told: Told) -> dict[str, object]:
    row: dict[str, object] = {"setting": rest} if rest else {}
    row |= {
        "reading": name,
        "step": told.step,
        "of the run": f"{told.share:.1%}",
        "λ": told.decays,
        "seeds": told.tau.n,
    }
    row |= {"τ with the end": _shown(told.tau), "verdict": verdict(told.tau)}
    return row | {"cost of choosing there (nats)": _nats(told.cost)}


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
    return Figure(f"early{place + 1 if place else ''}", caption, panels)


def _lines(told: dict[str, list[Told]], part: str) -> list[Line]:
    drawn = []
    for i, (name, places) in enumerate(told.items()):
        style = Style(COLOURS[i % len(COLOURS)], "solid", {})
        means = pd.Series({one.share: getattr(one, part).mean for one in places})
        bounds = {end: np.array([getattr(getattr(one, part), end) for one in places]) for end in ("low", "high")}
        if not np.isfinite(bounds["low"]).all():
            bounds = {}
        drawn.append(line(means, name, style, "", points=len(places) < LEAST, **bounds))
    return drawn
