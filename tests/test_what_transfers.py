"""What of the best λ transfers, on made-up runs of which one quantity is the same at every length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import what_transfers
from analysis.command import Options, Result
from configs.errors import InputError
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

RATE = 0.1  # of tests.recorded, constant: Ση is the number of updates times it
BEST = 0.5  # Σ
SPREAD = 0.03  # of a seed's own best, relative


def write(
    root: Path,
    steps: int,
    best: float,
    seeds: int = 4,
    rate: float = RATE,
    first: int = 0,
    own: Any = None,
    **fields: Any,
) -> list[Path]:
    """Four λ whose losses are a parabola in log λ around the seed's own best, another at each length. `own`: seed → its factor."""
    paths = []
    for seed in range(first, first + seeds):
        luck = float(np.exp(SPREAD * np.random.default_rng([seed, steps]).standard_normal()))
        lowest = best * (own[seed] if own else luck)
        for decay in (0.0, best / 3, best, 3 * best):
            height = 0.05 * np.log(decay / lowest) ** 2 if decay else 0.1
            path = root / f"{steps}-{decay:.4g}-{rate}-{seed}"
            folds = {"optim/decay_sum": lambda s, d=decay: d * rate * s}
            given = {"optim": {"lr": rate}, **fields}
            write_run(
                path,
                lambda s, h=height: 3 + h + 0 * s,
                decay=decay,
                seed=seed,
                steps=steps,
                noise=0,
                columns=folds,
                **given,
            )
            paths.append(path)
    return paths


def two(root: Path, power: float) -> list[Path]:
    """Two lengths, four times apart, whose best λ moves with this power."""
    return [path for steps in (200, 800) for path in write(root, steps, BEST / (RATE * 200) * (steps / 200) ** power)]


def analysed(paths: list[Path]) -> Result:
    return what_transfers.analyse(load(*paths), Options())


@pytest.mark.parametrize(
    ("power", "open_", "powers"),
    [(-1.0, {"Σ"}, (-1, -1, 0)), (0.0, {"λ", "ηλ"}, (0, 0, 1)), (-0.5, set(), (-0.5, -0.5, 0.5))],
)
def test_one_quantity_is_kept(tmp_path: Path, power: float, open_: set[str], powers: tuple[float, ...]) -> None:
    """Breaks if a quantity is scaled by another run's Ση, is not ruled out where intervals share no value, or a power is wrong."""
    result = analysed(two(tmp_path, power))
    laws = result.tables["What transfers"].set_index("quantity")
    assert set(laws.index[laws["verdict"].str.startswith("not ruled out")]) == open_  # at one η, λ and ηλ are one
    assert set(laws.index[laws["verdict"] == "ruled out"]) == set(what_transfers.QUANTITIES) - open_
    for quantity, value in zip(what_transfers.QUANTITIES, powers, strict=True):
        assert float(laws["power of the updates"][quantity].split()[0]) == pytest.approx(value, abs=0.05)
    best = result.tables["The best at each length"]
    assert list(best["updates"]) == [200, 800]
    assert float(best["best Σ"][0].split()[0]) == pytest.approx(BEST, rel=0.1)


def test_overlap_that_pairs_tell_apart(tmp_path: Path) -> None:
    """Breaks if intervals that overlap pass for a transfer where every seed has moved the same way."""
    paths = []
    for steps, moved in ((200, 1.0), (800, 1.1)):
        # seeds lie apart by more than the lengths do, alike at both
        own = {seed: moved * (1.0 + 0.1 * (seed - 3)) for seed in range(6)}
        paths += write(tmp_path, steps, 0.025, seeds=6, own=own)
    laws = analysed(paths).tables["What transfers"].set_index("quantity")
    assert laws["verdict"]["λ"] == "not ruled out, but moves in pairs"
    assert float(laws["power of the updates"]["λ"].split()[0]) == pytest.approx(np.log(1.1) / np.log(4), abs=0.01)


def test_pilots_unfinished_runs_and_another_rate(tmp_path: Path) -> None:
    """Breaks if a pilot's seeds or a run that has not ended moves the best, or λ of two η are laid on one parabola."""
    paths = two(tmp_path, -1.0)
    alone = analysed(paths).tables["The best at each length"]
    pilot = write(tmp_path, 800, BEST, first=100)
    folds = {"optim/decay_sum": lambda s: 0.00625 * RATE * s}
    young = write_run(tmp_path / "young", decay=0.00625, seed=9, steps=800, upto=200, state="running", columns=folds)
    other = write(tmp_path, 200, BEST / 4, rate=0.2)
    for path in other:  # higher than at the other η, whatever the λ
        lines = (path / "metrics.jsonl").read_text().replace('"val/loss": 3.', '"val/loss": 4.')
        (path / "metrics.jsonl").write_text(lines)
    result = analysed([*paths, *pilot, young, *other])
    assert result.tables["The best at each length"].equals(alone)
    assert any("pilot" in note for note in result.notes)


@pytest.mark.parametrize(("power", "open_"), [(0.0, {"Σ"}), (-1.0, {"λ"})])
def test_another_width(tmp_path: Path, power: float, open_: set[str]) -> None:
    """Breaks if widths are not compared as lengths are, each at its own η, or one of two fields is taken for the other."""
    paths = write(tmp_path / "narrow", 200, 0.025)
    # twice the width at half the η: the same Σ is twice the λ
    wide = {"model": {"n_embd": 16, "n_head": 2}, "rate": RATE / 2}
    paths += write(tmp_path / "wide", 200, 0.05 * 2.0**power, **wide)
    result = analysed(paths)
    laws = result.tables["What transfers to another width"].set_index("quantity")
    kept = set(laws.index[laws["verdict"].str.startswith("not ruled out")])
    assert kept == (open_ | {"ηλ"} if power == 0 else open_)
    assert float(laws["power of the width"]["Σ"].split()[0]) == pytest.approx(power, abs=0.05)
    assert list(result.tables["The best at each width"]["width"]) == [8, 16]
    assert "What transfers" not in result.tables
    assert any("with the width differ" in note for note in result.notes)


def test_other_models_are_other_families(tmp_path: Path) -> None:
    """Breaks if the lengths of one model are compared with those of another."""
    paths = [*write(tmp_path, 200, 0.025), *write(tmp_path, 800, 0.025, model={"n_layer": 4})]
    with pytest.raises(InputError, match="two numbers of updates or more"):
        analysed(paths)


def test_one_length_is_refused(tmp_path: Path) -> None:
    """Breaks if one length, or three seeds at the other, is an answer."""
    paths = [*write(tmp_path, 200, 0.025), *write(tmp_path, 800, 0.025, seeds=3)]
    with pytest.raises(InputError, match=r"800 updates: .*fewer than 4 seeds"):
        analysed(paths)
