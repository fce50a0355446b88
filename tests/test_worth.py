"""What a difference of final losses is worth in updates of the baseline's own curve."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis import loss_curves, precision_gap
from analysis.claims import Worth
from analysis.command import Options
from analysis.statistics import interval
from analysis.worth import fieller
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

NOTHING = Worth("the baseline", math.nan, math.nan, math.nan, -1e-4, 400)


def falling(root: Path, ahead: float, slope: float = -1e-4, seeds: int = 4) -> list[Path]:
    """λ = 0 on a straight line, λ = 0.3 `ahead` of it at every step; both differ a little over seeds."""
    paths = []
    for seed in range(seeds):
        own, more = slope * (1 + 0.02 * (seed - 1.5)), ahead * (1 + 0.1 * (seed % 2 - 0.5))
        paths.append(write_run(root / f"a{seed}", lambda s, k=own: 3 + k * s, seed=seed, noise=0.0))  # type: ignore[misc]
        paths.append(
            write_run(root / f"b{seed}", lambda s, k=own, m=more: 3 + k * s - m, seed=seed, noise=0.0, decay=0.3)  # type: ignore[misc]
        )
    return paths


@pytest.mark.parametrize("documents", [0.0, 0.002])
def test_the_interval_of_the_ratio(documents: float) -> None:
    """Breaks if an end of the interval in updates is not where the difference left after so many updates is just told from zero, or
    the documents' noise is left out of it."""
    dice = np.random.default_rng(4)
    s = dice.normal(-1e-4, 6e-6, 6)
    d = -0.012 + 20 * (s + 1e-4) + dice.normal(0, 0.003, 6)
    worth = fieller(NOTHING, d, s, documents)
    assert worth.updates == pytest.approx(d.mean() / s.mean())
    assert worth.low < worth.updates < worth.high
    for end in (worth.low, worth.high):
        left = interval(d - end * s).with_documents(documents)
        assert min(abs(left.low), abs(left.high)) < 1e-9
    assert worth.high - worth.low > fieller(NOTHING, d, s).high - fieller(NOTHING, d, s).low or not documents


def test_the_interval_covers() -> None:
    """Breaks if the interval in updates holds the true number in more or less than 95 % of simulated studies."""
    dice, held = np.random.default_rng(5), 0
    for _ in range(3000):
        s = dice.normal(-1e-4, 1e-5, 5)
        worth = fieller(NOTHING, dice.normal(-0.01, 0.004, 5), s)
        held += worth.low < 100 < worth.high
    assert 0.94 < held / 3000 < 0.96


def test_a_difference_is_told_in_updates(tmp_path: Path) -> None:
    """Breaks if a difference of nats is worth other updates than the baseline's curve needs for it, has the wrong sign, is in no
    sentence or no table, or stands beside mid-run, where the baseline's end says nothing."""
    result = loss_curves.analyse(load(*falling(tmp_path / "less", 0.01)), Options())
    ends = [claim for claim in result.claims if "mid-run" not in claim.endpoint]
    for claim in ends:
        assert claim.worth is not None
        assert claim.worth.updates == pytest.approx(100, rel=0.01)
        assert 80 < claim.worth.low < 100 < claim.worth.high < 120
        assert (
            f"helps; worth {claim.worth.short} updates of λ = 0, which at its end falls by 0.0100 nats in 100 ("
            in claim.sentence
        )
    assert all(claim.worth is None for claim in result.claims if "mid-run" in claim.endpoint)
    row = result.tables["Losses"].set_index("run").loc["λ = 0.3"]
    assert row["validation difference in updates"].startswith("+100 [")
    behind = loss_curves.analyse(load(*falling(tmp_path / "more", -0.01)), Options())
    assert [round(c.worth.updates) for c in behind.claims if c.worth is not None] == [-100, -100]
    # a precision is set beside float32's curve
    paths = [write_run(tmp_path / f"f{seed}", lambda s: 3 - 1e-4 * s, seed=seed) for seed in range(3)]
    for seed in range(3):
        paths.append(write_run(tmp_path / f"p{seed}", lambda s: 3.002 - 1e-4 * s, seed=seed, precision="bf16-mixed"))
    table = precision_gap.analyse(load(*paths), Options()).tables["Loss gap to float32"].set_index("loss")
    assert table.loc["validation", "in updates of float32"].startswith("-20 [")


def test_where_updates_are_not_told(tmp_path: Path) -> None:
    """Breaks if a difference is divided by a slope that may be zero, or by one of the other sign, or if updates are told that the
    line was never laid through, or of two seeds."""
    noisy = fieller(NOTHING, np.array([-0.01, -0.011, -0.012]), np.array([-1e-4, 2e-4, -3e-4]))
    assert noisy.why == "the baseline's slope at its end is not told from zero"
    assert (noisy.short, math.isnan(noisy.low)) == ("–", True)
    far = loss_curves.analyse(load(*falling(tmp_path / "far", 0.05)), Options()).claims[-1]
    assert "; not told in updates: it is more than the 0.0200 nats of the baseline's last 200 updates (" in far.sentence
    rising = loss_curves.analyse(load(*falling(tmp_path / "rising", 0.01, slope=1e-4)), Options()).claims[-1]
    assert "not told in updates: the baseline's loss rises at its end" in rising.sentence
    two = loss_curves.analyse(load(*falling(tmp_path / "two", 0.01, seeds=2)), Options())
    assert all(claim.worth is None for claim in two.claims)
    # an end of the interval that lies beyond what was looked at has no number
    near = fieller(NOTHING, np.array([-0.039, -0.035, -0.038]), np.array([-1e-4, -1.01e-4, -0.99e-4]))
    assert near.short.endswith(", …]")
