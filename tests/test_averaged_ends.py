"""What λ does to averages of the weights, on made-up runs whose gains are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import averaged_ends
from analysis.command import Options
from analysis.runs import Run
from configs.errors import InputError
from tests.recorded import base_curve, load, write_run

GAINS = {0.0: (0.0, 0.01, 0.02), 0.1: (0.02, 0.05, 0.09)}  # λ → of the last weights, of the average over 10, over 100


def runs(root: Path, seeds: int = 4, kinds: tuple[str, ...] = ("_ema_0.9", "_ema_0.99")) -> list[Run]:
    paths = []
    for decay, gains in GAINS.items():
        for seed in range(seeds):
            luck = 0.001 * np.random.default_rng([seed, round(10 * decay)]).standard_normal()
            columns = {
                f"val/loss{kind}": lambda s, k=gain - luck: base_curve(s) - k
                for kind, gain in zip(kinds, gains[1:], strict=False)
            }
            paths.append(
                write_run(
                    root / f"{decay}-{seed}",
                    lambda s, k=gains[0] - luck: base_curve(s) - k,  # type: ignore[misc]
                    decay=decay,
                    seed=seed,
                    columns=columns,  # type: ignore[arg-type]
                )
            )
    return load(*paths)


def test_gains_under_each_average(tmp_path: Path) -> None:
    """Breaks if a gain is taken to another reading than its own, or an average is set against other runs' last weights."""
    table = averaged_ends.analyse(runs(tmp_path), Options()).tables["At the end"].set_index(["run", "reading"])
    readings = ["last weights", "average over 10 updates", "average over 100 updates"]
    first = {reading: table.loc[("λ = 0", reading)] for reading in readings}
    decayed = {reading: table.loc[("λ = 0.1", reading)] for reading in readings}
    for place, reading in enumerate(readings):
        gain = GAINS[0.0][place] - GAINS[0.1][place]
        assert float(decayed[reading]["minus the smallest λ"].split()[0]) == pytest.approx(gain, abs=0.002), reading
        assert decayed[reading]["verdict"] == "lower"
        for decay, row in ((0.0, first[reading]), (0.1, decayed[reading])):
            if place:
                own = GAINS[decay][0] - GAINS[decay][place]
                assert float(row["minus its last weights"].split()[0]) == pytest.approx(own, abs=1e-4), reading


def test_an_average_that_few_kept(tmp_path: Path) -> None:
    """Breaks if a group without an average stops the others, or its last weights stand for it."""
    kept = runs(tmp_path)
    bare = [run for run in runs(tmp_path / "bare", kinds=()) if run.decay == 0.1]
    result = averaged_ends.analyse([run for run in kept if run.decay == 0] + bare, Options())
    table = result.tables["At the end"]
    assert set(table[table["run"] == "λ = 0.1"]["reading"]) == {"last weights"}
    assert not result.findings


def test_runs_without_averages_are_refused(tmp_path: Path) -> None:
    """Breaks if nothing to compare is a table."""
    with pytest.raises(InputError, match="none of these 8 runs has evaluated an average"):
        averaged_ends.analyse(runs(tmp_path, kinds=()), Options())
