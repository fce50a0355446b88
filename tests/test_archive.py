"""Runs as one file each (record/archive.py), and analyses of such files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.command import Options, Result, late_notes, load_runs
from analysis.report import results_of
from record.archive import main

KEPT = Path(__file__).parent / "kept" / "runs"
DEFAULT_COLUMNS = (
    "optim/lr", "optim/decay_sum", "optim/grad_norm", "weights/norm", "weights/norm_decayed", "time/step_s", "perf/tokens_per_s",
)  # fmt: skip


def archived(out: Path, *runs: Path) -> list[Path]:
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return sorted(out.glob("*.parquet"))


def answers(place: Path) -> tuple[list[Result], list[str]]:
    runs, notes = load_runs([str(place)], Path("runs"))
    results, more = results_of(runs, Options())
    return results, notes + more + late_notes(runs)


def cells(result: Result) -> Iterator[tuple[str, Any]]:
    for title, table in result.tables.items():
        yield f"{result.name}: {title}", [list(map(str, table.columns)), len(table)]
        for row, values in enumerate(table.itertuples(index=False)):
            for column, value in zip(table.columns, values, strict=True):
                yield f"{result.name}: {title}, row {row}, {column}", value


def same(one: Any, other: Any) -> bool:
    """float32 holds seven digits; a difference of two measurements fewer, which the absolute tolerance allows for."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return type(one) is type(other) and bool(one == other)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archives")
    assert len(archived(out, KEPT)) == 8
    return out


def test_analyses_agree(kept: Path) -> None:
    """Breaks if a table of an analysis, or its sentences, differ between runs and their archives."""
    (folders, notes), (archives, notes_of_archives) = answers(KEPT), answers(kept)
    assert [result.name for result in archives] == [result.name for result in folders]
    assert len(notes_of_archives) == len(notes)
    for ours, theirs in zip(archives, folders, strict=True):
        assert ours.findings == theirs.findings
        for (place, one), (other_place, other) in zip(cells(ours), cells(theirs), strict=True):
            assert place == other_place
            assert same(one, other), f"{place}: {one!r} of archives, {other!r} of folders"
