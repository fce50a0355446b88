"""The Jacobian against the generalisation gap, of runs whose relation is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import jacobian_gap
from analysis.command import Options
from configs.errors import InputError
from tests.recorded import load, write_run


def table(seeds: int, sign: float) -> pd.DataFrame:
    dice = np.random.default_rng(0)
    frames = {}
    for part, slope in (("x", 1.0), ("gap", sign)):
        for seed in range(seeds):
            frames[part, str(seed)] = slope * np.arange(16) + 2 * dice.standard_normal(16)
    return pd.DataFrame(frames)


@pytest.mark.parametrize(
    ("seeds", "sign", "verdict"),
    [(3, 1, "they rise together"), (3, -1, "one rises as the other"), (3, 0, "undecided"), (2, 1, "no claim")],
)
def test_verdict_needs_seeds_and_an_interval(seeds: int, sign: float, verdict: str) -> None:
    """Breaks if a relation is claimed of two seeds or through zero, or its sign is lost."""
    rho = jacobian_gap._correlation(table(seeds, sign))
    assert rho.n == seeds
    assert jacobian_gap._verdict(rho).startswith(verdict)


def one(root: Path, seed: int, decay: float, **columns: float) -> Path:
    batch, model = {"images_per_step": 32}, {"kind": "mlp"}
    curves = {name: (lambda s, v=v: v + 0 * s) for name, v in columns.items()}
    name = f"{decay}-{seed}-{len(columns)}"
    return write_run(
        root / name, decay=decay, seed=seed, steps=100, columns=curves, batch=batch, model=model, data={"kind": "images"}
    )  # fmt: skip


def test_each_gap_against_each_measure(tmp_path: Path) -> None:
    """Breaks if a gap is taken the wrong way round, of the other quantity, or a cell that lacks a seed counts in the others."""
    paths = []
    for seed in range(3):
        for i, decay in enumerate((0.0, 0.01, 0.02, 0.03, 0.04)):
            columns = {"val/error": 0.1 + i / 100, "train_eval/error": 0.05, "measure/input_jacobian_norm": 5.0 + i}
            columns |= {"val/loss": 1.0, "train_eval/loss": 0.5 + i / 100, "measure/fisher_norm": 9.0 - i}
            paths += [one(tmp_path, seed, decay, **columns)] if (seed, i) != (2, 4) else []
    found = jacobian_gap.analyse(load(*paths), Options())
    table = found.tables["Rank correlations"]
    signs = {(row["gap of"], row["with"]): row["ρ"] for _, row in table.iterrows()}
    assert signs == {
        ("error", "input Jacobian ‖∂f/∂x‖"): "+1.00 [+1.00, +1.00]",
        ("error", "θᵀFθ"): "-1.00 [-1.00, -1.00]",
        ("cross-entropy (nats)", "input Jacobian ‖∂f/∂x‖"): "-1.00 [-1.00, -1.00]",
        ("cross-entropy (nats)", "θᵀFθ"): "+1.00 [+1.00, +1.00]",
    }
    assert set(table["cells"]) == {4}
    assert set(table["networks"]) == {12}
    assert [len(panel.lines[0].x) for panel in found.figures[0].panels] == [12] * 4
    with pytest.raises(InputError, match=r"set eval\.train_images, measures\.every and measures\.input_jacobian"):
        jacobian_gap.analyse(load(one(tmp_path, 0, 0.0, **{"val/error": 0.1, "train_eval/error": 0.1})), Options())
