"""How early the order of λ is known, on made-up runs whose orders over the run are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import early
from analysis.claims import too_few
from analysis.command import Options, Result
from analysis.statistics import interval
from configs.errors import InputError
from tests.recorded import base_curve, load, write_run

DECAYS = (0.0, 0.1, 0.3)
ENDS = {0.0: 0.02, 0.1: 0.0, 0.3: 0.05}  # above the lowest at the end
TURN = 600  # of 1,000 updates: before it a larger λ is higher


def write(root: Path, seed: int, average: bool = False) -> list[Path]:
    paths = []
    for decay in DECAYS:
        late = base_curve(np.arange(1001)) + ENDS[decay]

        def loss(step: np.ndarray, decay: float = decay, late: np.ndarray = late) -> np.ndarray:
            return np.where(step < TURN, base_curve(step) + decay, late[np.asarray(step, dtype=int)])

        # an average that has the order of the end from the first step on
        columns = {"val/loss_ema_0.99": lambda s, decay=decay: 3 + ENDS[decay] + 0 * s} if average else {}
        paths.append(write_run(root / f"{decay}-{seed}", loss, decay=decay, seed=seed, noise=0, columns=columns))
    return paths


def analysed(root: Path, seeds: int, average: bool = False) -> Result:
    return early.analyse(load(*(path for seed in range(seeds) for path in write(root, seed, average))), Options())


def test_order_that_turns(tmp_path: Path) -> None:
    """Breaks if τ, the place from which the order is told, or what an early choice costs is not that of the runs."""
    result = analysed(tmp_path, 3, average=True)
    sentence, exploratory = result.findings
    # of three pairs before the turn λ = 0 and 0.1 stand in the wrong order: (2 − 1)/3
    assert "at step 250 (25%) orders λ = 0, 0.1, 0.3 with τ = +0.33 [+0.33, +0.33]" in sentence
    assert "the order is not told" in sentence
    assert "ends 0.0200 [0.0200, 0.0200] above the lowest" in sentence
    assert f"The order is told from step {TURN} (60%) on" in sentence
    assert exploratory.startswith("by the average over 100 updates the order is told first at step 1 (0%), τ = +1.00")
    table = result.tables["What early readings tell"]
    average = table[table["reading"] == "average over 100 updates"]
    assert set(average["verdict"]) == {"the order is told (τ above 0.5)"}
    assert set(average["cost of choosing there (nats)"]) == {"0.0000 [0.0000, 0.0000]"}
    assert [panel.ylabel for panel in result.figures[0].panels] == [
        "Kendall's τ with the end",
        "nats lost by choosing there",
    ]


def test_two_seeds_are_no_claim(tmp_path: Path) -> None:
    """Breaks if two seeds tell an order."""
    result = analysed(tmp_path, 2)
    assert too_few(2) in result.findings[0]
    assert "At no reading before the end" in result.findings[0]


def test_branches(tmp_path: Path) -> None:
    """Breaks if a branch's end is not read at its checkpoint, or one of another checkpoint enters."""
    paths = []
    for seed in range(3):
        for trunk in write(tmp_path, seed):
            decay = float(trunk.name.partition("-")[0])
            fields = {"schedule": {"kind": "constant"}, "branch": {"origin": f"{trunk}@400"}, "optim": {"lr": 0.001}}
            branch = tmp_path / f"{trunk.name}-b"
            write_run(branch, lambda s, d=decay: 3 + ENDS[d] + 0 * s, seed=seed, steps=200, noise=0, **fields)
            paths += [trunk, branch]
    table = early.analyse(load(*paths), Options()).tables["What early readings tell"]
    (row,) = table[table["reading"] == "branch's end"].to_dict("records")
    assert (row["step"], row["λ"], row["seeds"]) == (400, 3, 3)
    assert row["τ with the end"].startswith("+1.00")


def test_verdicts() -> None:
    """Breaks if the interval of τ is not set against the declared half."""
    assert early.verdict(interval([1.0, 0.9, 1.0])) == "the order is told (τ above 0.5)"
    assert early.verdict(interval([0.0, 0.1, 0.0])) == "the order is not told (τ below 0.5)"
    assert early.verdict(interval([0.0, 1.0, 0.5])) == "undecided: the interval holds 0.5"


def test_two_decays_are_no_order(tmp_path: Path) -> None:
    """Breaks if an order of two λ, which a coin tells half of the time, is judged."""
    paths = [path for path in write(tmp_path, 0) if not path.name.startswith("0.3")]
    with pytest.raises(InputError, match="needs 3 λ of one setting; these runs have 2 λ"):
        early.analyse(load(*paths), Options())
