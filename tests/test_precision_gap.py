"""What is said of a precision beside float32: parity within a margin, and counts of diverged runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import precision_gap
from analysis.__main__ import main
from analysis.command import Options
from record.run import RunFolder
from tests.recorded import base_curve, load, write_run


def ends(root: Path, precision: str, gaps: list[float], **fields: object) -> list[Path]:
    """A run a gap: float32's curve plus that, or one that diverges after step 700 where the gap is infinite."""
    paths = []
    for seed, gap in enumerate(gaps):

        def curve(s: np.ndarray, more: float = gap) -> np.ndarray:
            return base_curve(s) + (np.where(s > 700, 3.0, 0.0) if np.isinf(more) else more)

        path = root / f"{precision}-{seed}"
        paths.append(write_run(path, curve, seed=seed, precision=precision, **fields))  # type: ignore[arg-type]
    return paths


def test_parity_has_three_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if parity is told of a precision that is not shown to be inside the margin, a small sure gap is called "differs", an
    undecided one "the same", or the margin is another than the one that was asked for."""
    paths = ends(tmp_path, "fp32", [0.0] * 4)
    paths += ends(tmp_path, "bf16-mixed", [0.002, 0.003, 0.002, 0.003])  # sure, and inside
    paths += ends(tmp_path, "bf16-master", [0.031, 0.032, 0.031, 0.030])  # sure, and outside
    paths += ends(tmp_path, "bf16-true", [0.02, -0.02, 0.01, -0.005])  # neither
    result = precision_gap.analyse(load(*paths), Options())
    verdicts = {(claim.name.split()[2], claim.endpoint.split()[0]): claim for claim in result.claims}
    said = {name: claim.verdict for name, claim in verdicts.items()}
    for loss in ("training", "validation"):
        assert said["bf16-mixed", loss] == "the same within ±0.01"
        assert said["bf16-master", loss] == "differs"
        assert said["bf16-true", loss] == "undecided"
    table = result.tables["Loss gap to float32"].set_index(["run", "loss"])
    row = table.loc[("precision = bf16-mixed", "validation")]
    # the difference is told from zero, and still too small to matter: two questions, two columns
    assert (row["verdict"], row["parity"]) == ("higher", "the same within ±0.01")
    half = 2.3534 * 0.001 / np.sqrt(12)  # t(0.95, 3 degrees of freedom), standard deviation 0.001/√3
    assert row["90 % interval"] == f"[{0.0025 - half:+.4f}, {0.0025 + half:+.4f}]"
    assert f"90 % interval {row['90 % interval']}: the same within ±0.01; " in " ".join(result.findings)
    narrow = precision_gap.analyse(load(*paths), Options(margin=0.001))
    assert [claim.verdict for claim in narrow.claims if "bf16-mixed" in claim.name] == ["differs", "differs"]
    assert main(["precision", *map(str, paths), "--margin", "0.05"]) == 0
    assert "minus float32, validation loss at step 1,000: +0.0310" in (shown := capsys.readouterr().out)
    assert shown.count("the same within ±0.05") >= 6
    assert main(["precision", *map(str, paths), "--margin", "0"]) == 2


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [
        ([3, 3, 0, 3], "cannot reach 0.05 with 3 and 3 runs"),
        ([4, 4, 0, 4], "more often"),
        ([1, 4, 0, 4], "undecided"),
    ],
)
def test_diverged_runs_are_counted_against_float32(tmp_path: Path, lost: list[int], verdict: str) -> None:
    """Breaks if counts of diverged runs are not compared by Fisher's test, a design that cannot decide is called undecided, or a
    run that is not over counts as one that survived."""
    mine, runs, theirs, others = lost
    paths = ends(tmp_path, "fp32", [np.inf] * theirs + [0.0] * (others - theirs))
    paths += ends(tmp_path, "bf16-mixed", [np.inf] * mine + [0.0] * (runs - mine))
    young = write_run(tmp_path / "young", seed=9, precision="bf16-mixed", upto=100, state="running")
    result = precision_gap.analyse(load(*paths, young), Options())
    row = result.tables["Diverged runs against float32"].iloc[0]
    assert list(row.iloc[1:5]) == lost
    p = {3: 0.1, 4: 2 / 70, 1: 1.0}[mine]
    assert row["p (Fisher)"] == pytest.approx(p, rel=0.01)
    assert row["verdict"] == verdict
    text = " ".join(result.findings)
    assert f"{mine} of {runs} runs diverged, {theirs} of {others} in float32: Fisher's exact p = {p:.2g}" in text


def test_what_rounds_beside_the_precision_is_shown(tmp_path: Path) -> None:
    """Breaks if the table of runs hides the attention kernel or compiled blocks of a start, or a change of them at a resume."""
    paths = ends(tmp_path, "fp32", [0.0]) + ends(tmp_path, "bf16-mixed", [0.0])
    starts = [
        [{"attention": "flash", "compiled": False}],
        [{"attention": "flash", "compiled": True}, {"attention": "math"}],
    ]
    for path, rows in zip(paths, starts, strict=True):
        for row in rows:
            RunFolder(path).record_start(row)
    table = precision_gap.analyse(load(*paths), Options()).tables["Runs"].set_index("precision")
    assert list(table.loc["fp32", ["attention", "compiled"]]) == ["flash", "no"]
    assert list(table.loc["bf16-mixed", ["attention", "compiled"]]) == ["flash and math", "yes"]
