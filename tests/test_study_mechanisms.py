"""What docs/study/mechanisms.md says: its tables come from its records, and its numbers from its tables."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.catalogue import CATALOGUE
from analysis.command import Options, load_runs
from analysis.optimisers import form_of, optimiser_of
from analysis.published import paper
from analysis.runs import RATE
from tests.processes import ROOT

STUDY = ROOT / "docs" / "study"


def test_jacobians_come_from_the_records() -> None:
    """Breaks if the table of Jacobians is not what the committed records give, or its page has a correlation that it has not."""
    runs, notes = load_runs([str(STUDY / "records" / "small_jacobian_gap")], Path("runs"))
    assert len(runs) == 48
    assert not notes
    (table,) = CATALOGUE["jacobian_gap"].load().analyse(runs, Options()).tables.values()
    kept = pd.read_csv(STUDY / "mechanisms" / "jacobian_gap_table1.csv")
    pd.testing.assert_frame_equal(kept, table.reset_index(drop=True), check_dtype=False)
    page = (STUDY / "mechanisms.md").read_text()
    numbers = {
        words: re.findall(r"[+-]\d\.\d\d \[.*?\]", line)
        for words in kept["with"]
        for line in page.splitlines()
        if line.startswith(f"| {words} |")
    }
    assert numbers == {words: list(rows["ρ"]) for words, rows in kept.groupby("with", sort=False)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        "small_mechanisms",
        "small_layer_norms",
        "small_layer_norms_adam",
        "small_kfac_gpt",
        "small_large_batch",
        "small_without_bn",
    ],
)
def test_mechanisms_come_from_the_records(sweep: str) -> None:
    """Breaks if a table of the three mechanisms is not what the committed records give."""
    runs, notes = load_runs([str(STUDY / "records" / sweep)], Path("runs"))
    assert not notes
    tables = CATALOGUE["mechanisms"].load().analyse(runs, Options()).tables.values()
    for i, table in enumerate((table for table in tables if len(table)), 1):
        text = table.to_csv(index=False)
        assert (STUDY / "mechanisms" / f"{sweep}_table{i}.csv").read_text() == text, i


@pytest.mark.slow
def test_gains_of_batches_come_from_the_records() -> None:
    """Breaks if the committed differences between small and large batches are not what the records give."""
    runs, _ = load_runs([str(STUDY / "records" / name) for name in ("small_mechanisms", "small_large_batch")], None)
    table = CATALOGUE["mechanisms"].load().analyse(runs, Options()).tables["The same between settings"]
    assert len(table) == 8
    assert (STUDY / "mechanisms" / "batches.csv").read_text() == table.to_csv(index=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sweep", "place"),
    [("small_mechanisms_tuning", 0), ("small_large_batch_tuning", 1), ("small_without_bn_tuning", 2)],
)
def test_the_tuning_of_mechanisms_is_that_of_the_records(sweep: str, place: int) -> None:
    """Breaks if an error in a table of what was tuned is not its run's, a run is left out, or what is bold is not the lowest."""
    runs, _ = load_runs([str(STUDY / "records" / sweep)], None)
    tables = (
        (ROOT / "docs" / "mechanisms.md")
        .read_text()
        .split("| optimiser | η at λ = 0 | λ of L2 | λ of decay |\n|---|---|---|---|\n")[1:]
    )
    rows = [line.strip("| ").split(" | ") for line in tables[place].partition("\n\n")[0].splitlines()]
    told = 0
    for optimiser, *cells in rows:
        for form, cell in zip(("none", "L2", "decay"), cells, strict=True):
            found = {}
            for run in (run for run in runs if (optimiser_of(run), form_of(run)) == (optimiser, form)):
                error = f"{100 * run.column('val/error').iloc[-1]:.1f}" if run.state == "done" else run.state
                found[f"{run.fields[RATE] if form == 'none' else run.decay:g}"] = error
            entries = dict(entry.replace("*", "").split(": ") for entry in cell.split(", "))
            assert entries == found, (optimiser, form)
            (bold,) = re.findall(r"\*\*(.+?)\*\*", cell)
            assert float(found[bold]) == min(float(error) for error in found.values() if error != "diverged")
            told += len(entries)
    assert told == len(runs)


def test_the_page_of_mechanisms_quotes_its_tables() -> None:
    """Breaks if the page gives a difference, an accuracy or a norm that is in none of the tables."""
    page = (STUDY / "mechanisms.md").read_text().partition("## Effective learning rate: Adam")[2].replace("−", "-")
    text = "\n".join(path.read_text() for path in (STUDY / "mechanisms").glob("*.csv"))
    # the paper's own numbers stand in a column of their own
    ours = re.sub(r"0\.\d{4} / 0\.\d{4}", "", page)
    numbers = re.findall(r"[+-]\d\.\d{4}|\b0\.\d{4}\b|\b0\.000\d{2,3}\b", ours)
    assert len(numbers) >= 40
    for number in numbers:
        assert number in text or str(float(number)) in text, number
    paper_table = paper("1810.12281")["accuracy"]["none_and_decay"]["vgg16, plain, plain"]
    for optimiser, pair in paper_table.items():
        assert f"{pair[0]:.4f} / {pair[1]:.4f}" in page, optimiser
