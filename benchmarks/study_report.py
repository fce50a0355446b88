"""The tables and figures of docs/study, from its records: `python -m benchmarks.study_report [NAME…]` (`make study-report`).

docs/study/made.json says what is made: by name the records, as patterns below docs/study/records, and of every analysis of them
the tables (by title) and figures (by name) that the pages keep, and where. A test compares the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.catalogue import CATALOGUE
from analysis.command import Options, load_runs
from analysis.draw import save
from analysis.figures import Figure
from benchmarks.markdown import ROOT

STUDY = ROOT / "docs" / "study"


def entries() -> dict[str, dict[str, Any]]:
    every: dict[str, dict[str, Any]] = json.loads((STUDY / "made.json").read_text(encoding="utf-8"))
    return every


def made(entry: dict[str, Any]) -> Iterator[tuple[Path, pd.DataFrame | Figure]]:
    """What an entry keeps, made anew: where it is kept, and the table or figure. KeyError for one that its analysis has not."""
    # one reading for all analyses of the same runs
    runs, _ = load_runs([str(STUDY / "records" / pattern) for pattern in entry["records"]], Path("runs"))
    for analysis, kept in entry["analyses"].items():
        result = CATALOGUE[analysis].load().analyse(runs, Options())
        figures = {figure.name: figure for figure in result.figures}
        for title, path in kept.items():
            yield STUDY / path, figures[title] if path.endswith(".png") else result.tables[title]


def keep(path: Path, content: pd.DataFrame | Figure) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        drawn = save(content, Path(folder))
        shutil.copyfile(next(file for file in drawn if file.suffix == path.suffix), path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = entries()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to make, default all: {', '.join(every)}")
    names = parser.parse_args().names or list(every)
    if unknown := [name for name in names if name not in every]:
        parser.error(f"docs/study/made.json has no {unknown[0]!r}; it has {', '.join(every)}")
    for name in names:
        for path, content in made(every[name]):
            keep(path, content)
            print(f"{name}: {path.relative_to(ROOT)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
