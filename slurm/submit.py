"""Run a sweep: as SLURM job arrays, stage after stage, or on this machine.

    python -m slurm.submit configs/sweeps/small_wd_precision.json --dry-run
    python -m slurm.submit configs/sweeps/p1_wd_precision.json --site slurm/site.json
    python -m slurm.submit configs/sweeps/small_wd_precision.json --local --jobs 2
    python -m slurm.submit configs/sweeps/small_rules_tuning.json --local --archived docs/study/records/small_rules_tuning

The same command again skips what is finished or queued, and resumes or retries the rest.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from configs.errors import InputError
from configs.origin import Origin, check_leader, followed_runs, planned_origin
from configs.plan import Plan, make_plan
from configs.prepared import read_summary
from configs.render import prepare_command
from configs.sweep import Stages, all_cells, expand
from configs.sweep_cell import Cell
from record.lock import LOCK, NOTE, hold
from record.run import FINISHED
from slurm.archived import archived
from slurm.arrays import chain, foretell, max_array_size, submit
from slurm.cells import Standing, queue, standings, write_cells
from slurm.local import run_local
from slurm.site import load_site
from slurm.status import render_counts


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args(argv)
    try:
        sweep, stages = expand(args.sweep, args.runs, read_summary, args.set)
        site, source = load_site(args.site)
        root = args.runs / sweep.name
        _check(stages, 1 if args.local else site.ranks)
        if args.dry_run:
            queued = queue(root)
            standing_of, todo = outlook(stages, queued, args.local, args.archived)
            print(render(stages, standing_of, todo))
            if not args.local:
                print(f"\nsite: {source}")
                chain(todo, max_array_size(), sweep.limit or site.limit, queued, partial(foretell, sweep, site, root))
            return 0
        if not args.local and shutil.which("sbatch") is None:
            again = shlex.join(["python", "-m", "slurm.submit", *(argv or sys.argv[1:]), "--local"])
            raise InputError(
                f"no sbatch here, so this is no login node of a SLURM cluster; nothing was written. On this machine: {again} "
                "(--jobs N for N runs at once)"
            )
        missing = sorted({prepare_command(c.config) for c in all_cells(stages) if c.id is None})
        if missing:
            raise InputError("the data is not prepared; prepare it with: " + "; ".join(missing))
        with sweep_folder(root):
            queued = queue(root, strict=not args.local)  # under the lock: what another command has submitted is seen
            standing_of, todo = outlook(stages, queued, args.local, args.archived)
            print(render_counts(standing_of))
            if args.local:
                write_cells(root, all_cells(todo))
                return run_local(root, all_cells(todo), args.jobs)
            submit(args.sweep, sweep, site, root, todo, queued)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m slurm.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="sweep file")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a field of every run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the sweep's folder lies in here; default runs")
    parser.add_argument(
        "--archived",
        type=Path,
        metavar="DIR",
        help="leave alone what DIR has an archive of (record.archive), folder or none",
    )
    parser.add_argument("--site", type=Path, help="site file; default slurm/site.json")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen; needs no data and no cluster")
    parser.add_argument("--local", action="store_true", help="run the cells on this machine, without SLURM")
    parser.add_argument("--jobs", type=int, default=1, help="with --local: cells at once, sharing cores and GPUs")
    args = parser.parse_args(argv)
    if args.jobs < 1 or (args.jobs > 1 and not args.local):
        parser.error("--jobs takes a positive number and goes with --local")
    return args


def _check(stages: Stages, ranks: int) -> None:
    """Every cell has a plan on the ranks it will get, and fits what it starts from or follows. InputError names the first."""
    plans: dict[Path, Plan] = {}
    for cell in all_cells(stages):
        match, parent = cell.config.schedule.match, cell.parent
        try:
            if match is not None and parent is not None:
                for folder, same_schedule in followed_runs(match):
                    if folder == str(parent.folder):
                        check_leader(cell.config, parent.config, folder, same_schedule)
            data = read_summary(cell.config.data.path)
            plans[cell.folder] = make_plan(cell.config, ranks, data, _origin(cell, plans) if data else None)
        except InputError as error:
            raise InputError(f"{cell.label}: {error}") from None


def _origin(cell: Cell, plans: dict[Path, Plan]) -> Origin | None:
    """The checkpoint that a branch will start from, as its trunk's plan foretells it; None for a run that is no branch."""
    if cell.parent is None or cell.step is None or cell.config.branch is None:
        return None
    trunk, start = cell.parent.config, plans[cell.parent.folder].first_window
    return planned_origin(trunk, read_summary(trunk.data.path), start, cell.step, cell.config.branch.origin)


@contextmanager
def sweep_folder(root: Path) -> Iterator[None]:
    """Be the only command that submits or runs the sweep in `root`; a folder that was made and stays empty is removed.

    Two submissions at one moment would each find every cell missing, and submit it. InputError names who is at work.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with hold(
        root, "submitting or running the sweep in", "one command at a time works on a sweep: wait for it, or stop it"
    ):
        try:
            yield
        finally:  # still under the lock: who is refused it must not remove the folder of who has it
            if made and {path.name for path in root.iterdir()} <= {NOTE, LOCK}:
                for name in (NOTE, LOCK):
                    (root / name).unlink(missing_ok=True)
                for folder in made:
                    with suppress(OSError):  # not empty: another's run has come into it
                        folder.rmdir()


def outlook(
    stages: Stages, queued: dict[str, tuple[str, str]], local: bool, archives: Path | None = None
) -> tuple[dict[Path, Standing], Stages]:
    """The standing of every cell, and the cells to do: on a cluster without those that run, which the local runner waits for.

    What `archives` has a finished run's archive of counts as finished. InputError as `archived`.
    """
    standing_of = standings(all_cells(stages), queued)
    settled = FINISHED if local else (*FINISHED, "running")

    def to_do() -> Stages:
        return {
            name: [
                cell
                for cell in cells
                if standing_of[cell.folder].state not in settled and str(cell.folder.resolve()) not in queued
            ]
            for name, cells in stages.items()
        }

    if archives is not None:
        standing_of |= archived(all_cells(to_do()), archives)
    return standing_of, to_do()


def render(stages: Stages, standing_of: dict[Path, Standing], todo: Stages) -> str:
    """What would happen to every cell, one a line."""
    lines = []
    for name, cells in stages.items():
        lines.append(f"stage {name}: {len(cells)} run(s), {len(todo[name])} to do")
        for cell in cells:
            standing, start = (
                standing_of[cell.folder],
                f" from {cell.parent.folder.name}@{cell.step}" if cell.parent else "",
            )
            act = {"missing": "starts", "blocked": "starts"}.get(
                standing.state, f"resumes ({standing.state} at {standing.step})"
            )
            alone = f"left alone, {standing.state}{f' ({standing.why})' if standing.why else ''}"
            lines.append(f"  {cell.folder}{start}: {act if cell in todo[name] else alone}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
