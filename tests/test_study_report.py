"""What docs/study keeps of its records: every table is what the records give, and no file is there that nothing makes."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from analysis.command import load_runs
from benchmarks.study_report import STUDY, entries, made

PATHS = [path for entry in entries().values() for kept in entry["analyses"].values() for path in kept.values()]
SOUND = re.compile(r"runs were archived by every \d+th update|rows were superseded when the run resumed")


@pytest.mark.slow
@pytest.mark.parametrize("name", entries())
def test_tables_come_from_the_records(name: str) -> None:
    """Breaks if a committed table is not what the committed records give, or a title or figure is one that an analysis has not."""
    tables = [(path, content) for path, content in made(entries()[name]) if isinstance(content, pd.DataFrame)]
    for path, table in tables:
        # read as the committed one was: texts of numbers are numbers then
        anew = pd.read_csv(StringIO(table.to_csv(index=False)))
        pd.testing.assert_frame_equal(pd.read_csv(path), anew, rtol=1e-6, obj=str(path.relative_to(STUDY)))


@pytest.mark.slow
def test_the_records_are_whole() -> None:
    """Breaks if a record is damaged, unfinished or there twice, or a pattern holds none."""
    for entry in entries().values():
        # of all records together, pilots that diverged included, hours alone are asked
        for pattern in set(entry["records"]) - {"*"}:
            _, notes = load_runs([str(STUDY / "records" / pattern)], Path("runs"))
            assert [note for note in notes if not SOUND.search(note)] == [], pattern


def test_every_file_is_made() -> None:
    """Breaks if a table or figure lies beside the pages that nothing makes, or two are kept under one name."""
    files = [path for path in STUDY.rglob("*") if path.suffix in (".csv", ".png")]
    assert sorted(PATHS) == sorted(str(path.relative_to(STUDY)) for path in files)
