"""The runs of a sweep file on disk: their folders or, where there is none, their archives."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from configs.prepared import read_summary
from configs.sweep import all_cells, expand
from record.archive_file import SUFFIX, is_archive, run_name
from record.run import RunFolder


def is_sweep_file(given: str | Path) -> bool:
    """Whether a RUN of a command line is a sweep file."""
    return str(given).endswith(".json") and Path(given).is_file()


def is_run(path: Path) -> bool:
    """Whether a place is an archive, or is, or was, a run's folder. A folder that has lost its config.json counts: then the
    loss is what is told."""
    if is_archive(path):
        return path.is_file()
    folder = RunFolder(path)
    return any(os.path.lexists(file) for file in (folder.config, folder.experiment, folder.status))


def runs_of_sweep(sweep_file: str | Path, root: Path) -> tuple[list[Path], list[str]]:
    """(places of its runs in `root`, a note where some have none). InputError for a file that is no sweep."""
    cells = all_cells(expand(str(sweep_file), root, read_summary)[1])
    # a cell has an id only where its data is prepared here; else its label must do
    places = [[cell.folder] if cell.id else _with_label(cell.folder.parent, cell.label) for cell in cells]
    # a folder first: it may have come further since it was archived
    found = [place for path in dict.fromkeys(path for paths in places for path in paths) if (place := _place(path))]
    missing = len(cells) - len(found)
    return found, [f"{sweep_file}: {missing} of its {len(cells)} runs have no folder in {root} yet"] if missing else []


def _place(folder: Path) -> Path | None:
    archive = folder.with_name(f"{folder.name}{SUFFIX}")
    return folder if is_run(folder) else archive if is_run(archive) else None


def _with_label(root: Path, label: str) -> list[Path]:
    """Folders LABEL-ID, there or archived; not those of another cell whose label begins with this one."""
    folders = dict.fromkeys(path.with_name(run_name(path)) for path in sorted(root.glob(f"{glob.escape(label)}-*")))
    return [path for path in folders if re.fullmatch("[0-9a-f]{10}", path.name[len(label) + 1 :])]
