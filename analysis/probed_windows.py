"""Whether the probes of runs looked at the same validation windows: else what they say of the whole model does not compare.

How many windows a probe takes is one micro-batch of every rank (configs/windows.py), so it may differ between machines, and
between the starts of one run. It says which windows they are, since they are spread evenly over the split.
"""

from __future__ import annotations

from analysis.runs import Run

WINDOWS = "probe/windows"
OF_THEM = ("probe/loss", "probe/max_logit", "probe/logsumexp", "probe/top1_error")
NAMED = 3  # runs of each number that are named


def unlike_windows(runs: list[Run]) -> list[str]:
    """A note where the runs' probes, as far as an analysis has read them, are of different numbers of windows; else nothing."""
    members: dict[str, list[str]] = {}
    # probes are large, and read only by analyses that show them: the others mix none
    for run in runs:
        if "probe_log" in vars(run) and (number := _number(run)):
            members.setdefault(number, []).append(run.path.name)
    # one run with two numbers mixes them by itself
    if len(members) < 2 and not any(" and " in number for number in members):
        return []
    told = [f"{number} ({_named(names)})" for number, names in members.items()]
    return [
        f"probes looked at different numbers of validation windows: {'; '.join(told)}. What they say of the whole model "
        f"({', '.join(OF_THEM)}) is of other tokens there, and does not compare"
    ]


def _number(run: Run) -> str:
    """The numbers of windows of a run's probes in words; empty where no probe looked at any."""
    if WINDOWS in run.probes:
        return " and ".join(f"{number:g}" for number in sorted(set(run.probes[WINDOWS].dropna())))
    # an earlier version took the first windows of the split, and did not record how many
    return "a number not recorded" if any(name in run.probes for name in OF_THEM) else ""


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more runs" if len(names) > NAMED else "")
