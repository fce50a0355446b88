"""metrics.jsonl: append-only rows, one per update, and their reader.

Every row has `step` (updates done) and `tokens` (tokens those updates read), of a run on images `images`. Row s holds of update s:

    train/loss            mean cross-entropy over the update's global tokens, before the update (nats)
    optim/lr              learning rate, read back from the optimiser
    optim/decay_sum       Σηλ up to and including this update; of decoupled decay the e-folds that weights have seen, of other
                          rules what configs/equilibrium.e_folds makes of it, or no measure at all
    optim/grad_norm       global gradient norm before clipping
    weights/norm          ‖w‖₂ of all trainable tensors after the update, tied weights once
    weights/norm_decayed  the same over the tensors that decay
    norm/<tensor>         the same of one tensor, with log.tensor_norms
    time/step_s           seconds of the update: data, forward, backward, optimiser, norms; not a probe's look at it
    perf/tokens_per_s     tokens_per_step over it; perf/images_per_s of images
    perf/mfu              model FLOPs utilisation, a fraction; only on devices whose peak is known (configs/cost.py)
    perf/peak_memory_bytes  of rank 0 since the start, every log.every updates (engine/memory.py)

and, where the run was evaluated after s updates, `val/loss` (mean over the fixed validation tokens), `val/loss_ema_0.99`
and `weights/norm_ema_0.99` of each average (averages.ema) and `time/eval_s`; of images with eval.train_images the same over
training images as `train_eval/…`, and `train_eval/objective`, CE + ½λ‖w‖²; where it was saved, `time/checkpoint_s`; of images
with measures.every `measure/…` (weights/measures.py), `measure/…_ema_0.99` and `time/measures_s`. Row 0 holds the initial weights'
norms and validation loss. With eval.final_tokens the row of the run's end also has `val/final_loss` and
`val/final_loss_ema_0.99`, the means over those windows: other tokens than val/loss, so the two make no one curve.

An update that was kept back because its loss or gradient was not finite adds `event: "nonfinite"` and
`nonfinite/loss`, `nonfinite/grad_norm`, `nonfinite/lr` to the row of the updates done so far; where it is left out and
the run goes on (numerics.nonfinite: skip), to the row of its own step, with `nonfinite/skipped`, the count so far;
either way with `nonfinite/windows`, the windows of the global batch (epoch·windows + window). An update whose loss or
gradient norm stands out has `spike/loss` or `spike/grad_norm`, in robust deviations (record/watch.py).

A non-finite value is written as null and named in the row's `nonfinite` list. A row with `event: "resume"` and
step s makes the earlier rows after s void; a later row of the same step adds to and overrides the earlier one.

So every measurement (a name with a slash) is a number or null, but for the list `nonfinite/windows`; a line that says
otherwise is damaged, and no row. Every step from 1 on has a row: one that is missing was lost.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record.files import parse_json, read_regular
from record.run import LARGEST

UNITS = ("tokens", "images")  # what a row counts beside its step
TENSOR_NORM = "norm/"  # the column of one tensor's norm: norm/blocks.0.attn.qkv.weight
WORST = 5  # so many damaged lines and missing pieces of one file are named, the others counted
HIGHEST = sys.float_info.max


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


@dataclass(frozen=True)
class Log:
    """`rows` in force, by step; `problems`: lines that are no rows; `superseded`: steps whose rows a resume made void;
    `torn`: the last line has no end, because a writer is at work or was cut off."""

    rows: list[dict[str, Any]]
    problems: list[str]
    superseded: int
    torn: bool


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows in force, by step, and what was wrong with the file: lines that are no rows, steps that have none.

    Returns (rows sorted by step, problems). A torn last line is no problem: a writer may be at work.
    """
    log = read_log(path)
    return log.rows, log.problems + lost_steps(path, log)


def read_log(path: Path, last: int = LARGEST) -> Log:
    """A log of a run whose last step is `last`: a row of a later one is damaged. InputError if it is no regular file."""
    rows: dict[int, dict[str, Any]] = {}
    damaged: list[str] = []
    superseded = 0
    try:
        text = read_regular(path).decode("utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = _row(line, last)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            if number < len(lines):
                damaged.append(f"{path}:{number}: not a row ({error})")
            continue
        step = row["step"]
        if row.get("event") == "resume":
            void = [s for s in rows if s > step]
            superseded += len(void)
            for s in void:
                del rows[s]
        else:
            merged = rows.setdefault(step, {})
            bad = {*merged.get("nonfinite", ()), *row.get("nonfinite", ())}
            merged.update(row)
            if bad:
                merged["nonfinite"] = sorted(bad)
    if len(damaged) > WORST:
        damaged[WORST:] = [f"{path}: {len(damaged) - WORST} more lines are no rows"]
    return Log([rows[step] for step in sorted(rows)], damaged, superseded, torn=bool(lines[-1]))


def _row(line: str, last: int) -> dict[str, Any]:
    """A line of a log, checked. InputError, LookupError, TypeError or RecursionError for one that is no row."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise TypeError("no JSON object")
    return check_row(row, last)


def check_row(row: dict[str, Any], last: int) -> dict[str, Any]:
    """A row of a run of `last` steps; numbers beyond LARGEST become floats. LookupError or TypeError for one that is none."""
    step = row["step"]
    if type(step) is not int or not 0 <= step <= last:  # a bool is an int to isinstance, and would be step 1
        raise TypeError(f"step is {step!r:.40}" + (f", not from 0 to {last}" if last < LARGEST else ""))
    if not all(type(row.get(unit, 0)) is int for unit in UNITS) or not isinstance(row.get("event", ""), str):
        raise TypeError("tokens or images is not an integer, or event no text")
    bad = row.get("nonfinite", [])
    if not isinstance(bad, list) or not all(isinstance(name, str) for name in bad):
        raise TypeError("nonfinite is no list of names")
    for name, value in row.items():
        if value.__class__ is float and -HIGHEST <= value <= HIGHEST:  # nearly all of them
            continue
        if "/" not in name or value is None or name == "nonfinite/windows":
            continue
        if type(value) not in (int, float) or not -HIGHEST <= value <= HIGHEST:
            raise TypeError(f"{name[:80]} is {value!r:.40}, not a number or null")
        row[name] = float(value) if abs(value) > LARGEST else value
    return row


def lost_steps(path: Path, log: Log, upto: int | None = None) -> list[str]:
    """One sentence on the steps from 1 to `upto` (None: the last row) that have no row in metrics.jsonl; none if all have."""
    steps = [0, *(row["step"] for row in log.rows if row["step"] and (upto is None or row["step"] <= upto))]
    steps += [] if upto is None else [upto + 1]
    gaps = [(a + 1, b - 1) for a, b in itertools.pairwise(steps) if b - a > 1]
    if not gaps:
        return []
    named = ", ".join(f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in gaps[:WORST])
    more = f" and {len(gaps) - WORST} more places" if len(gaps) > WORST else ""
    return [f"{path}: {_count(sum(b - a + 1 for a, b in gaps))} no row: {named}{more}"]


def _count(steps: int) -> str:
    return "1 step has" if steps == 1 else f"{steps:,} steps have"
