"""How early the order of λ is known, on made-up runs whose orders over the run are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import early
from analysis.claims import too_few
from analysis.command import Options, Result
from analysis.statistics import interval
from configs.errors import InputError
from tests.recorded import base_curve, load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

DECAYS = (0.0, 0.1, 0.3)
ENDS = {0.0: 0.02, 0.1: 0.0, 0.3: 0.05}  # above the lowest at the end
TURN = 600  # of 1,000 updates: before it a larger λ is higher


def write(root: Path, seed: int, average: bool = False, **more: Any) -> list[Path]:
    """Seeds lie a nat apart: only within one are λ ordered. From the fourth on the order is that of the end from the first step."""
    paths = []
    for decay in DECAYS:

        def loss(step: np.ndarray, decay: float = decay) -> np.ndarray:
            turned = (step >= TURN) | (seed > 2)
            return base_curve(step) + seed + np.where(turned, ENDS[decay], decay)

        # an average that has the order of the end from the first step on
        columns = {"val/loss_ema_0.99": lambda s, decay=decay: 3 + seed + ENDS[decay] + 0 * s} if average else {}
        path = root / f"{decay}-{seed}"
        paths.append(write_run(path, loss, decay=decay, seed=seed, noise=0, columns=columns, **more))
    return paths


def analysed(paths: list[Path]) -> Result:
    return early.analyse(load(*paths), Options())


def seeds(root: Path, count: int, average: bool = False) -> list[Path]:
    return [path for seed in range(count) for path in write(root, seed, average)]


def test_order_that_turns(tmp_path: Path) -> None:
    """Breaks if τ, the place from which the order is told, or what an early choice costs is not that of the runs."""
    result = analysed(seeds(tmp_path, 3, average=True))
    sentence, exploratory = result.findings
    # of three pairs before the turn λ = 0 and 0.1 stand in the wrong order: (2 − 1)/3
    assert "at step 250 (25%) orders λ = 0, 0.1, 0.3 with τ = +0.33 [+0.33, +0.33]" in sentence
    assert "the order is not told" in sentence
    assert "ends 0.0200 [0.0200, 0.0200] above the lowest" in sentence
    assert f"From step {TURN} (60%) on it is told (exploratory" in sentence
    assert exploratory.startswith("by the average over 100 updates the order is told first at step 1 (0%), τ = +1.00")
    table = result.tables["What early readings tell"]
    average = table[table["reading"] == "average over 100 updates"]
    assert set(average["verdict"]) == {"the order is told (τ above 0.5)"}
    assert set(average["cost of choosing there (nats)"]) == {"0.0000 [0.0000, 0.0000]"}
    assert [panel.ylabel for panel in result.figures[0].panels] == [
        "Kendall's τ with the end",
        "nats lost by choosing there",
    ]


def test_seeds_of_other_orders(tmp_path: Path) -> None:
    """Breaks if λ are ordered by their means and not within each seed."""
    table = analysed(seeds(tmp_path, 6)).tables["What early readings tell"]
    (row,) = table[table["step"] == 250].to_dict("records")
    # three seeds of 1/3, three of 1
    expected = interval([1 / 3] * 3 + [1.0] * 3)
    assert row["τ with the end"] == f"{expected.mean:+.2f} [{expected.low:+.2f}, {min(expected.high, 1.0):+.2f}]"
    assert row["verdict"] == "undecided: the interval holds 0.5"


def test_two_seeds_are_no_claim(tmp_path: Path) -> None:
    """Breaks if two seeds tell an order, or that there is none."""
    (sentence,) = analysed(seeds(tmp_path, 2)).findings
    assert too_few(2) in sentence
    assert "told" not in sentence


def test_a_lost_decay_is_not_named(tmp_path: Path) -> None:
    """Breaks if λ that diverged stands among those that were ordered, or the loss of its runs is not said."""
    paths = seeds(tmp_path, 3)
    for seed in range(3):
        run = tmp_path / f"0.9-{seed}"
        paths.append(write_run(run, lambda s: base_curve(s) + 9 * (s > 500), decay=0.9, seed=seed, state="diverged"))
    sentence = analysed(paths).findings[0]
    assert "orders λ = 0, 0.1, 0.3 with" in sentence
    assert "conditional on survival: 3 of 3 at λ = 0.9 diverged" in sentence


def branch(trunk: Path, step: int, end: float, kind: str = "constant", decay: float = 0.0, **more: Any) -> Path:
    fields = {"schedule": {"kind": kind}, "branch": {"origin": f"{trunk}@{step}", **more}, "optim": {"lr": 0.001}}
    seed = int(trunk.name.partition("-")[2])
    return write_run(
        trunk.parent / f"{trunk.name}-{kind}{step}",
        lambda s: end + 0 * s,
        decay=decay,
        seed=seed,
        steps=200,
        noise=0,
        **fields,
    )


def test_branches(tmp_path: Path) -> None:
    """Breaks if a branch's end is not read at its own checkpoint and of its own trunk, or one on other data is read."""
    paths = seeds(tmp_path, 3)
    for trunk in list(paths):
        decay, seed = float(trunk.name.partition("-")[0]), int(trunk.name.partition("-")[2])
        paths += [branch(trunk, 400, 3 + seed + ENDS[decay]), branch(trunk, 200, 3 + seed - ENDS[decay])]
        paths.append(branch(trunk, 800, 3 + seed - ENDS[decay], data="other"))
        # cooled down with its trunk's own λ, from the same checkpoint
        paths.append(branch(trunk, 200, 3 + seed + ENDS[decay], kind="linear", decay=decay))
    result = analysed(paths)
    table = result.tables["What early readings tell"]
    rows = table[table["reading"] == "branch's end"]
    assert list(rows["step"]) == [200, 400]
    assert [text.split()[0] for text in rows["τ with the end"]] == ["-1.00", "+1.00"]
    assert set(rows["λ"]) == {3}
    cooled = table[table["reading"] == "cool-down's end"]
    assert [(row["step"], row["τ with the end"].split()[0]) for _, row in cooled.iterrows()] == [(200, "+1.00")]
    assert not any("the branches differ" in note or "several branches" in note for note in result.notes)


def test_two_decays_are_no_order(tmp_path: Path) -> None:
    """Breaks if an order of two λ, which a coin tells half of the time, is judged."""
    paths = [path for path in write(tmp_path, 0) if not path.name.startswith("0.3")]
    with pytest.raises(InputError, match="needs 3 λ of one setting; these runs have 2 λ"):
        analysed(paths)
    told = early.Told(250, 1000, (0.0, 0.1), interval([1.0] * 3), interval([0.0] * 3))
    assert not told.is_told
    assert told.verdict == "2 λ: one order, and no verdict"


def test_pilots_are_not_ordered(tmp_path: Path) -> None:
    """Breaks if runs of a pilot's seeds enter an order."""
    paths = seeds(tmp_path, 3)
    alone = analysed(paths).tables["What early readings tell"]
    with_pilot = analysed([*paths, *write(tmp_path, 100)])
    assert with_pilot.tables["What early readings tell"].equals(alone)
    assert "3 runs of a pilot's seeds (100 and above) enter no claim" in with_pilot.notes
