"""Run a sweep: as one SLURM job array per stage, or on this machine.

    python -m slurm.submit configs/sweeps/small_wd_precision.json --dry-run
    python -m slurm.submit configs/sweeps/p1_wd_precision.json --site slurm/site.json
    python -m slurm.submit configs/sweeps/small_wd_precision.json --local --jobs 2

The same command again skips what is finished or queued, and resumes or retries the rest.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.identity import experiment
from configs.plan import Origin, Plan, make_plan, order_batch, read_summary
from configs.relations import check_reference
from configs.render import prepare_command
from configs.sweep import Cell, Stages, Sweep, all_cells, expand
from record.environment import code_revision
from record.files import write_json
from slurm.cells import FINISHED, Standing, config_path, queue, standings, write_cells
from slurm.local import run_local
from slurm.site import Site, load_site
from slurm.status import render_counts

ROOT = Path(__file__).resolve().parent.parent
logger = logging.getLogger("slurm.submit")


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args(argv)
    try:
        sweep, stages = expand(args.sweep, args.runs, read_summary, args.set)
        site, source = load_site(args.site)
        root = args.runs / sweep.name
        _check(stages, 1 if args.local else site.ranks)
        queued = queue(root, strict=not (args.dry_run or args.local))
        found = standings(all_cells(stages), queued)
        todo = {name: [cell for cell in cells if _is_open(cell, found, queued)] for name, cells in stages.items()}
        if args.dry_run:
            print(render(stages, found, todo))
            if not args.local:
                print(f"\nsite: {source}")
                after: list[str] = []
                for name, cells in todo.items():
                    if cells:
                        jobs = after + _waited_for(cells, queued)
                        print(
                            shlex.join(
                                sbatch_command(sweep, site, root, name, cells, root / "submissions/….json", jobs)
                            )
                        )
                        after = [f"(job of stage {name})"]
            return 0
        missing = sorted({prepare_command(c.config) for c in all_cells(todo) if c.id is None})
        if missing:
            raise ValueError("the data is not prepared; prepare it with: " + "; ".join(missing))
        print(render_counts(found))
        write_cells(root, all_cells(todo))
        if args.local:
            return run_local(root, all_cells(todo), args.jobs)
        submit(args.sweep, sweep, site, root, todo, queued)
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m slurm.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="sweep file")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a field of every run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the sweep's folder lies in here; default runs")
    parser.add_argument("--site", type=Path, help="site file; default slurm/site.json")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen; needs no data and no cluster")
    parser.add_argument("--local", action="store_true", help="run the cells on this machine, without SLURM")
    parser.add_argument("--jobs", type=int, default=1, help="with --local: cells at once, sharing cores and GPUs")
    args = parser.parse_args(argv)
    if args.jobs < 1 or (args.jobs > 1 and not args.local):
        parser.error("--jobs takes a positive number and goes with --local")
    return args


def _check(stages: Stages, ranks: int) -> None:
    """Every cell has a plan on the ranks it will get, and fits what it starts from or follows. ValueError names the first."""
    plans: dict[Path, Plan] = {}
    for cell in all_cells(stages):
        match, parent = cell.config.schedule.match, cell.parent
        try:
            if match is not None and parent is not None:
                for folder, same in ((match.reference, True), (match.own, False)):
                    if folder == str(parent.folder):
                        check_reference(cell.config, parent.config, folder, same)
            data = read_summary(cell.config.data.path)
            plans[cell.folder] = make_plan(cell.config, ranks, data, _origin(cell, plans) if data else None)
        except ValueError as error:
            raise ValueError(f"{cell.label}: {error}") from None


def _origin(cell: Cell, plans: dict[Path, Plan]) -> Origin | None:
    """The checkpoint that a branch will start from, as its trunk's plan foretells it; None for a run that is no branch."""
    if cell.parent is None or cell.step is None or cell.config.branch is None:
        return None
    trunk, data = cell.parent.config, read_summary(cell.parent.config.data.path)
    windows = (order_batch(trunk, cell.step - 1) + 1) * trunk.sequences_per_step
    known = experiment(trunk, data.digest if data else "")
    first = plans[cell.parent.folder].first_window
    return Origin(cell.config.branch.origin, "", cell.step, first + windows, known, trunk.data.path)


def _is_open(cell: Cell, found: dict[Path, Standing], queued: dict[str, tuple[str, str]]) -> bool:
    return found[cell.folder].state not in (*FINISHED, "running") and str(cell.folder.resolve()) not in queued


def render(stages: Stages, found: dict[Path, Standing], todo: Stages) -> str:
    """What would happen to every cell, one a line."""
    lines = []
    for name, cells in stages.items():
        lines.append(f"stage {name}: {len(cells)} run(s), {len(todo[name])} to do")
        for cell in cells:
            known, start = found[cell.folder], f" from {cell.parent.folder.name}@{cell.step}" if cell.parent else ""
            act = {"missing": "starts", "blocked": "starts"}.get(
                known.state, f"resumes ({known.state} at {known.step})"
            )
            lines.append(f"  {cell.folder}{start}: {act if cell in todo[name] else 'left alone, ' + known.state}")
    return "\n".join(lines)


def sbatch_command(
    sweep: Sweep, site: Site, root: Path, stage: str, cells: list[Cell], submission: Path, after: list[str]
) -> list[str]:
    """The sbatch command of one stage's array."""
    limit = sweep.limit or site.limit
    options = {
        "--job-name": f"{sweep.name}-{stage}",
        "--array": f"0-{len(cells) - 1}" + (f"%{limit}" if limit else ""),
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
        "--dependency": "afterany:" + ":".join(after) if after else None,
    }
    words = [f"{option}={value}" for option, value in options.items() if value is not None]
    python = site.python or sys.executable
    script = str(Path(__file__).with_name("train.sbatch"))
    return [
        "sbatch",
        "--parsable",
        "--requeue",
        *words,
        *site.options,
        script,
        python,
        str(submission.resolve()),
        *site.modules,
    ]


def _waited_for(cells: list[Cell], queued: dict[str, tuple[str, str]]) -> list[str]:
    """The tasks that SLURM still has of runs that these cells start from."""
    parents = {str(cell.parent.folder.resolve()) for cell in cells if cell.parent}
    return sorted(job for folder, (job, _) in queued.items() if folder in parents)


def submit(
    path: Path,
    sweep: Sweep,
    site: Site,
    root: Path,
    todo: Stages,
    queued: dict[str, tuple[str, str]],
) -> None:
    """One array per stage that has something to do, after the one before it and after queued runs that its cells start from.

    Every submission is recorded.
    """
    if "%" in str(root.resolve()):
        raise ValueError(f"{root.resolve()}: SLURM would expand the % in the log's path; use another --runs")
    (root / "slurm").mkdir(parents=True, exist_ok=True)
    after: list[str] = []
    for stage, cells in todo.items():
        if not cells:
            continue
        now = datetime.now(UTC)
        file = root / "submissions" / f"{now:%Y%m%dT%H%M%S_%f}-{stage}.json"
        file.parent.mkdir(exist_ok=True)
        command = sbatch_command(sweep, site, root, stage, cells, file, after + _waited_for(cells, queued))
        row: dict[str, Any] = {
            "sweep": str(path),
            "stage": stage,
            "submitted": now.isoformat(timespec="seconds"),
            "revision": code_revision(),
            "definition": sweep.model_dump(mode="json"),
            "site": site.model_dump(mode="json"),
            "command": command,
            "cells": [
                {
                    "label": cell.label,
                    "folder": str(cell.folder.resolve()),
                    "config": str(config_path(root, cell).resolve()),
                    "parent": str(cell.parent.folder.resolve()) if cell.parent else None,
                    "step": cell.step,
                }
                for cell in cells
            ],
        }
        write_json(file, row)  # before sbatch: a task may start at once
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, env=_clean_environment())
        except (OSError, subprocess.CalledProcessError) as error:
            file.unlink()
            found = (
                error.stderr.strip()
                if isinstance(error, subprocess.CalledProcessError)
                else f"{error}; is this a login node?"
            )
            raise ValueError(f"sbatch refused stage {stage}: {found}; asked: {shlex.join(command)}") from None
        job = answer.stdout.strip().partition(";")[0]
        after = [job]
        write_json(file, {**row, "job": job})
        logger.info("stage %s: job %s, %d run(s); logs in %s", stage, job, len(cells), root / "slurm")


def _clean_environment() -> dict[str, str]:
    """Without the variables of a job or launcher this may itself run in: sbatch would hand them on."""
    ours = re.compile("(SLURM|SBATCH|SRUN|MASTER)_(?!CONF$)|RANK$|WORLD_SIZE$|LOCAL_")
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


if __name__ == "__main__":
    sys.exit(main())
