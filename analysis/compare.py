"""Runs against runs: training loss, divergence, and differences paired by seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache

import pandas as pd

from analysis.claims import Lost, too_few
from analysis.document_noise import documents_error
from analysis.pairing import Group, baseline_of, pairs
from analysis.runs import Run
from analysis.statistics import LATEST, LEAST_SEEDS, MARGIN, MIDRUN, Interval, diverged_at, final, interval
from record.run import UNKNOWN

TRAIN, VALIDATION = "train/loss", "val/loss"
WHOLE = "val/final_loss"  # at the end, over the windows of eval.final_tokens
WINDOWS = {VALIDATION: "eval.tokens", WHOLE: "eval.final_tokens"}  # which windows a column is of
# Columns of starts.jsonl that change how bfloat16 rounds: each is a factor of its own in a study of precision
# (2510.04212 of the attention kernel, pytorch/pytorch#168126 of compiled blocks).
FACTORS = {"attention": "the attention kernel", "compiled": "whether blocks were compiled"}


def every_loss(run: Run) -> pd.Series:
    """Training loss of every recorded update, NaN where it was not finite."""
    if TRAIN not in run.metrics:
        return pd.Series(dtype=float)
    return pd.to_numeric(run.metrics[TRAIN], errors="coerce").loc[1:]


@cache
def divergence(run: Run) -> int | None:
    """The step from which the run has diverged, by its loss or because it ended so; None if it has not."""
    # a median of 64 rows is that of 64 updates only where each has its row
    margin = run.fields.get("numerics.divergence_margin") or MARGIN
    step = diverged_at(every_loss(run), margin) if run.every == 1 else None
    # in the order of the documents a stretch of hard ones looks the same: there the validation decides, of one text each time
    if step is not None and run.fields.get("data.order") == "documents" and _validates_as_before(run, step, margin):
        step = None
    # A run that ended `diverged` has, even where its last loss is too young for the rule.
    return run.last_step if step is None and run.state == "diverged" else step


def _validates_as_before(run: Run, since: int, margin: float) -> bool:
    """Whether the last validation, from step `since` on, is within the margin of the lowest of several."""
    losses = run.column(VALIDATION)
    return len(losses) > 1 and losses.index[-1] >= since and bool(losses.iloc[-1] <= losses.min() + margin)


def sound(group: Group) -> list[Run]:
    """The group's runs that did not diverge: an interval over others says nothing."""
    return [run for run in group.runs if divergence(run) is None]


def has_diverged(run: Run) -> bool:
    return divergence(run) is not None


def lost(group: Group, base: Group, is_lost: Callable[[Run], bool] = has_diverged) -> tuple[Lost, ...]:
    """Of either side's runs that have a twin: how many diverged, and are left out of every paired difference, twin and all."""
    # a run that has no twin would be in no difference either way
    compared = pairs(group, base)
    sides = [(group, {run for run, _ in compared}), (base, {twin for _, twin in compared})]
    return tuple(
        Lost(side.name, gone, len(runs)) for side, runs in sides if (gone := sum(is_lost(run) for run in runs))
    )


def is_ended(run: Run) -> bool:
    """Whether the run is done, has its last row, and did not diverge. Then its end compares."""
    return run.state == "done" and run.last_step >= run.status["step"] and divergence(run) is None


def ended(group: Group) -> list[Run]:
    return [run for run in group.runs if is_ended(run)]


def ended_pairs(group: Group, base: Group) -> dict[str, tuple[Run, Run]]:
    """Seeds → a run of `group` and its twin in `base`, where both have ended; of copies one."""
    return {run.seeds: (run, twin) for run, twin in pairs(group, base) if is_ended(run) and is_ended(twin)}


def loss_of(run: Run, evaluated: bool) -> float:
    """A run's loss at its end: the last validation's, or the final training loss."""
    return float(run.column(VALIDATION).iloc[-1]) if evaluated else final(run.column(TRAIN))


def same_windows(runs: Iterable[Run], column: str) -> bool:
    """Whether a validation column of these runs is over as many windows, so over the same ones on the same data."""
    return len({json.dumps(run.fields.get(WINDOWS[column])) for run in runs}) < 2


def over(run: Run, column: str) -> str:
    """What a validation column of a run is over, in words."""
    whole = run.fields.get(WINDOWS[column]) == "all"
    return "over the whole split" if whole else f"over {WINDOWS[column]}"


def differences(group: Group, base: Group, column: str) -> list[tuple[Run, pd.Series]]:
    """`column` of each run minus that of its twin in `base`, after step 0, at the steps that both have; one curve a seed."""
    # a pair of which one run diverged is left out: the difference would show the divergence alone
    alive = {id(run) for g in (group, base) for run in sound(g)}
    curves = [
        (run, (run.column(column) - twin.column(column)).dropna().loc[1:])
        for run, twin in pairs(group, base)
        if id(run) in alive and id(twin) in alive
    ]
    return one_a_seed(curves)


def one_a_seed(curves: list[tuple[Run, pd.Series]]) -> list[tuple[Run, pd.Series]]:
    """The mean over runs that share their seeds, empty curves left out: copies, and what --by puts together, count once."""
    members: dict[str, list[tuple[Run, pd.Series]]] = {}
    for run, curve in curves:
        if len(curve):
            members.setdefault(run.seeds, []).append((run, curve))
    return [(m[0][0], pd.concat([c for _, c in m], axis=1).mean(axis=1)) for m in members.values()]


def reached(curves: list[tuple[Run, pd.Series]]) -> list[tuple[Run, pd.Series]]:
    """The curves that have come to the common step, up to it. One young seed must not cut the mean short."""
    # the furthest step that two seeds have reached: one that is far ahead must not be all that is left
    upto = common_step([int(curve.index[-1]) for _, curve in curves])
    return [(run, curve.loc[:upto]) for run, curve in curves if curve.index[-1] >= upto]


@dataclass(frozen=True)
class Paired:
    """A difference over seeds at step `upto` of `steps`, from the curves that have come so far. `untold`: runs among them of
    whose end nothing is known, because their status is damaged. `over`: what the interval is over where the curves are of other
    windows; `unused`: why it is not, though some runs have it. `ends`: seeds → the difference, of which the interval is."""

    interval: Interval
    upto: int
    steps: int
    curves: list[pd.Series]
    untold: list[str]
    over: str = ""
    unused: str = ""
    ends: dict[str, float] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.upto:,}" + ("" if self.upto >= self.steps else f" of {self.steps:,}, unfinished")

    def verdict(self, helps: str = "helps", harms: str = "harms") -> str:
        """The declared rule in words, of a difference of losses; the order can still turn, so unfinished runs get none."""
        # in this order: what cannot be known at all, what is not known yet, then the rule
        if self.refused or self.interval.n < LEAST_SEEDS:
            return self.refused or too_few(self.interval.n)
        return verdict(self.interval, helps, harms)

    @property
    def refused(self) -> str:
        """Why this difference gets no verdict, whatever its interval; empty where it may have one."""
        if self.interval.n < 2:
            return too_few(self.interval.n)
        if self.untold:
            return f"no claim: the state of {', '.join(self.untold)} is unknown"
        return "no claim yet" if self.upto < self.steps else ""


def paired_final(group: Group, base: Group, column: str) -> Paired:
    """The difference of training losses over the last updates, or of another column at its last step.

    Of validation losses at the end of runs that all have eval.final_tokens: that over its windows, and the interval is wider by the
    documents' standard error.
    """
    each = differences(group, base, column)
    upto = common_step([int(curve.index[-1]) for _, curve in each])
    far = [(run, curve.loc[:upto]) for run, curve in each if curve.index[-1] >= upto]
    curves = [curve for _, curve in far]
    steps = max((int(run.fields.get("schedule.steps") or 0) for run, _ in each), default=0)
    ends = {run.seeds: final(c) if column == TRAIN else float(c.iloc[-1]) for run, c in far}
    # a run whose status is damaged may be another than it seems: its end makes no claim
    untold = sorted({run.path.name for pair in pairs(group, base) for run in pair if run.state == UNKNOWN})
    paired = Paired(interval(ends.values()), upto, steps, curves, untold, ends=ends)
    if column == VALIDATION and curves and upto >= steps:
        return _over_final_windows(group, base, {run.seeds for run, _ in far}, paired)
    return paired


def _over_final_windows(group: Group, base: Group, seeds: set[str], paired: Paired) -> Paired:
    """The same difference over the windows of eval.final_tokens, with the documents' error, if every run of it has them; else as
    it is, with the reason."""
    kept = {id(run) for g in (group, base) for run in sound(g)}
    used = [(a, b) for a, b in pairs(group, base) if a.seeds in seeds and {id(a), id(b)} <= kept]
    runs = list(dict.fromkeys(run for pair in used for run in pair))
    curves = [
        (run, c) for run, c in differences(group, base, WHOLE) if run.seeds in seeds and c.index[-1] == paired.upto
    ]
    having = sum(bool(len(run.column(WHOLE))) for run in runs)
    # one run without them would be compared over other windows
    if having < len(runs) or len(curves) < len(seeds):
        return replace(paired, unused=f"{having} of {len(runs)} runs have {WHOLE}" if having else "")
    if not same_windows(runs, WHOLE):
        return replace(paired, unused=f"the runs have {WHOLE} over unlike windows")
    ends = {run.seeds: float(curve.iloc[-1]) for run, curve in curves}
    told = interval(ends.values()).with_documents(documents_error(used))
    return replace(paired, interval=told, ends=ends, over=over(runs[0], WHOLE))


def twins(groups: list[Group]) -> list[tuple[Run, Run]]:
    """Every run and its twin in its group's baseline."""
    # the baseline itself is no pair
    compared = [(group, baseline_of(group, groups)) for group in groups]
    return [pair for group, base in compared if base is not group for pair in pairs(group, base)]


def unlike_kernels(compared: Iterable[tuple[Run, Run]]) -> list[str]:
    """A note for each of FACTORS in which runs that are compared with one another differ, or changed at a resume."""
    compared = list(compared)
    notes = []
    for key, name in FACTORS.items():
        told = [(one, other, taken(one, key), taken(other, key)) for one, other in compared]
        # older runs recorded neither: of them nothing can be said
        both = [row for row in told if row[2] and row[3]]
        differing = [row for row in both if row[2] != row[3] or len(row[2]) > 1]
        if differing:
            one, other, mine, theirs = differing[0]
            notes.append(
                f"{len(differing)} of {len(compared)} pairs of runs differ in {name}: {one.path.name} had {' and '.join(mine)}, "
                f"{other.path.name} {' and '.join(theirs)}{', …' if len(differing) > 1 else ''}; in bfloat16 that is a factor "
                "beside what is compared"
            )
    return notes


def taken(run: Run, key: str) -> list[str]:
    """What the run's starts recorded, each value once; empty for a run that recorded none."""
    words = {True: "yes", False: "no"}
    return sorted({str(words.get(row[key], row[key])) for row in run.starts if isinstance(row.get(key), bool | str)})


def paired_midrun(group: Group, base: Group, column: str) -> Paired | None:
    """As `paired_final`, at the declared place of mid-run, where the order is final; None where no pair was measured there."""
    each = differences(group, base, column)
    steps = max((int(run.fields.get("schedule.steps") or 0) for run, _ in each), default=0)
    # each pair's first value at or after the place; one that was evaluated rarely may have none before the run's end
    later = [curve.loc[MIDRUN * steps : LATEST * steps].index for _, curve in each]
    # the furthest of them, so that all pairs have it
    upto = max((int(places[0]) for places in later if len(places)), default=0)
    curves = [curve.loc[:upto] for _, curve in each if upto and upto in curve.index]
    if not curves:
        return None
    ends = interval([final(c) if column == TRAIN else float(c.iloc[-1]) for c in curves])
    return Paired(ends, upto, upto, curves, [])  # how a run has ended changes nothing of its middle


def common_step(last: list[int]) -> int:
    """Where unfinished runs are compared: the furthest step that two of them have come to. Those behind it are left out."""
    # the second furthest, or the only one
    return sorted(last, reverse=True)[min(1, len(last) - 1)] if last else 0


def verdict(difference: Interval, helps: str = "helps", harms: str = "harms") -> str:
    """The declared rule in words, of a difference over several seeds."""
    if difference.n < LEAST_SEEDS:
        return too_few(difference.n)
    if not difference.excludes_zero:
        return "undecided: the interval holds zero"
    return helps if difference.mean < 0 else harms
