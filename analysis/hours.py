"""What runs cost: device-hours of training, evaluation and the rest, a row a folder.

    python -m analysis hours 'docs/study/records/*'

From each row's own times, so that start-up, probes and what a resume repeated are not in it. On a CPU a device is a core:
so many ranks times so many threads, as at a run's last start. Other work on the machine makes the same run dearer. What took more
than STALLED times the run's median of its kind, and more than a minute longer, was a machine that stood still, or was lent to
another: the median is counted, and the rest is `stalled`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.command import Options, Result
from analysis.runs import Run
from configs.errors import InputError

TRAINING = "time/step_s"
# evaluation, measures of the weights, checkpoints: what the cadences of a configuration decide
KINDS = {"training": (TRAINING,), "evaluation": ("time/eval_s",), "other": ("time/measures_s", "time/checkpoint_s")}
SECONDS = 3600
STALLED, LEAST_S = 10, 60.0
COUNTS = ("runs", "to their end", "updates")


def analyse(runs: list[Run], options: Options) -> Result:
    timed = [run for run in runs if len(run.column(TRAINING))]
    if not timed:
        raise InputError(f"none of these {len(runs)} runs has recorded {TRAINING}, the time of an update")
    costs = pd.DataFrame([_cost(run) for run in timed])
    # a sweep's runs lie in one folder; in the folders' order, the sum last
    table = costs.groupby("folder", as_index=False).sum()
    whole = costs.drop(columns="folder").sum()
    if len(table) > 1:
        table = pd.concat([table, pd.DataFrame([{"folder": "all", **whole}])], ignore_index=True)
    notes = [] if len(timed) == len(runs) else [f"{len(runs) - len(timed)} runs have no times, and are left out"]
    total = whole["device-hours"]
    said = f"{len(timed)} runs, {total:,.2f} device-hours, of which training {whole['training'] / total:.0%}."
    if whole["stalled"]:
        notes.append(f"{whole['stalled']:,.2f} device-hours more stood still, and are not counted")
    table = table.astype(dict.fromkeys(COUNTS, int)).round(2)
    return Result("hours", "Machine time", [said.replace("%", " %")], [], {"By folder": table}, notes)


def _devices(run: Run) -> int:
    """Ranks, on a CPU times their threads; 1 where no start says."""
    start = run.starts[-1] if run.starts else {}
    threads = start.get("threads_per_rank") if start.get("device") == "cpu" else 1
    return int(start.get("ranks") or 1) * int(threads or 1)


def _cost(run: Run) -> dict[str, object]:
    """A row of the table, of one run."""
    times = {kind: [_times(run, name) for name in names] for kind, names in KINDS.items()}
    share = _devices(run) / SECONDS
    hours = {kind: share * sum(counted for counted, _ in found) for kind, found in times.items()}
    stalled = share * sum(late for found in times.values() for _, late in found)
    counts = dict(zip(COUNTS, (1, run.state == "done", run.last_step), strict=True))
    return {"folder": run.file.parent.name, **counts, "device-hours": sum(hours.values()), **hours, "stalled": stalled}


def _times(run: Run, name: str) -> tuple[float, float]:
    """Seconds of the column, and how many more were stalled. A row of a thinned archive has the sum over its updates."""
    values = run.column(name)
    if name == TRAINING and run.every > 1:
        # the last row, and one that was evaluated, may stand for fewer updates
        updates = np.diff(values.index.to_numpy(), prepend=0).clip(min=1)
    else:
        updates = np.ones(len(values))
    usual = updates * float(np.median(values / updates)) if len(values) else updates
    late = (values > STALLED * usual) & (values > usual + LEAST_S)
    stalled = float((values - usual)[late].sum())
    return float(values.sum()) - stalled, stalled
