"""What docs/study says: its tables come from its records, and its numbers from its tables."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from analysis.catalogue import CATALOGUE
from analysis.command import Options, load_runs
from analysis.runs import Run
from tests.processes import ROOT

STUDY = ROOT / "docs" / "study"
ONE_PASS = ("README.md", "more.md")  # the pages on one-pass training
TABLES = {"loss_curves": 1, "bias_variance": 2, "generalisation": 1, "effective_lr": 1, "early": 1, "averages": 1}
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


def tables_of(scale: str) -> dict[str, pd.DataFrame]:
    """The tables that `make study-report` writes, made anew from the records."""
    runs, notes = load_runs([str(STUDY / "records" / f"study_{scale}")], Path("runs"))
    assert len(runs) == 56
    assert not notes
    made = {}
    for name, count in TABLES.items():
        if name == "averages" and scale == "s24":  # its trunks kept none
            continue
        answer = CATALOGUE[name].load().analyse(runs, Options())
        kept = [table for table in answer.tables.values() if len(table)][:count]
        made |= {f"{name}_table{i}": table for i, table in enumerate(kept, 1)}
    return made


@pytest.mark.slow
@pytest.mark.parametrize("scale", SETTLED)
def test_tables_come_from_the_records(scale: str) -> None:
    """Breaks if a committed table is not what the committed records give, or one is there that nothing makes."""
    tables = tables_of(scale)
    assert sorted(tables) == sorted(path.stem for path in (STUDY / scale).glob("*.csv"))
    for name, table in tables.items():
        # read as the committed one was: texts of numbers are numbers then
        made = pd.read_csv(StringIO(table.to_csv(index=False)))
        pd.testing.assert_frame_equal(pd.read_csv(STUDY / scale / f"{name}.csv"), made, rtol=1e-6, obj=name)


def _constant(runs: list[Run]) -> list[Run]:
    return [run for run in runs if "constant" in str(run.file)]


@pytest.mark.slow
def test_the_declared_claims_come_from_the_records() -> None:
    """Breaks if the committed verdicts are not what the records give, or the page has others."""
    names = ("study_s48", "study_s48_matched", "study_constant")
    runs, notes = load_runs([str(STUDY / "records" / name) for name in names], Path("runs"))
    assert not notes
    (table,) = CATALOGUE["declared"].load().analyse(runs, Options()).tables.values()
    assert (STUDY / "declared.csv").read_text() == table.to_csv(index=False)
    branches = list(CATALOGUE["bias_variance"].load().analyse(_constant(runs), Options()).tables.values())[1]
    cosine = re.compile(r"study_s48/seeds[0-7]-lr0\.007-weight_decay(0\.0|0\.108)-\w{10}\.parquet$")
    beside = [*_constant(runs), *(run for run in runs if cosine.search(str(run.file)))]
    averages, averages_beside = (
        next(iter(CATALOGUE["averages"].load().analyse(given, Options()).tables.values()))
        for given in (_constant(runs), beside)
    )
    tables = {
        "bias_variance_table2": branches,
        "averages_table1": averages,
        "averages_beside_cosine": averages_beside,
    }
    for name, made in tables.items():
        kept = pd.read_csv(STUDY / "constant" / f"{name}.csv")
        pd.testing.assert_frame_equal(kept, pd.read_csv(StringIO(made.to_csv(index=False))), rtol=1e-6)
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
            for scale in (*SETTLED, "constant", "english", "documents", "precision")
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
@pytest.mark.parametrize(
    ("sweeps", "kept", "place"),
    [(("study_s24", "study_s48"), "transfer/gains", 4), (("study_s48_tuning",), "s48_pilot", 3)],
)
def test_tables_of_sweeps_come_from_the_records(sweeps: tuple[str, ...], kept: str, place: int) -> None:
    """Breaks if the gains at two lengths, or what the pilot chose η by, are not what the records give."""
    runs, _ = load_runs([str(STUDY / "records" / name) for name in sweeps], Path("runs"))
    tables = [table for table in CATALOGUE["sweep"].load().analyse(runs, Options()).tables.values() if len(table)]
    assert (STUDY / f"{kept}.csv").read_text() == tables[place].to_csv(index=False)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "kept"), [("eight", "*"), ("five", "seeds[0-4]-*")])
def test_what_transfers_comes_from_the_records(words: str, kept: str) -> None:
    """Breaks if the committed tables of claim 9 are not what the records of so many seeds give."""
    given = [path for scale in SETTLED for path in (STUDY / "records" / f"study_{scale}").glob(kept)]
    runs, notes = load_runs([str(path) for path in given], Path("runs"))
    assert not notes
    for number, table in enumerate(CATALOGUE["transfer"].load().analyse(runs, Options()).tables.values(), 1):
        assert (STUDY / "transfer" / f"{words}_seeds_table{number}.csv").read_text() == table.to_csv(index=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["english", "documents"])
def test_replications_come_from_the_records(name: str) -> None:
    """Breaks if the committed table of claim 1 on English, or in the order of the documents, is not what the records give."""
    runs, notes = load_runs([str(STUDY / "records" / f"study_{name}")], Path("runs"))
    assert len(runs) == 16
    assert not notes
    result = CATALOGUE["loss_curves"].load().analyse(runs, Options())
    made = pd.read_csv(StringIO(next(iter(result.tables.values())).to_csv(index=False)))
    pd.testing.assert_frame_equal(pd.read_csv(STUDY / name / "loss_curves_table1.csv"), made, rtol=1e-6)
    if name == "documents":
        return
    # how far its seeds end apart
    page = " ".join(pages().split())
    (apart,) = [re.findall(r"[\d.]+(?= nats at λ = 0 )", one)[0] for one in result.findings if "nats at λ = 0 (" in one]
    assert f"eight seeds lie {apart} nats apart at η = 0.007 and λ = 0" in page


@pytest.mark.slow
def test_precision_comes_from_the_records() -> None:
    """Breaks if a committed table of claim 6 is not what the records give, or a precision's verdict is another on the page."""
    cells = [f"study_s24/seeds[0-4]-lr0.01-weight_decay{decay}-??????????.parquet" for decay in ("0.0", "0.151")]
    runs, notes = load_runs([str(STUDY / "records" / name) for name in ("study_precision", *cells)], Path("runs"))
    assert len(runs) == 50
    assert not notes
    parity = next(iter(CATALOGUE["precision"].load().analyse(runs, Options()).tables.values()))
    assert (STUDY / "precision" / "parity.csv").read_text() == parity.to_csv(index=False)
    between = CATALOGUE["sweep"].load().analyse(runs, Options()).tables["The same λ between settings"]
    assert (STUDY / "precision" / "between.csv").read_text() == between.to_csv(index=False)
    same = parity[(parity["loss"] == "validation") & parity["parity"].str.startswith("the same")]["run"]
    assert {name.split(" = ")[-1] for name in same} == {"bf16-mixed", "bf16-master", "bf16-stochastic"}
    assert "the same within ±0.01 for bf16-mixed and bf16-master, not for bf16-true" in pages()


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
