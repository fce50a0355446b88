"""The cells of a sweep on disk: their folders, their submissions, and what became of each. No torch: for a login node."""

from __future__ import annotations

import socket
import statistics
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.sweep_cell import Cell
from record.checkpoints import find
from record.files import read_dict, write_json
from record.lock import BEAT_S, NOTE, holder, is_running
from record.metrics import read_log
from record.run import FINISHED, RunFolder
from record.shortfall import shortfalls
from slurm.refusals import note_refusal, refusal, why_it_ended

ALIVE_S = 12 * BEAT_S  # a writer whose last heartbeat is older has died


@dataclass(frozen=True)
class Standing:
    """What became of a cell. `state`: done running preempted pending failed diverged blocked missing, or unknown where the
    status is damaged."""

    state: str
    step: int = 0
    steps: int = 0
    why: str = ""
    per_s: float | None = None  # tokens, or images
    eta_s: float | None = None
    train_loss: float | None = None  # mean of the last 20 updates
    val_loss: float | None = None


def standing(cell: Cell, queued: dict[str, tuple[str, str]], others: dict[Path, Standing]) -> Standing:
    """A cell's state from its run folder and SLURM's queue (folder → (job, its state)); `others` knows its parent's."""
    folder, steps = RunFolder(cell.folder), cell.config.schedule.steps
    status = folder.read_status() if cell.id else None
    job, job_state = queued.get(str(cell.folder.resolve()), ("", ""))
    waiting = job_state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
    held = is_alive(folder)
    refused = refusal(folder.path, status)
    if refused and not job_state and not held:
        return Standing("failed", status["step"] if status else 0, steps, refused)
    if status is None and held:
        return Standing("running", 0, steps, f"started by {holder(folder.path)}")
    if status is None:
        if waiting or job_state:
            return Standing("pending" if waiting else "running", 0, steps, f"job {job} {job_state.lower()}")
        parent = others.get(cell.parent.folder) if cell.parent else None
        if parent is not None and parent.state in (*FINISHED, "failed", "blocked") and (why := blocked(cell)):
            return Standing("blocked", 0, steps, why)
        return Standing("missing", 0, steps)
    log = read_log(folder.metrics, steps)
    rows, lacking = log.rows, shortfalls(folder, status, log, cell.config.log.probe_every)
    step = max([status["step"], *(row["step"] for row in rows)])
    recent = [row for row in rows if "train/loss" in row][-20:]
    speed = f"perf/{cell.config.unit}_per_s"
    rates = [row[speed] for row in recent if row.get(speed)]
    losses = [row["train/loss"] for row in recent if row["train/loss"] is not None]
    validations = [row["val/loss"] for row in rows if row.get("val/loss") is not None]
    state, why, rate = status["state"], status["reason"], statistics.median(rates) if rates else None
    if state in ("failed", "preempted") and held:
        state, why = "running", f"started again by {holder(folder.path)}"
    elif state == "running" and not held:
        state, why = "failed", "its process is gone: killed, or its node lost"
        if job_state:
            state, why = ("pending", f"job {job} requeued") if waiting else ("running", f"job {job} starts again")
    elif state in ("failed", "preempted") and job_state:
        state, why = ("pending" if waiting else "running"), f"job {job} {job_state.lower()}, was {state}"
    return Standing(
        state,
        step,
        steps,
        "; ".join([*filter(None, [why]), *lacking]),
        rate if state == "running" else None,
        (steps - step) * cell.config.units_per_step / rate if rate and state == "running" else None,
        statistics.fmean(losses) if losses else None,
        validations[-1] if validations else None,
    )


def standings(
    cells: Iterable[Cell],
    queued: dict[str, tuple[str, str]] | None = None,
    before: dict[Path, Standing] | None = None,
) -> dict[Path, Standing]:
    """The standing of every cell; parents come before their children.

    `before`: the answer of a moment ago. What had finished then is not read again: nothing moves in it any more, and the logs of
    a hundred runs take a second.
    """
    by_folder: dict[Path, Standing] = {}
    for cell in cells:
        if before and (known := before.get(cell.folder)) is not None and known.state in FINISHED:
            by_folder[cell.folder] = known
            continue
        try:
            by_folder[cell.folder] = standing(cell, queued or {}, by_folder)
        except (
            ValueError,
            KeyError,
            TypeError,
            ArithmeticError,
            OSError,
        ) as error:  # one damaged folder must not hide the others
            by_folder[cell.folder] = Standing(
                "failed", 0, cell.config.schedule.steps, f"its folder cannot be read: {error!r}"
            )
    return by_folder


def is_alive(folder: RunFolder) -> bool:
    """Whether the folder's writer has shown itself lately; on its own host, whether its process is there."""
    row = read_dict(folder.path / NOTE)
    if row.get("host") == socket.gethostname() and not is_running(row.get("pid")):
        return False
    try:
        return time.time() - (folder.path / NOTE).stat().st_mtime < ALIVE_S
    except OSError:
        return False


def aftermath(folder: Path, started: float, logs: list[Path], cluster_log: Path | None, ended: str) -> tuple[str, str]:
    """How an attempt that began at `started` came out: "started", "held" (and by whom) or "refused" (and why, which is noted).

    An attempt that has left no status did not start. Where somebody else writes the folder this is no failure.
    """
    status = RunFolder(folder).read_status()
    if status is not None and datetime.fromisoformat(status["updated"]).timestamp() >= int(started):
        return "started", ""
    if is_alive(RunFolder(folder)):
        return "held", f"held by {holder(folder)}"
    why = why_it_ended(logs, cluster_log, ended)
    note_refusal(folder, why)
    return "refused", why


def blocked(cell: Cell) -> str:
    """Why a cell cannot start; empty if it can."""
    return unready(str(cell.parent.folder), cell.step) if cell.parent else ""


def unready(parent: str, step: int | None) -> str:
    """Why no run can start from `parent`: its checkpoint of `step` is not there, or, without a step, it is not done."""
    if step is not None:
        try:
            find(RunFolder(parent).checkpoints, step)
        except InputError as error:
            return str(error)
        return ""
    status = RunFolder(parent).read_status()
    whole = status is not None and status["state"] in FINISHED and status["step"] == status["steps"]
    return "" if whole else f"{parent} is not finished"


def write_cells(root: Path, cells: list[Cell]) -> None:
    """Each cell's whole configuration, for train.py: `cells/<folder's name>.json`."""
    (root / "cells").mkdir(parents=True, exist_ok=True)
    for cell in cells:
        write_json(config_path(root, cell), cell.given)


def config_path(root: Path, cell: Cell) -> Path:
    return root / "cells" / f"{cell.folder.name}.json"


def read_submissions(root: Path) -> list[dict[str, Any]]:
    """What was submitted, oldest first; a record that cannot be read is left out."""
    return [row for path in sorted((root / "submissions").glob("*.json")) if (row := read_dict(path))]


def queue(root: Path, strict: bool = False) -> dict[str, tuple[str, str]]:
    """Folder → (job, SLURM's state) of the sweep's tasks that SLURM still has; empty without SLURM.

    With `strict`, InputError where jobs were submitted and SLURM cannot be asked about them.
    """
    states: dict[str, tuple[str, str]] = {}
    tasks = {
        f"{submission['job']}_{index}": cell["folder"]
        for submission in read_submissions(root)
        if submission.get("job")
        for index, cell in enumerate(submission["cells"])
    }
    if not tasks:
        return {}
    answer = _ask(["squeue", "--noheader", "--array", "--states=all", "--format=%F_%K %T"])
    if answer is None and strict:
        raise InputError(f"squeue does not answer, so what {root} still has queued is not known; try again later")
    for line in (answer or "").splitlines():
        task, state = line.split()
        if task in tasks and state in ACTIVE:
            states[tasks[task]] = (task, state)
    return states


ACTIVE = (
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING",
    "STAGE_OUT",
)  # fmt: skip


def accounted(root: Path) -> dict[str, str]:
    """Folder → how SLURM says its latest attempt ended (OUT_OF_MEMORY, TIMEOUT, …); empty without accounting."""
    endings: dict[str, str] = {}
    for submission in read_submissions(root):
        if not submission.get("job"):
            continue
        report = _ask(
            ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", submission["job"], "--format=JobID,State"]
        )
        for line in (report or "").splitlines():
            task, _, state = line.partition("|")
            index = task.rpartition("_")[2]
            if index.isdecimal() and int(index) < len(submission["cells"]):
                endings[submission["cells"][int(index)]["folder"]] = state.split()[0]
    return endings


def _ask(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
