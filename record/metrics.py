"""metrics.jsonl: append-only rows, one per update, and their reader.

Every row has `step` (updates done) and `tokens` (tokens those updates read). Row s holds of update s:

    train/loss            mean cross-entropy over the update's global tokens, before the update (nats)
    optim/lr              learning rate, read back from the optimiser
    optim/decay_sum       Σηλ up to and including this update
    optim/grad_norm       global gradient norm before clipping
    weights/norm          ‖w‖₂ of all trainable tensors after the update, tied weights once
    weights/norm_decayed  the same over the tensors that decay
    norm/<tensor>         the same of one tensor, with log.tensor_norms
    time/step_s           seconds of the update: data, forward, backward, optimiser, norms
    perf/tokens_per_s     tokens_per_step over it
    perf/mfu              model FLOPs utilisation, a fraction; only on devices whose peak is known (configs/cost.py)
    perf/peak_memory_bytes  of rank 0 since the start, every log.every updates (engine/memory.py)

and, where the run was evaluated after s updates, `val/loss` (mean over the fixed validation tokens), `val/loss_ema_0.99`
of each average (averages.ema) and `time/eval_s`; where it was saved, `time/checkpoint_s`. Row 0 holds the initial weights'
norms and validation loss.

An update that was kept back because its loss or gradient was not finite adds `event: "nonfinite"` and
`nonfinite/loss`, `nonfinite/grad_norm`, `nonfinite/lr` to the row of the updates done so far; where it is left out and
the run goes on (numerics.nonfinite: skip), to the row of its own step, with `nonfinite/skipped`, the count so far;
either way with `nonfinite/windows`, the windows of the global batch (epoch·windows + window). An update whose loss or
gradient norm stands out has `spike/loss` or `spike/grad_norm`, in robust deviations (record/watch.py).

A non-finite value is written as null and named in the row's `nonfinite` list. A row with `event: "resume"` and
step s makes the earlier rows after s void; a later row of the same step adds to and overrides the earlier one.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Append-only writer."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115 (lives as long as the run)
        self._end_torn_line()

    def write(self, rows: list[dict[str, Any]], sync: bool = False) -> None:
        """Append rows in one write and hand them to the operating system; with `sync`, to the disk."""
        self._file.write("".join(json.dumps(encode_row(row)) + "\n" for row in rows).encode())
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _end_torn_line(self) -> None:
        """A crash may have left half a row: end its line, so that the next row starts a new one."""
        size = self._file.seek(0, 2)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


def encode_row(row: dict[str, Any]) -> dict[str, Any]:
    """Non-finite floats as null, named in `nonfinite`."""
    bad = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**row, **dict.fromkeys(bad), "nonfinite": bad} if bad else row


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows in force, by step, and what was wrong with the file.

    Returns (rows sorted by step, problems). A torn last line is no problem: a writer may be at work.
    """
    rows, problems, _ = read_log(path)
    return rows, problems


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[str], int]:
    """As `read_metrics`, and of how many steps the rows were superseded when the run resumed before them."""
    rows: dict[int, dict[str, Any]] = {}
    problems: list[str] = []
    superseded = 0
    text = path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            step = row["step"]
            if not isinstance(step, int) or not all(isinstance(key, str) for key in row.get("nonfinite", [])):
                raise TypeError("step is not an integer, or nonfinite no list of names")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if number < len(lines):
                problems.append(f"{path}:{number}: not a row ({error})")
            continue
        if row.get("event") == "resume":
            void = [s for s in rows if s > step]
            superseded += len(void)
            for s in void:
                del rows[s]
        else:
            known = rows.setdefault(step, {})
            bad = {*known.get("nonfinite", ()), *row.get("nonfinite", ())}
            known.update(row)
            if bad:
                known["nonfinite"] = sorted(bad)
    return [rows[step] for step in sorted(rows)], problems, superseded
