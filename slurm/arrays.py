"""A sweep as SLURM job arrays: one per stage, or several where the cluster allows none so long."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.sweep import Stages, Sweep
from configs.sweep_cell import Cell
from record.environment import code_revision
from record.files import write_json
from slurm.cells import config_path, write_cells
from slurm.site import Site

ROOT = Path(__file__).resolve().parent.parent
logger = logging.getLogger("slurm.submit")
Queued = dict[str, tuple[str, str]]  # a cell's folder → its task and the task's state (slurm.cells.queue)


@dataclass(frozen=True)
class Array:
    """One job array: the cells of a stage, or the `part`-th of `parts` of them. `after`: jobs and tasks that it waits for."""

    stage: str
    part: int
    parts: int
    cells: list[Cell]
    after: list[str]

    @property
    def name(self) -> str:
        return self.stage + (f", part {self.part} of {self.parts}" if self.parts > 1 else "")


def max_array_size() -> int | None:
    """How many tasks the cluster allows an array; None where SLURM does not say. InputError if it allows no arrays."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    if limit and int(limit[1]) == 0:
        raise InputError("this cluster allows no job arrays (MaxArraySize 0); ask its administrators, or use --local")
    return int(limit[1]) if limit else None  # the largest index is one less, and the first is 0


def chain(todo: Stages, size: int | None, limit: int | None, queued: Queued, send: Callable[[Array], str]) -> None:
    """Hand every array of what is to do to `send`, which gives its job.

    All arrays of a stage wait for all of the stage before, and for queued runs that their cells start from. SLURM limits the
    tasks of one array that run at once; so that the limit holds over several, each of these waits for the one before it.
    """
    before: list[str] = []
    for stage, cells in todo.items():
        step = size or max(len(cells), 1)
        parts = [cells[start : start + step] for start in range(0, len(cells), step)]
        jobs: list[str] = []
        for index, part in enumerate(parts):
            after = before + (jobs[-1:] if limit else []) + _waited_for(part, queued)
            jobs.append(send(Array(stage, index + 1, len(parts), part, after)))
        before = jobs or before


def _waited_for(cells: list[Cell], queued: Queued) -> list[str]:
    """The tasks that SLURM still has of runs that these cells start from."""
    parents = {str(cell.parent.folder.resolve()) for cell in cells if cell.parent}
    return sorted(job for folder, (job, _) in queued.items() if folder in parents)


def sbatch_command(sweep: Sweep, site: Site, root: Path, array: Array, submission: Path) -> list[str]:
    """The sbatch command of one array."""
    limit = sweep.limit or site.limit
    options = {
        "--job-name": f"{sweep.name}-{array.stage}",
        "--array": f"0-{len(array.cells) - 1}" + (f"%{limit}" if limit else ""),
        "--chdir": str(ROOT),
        "--output": str(root.resolve() / "slurm" / "%A_%a.log"),
        "--open-mode": "append",
        "--signal": f"USR1@{site.signal_s}",
        "--nodes": site.nodes,
        "--ntasks-per-node": site.ranks_per_node,
        "--cpus-per-task": site.cpus_per_rank,
        "--gpus-per-node": site.gpus_per_node or None,
        "--mem": site.memory,
        "--time": site.time,
        "--account": site.account,
        "--partition": site.partition,
        "--qos": site.qos,
        "--dependency": "afterany:" + ":".join(array.after) if array.after else None,
    }
    words = [f"{option}={value}" for option, value in options.items() if value is not None]
    python = site.python or sys.executable
    script = str(Path(__file__).with_name("train.sbatch"))
    given = [python, str(submission.resolve()), *site.modules]
    return ["sbatch", "--parsable", "--requeue", *words, *site.options, script, *given]


def foretell(sweep: Sweep, site: Site, root: Path, array: Array) -> str:
    """Print an array's command, for a dry run; gives a word that stands for its job."""
    print(shlex.join(sbatch_command(sweep, site, root, array, root / "submissions/….json")))
    return f"(job of stage {array.name})"


def submit(path: Path, sweep: Sweep, site: Site, root: Path, todo: Stages, queued: Queued) -> None:
    """Submit what is to do; every array is recorded. InputError says what sbatch refused, and what it had accepted before."""
    if "%" in str(root.resolve()):
        raise InputError(f"{root.resolve()}: SLURM would expand the % in the log's path; use another --runs")
    accepted: list[str] = []
    try:
        chain(
            todo, max_array_size(), sweep.limit or site.limit, queued, partial(_send, path, sweep, site, root, accepted)
        )
    except InputError as error:
        so_far = f"; accepted before, and left queued: {', '.join(accepted)}; the same command submits the rest"
        raise InputError(f"{error}{so_far if accepted else ''}") from None


def _send(path: Path, sweep: Sweep, site: Site, root: Path, accepted: list[str], array: Array) -> str:
    """Submit one array and record it; what was written for one that sbatch refuses is removed. Gives its job."""
    now = datetime.now(UTC)
    file = root / "submissions" / f"{now:%Y%m%dT%H%M%S_%f}-{array.stage}.json"
    folders = [file.parent, root / "cells", root / "slurm"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    written = [config for cell in array.cells if not (config := config_path(root, cell)).exists()]
    write_cells(root, array.cells)
    command = sbatch_command(sweep, site, root, array, file)
    row = _submission(path, sweep, site, root, array, now, command)
    write_json(file, row)  # before sbatch: a task may start at once
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=_clean_environment())
    except (OSError, subprocess.CalledProcessError) as error:
        for path in (file, *written):
            path.unlink()
        for folder in folders:
            with suppress(OSError):  # not empty: earlier submissions are in it
                folder.rmdir()
        words = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise InputError(f"sbatch refused stage {array.name}: {words}; asked: {shlex.join(command)}") from None
    job = answer.stdout.strip().partition(";")[0]
    write_json(file, {**row, "job": job})
    accepted.append(job)
    logger.info("stage %s: job %s, %d run(s); logs in %s", array.name, job, len(array.cells), root / "slurm")
    return job


def _submission(
    path: Path, sweep: Sweep, site: Site, root: Path, array: Array, now: datetime, command: list[str]
) -> dict[str, Any]:
    """What is recorded of an array; its tasks find their cells here by their index (slurm/task.py)."""
    cells = [
        {
            "label": cell.label,
            "folder": str(cell.folder.resolve()),
            "config": str(config_path(root, cell).resolve()),
            "parent": str(cell.parent.folder.resolve()) if cell.parent else None,
            "step": cell.step,
        }
        for cell in array.cells
    ]
    return {
        "sweep": str(path),
        "stage": array.stage,
        "part": [array.part, array.parts],
        "submitted": now.isoformat(timespec="seconds"),
        "revision": code_revision(),
        "definition": sweep.model_dump(mode="json"),
        "site": site.model_dump(mode="json"),
        "command": command,
        "cells": cells,
    }


def _clean_environment() -> dict[str, str]:
    """Without the variables of a job or launcher this may itself run in: sbatch would hand them on."""
    ours = re.compile("(SLURM|SBATCH|SRUN|MASTER)_(?!CONF$)|RANK$|WORLD_SIZE$|LOCAL_")
    return {name: value for name, value in os.environ.items() if not ours.match(name)}
