"""Whether the starts of small runs are sound, before anything is read from their ends.

    python -m slurm.submit configs/sweeps/small_gate.json --local --jobs 2
    python -m analysis gate configs/sweeps/small_gate.json

A start can decide a run: with initial weights too small for the learning rate the tied embedding falls to a few directions
within 60 updates, how badly depends on the seed, and whatever repairs it later looks like an effect. So a setting passes if
over its seeds

    the losses lie within 0.05 nats of each other: the validation losses at update 150 where all seeds were evaluated there
    (eval.every 150), else the mean training losses of updates 126–150, which are of each seed's own windows,
    no gradient norm of the first 150 updates exceeds 3, and
    the token embedding after them (its first checkpoint from update 150 on) has an effective rank above n_embd/5,

the effective rank being the exponential of the entropy of its squared singular values, normalised to one
(Roy and Vetterli, EUSIPCO 2007, of squares). A setting of one seed has no range, and does not pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from analysis.command import Options, Result
from analysis.compare import TRAIN, VALIDATION, same_windows
from analysis.figures import Figure, Line, Panel, line, styles
from analysis.pairing import Group, group_runs
from analysis.runs import Run
from record.archive_file import is_archive
from record.checkpoints import complete, step_of
from record.run import RunFolder

UPDATES, LAST = 150, 25  # the start, and how many of its last updates are the loss that seeds are compared by
RANGE, NORM, SHARE = 0.05, 3.0, 0.2


@dataclass(frozen=True)
class Start:
    """Training loss, validation loss at UPDATES (NaN: none), largest gradient norm, and effective rank over the width."""

    training: float
    validation: float
    norm: float
    share: float


def effective_rank(matrix: NDArray[np.floating]) -> float:
    """exp of the entropy of s²/Σs², s the singular values of a matrix (rows, columns): 1 to the smaller of the two."""
    # no rank in the strict sense: noise makes every matrix one of full rank
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    shares = squares[squares > 0] / squares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def analyse(runs: list[Run], options: Options) -> Result:
    groups, notes = group_runs([run for run in runs if run.origin is None], options.by)
    rows, findings, lines = [], [], []
    looks = styles(groups)
    for group in groups:
        # runs too young to be judged are noted, and not counted
        starts = [(run, start) for run in group.runs if (start := _start(run, notes)) is not None]
        if not starts:
            continue
        row, finding = _judge(
            group, [start for _, start in starts], same_windows([run for run, _ in starts], VALIDATION)
        )
        rows.append(row)
        findings.append(finding)
        for run, _ in starts:
            curve = run.column("optim/grad_norm").loc[:UPDATES]
            lines.append(line(options.placed(run, curve), f"{group.name}, seed {run.seeds}", looks[group.name], ""))
    # what the norm is judged by, in the figure
    limit = Line(np.array([1, UPDATES]), np.array([NORM, NORM]), "limit", "#888888", "dot")
    panel = Panel("step (updates)", "gradient norm before clipping", [*lines, limit] if lines else [])
    caption = f"Gradient norms of the first {UPDATES} updates, a line a seed; the limit is {NORM:g}."
    return Result(
        "gate", "Starts", findings, [Figure("start", caption, [panel])], {"Starts": pd.DataFrame(rows)}, notes
    )


def _start(run: Run, notes: list[str]) -> Start | None:
    """None, with a note, for a run that has not come so far."""
    # what cannot be judged has not failed
    if is_archive(run.file):
        notes.append(f"{run.file}: an archive holds no checkpoint, which the rank is read from; give the run's folder")
        return None
    losses, norms = run.column(TRAIN).loc[1:UPDATES], run.column("optim/grad_norm").loc[1:UPDATES]
    # every update must be recorded: a spike between two logged ones would pass
    if len(losses) < UPDATES or len(norms) < UPDATES:
        notes.append(f"{run.path}: {min(len(losses), len(norms))} of {UPDATES} updates: its start cannot be judged")
        return None
    rank = _rank(run, notes)
    validation = float(run.column(VALIDATION).get(UPDATES, float("nan")))
    share = rank / run.fields.get("model.n_embd", float("nan"))
    return Start(float(losses.iloc[-LAST:].mean()), validation, float(norms.max()), share)


def _rank(run: Run, notes: list[str]) -> float:
    """Effective rank of the embedding in the first checkpoint after the start; NaN, with a note, where there is none."""
    # the first one after the start: a run may keep few
    paths = [path for path in complete(RunFolder(run.path).checkpoints) if step_of(path) >= UPDATES]
    if not paths:
        notes.append(f"{run.path}: no checkpoint from step {UPDATES} on; save one with checkpoint.at [{UPDATES}]")
        return float("nan")
    name = next((name for name, kind in run.kinds.items() if kind == "embedding"), None)
    if name is None:
        notes.append(f"{run.path}: its configuration has no model with a token embedding that is known here")
        return float("nan")
    try:
        return effective_rank(_tensor(paths[0], name))
    except (OSError, SafetensorError, TypeError) as error:  # numpy has no bfloat16
        notes.append(f"{paths[0]}: its embedding cannot be read here: {error}")
        return float("nan")


def _tensor(checkpoint: Path, name: str) -> NDArray[np.floating]:
    with safe_open(checkpoint / "weights.safetensors", framework="numpy") as file:
        tensor: NDArray[np.floating] = file.get_tensor(name)
    return tensor


def _judge(group: Group, starts: list[Start], alike: bool) -> tuple[dict[str, object], str]:
    """`alike`: the seeds were evaluated over the same windows."""
    norms, shares = np.array([one.norm for one in starts]), np.array([one.share for one in starts])
    # each seed trains on windows of its own, and what those cost is no difference of starts
    validated = alike and all(np.isfinite(one.validation) for one in starts)
    losses = np.array([one.validation if validated else one.training for one in starts])
    # one seed has no range: NaN, which passes nothing
    spread = float(np.ptp(losses)) if len(losses) > 1 else float("nan")
    failed = [
        text
        for text, passed in (
            (
                f"{'validation ' * validated}losses differ by {spread:.3f} nats over seeds (limit {RANGE:g})",
                spread < RANGE,
            ),
            (f"a gradient norm of {norms.max():.1f} (limit {NORM:g})", norms.max() < NORM),
            (f"an embedding of effective rank {shares.min():.2f}·n_embd (limit {SHARE:g})", shares.min() > SHARE),
        )
        if not passed  # NaN passes nothing
    ]
    row: dict[str, object] = {
        "run": group.name,
        "seeds": len(starts),
        f"loss, updates {UPDATES - LAST + 1}–{UPDATES}": round(float(np.mean([one.training for one in starts])), 3),
        **({f"validation loss, update {UPDATES}": round(float(losses.mean()), 3)} if validated else {}),
        "range over seeds": round(spread, 4),
        "largest gradient norm": round(float(norms.max()), 2),
        "smallest effective rank / n_embd": round(float(shares.min()), 3),
        "start": "failed" if failed else "sound",
    }
    words = "the start is sound" if not failed else "the start fails: " + "; ".join(failed)
    return row, f"{group.name}: {words} ({len(starts)} seed{'s' if len(starts) != 1 else ''})."
