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


def analyse(runs: list[Run], options: Options) -> Result:
    timed = [run for run in runs if len(run.column(TRAINING))]
    if not timed:
        raise InputError(f"none of these {len(runs)} runs has recorded {TRAINING}, the time of an update")
    # a sweep's runs lie in one folder
    folders: dict[str, list[Run]] = {}
    for run in timed:
        folders.setdefault(run.file.parent.name, []).append(run)
    # in the folders' order, the sum last
    rows = [_row(name, members) for name, members in sorted(folders.items())]
    whole = {kind: _hours(timed, kind) for kind in KINDS}
    if len(rows) > 1:
        rows.append(_row("all", timed))
    notes = [] if len(timed) == len(runs) else [f"{len(runs) - len(timed)} runs have no times, and are left out"]
    total = sum(whole.values())
    said = f"{len(timed)} runs, {total:,.2f} device-hours, of which training {whole['training'] / total:.0%}."
    if stalled := _stalled(timed):
        notes.append(f"{stalled:,.2f} device-hours more stood still, and are not counted")
    table = pd.DataFrame(rows).round(2)
    return Result("hours", "Machine time", [said.replace("%", " %")], [], {"By folder": table}, notes)


def _devices(run: Run) -> int:
    """Ranks, on a CPU times their threads; 1 where no start says."""
    start = run.starts[-1] if run.starts else {}
    threads = start.get("threads_per_rank") if start.get("device") == "cpu" else 1
    return int(start.get("ranks") or 1) * int(threads or 1)


def _hours(runs: list[Run], kind: str) -> float:
    """Without what was stalled."""
    return sum(_devices(run) * _times(run, name)[0] for run in runs for name in KINDS[kind]) / SECONDS


def _stalled(runs: list[Run]) -> float:
    return (
        sum(_devices(run) * _times(run, name)[1] for run in runs for names in KINDS.values() for name in names)
        / SECONDS
    )


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


def _row(name: str, runs: list[Run]) -> dict[str, object]:
    hours = {kind: _hours(runs, kind) for kind in KINDS}
    ended = sum(run.state == "done" for run in runs)
    counts = {"runs": len(runs), "to their end": ended, "updates": sum(run.last_step for run in runs)}
    return {"folder": name, **counts, "device-hours": sum(hours.values()), **hours, "stalled": _stalled(runs)}
