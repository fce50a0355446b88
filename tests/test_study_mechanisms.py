"""What docs/study/mechanisms.md says: its numbers come from its tables."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from analysis.command import load_runs
from analysis.optimisers import form_of, optimiser_of
from analysis.published import paper
from analysis.runs import RATE
from tests.processes import ROOT

STUDY = ROOT / "docs" / "study"


def test_the_page_of_jacobians() -> None:
    """Breaks if the page has a correlation that its table has not."""
    kept = pd.read_csv(STUDY / "mechanisms" / "jacobian_gap_table1.csv")
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
