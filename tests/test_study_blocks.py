"""What docs/study/blocks.md says of λ under three kinds of block: its numbers come from its tables."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.command import load_runs
from analysis.compare import WHOLE
from analysis.runs import RATE, Run
from tests.processes import ROOT

STUDY = ROOT / "docs" / "study"
RECORDS = STUDY / "records"
GPT2 = (RECORDS / "study_s24", "seeds[0-2]-lr0.01-*")


def runs_of(given: list[tuple[Path, str]]) -> list[Run]:
    paths = [str(path) for folder, pattern in given for path in folder.glob(pattern)]
    runs, notes = load_runs(paths, Path("runs"))
    # a pilot's records hold every 50th update: its end is what is asked
    assert [note for note in notes if "were archived by every 50th update" not in note] == []
    return runs


def test_numbers_come_from_the_tables() -> None:
    """Breaks if the page gives a difference, an interval or a best λ that no table has, or one of the pilot that no run has."""
    page = (STUDY / "blocks.md").read_text().replace("−", "-")
    text = "\n".join(path.read_text() for path in (STUDY / "blocks").glob("*.csv"))
    numbers = re.findall(r"[+-]0\.\d{4}", page)
    assert len(numbers) >= 40
    assert [number for number in numbers if number not in text and str(float(number)) not in text] == []
    best = pd.read_csv(STUDY / "blocks" / "best.csv")["decay"]
    (row,) = (line for line in page.splitlines() if line.startswith("| best λ"))
    assert [float(cell) for cell in row.strip("|").split("|")[1:]] == pytest.approx(list(best), rel=2e-3)
    losses = pd.read_csv(STUDY / "blocks" / "losses.csv")
    (row,) = (line for line in page.splitlines() if line.startswith("| loss at λ = 0"))
    plain = losses[losses["run"].str.startswith("λ = 0,")]["validation loss over the whole split"]
    assert [float(cell) for cell in row.strip("|").split("|")[1:]] == list(plain)
    pilot = {f"{run.column(WHOLE).iloc[-1]:.4f}" for run in runs_of([(RECORDS / "small_llama_tuning", "*")])}
    told = [n for line in page.splitlines() if "of the pilot" in line for n in re.findall(r"\d\.\d{4}\b", line)]
    assert len(told) == 15
    assert set(told) <= pilot


def test_the_rates_of_gpt2_come_from_the_records() -> None:
    """Breaks if a mean at the pilot's learning rate, or at the common one, is none of the records'."""
    ends: dict[tuple[float, float], list[float]] = {}
    for run in runs_of([(RECORDS / "small_llama", "sdpa-*"), GPT2]):
        if run.origin is None:
            ends.setdefault((run.fields[RATE], run.decay), []).append(float(run.column(WHOLE).iloc[-1]))
    means = {cell: f"{sum(values) / len(values):.4f}" for cell, values in ends.items()}
    page = " ".join((STUDY / "blocks.md").read_text().split())
    assert f"λ = 0 ends at {means[0.02, 0.0]} there and at {means[0.01, 0.0]} at η = 0.01" in page
    assert f"λ·Ση = 1.65 at {means[0.02, 0.0755]} and {means[0.01, 0.151]}" in page
