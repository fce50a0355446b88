"""What docs/study/images.md says of over-training: its numbers and verdicts are its tables'."""

from __future__ import annotations

import re

import pandas as pd

from tests.processes import ROOT

STUDY = ROOT / "docs" / "study"


def test_verdicts_and_numbers() -> None:
    """Breaks if the page has another difference, error or verdict than the tables."""
    page = (STUDY / "images.md").read_text().partition("## What they say")[2].partition("## Deviations")[0]
    page = page.replace("−", "-")
    claims = pd.read_csv(STUDY / "images" / "claims.csv")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| ") and "`small_" in line}
    assert set(rows) == set(claims["sweep"])
    for sweep, table in claims.groupby("sweep"):
        told = re.findall(r"[+-]\d\.\d{4} \[.*?\]", rows[sweep])
        assert sorted(told) == sorted(text.partition(" (")[0] for text in table["difference"])
        (verdict,) = set(table["verdict"].str.partition(":")[0])
        assert f"**{verdict}**" in rows[sweep]
    corner = claims[claims["sweep"] == "small_overtraining_mlp"]
    parts = dict(zip(corner["part"], corner["verdict of the part"], strict=True))
    assert parts == {
        "below η = 0.4, λ = 0": "holds", "below η = 0.02, λ = 0": "undecided", "below η = 0.02, λ = 0.01": "holds",
    }  # fmt: skip
    corners = pd.read_csv(STUDY / "images" / "corners.csv")
    errors = {f"{value:.4f}" for value in corners["test error, iterate"]}
    assert set(re.findall(r"\b0\.2\d{3}\b", page)) == errors
    assert set(corners["training error, iterate"]) == {0.0}
    norms = {f"{value:.1f}" for value in corners["norm ‖w‖, iterate"]}
    assert {"9.5", "43.2"} <= norms
