"""What is made of the ends of runs on images: intervals of errors, and whether they are a U."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.image_cells import ROUNDING, of_errors, u_shape


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
