"""Cells whose runs are kept as archives (record/archive.py): their folders may be gone, and they need not run again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from configs.errors import InputError
from configs.sweep_cell import Cell
from record.archive_file import SUFFIX, read_archive
from record.run import FINISHED
from slurm.cells import Standing


def archived(cells: Iterable[Cell], folder: Path) -> dict[Path, Standing]:
    """The standing of those of `cells`, all still to do, that have a finished run's archive in `folder`; by the cell's folder.

    An archive has no checkpoints: a cell that another of `cells` starts from or follows has to run again, and is not among them.
    InputError where `folder` is none, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"--archived {folder} is no folder; give one that record.archive has written")
    found: dict[Path, Standing] = {}
    needed: set[Path] = set()
    # parents come before their children: backwards, so that what a parent is needed for is known
    for cell in reversed(list(cells)):
        path = folder / f"{cell.folder.name}{SUFFIX}"
        status = read_archive(path).documents["status"] if path.is_file() and cell.folder not in needed else None
        if status and status["state"] in FINISHED:
            found[cell.folder] = Standing(status["state"], status["step"], status["steps"], f"archived in {folder}")
        elif cell.parent is not None:
            needed.add(cell.parent.folder)
    return found
