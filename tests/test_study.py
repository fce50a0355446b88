"""What docs/study says of one-pass training: its numbers come from its tables (tests/test_study_report.py has those)."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.catalogue import CATALOGUE
from analysis.command import Options, load_runs
from tests.processes import ROOT

STUDY = ROOT / "docs" / "study"
ONE_PASS = ("README.md", "more.md")  # the pages on one-pass training
SETTLED = {
    "s24": "λ = 0.454, η = 0.01",
    "s48": "λ = 0.324, η = 0.007",
}  # the cell that has seen three e-folds at the η of the others


TRIPLE = re.compile(r"([+-]\d\.\d{4})\s+\[([+-]\d\.\d{4}),\s+([+-]\d\.\d{4})\]")  # an estimate with its interval


def stands(triple: tuple[str, str, str], table: str) -> bool:
    """Whether an estimate stands in a table with its own interval: in one cell, or in two beside each other."""
    mean, low, high = triple
    return f"{mean} [{low}, {high}]" in table or f'{float(mean)},"[{low}, {high}]"' in table


def pages() -> str:
    """Both pages, with the minus of the tables."""
    return "\n".join((STUDY / name).read_text() for name in ONE_PASS).replace("−", "-")


def test_the_declared_verdicts() -> None:
    """Breaks if the page has another verdict of a primary claim than its table."""
    table = pd.read_csv(STUDY / "declared.csv")
    page = (STUDY / "README.md").read_text()
    for claim, verdict in zip(table["claim"], table["verdict"], strict=True):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {claim.partition(':')[0]} |"))
        assert ("to run" if verdict == "not run" else f"**{verdict}**") in row, claim


def test_the_rows_are_of_their_own_settings() -> None:
    """Breaks if a claim's row has in a setting's column an estimate of another setting."""
    rows = [line.split(" | ") for line in pages().splitlines() if re.match(r"\| (1a|1b|2|4|5|6) \| ", line)]
    assert len(rows) == 6
    for row in rows:
        for scale, cell in (("s48", row[3]), ("s24", row[4])):
            own = {"| 4": "constant", "| 6": "precision"}.get(row[0], scale)
            tables = [STUDY / "declared.csv"] if own in ("s48", "constant") else []
            text = "\n".join(path.read_text() for path in [*tables, *(STUDY / own).glob("*.csv")])
            found = TRIPLE.findall(cell)
            assert found or scale == "s24" or row[0] == "| 6", row[0]
            for triple in found:
                assert stands(triple, text), (row[0], scale, triple)


def test_numbers_come_from_the_tables() -> None:
    """Breaks if the page gives a difference, or an end of an interval, that is in none of its tables."""
    page = pages()
    tables = [
        STUDY / "declared.csv",
        *(
            path
            for scale in (*SETTLED, "constant", "english", "documents", "precision", "gains", "start")
            for path in (STUDY / scale).glob("*.csv")
        ),
    ]
    text = "\n".join(path.read_text() for path in tables)
    numbers = re.findall(r"[+±-]\d\.\d{4}", page)
    assert len(numbers) >= 40
    for number in numbers:
        # a column of numbers has neither the sign of a positive one nor zeros at its end
        assert number in text or str(float(number.lstrip("±"))) in text, number
    every = [path.read_text() for path in STUDY.rglob("*.csv")]
    triples, worth = TRIPLE.findall(page), re.findall(r"(\d{3}) \[(\d{3}), (\d{3})\]", page)
    assert (len(triples) >= 40, len(worth)) == (True, 3)
    for triple in triples:
        assert any(stands(triple, table) for table in every), triple
    for mean, low, high in worth:  # in updates
        assert any(f"+{mean} [+{low}, +{high}]" in table for table in every), mean
    told = re.findall(r"([\d.]+) to ([\d.]+) of the rotation, ([\d.]+) to ([\d.]+) of the size", page)
    assert len(told) == len(SETTLED)
    for (scale, cell), ends in zip(reversed(SETTLED.items()), told, strict=True):
        settled = pd.read_csv(STUDY / scale / "effective_lr_table1.csv")
        settled = settled[settled["run"] == cell]
        for (low, high), column in zip((ends[:2], ends[2:]), ("rotation", "rms"), strict=True):
            measured = settled[f"{column} measured/predicted"]
            assert (float(low), float(high)) == (measured.min(), measured.max()), (scale, column)


@pytest.mark.slow
def test_how_far_seeds_on_english_end_apart() -> None:
    """Breaks if the page gives another distance than the records."""
    runs, _ = load_runs([str(STUDY / "records" / "study_english")], Path("runs"))
    findings = CATALOGUE["loss_curves"].load().analyse(runs, Options()).findings
    (apart,) = [re.findall(r"[\d.]+(?= nats at λ = 0 )", one)[0] for one in findings if "nats at λ = 0 (" in one]
    assert f"eight seeds lie {apart} nats apart at η = 0.007 and λ = 0" in " ".join(pages().split())


def test_the_verdicts_of_precisions() -> None:
    """Breaks if a precision's verdict is another on the page than in its table."""
    parity = pd.read_csv(STUDY / "precision" / "parity.csv")
    same = parity[(parity["loss"] == "validation") & parity["parity"].str.startswith("the same")]["run"]
    assert {name.split(" = ")[-1] for name in same} == {"bf16-mixed", "bf16-master", "bf16-stochastic"}
    assert "the same within ±0.01 for bf16-mixed and bf16-master, not for bf16-true" in pages()


def test_the_ways_of_decay() -> None:
    """Breaks if the row of claim 7 has another gain or verdict than its table, or a way under another's name."""
    table = pd.read_csv(STUDY / "gains" / "gains.csv").fillna("")
    (row,) = (line for line in pages().splitlines() if line.startswith("| 7 |"))
    cell, verdict = row.strip("|").split("|")[4:6]
    names = ["AdamW", "slower schedule", "L2", "SGD", "every tensor"]
    told = dict(re.findall(r"(AdamW|slower schedule|SGD|every tensor|L2) ([+-]\S+ \[\S+ \S+\])", cell))
    assert told == {name: gain.partition(" (")[0] for name, gain in zip(names, table["gain"], strict=True)}
    words = dict(zip(names, table["verdict"], strict=True))
    assert words["slower schedule"] == "gains more than 0.5 of AdamW's"
    assert words["every tensor"] == "gains less than 0.5 of AdamW's"
    assert words["SGD"] == "no difference of interest: within ±0.005"
    assert words["L2"].startswith("undecided")
    beyond = {name: text.partition(" (")[0] for name, text in zip(names, table["minus half of AdamW's"], strict=True)}
    assert [beyond[name] in verdict for name in names[1:]] == [True, False, True, True]


def test_the_page_of_claims_9_and_11() -> None:
    """Breaks if a row has another scale's number, or a verdict that the tables do not have."""
    page = pages()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    rows = {row[0]: row for row in cells}
    best = pd.read_csv(STUDY / "transfer" / "five_seeds_table1.csv").set_index("updates")
    for updates, cell in ((4000, rows["9"][3]), (2000, rows["9"][4])):
        for quantity in ("λ", "ηλ", "Σ"):
            assert f"{quantity} {best[f'best {quantity}'][updates]}" in cell, (updates, quantity)
    laws = pd.read_csv(STUDY / "transfer" / "five_seeds_table2.csv").set_index("quantity")["verdict"]
    assert "ηλ is **ruled out**; between λ and Σ it is **undecided**" in rows["9"][5]
    assert dict(laws) == {"λ": "not ruled out", "ηλ": "ruled out", "Σ": "not ruled out"}
    eight = pd.read_csv(STUDY / "transfer" / "eight_seeds_table2.csv").set_index("quantity")
    assert dict(eight["verdict"]) == {"λ": "ruled out", "ηλ": "ruled out", "Σ": "not ruled out, but moves in pairs"}
    for power in eight["power of the updates"]:
        assert power in page, power
    told = {scale: pd.read_csv(STUDY / scale / "early_table1.csv") for scale in SETTLED}
    for scale, step, cell in (("s48", 1000, rows["11"][3]), ("s24", 600, rows["11"][4])):
        table = told[scale][told[scale]["step"] == step]
        assert len(table)
        assert set(table["verdict"]) == {"the order is not told (τ below 0.5)"}
        assert all(tau in cell for tau in table["τ with the end"]), scale
    assert "**does not hold** of losses and averages" in rows["11"][5]
    average = told["s48"][told["s48"]["reading"] == "average over 200 updates"].set_index("step")
    assert f"τ = {average['τ with the end'][3000]}" in " ".join(page.split())
    for step in (3000, 2400):
        assert average["cost of choosing there (nats)"][step] in " ".join(page.split())
