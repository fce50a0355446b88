"""Whether a run at its leader's effective learning rate repeats the leader's loss curve (docs/study/plan.md, claim 3).

Of each seed: the largest distance of the smoothed training losses after the first tenth of the run, whatever its sign, so that
seeds that err in opposite directions do not cancel. They are the same where the 90 % interval over seeds lies below a quarter
of what is to be explained: the difference in mid-run between the leader's λ and λ = 0 at its own rate.
"""

from __future__ import annotations

import math

from analysis.claims import Claim, Lost, too_few
from analysis.compare import TRAIN, VALIDATION, Paired, has_diverged, is_ended, paired_midrun
from analysis.pairing import Group, by_seed
from analysis.runs import FOLLOWS, STARTS, Run, find_run
from analysis.statistics import LEAST_SEEDS, SMOOTHING, Interval, interval, smooth

START = 0.1  # of the run: losses fall by nats there, and nothing is judged
SHARE = 0.25  # of the mid-run difference: the margin


def same_curve(group: Group, runs: list[Run], groups: list[Group]) -> Claim | None:
    """The claim about a group of matched runs; None for a group of others, or one whose leaders are not among `runs`."""
    laid = _laid(group, runs)
    if not laid:
        return None
    whole = [(run, leader) for run, leader in laid if is_ended(run) and is_ended(leader)]
    distance = interval(by_seed([(run, largest_distance(run, leader)) for run, leader in whole]).values())
    middle = _midrun(laid, runs, groups)
    # a pair that is neither whole nor lost is still on its way
    young = sum(not (has_diverged(r) or has_diverged(le)) for r, le in laid) - len(whole)
    refused = f"no claim yet: {young} of {len(laid)} pairs have not ended" if young else ""
    if not refused and distance.n < LEAST_SEEDS:
        refused = too_few(distance.n)
    elif not refused:
        refused = _why_no_margin(middle)
    margin = SHARE * abs(middle.interval.mean) if middle is not None and not refused else None
    verdict, decided = (refused, False) if margin is None else _judged(distance, margin)
    endpoint = "largest smoothed distance of training losses after the first 10 %"
    conditions = [_how(laid[0][0]), *([] if middle is None else [f"mid-run difference {middle.interval.text()}"])]
    return Claim(
        f"{group.name}, from its leader",
        endpoint,
        False,
        distance,
        verdict,
        decided,
        condition="; ".join(conditions),
        margin=margin,
        lost=gone(group, runs),
    )


def largest_distance(run: Run, leader: Run) -> float:
    """Nats; NaN where the two have no update in common after the start. Smoothed as declared, whatever figures show."""
    curve = smooth((run.column(TRAIN) - leader.column(TRAIN)).dropna(), SMOOTHING)
    late = curve[curve.index > START * run.fields["schedule.steps"]].abs()
    return float(late.max()) if len(late) else math.nan


def _judged(distance: Interval, margin: float) -> tuple[str, bool]:
    """The verdict, and whether it decides. A distance is never below zero: that it is above zero says nothing."""
    half = distance.half(0.9)
    if distance.mean + half < margin:
        return f"the same within ±{margin:.2g}", True
    if distance.mean - half > margin:
        return f"differs by more than {margin:.2g}", True
    return f"undecided: the 90 % interval holds the margin {margin:.2g}", False


def _why_no_margin(middle: Paired | None) -> str:
    if middle is None:
        return "no margin: runs of λ = 0 at their own rate are not among these, or have not come to mid-run"
    if not middle.interval.excludes_zero:
        return "no margin: the mid-run difference to λ = 0 is not told from zero"
    return ""


def _midrun(laid: list[tuple[Run, Run]], runs: list[Run], groups: list[Group]) -> Paired | None:
    """Leaders minus runs of no decay at their own rate, at 45 %: of validation losses, or training losses where there are none."""
    group_of = {run: group for group in groups for run in group.runs}
    sides = [(leader, plain) for run, leader in laid if (plain := unmatched(run, runs)) is not None]
    if not sides:
        return None
    base, other = group_of[sides[0][1]], group_of[sides[0][0]]
    return paired_midrun(other, base, VALIDATION) or paired_midrun(other, base, TRAIN)


def _laid(group: Group, runs: list[Run]) -> list[tuple[Run, Run]]:
    return [(run, leader) for run in group.runs if run.reference and (leader := find_run(run.reference, runs))]


def gone(group: Group, runs: list[Run]) -> tuple[Lost, ...]:
    """What the distance to the leaders is conditional on, where matched runs or leaders diverged."""
    laid = _laid(group, runs)
    sides = ((group.name, {run for run, _ in laid}), ("its references", {leader for _, leader in laid}))
    return tuple(Lost(name, sum(map(has_diverged, members)), len(members)) for name, members in sides)


def _how(run: Run) -> str:
    # η is the run's own then: its weights were scaled
    if run.fields.get("schedule.match.take") == "norms":
        return "by the leader's layer norms"
    loop = "open loop" if run.fields.get("schedule.match.own") else "closed loop"
    return f"{loop}, by {run.fields.get('schedule.match.scope') or 'model'}"


def unmatched(run: Run, runs: list[Run]) -> Run | None:
    """The run that differs from a matched one in nothing of the experiment but not being matched."""
    # by place and start they differ always; what is no part of an experiment, as when checkpoints are kept, may differ
    skip = ("schedule.match", "branch", "name", FOLLOWS, STARTS)
    for other in runs:
        names = [name for name in run.varied | other.varied if not name.startswith(skip)]
        if other.reference is None and all(run.fields.get(name) == other.fields.get(name) for name in names):
            return other
    return None
