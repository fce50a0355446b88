"""What of the best λ transfers, on made-up runs of which one quantity is the same at every length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import what_transfers
from analysis.command import Options
from configs.errors import InputError
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

RATE = 0.1  # of tests.recorded, constant: Ση is the number of updates times it
BEST = 0.5  # Σ


def write(root: Path, steps: int, best: float, seeds: int = 4) -> list[Path]:
    """Five λ whose losses are a parabola in log λ around `best`, moved a little by the seed."""
    paths = []
    for seed in range(seeds):
        own = best * float(np.exp(0.05 * np.random.default_rng(seed).standard_normal()))
        for decay in (0.0, best / 3, best, 3 * best):
            height = 0.05 * np.log(decay / own) ** 2 if decay else 0.1
            path = root / f"{steps}-{decay:.4g}-{seed}"
            folds = {"optim/decay_sum": lambda s, d=decay: d * RATE * s}
            write_run(
                path, lambda s, h=height: 3 + h + 0 * s, decay=decay, seed=seed, steps=steps, noise=0, columns=folds
            )
            paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("power", "transfers", "powers"), [(-1.0, "Σ", (-1, -1, 0)), (0.0, "λ", (0, 0, 1)), (-0.5, "", (-0.5, -0.5, 0.5))]
)
def test_one_quantity_is_kept(tmp_path: Path, power: float, transfers: str, powers: tuple[float, ...]) -> None:
    """Breaks if a quantity is scaled by another run's Ση, transfers where its intervals share no value, or a power is wrong."""
    paths = [
        path for steps in (200, 800) for path in write(tmp_path, steps, BEST / (RATE * 200) * (steps / 200) ** power)
    ]
    result = what_transfers.analyse(load(*paths), Options())
    laws = result.tables["What transfers"].set_index("quantity")
    # at one η, λ and ηλ are one
    expected = {"λ": {"λ", "ηλ"}}.get(transfers, {transfers} - {""})
    assert set(laws.index[laws["verdict"] == "transfers"]) == expected
    for quantity, value in zip(what_transfers.QUANTITIES, powers, strict=True):
        assert float(laws["power of the updates"][quantity].split()[0]) == pytest.approx(value, abs=0.01)
    best = result.tables["The best at each setting"]
    assert list(best["updates"]) == [200, 800]
    assert float(best["best Σ"][0].split()[0]) == pytest.approx(BEST, rel=0.1)


def test_one_length_is_refused(tmp_path: Path) -> None:
    """Breaks if one length, or three seeds at the other, is an answer."""
    paths = [*write(tmp_path, 200, 0.025), *write(tmp_path, 800, 0.025, seeds=3)]
    with pytest.raises(InputError, match=r"these runs have 1 such .*fewer than 4 seeds"):
        what_transfers.analyse(load(*paths), Options())
