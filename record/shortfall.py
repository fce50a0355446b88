"""What the logs of a run lack, judged by its own status: a log that was cut off or emptied looks like a young run's.

Rows of the steps up to a status's step are on disk before the status is (engine/training.py), so a status that is ahead of
its log says that rows were lost, whatever the state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.cadence import due_until
from record.metrics import Log, lost_steps
from record.run import RunFolder

TAIL = 1 << 20  # bytes that are looked through for the last row of probes.jsonl, a row of which may hold 100 kB


def shortfalls(folder: RunFolder, status: Mapping[str, Any], log: Log, probe_every: int | None) -> list[str]:
    """Sentences on rows that metrics.jsonl (read as `log`, after the status) and probes.jsonl should have and have not."""
    state, done = status["state"], status["step"]
    sentences = lost_steps(folder.metrics, log)
    last = log.rows[-1] if log.rows else {}
    standing = f"although the run is {state} at step {done:,}"
    if not log.rows and (done or state == "done"):
        sentences.append(f"{folder.metrics}: it has no rows at all, {standing}")
    elif log.rows and last["step"] < done:
        sentences.append(f"{folder.metrics}: its rows end at step {last['step']:,}, {standing}")
    elif state == "done" and "val/loss" not in last:
        sentences.append(f"{folder.metrics}: the last step has no validation loss, {standing}")
    elif log.torn and state != "running":
        sentences.append(f"{folder.metrics}: its last line is cut off, {standing}")
    return sentences + _probes(folder, done, log, probe_every, standing)


def _probes(folder: RunFolder, done: int, log: Log, every: int | None, standing: str) -> list[str]:
    if not every or type(every) is not int or every < 1:
        return []
    # The multiples of the cadence alone: the dense probes of a start are younger than some runs. A left-out update has no probe.
    skipped = {row["step"] for row in log.rows if row.get("nonfinite/skipped")}
    due = next((step for step in due_until(every, done) if step not in skipped), 0)
    last = _last_step(folder.probes)
    if not due or (last is not None and last >= due):
        return []
    ending = "it has no rows at all" if last is None else f"its rows end at step {last:,} (due: {due:,})"
    return [f"{folder.probes}: {ending}, {standing} and log.probe_every is {every:,}"]


def _last_step(path: Path) -> int | None:
    """The step of the last whole row, from the end of the file, which may be large; None where there is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL)
        file.seek(start)
        lines = file.read().split(b"\n")
    for line in reversed(lines[1 if start else 0 :]):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
        if type(step) is int:
            return step
    return None
