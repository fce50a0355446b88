"""Gains of other ways of decay against AdamW's, on made-up runs whose gains are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import gains
from analysis.command import Options, Result
from configs.errors import InputError
from tests.recorded import base_curve, load, write_run

SEEDS = 4


def write(
    root: Path, name: str, level: float, decay: float = 0.0, seeds: int = SEEDS, first: int = 0, **fields: Any
) -> list[Path]:
    """Runs that lie `level` above the base curve, each by its own luck of a millinat."""
    paths = []
    for seed in range(first, first + seeds):
        luck = 0.001 * np.random.default_rng([seed, len(name)]).standard_normal()
        height = level + luck
        write_run(root / f"{name}-{seed}", lambda s, h=height: base_curve(s) + h, decay=decay, seed=seed, **fields)
        paths.append(root / f"{name}-{seed}")
    return paths


def adamw(root: Path) -> list[Path]:
    """AdamW gains 0.02 at its best λ."""
    return [*write(root, "plain", 0.0), *write(root, "best", -0.02, 0.1), *write(root, "large", 0.03, 0.9)]


def analysed(paths: list[Path]) -> Result:
    return gains.analyse(load(*paths), Options())


def test_gain_against_half_of_adamw(tmp_path: Path) -> None:
    """Breaks if a gain is not that over the same optimiser without decay, or is set against another share than half of AdamW's
    best."""
    sgd = {"algorithm": "sgd", "decay_rule": "l2_coupled"}
    paths = [
        *adamw(tmp_path),
        *write(tmp_path, "l2", -0.016, 1e-4, optim={"decay_rule": "l2_loss"}),
        *write(tmp_path, "slow", -0.002, schedule={"horizon": 1200}),
        # SGD lies far above, and gains 0.03 on itself
        *write(tmp_path, "sgd", 0.5, optim=sgd),
        *write(tmp_path, "sgd-decay", 0.47, 0.01, optim=sgd),
    ]
    result = analysed(paths)
    table = result.tables["Gains"].set_index(["algorithm", "rule", "horizon"])
    expected = {
        ("adam", "l2_loss", ""): (-0.016, gains.WORDS[0]),
        ("adam", "decoupled", 1200): (-0.002, gains.WORDS[1]),
        ("sgd", "l2_coupled", ""): (-0.03, gains.WORDS[0]),
    }
    for way, (gain, verdict) in expected.items():
        row = table.loc[[way]].iloc[0]
        assert float(row["gain"].split()[0]) == pytest.approx(gain, abs=0.002), way
        assert float(row["minus half of AdamW's"].split()[0]) == pytest.approx(gain + 0.01, abs=0.002), way
        assert row["verdict"] == verdict, way
    assert len(table) == 1 + len(expected)
    assert not any(claim.primary for claim in result.claims)


def test_pilots_enter_no_gain(tmp_path: Path) -> None:
    """Breaks if runs that chose a coefficient are among those that judge it."""
    l2 = {"optim": {"decay_rule": "l2_loss"}}
    judged = [*adamw(tmp_path), *write(tmp_path, "l2", -0.016, 1e-4, **l2)]
    alone = analysed(judged).tables["Gains"]
    pilot = write(tmp_path, "pilot", -0.5, 1e-4, first=100, **l2)
    with_pilot = analysed([*judged, *pilot])
    assert with_pilot.tables["Gains"].equals(alone)
    assert f"{SEEDS} runs of a pilot's seeds (100 and above) enter no claim" in with_pilot.notes


def test_adamw_alone_is_refused(tmp_path: Path) -> None:
    """Breaks if AdamW's own gain is called another way's."""
    with pytest.raises(InputError, match=r"these are 3 groups of 1 way\(s\)"):
        analysed(adamw(tmp_path))


def test_half_of_no_gain_is_no_measure(tmp_path: Path) -> None:
    """Breaks if a way that harms passes because AdamW's decay harms more."""
    paths = [*write(tmp_path, "plain", 0.0), *write(tmp_path, "worse", 0.02, 0.1)]
    paths += write(tmp_path, "l2", 0.002, 1e-4, optim={"decay_rule": "l2_loss"})
    (claim,) = analysed(paths).claims
    assert claim.interval.high < 0
    assert claim.verdict == "no claim: AdamW's own gain is not told from zero"


def test_knobs_horizon_with_decay_and_choice(tmp_path: Path) -> None:
    """Breaks if an algorithm's own momentum makes it another setting, a slower schedule with decay is taken for one without, or it
    is not said that a cell was chosen by the seeds that judge it."""
    lion = {"algorithm": "lion", "betas": [0.9, 0.99]}
    paths = [
        *adamw(tmp_path),
        *write(tmp_path, "lion", 0.1, optim=lion),
        *write(tmp_path, "lion-decay", 0.07, 0.3, optim=lion),
        *write(tmp_path, "slow", -0.002, schedule={"horizon": 1200}),
        *write(tmp_path, "slow-decay", -0.03, 0.1, schedule={"horizon": 1200}),
    ]
    result = analysed(paths)
    table = result.tables["Gains"]
    found = {(row["algorithm"], row["horizon"], row["λ"]): float(row["gain"].split()[0]) for _, row in table.iterrows()}
    expected = {
        ("adam", "", 0.1): -0.02,
        ("lion", "", 0.3): -0.03,
        ("adam", 1200, 0.0): -0.002,
        ("adam", 1200, 0.1): -0.03,
    }
    assert found == {way: pytest.approx(gain, abs=0.002) for way, gain in expected.items()}
    # the figure has the table's gains, AdamW's first, beside half of it
    (panel,) = result.figures[0].panels
    assert list(panel.ticks.values()) == ["AdamW", *list(panel.ticks.values())[1:]]
    assert len(panel.ticks) == len(table) == 4
    assert panel.lines[0].y == pytest.approx([float(text.split()[0]) for text in table["gain"]], abs=1e-4)
    assert panel.lines[1].y == pytest.approx([panel.lines[0].y[0] / 2] * 2)
    assert "lion\ndecoupled" in panel.ticks.values()
    assert "Adam\nno decay\nhorizon 1200" in panel.ticks.values()
    # AdamW's λ is one of two
    assert all(claim.condition.startswith("chosen by the same seeds: ") for claim in result.claims)
    assert all("λ = 0.1" in claim.condition for claim in result.claims)
