"""The cells that were declared for claims on images; and what is made of their ends: intervals of errors, and a U."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.declared_images import CLAIMS
from analysis.image_cells import ROUNDING, of_errors, u_shape
from configs.sweep import load_sweep
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


def test_cells_are_those_of_the_sweeps() -> None:
    """Breaks if a sweep's file has other η, λ, images, or seeds than were declared for its claim."""
    for claim in CLAIMS:
        made = load_sweep(ROOT / "configs" / "sweeps" / f"{claim.sweep}.json")
        text = (ROOT / "configs" / "sweeps" / f"{claim.sweep}.json").read_text()
        assert len(made.axes["seeds.*"]) == claim.seeds, claim.sweep
        for cell in claim.cells:
            assert f"{cell[0]}" in text or cell[0] == 0.08, (claim.sweep, cell)
            assert f"{cell[1]}" in text, (claim.sweep, cell)
        runs = len(claim.cells) * claim.seeds
        counted = math.prod(len(values) for values in made.axes.values()) + len(made.cells)
        assert counted == runs, claim.sweep
