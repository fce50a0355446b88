"""Whether a λ gains as much in another setting, on made-up runs whose gains are known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import best_decay
from analysis.command import Options, Result
from analysis.runs import LAMBDA
from record.blocks import ValidationBlocks, write_blocks
from tests.recorded import base_curve, load, write_run


def write(
    root: Path,
    name: str,
    gain: float,
    seeds: int = 4,
    first: int = 0,
    rate: float = 0.1,
    decay: float = 0.1,
    **fields: Any,
) -> list[Path]:
    """λ = 0 and one λ, of which the other setting's is the same: its sum is λ·η over 1,000 updates."""
    paths = []
    for seed in range(first, first + seeds):
        # what a seed does at every λ cancels in its gain
        level = 0.1 * (seed % 7)
        for own, height in (
            (0.0, level),
            (decay, level + gain + 0.0005 * np.random.default_rng(seed).standard_normal()),
        ):
            path = root / f"{name}-{own}-{seed}"
            folds = {"optim/decay_sum": lambda s, d=own: d * rate * s}
            given = {"optim": {"lr": rate}, **fields}
            write_run(
                path, lambda s, h=height: base_curve(s) + h, decay=own, seed=seed, columns=folds, noise=0, **given
            )
            paths.append(path)
    return paths


def analysed(*paths: Path) -> Result:
    return best_decay.analyse(load(*paths), Options())


def rows(result: Result) -> list[dict[str, Any]]:
    table = result.tables.get("The same λ between settings", pd.DataFrame())  # an empty table is dropped
    return [dict(row) for row in table.to_dict("records")]


def test_a_gain_in_another_setting(tmp_path: Path) -> None:
    """Breaks if the difference of two gains is not by seed, has the other sign, or is called another thing than exploratory."""
    paths = [*write(tmp_path, "a", -0.02), *write(tmp_path, "b", -0.05, model={"n_layer": 4})]
    (row,) = rows(result := analysed(*paths))
    assert row["estimate"] == pytest.approx(-0.03, abs=1e-3)
    assert (row["n"], row["kind"], row["verdict"]) == (4, "exploratory", "λ does better there")
    assert re.sub(r"\(.*?\)", "()", row["comparison"]) == (
        "λ = 0.1 minus λ = 0 () with n_layer = 4, less λ = 0.1 minus λ = 0 () with n_layer = 2"
    )
    own, first = (float(number) for number in re.findall(r"\((.*?)\)", row["comparison"]))
    assert (own, first) == pytest.approx((-0.05, -0.02), abs=1e-3)
    assert any(row["comparison"] in finding for finding in result.findings)


def test_the_same_sum_at_another_rate(tmp_path: Path) -> None:
    """Breaks if settings whose λ·Ση agree, each at its own η, are not compared, or those of another sum are."""
    same = write(tmp_path, "b", -0.02, rate=0.2, decay=0.05, model={"n_layer": 4})
    first = write(tmp_path, "a", -0.02)
    (row,) = rows(analysed(*first, *same))
    assert abs(row["estimate"]) < 1e-3
    other = write(tmp_path, "c", -0.02, rate=0.2, decay=0.2, model={"n_layer": 6})
    assert not rows(analysed(*first, *other))


def test_float32_is_the_first(tmp_path: Path) -> None:
    """Breaks if a precision is measured by another one than float32."""
    paths = [*write(tmp_path, "b", -0.05, precision="bf16-mixed"), *write(tmp_path, "a", -0.02, precision="fp32")]
    (row,) = rows(analysed(*paths))
    assert row["comparison"].endswith("with precision = fp32")
    assert row["estimate"] == pytest.approx(-0.03, abs=1e-3)


def test_one_setting_has_nothing_beside_it(tmp_path: Path) -> None:
    """Breaks if a setting without λ = 0 has a gain."""
    without = [path for path in write(tmp_path, "b", -0.05, model={"n_layer": 4}) if f"-{0.0}-" not in path.name]
    assert all(run.fields[LAMBDA] for run in load(*without))
    assert not rows(analysed(*write(tmp_path, "a", -0.02), *without))


def test_the_setting_of_most_seeds_is_the_first(tmp_path: Path) -> None:
    """Breaks if what was run least is what all else is measured by, or a pilot's seeds are counted."""
    few = write(tmp_path, "a", -0.05, seeds=3, model={"n_layer": 2})
    many = write(tmp_path, "b", -0.02, model={"n_layer": 4})
    (row,) = rows(analysed(*few, *many))
    assert row["comparison"].endswith("with n_layer = 4")
    pilots = [path for seed in (100, 101) for path in write(tmp_path, f"p{seed}", -0.5, seeds=1, first=seed)]
    (with_pilots,) = rows(analysed(*few, *many, *pilots))
    assert with_pilots == row


def test_documents(tmp_path: Path) -> None:
    """Breaks if what documents add to both settings alike is in the interval, or what they add to one is not."""
    paths = [*write(tmp_path, "a", -0.02), *write(tmp_path, "b", -0.05, model={"n_layer": 4})]
    alone = rows(analysed(*paths))[0]["95 % interval"]
    for common, expected in ((True, 0.0), (False, 0.02 / np.sqrt(32))):
        for path in paths:
            dice = np.random.default_rng(0)
            noise = 0.02 * np.repeat(dice.standard_normal(32), 2)
            # by which λ gains in every document alike, or by each document another amount, in one setting or in both
            harm = noise * (path.name[2:5] == "0.1") * (common or path.name[0] == "b")
            blocks = ValidationBlocks(1000, 80, 64, 64, [80] * 64, {"weights": [float(v) for v in 80 * (3 + harm)]})
            write_blocks(path / "val_blocks.json", blocks)
            log = (path / "metrics.jsonl").read_text().splitlines()
            last = {**json.loads(log[-1]), "val/final_loss": json.loads(log[-1])["val/loss"]}
            (path / "metrics.jsonl").write_text("\n".join([*log[:-1], json.dumps(last)]) + "\n")
        (row,) = rows(analysed(*paths))
        assert (row["documents' standard error"] or 0.0) == pytest.approx(expected, rel=0.3, abs=1e-6)
        assert (row["95 % interval"] == alone) is common


def test_an_older_record_has_the_defaults_of_later_fields(tmp_path: Path) -> None:
    """Breaks if a record from before a field existed stands in another setting than a run that names the field's default."""
    older = write(tmp_path, "a", -0.02, seeds=3)
    newer = write(tmp_path, "b", -0.02, seeds=1, first=3, model={"norm": "layernorm", "qk_norm": False})
    other = write(tmp_path, "c", -0.05, model={"norm": "rmsnorm"})
    (row,) = rows(analysed(*older, *newer, *other))
    assert row["n"] == 4
    assert "norm = layernorm" in row["comparison"]


def test_the_figure(tmp_path: Path) -> None:
    """Breaks if a point is not its setting's mean gain, stands at another's place, or lacks its bar of two seeds or more."""
    deep, wide = {"model": {"n_layer": 4}}, {"model": {"n_layer": 4, "n_embd": 16}}
    assert "settings" not in {figure.name for figure in analysed(*write(tmp_path, "a", -0.02)).figures}
    paths = [*write(tmp_path, "c", 0.01, seeds=1, **wide), *write(tmp_path, "b", -0.05, **deep)]
    # of one amount of decay by λ·Ση
    paths += write(tmp_path, "d", -0.03, seeds=2, rate=0.2, decay=0.05, model={"n_layer": 6})
    (panel,) = next(figure for figure in analysed(*paths).figures if figure.name == "settings").panels
    (line,) = panel.lines
    assert list(panel.ticks.values()) == ["8\n4", "8\n6", "16\n4"]
    assert (panel.xlabel, line.name) == ("n_embd, n_layer", "λ·Ση = 10")
    assert list(line.x) == list(panel.ticks)
    assert line.y == pytest.approx([-0.05, -0.03, 0.01], abs=1e-3)
    assert line.low is not None
    assert line.high is not None
    assert list(line.low < line.y) == list(line.y < line.high) == [True, True, False]
