"""The cells that were declared for claims on images; and what is made of their ends: intervals of errors, and a U."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.declared_images import CLAIMS, FLOW_AVERAGE, GRID_AVERAGE
from analysis.image_cells import ROUNDING, of_errors, u_shape
from analysis.parts import Declared
from configs.sweep import expand
from tests.processes import ROOT


def test_the_u_is_not_chosen_by_who_judges_it() -> None:
    """Breaks if a seed's lowest is chosen by that seed: of noise alone both ends would lie above it."""
    dice = np.random.default_rng(0)
    ends = [u_shape(0.01 * dice.standard_normal((5, 7))) for _ in range(200)]
    assert abs(np.mean([end.mean for pair in ends for end in pair])) < 0.002


def test_errors_that_agree_by_rounding() -> None:
    """Breaks if three equal differences of a thousandth are certain beyond doubt."""
    found = of_errors([-0.001, -0.001, -0.001])
    assert found.deviation == ROUNDING
    assert found.low < -0.001 < found.high
    assert of_errors([-0.01, 0.0, 0.01]).deviation == pytest.approx(0.01)


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.sweep for claim in CLAIMS])
def test_cells_are_those_of_the_sweeps(claim: Declared, tmp_path: Path) -> None:
    """Breaks if a sweep's file has other η, λ, images, seeds, branches or averages than were declared for its claim."""
    path = ROOT / "configs" / "sweeps" / f"{claim.sweep}.json"
    trunks, *branches = expand(path, tmp_path, lambda _: None)[1].values()
    made = {
        (c.config.optim.lr, c.config.optim.weight_decay, c.config.data.train_images or 0, c.config.seeds.init)
        for c in trunks
    }
    assert made == {(*cell, seed) for cell in claim.cells for seed in range(claim.seeds)}
    assert len(trunks) == len(made)
    steps = {cell.step for stage in branches for cell in stage}
    assert steps == set(claim.branched)
    average = {"small_flows": FLOW_AVERAGE, "small_eta_lambda": GRID_AVERAGE}.get(claim.sweep)
    kept = [f"_ema_{one:g}" for one in trunks[0].config.averages.ema]
    assert average is None or average in kept
