"""How a sweep is doing: a table of its cells, from their run folders and, where there is one, SLURM's queue.

    python -m slurm.status configs/sweeps/small_wd_precision.json [--json]

Needs no torch and no data: it runs on a login node.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from configs.errors import InputError
from configs.prepared import read_summary
from configs.sweep import all_cells, expand
from configs.sweep_cell import Cell
from slurm.cells import Standing, accounted, queue, standings


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.status", description="How the runs of a sweep are doing.")
    parser.add_argument("sweep", type=Path, help="sweep file")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="as at submission")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="as at submission; default runs")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args(argv)
    try:
        sweep, stages = expand(args.sweep, args.runs, read_summary, args.set)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    root = args.runs / sweep.name
    cells = all_cells(stages)
    standing_of = _explained(standings(cells, queue(root)), root)
    if args.json:
        print(
            json.dumps(
                [{"stage": c.stage, "run": str(c.folder), **asdict(standing_of[c.folder])} for c in cells], indent=2
            )
        )
    else:
        print(render(cells, standing_of))
    return 0


def _explained(standing_of: dict[Path, Standing], root: Path) -> dict[Path, Standing]:
    """With SLURM's word on why a task ended, where the run could not say it itself."""
    silent = {folder for folder, standing in standing_of.items() if standing.state in ("failed", "missing")}
    words = accounted(root) if silent else {}
    for folder in silent:
        word = words.get(str(folder.resolve()))
        if word and word not in ("COMPLETED", "RUNNING", "PENDING"):
            standing = standing_of[folder]
            standing_of[folder] = replace(
                standing, state="failed", why=", ".join(filter(None, [standing.why, f"SLURM: {word}"]))
            )
    return standing_of


def render(cells: list[Cell], standing_of: dict[Path, Standing]) -> str:
    """The table, and the counts under it."""
    units = {cell.config.unit for cell in cells}
    speed = f"{units.pop()}/s" if len(units) == 1 else "per s"
    rows = [("run", "state", "step", speed, "ETA", "train loss", "val loss", "")]
    for cell in cells:
        standing = standing_of[cell.folder]
        rows.append(
            (
                cell.folder.name,
                standing.state,
                f"{standing.step}/{standing.steps}",
                f"{standing.per_s:,.0f}" if standing.per_s else "",
                _duration(standing.eta_s) if standing.eta_s is not None else "",
                f"{standing.train_loss:.4f}" if standing.train_loss is not None else "",
                f"{standing.val_loss:.4f}" if standing.val_loss is not None else "",
                standing.why,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    lines = [
        "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[7]]).rstrip() for row in rows
    ]
    return "\n".join([*lines, "", render_counts(standing_of)])


def render_counts(standing_of: dict[Path, Standing]) -> str:
    counts = Counter(standing.state for standing in standing_of.values())
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no runs"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


if __name__ == "__main__":
    sys.exit(main())
