"""P1's claims on images, on made-up runs that are as the paper has them, and on such as are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import declared_images
from analysis.command import Options
from configs.errors import InputError
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

SEEDS, STEPS = 4, 100


def write(
    root: Path, name: str, seed: int, ends: dict[str, float], decay: float = 0.0, spread: float = 0.001, **fields: Any
) -> Path:
    """A run on images whose columns stay where they end, but for what the seed adds."""
    luck = spread * np.random.default_rng([seed, *name.encode()]).standard_normal()
    optim = {"algorithm": "sgd", "decay_rule": "l2_coupled", **fields.pop("optim", {})}
    return write_run(
        root / f"{name}-{seed}",
        decay=decay,
        seed=seed,
        steps=fields.pop("steps", STEPS),
        noise=0,
        columns={column: lambda s, k=end + luck: k + 0 * s for column, end in ends.items()},  # type: ignore[misc]
        optim=optim,
        **fields,
    )


def verdicts(paths: list[Path]) -> pd.DataFrame:
    """A row a comparison, of made-up runs."""
    return declared_images.analyse(load(*paths), Options()).tables["Claims"]


def corners(root: Path, errors: dict[tuple[float, float], float], spread: float = 0.001) -> list[Path]:
    """Test error by (η, λ); the small η holds, as in the sweep's file."""
    paths = []
    for (rate, decay), error in errors.items():
        kind = "multistep" if rate == 0.4 else "constant"
        for seed in range(SEEDS):
            fields = {"optim": {"lr": rate}, "schedule": {"kind": kind}}
            paths.append(write(root, f"c{rate}-{decay}", seed, {"val/error": error}, decay, spread, **fields))
    return paths


def test_corners(tmp_path: Path) -> None:
    """Breaks if another corner is called the best, or a claim whose parts disagree holds as a whole."""
    errors = {(0.4, 0.01): 0.05, (0.4, 0.0): 0.09, (0.02, 0.01): 0.08, (0.02, 0.0): 0.1}
    table = verdicts(corners(tmp_path / "as_paper", errors))
    assert len(table) == 3
    assert set(table["verdict"]) == {"holds"}
    differences = {row["part"]: float(row["difference"].split()[0]) for _, row in table.iterrows()}
    expected = {"η = 0.02, λ = 0": -0.05, "η = 0.02, λ = 0.01": -0.03, "η = 0.4, λ = 0": -0.04}
    assert differences == {f"below {corner}": pytest.approx(value, abs=0.004) for corner, value in expected.items()}
    part = verdicts(corners(tmp_path / "part", errors | {(0.02, 0.01): 0.03}))
    assert sorted(part["verdict of the part"]) == ["does not hold", "holds", "holds"]
    assert set(part["verdict"]) == {"holds in part"}


def test_holm_is_within_a_claim(tmp_path: Path) -> None:
    """Breaks if the comparisons of one claim are not corrected: one interval by itself excludes zero here."""
    others = {(0.4, 0.0): 0.0628, (0.02, 0.01): 0.0628, (0.02, 0.0): 0.0628}
    table = verdicts(corners(tmp_path, {(0.4, 0.01): 0.05, **others}, spread=0.008))
    bounds = [text.split("[")[1].split("]")[0].split(", ") for text in table["difference"]]
    assert any(float(high) < 0 for _, high in bounds)
    assert set(table["verdict"]) == {"undecided"}


def sphere(root: Path, error: Callable[[float], float]) -> list[Path]:
    """Test error of the branches over η; the training loss that the trunks hold rises with η."""
    paths = []
    for rate in (0.1, 0.2, 0.4, 0.8):
        for seed in range(SEEDS):
            optim = {"lr": rate, "decay_rule": "sphere"}
            held = {"val/error": 0.5, "train_eval/loss": rate}
            trunk = write(root, f"s{rate}", seed, held, optim=optim, schedule={"kind": "constant"})
            branch = {"branch": {"origin": f"{trunk}@{STEPS}"}, "schedule": {"kind": "constant"}}
            paths += [
                trunk,
                write(root, f"s{rate}-b", seed, {"val/error": error(rate)}, optim=optim, steps=20, **branch),
            ]
    return paths


def test_sphere(tmp_path: Path) -> None:
    """Breaks if the U is read off the trunks, or a lowest value at the largest η is a U."""
    table = verdicts(sphere(tmp_path / "u", lambda rate: 0.1 + 0.05 * math.log(rate / 0.4) ** 2))
    assert list(table["verdict"]) == ["holds"] * 2
    table = verdicts(sphere(tmp_path / "falls", lambda rate: 0.3 - 0.1 * rate)).set_index("comparison")
    assert table["verdict of the part"].to_dict() == {"ends minus lowest": "does not hold", "Spearman's ρ": "holds"}
    assert set(table["verdict"]) == {"holds in part"}


def flows(root: Path, tuned: float, unfinished: tuple[int, ...] = ()) -> list[Path]:
    """Iterate at 0.2, average at 0.12; the branches from half and from the end of it at `tuned`."""
    paths = []
    for rate in (0.1, 0.2):
        for seed in range(SEEDS):
            held = {"val/error": 0.2, "val/error_ema_0.99": 0.12}
            trunk = write(root, f"f{rate}", seed, held, 0.01, optim={"lr": rate}, schedule={"kind": "constant"})
            paths.append(trunk)
            for step, error in ((20, 0.9), (50, tuned), (100, tuned)):
                branch = {"branch": {"origin": f"{trunk}@{step}"}, "schedule": {"kind": "constant"}}
                path = write(
                    root, f"f{rate}-b{step}", seed, {"val/error": error}, optim={"lr": 0.001}, steps=20, **branch
                )
                if seed in unfinished and step == 100:
                    (path / "status.json").write_text((path / "status.json").read_text().replace("done", "running"))
                paths.append(path)
    return paths


def test_flows(tmp_path: Path) -> None:
    """Breaks if the early checkpoints count, the average is taken for the iterate, or a branch that has not ended counts."""
    table = verdicts(flows(tmp_path / "both", 0.1)).set_index("part")
    gaps = {part: float(text.split()[0]) for part, text in table["difference"].items()}
    assert gaps["the average lies below the iterate"] == pytest.approx(-0.08, abs=0.002)
    assert gaps["fine-tuning lies below the iterate"] == pytest.approx(-0.1, abs=0.002)
    assert set(table["verdict"]) == {"holds"}
    again = verdicts(flows(tmp_path / "unfinished", 0.1, unfinished=(0, 1))).set_index("part")
    assert again["n"].to_dict() == {"the average lies below the iterate": 4, "fine-tuning lies below the iterate": 2}
    assert again["verdict of the part"]["fine-tuning lies below the iterate"] == "no claim: 2 seeds"


def grid(root: Path, by_rate: float = 0.0) -> list[Path]:
    """What depends on ηλ as in P1, and `by_rate` of the test error on η at one ηλ."""
    paths = []
    for rate in (0.1, 0.2, 0.4):
        for decay in (0.0025, 0.005, 0.01, 0.02, 0.04):
            away = math.log(rate * decay / 0.002)
            ends = {
                "val/error": 0.3,
                "val/error_ema_0.999": 0.1 + 0.02 * away**2 + by_rate * math.log2(rate / 0.1),
                "train_eval/loss": 1 + 0.1 * away,
                "measure/noise_scale": 1 + 0.1 * away,
                "measure/jacobian_norm_ema_0.999": 9 - away,
            }
            for seed in range(SEEDS):
                fields = {"optim": {"lr": rate}, "schedule": {"kind": "constant"}}
                paths.append(write(root, f"g{rate}-{decay}", seed, ends, decay, **fields))
    return paths


def test_grid(tmp_path: Path) -> None:
    """Breaks if a relation's sign is turned, or an error that depends on η beside ηλ is called one that depends on ηλ alone."""
    table = verdicts(grid(tmp_path / "as_paper")).set_index("part")
    assert len(table) == 5
    assert set(table["verdict of the part"]) == {"holds"}
    table = verdicts(grid(tmp_path / "by_rate", by_rate=0.02)).set_index("part")
    alone = table.loc["ηλ alone decides the average's test error"]
    # three lines have all three η, two have two
    assert float(alone["difference"].split()[0]) == pytest.approx(0.02 * (3 * 2 + 2) / 5, abs=0.002)
    assert alone["verdict of the part"] == "does not hold"
    assert set(table["verdict"]) == {"holds in part"}


def passes(root: Path, gains: dict[int, tuple[float, float]]) -> list[Path]:
    """By images: what the smaller and the larger λ gain."""
    paths = []
    for images, change in gains.items():
        for decay, gain in zip((0.0, 0.01, 0.1), (0.0, *change), strict=True):
            for seed in range(SEEDS):
                fields = {"data": {"train_images": images}, "schedule": {"kind": "multistep"}}
                paths.append(write(root, f"p{images}-{decay}", seed, {"val/error": 0.2 - gain}, decay, **fields))
    return paths


def test_passes(tmp_path: Path) -> None:
    """Breaks if every λ must help and not one, or the middle size decides."""
    table = verdicts(passes(tmp_path / "both", {250: (0.03, -0.05), 1000: (-0.1, -0.1), 4000: (0.0, 0.02)}))
    assert len(table) == 4
    assert set(table["verdict"]) == {"holds"}
    table = verdicts(passes(tmp_path / "many", {250: (0.03, 0.02), 4000: (-0.02, -0.02)}))
    assert set(table["verdict"]) == {"holds in part"}


def test_other_runs_are_refused(tmp_path: Path) -> None:
    """Breaks if runs of which no claim speaks yield one."""
    paths = [write(tmp_path, "one", seed, {"val/error": 0.1}, 0.1) for seed in range(SEEDS)]
    with pytest.raises(InputError, match="none of the claims on images can be read of these 4 runs"):
        verdicts(paths)
