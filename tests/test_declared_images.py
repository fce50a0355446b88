"""P1's claims on images, on made-up runs of the declared sweeps that are as the paper has them, and on such as are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import declared_images
from analysis.command import Options, Result, load_runs
from analysis.declared_images import FLOWS, GRID, LATE, MLP_CORNERS, PASSES, SPHERE
from analysis.image_cells import Cell
from configs.errors import InputError
from tests.processes import ROOT
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

Ends = Callable[[Cell], dict[str, float]]


def write(
    folder: Path, name: str, seed: int, ends: dict[str, float], cell: Cell, steps: int = 100, **fields: Any
) -> Path:
    """A run on images whose columns stay where they end, but for what the seed adds."""
    luck = 0.001 * np.random.default_rng([seed, *name.encode()]).standard_normal()
    every = {"train_eval/error": 0.0} | ends
    return write_run(
        folder / f"{name}-{seed}",
        decay=cell[1],
        seed=seed,
        steps=steps,
        noise=0,
        eval_every=10**6,
        columns={column: lambda s, k=end + luck: k + 0 * s for column, end in every.items()},  # type: ignore[misc]
        optim={"algorithm": "sgd", "decay_rule": "l2_coupled", "lr": cell[0]},
        data={"train_images": cell[2] or None},
        **fields,
    )


def sweep(root: Path, name: str, cells: tuple[Cell, ...], ends: Ends, seeds: int = 5, **fields: Any) -> list[Path]:
    return [
        write(root / name, f"{cell[0]:g}-{cell[1]:g}-{cell[2]}", seed, ends(cell), cell, **fields)
        for cell in cells
        for seed in range(seeds)
    ]


def analysed(paths: list[Path]) -> Result:
    return declared_images.analyse(load(*paths), Options())


def verdicts(paths: list[Path]) -> pd.DataFrame:
    """A row a comparison, of made-up runs."""
    return analysed(paths).tables["Claims"]


def first(text: str) -> float:
    return float(text.split()[0])


def corners(root: Path, **errors: float) -> list[Path]:
    """The MLP's corners: large and small η, with and without decay."""
    of = {(0.4, 0.01): "best", (0.4, 0.0): "large", (0.02, 0.01): "decayed", (0.02, 0.0): "small"}
    given = {"best": 0.05, "large": 0.09, "decayed": 0.08, "small": 0.1} | errors
    return sweep(root, "small_overtraining_mlp", MLP_CORNERS, lambda cell: {"val/error": given[of[cell[:2]]]})


def test_corners(tmp_path: Path) -> None:
    """Breaks if another corner is called the best, or a claim whose parts disagree holds as a whole."""
    table = verdicts(corners(tmp_path / "as_paper"))
    assert set(table["verdict"]) == {"holds"}
    differences = {row["part"]: first(row["difference"]) for _, row in table.iterrows()}
    expected = {"η = 0.02, λ = 0": -0.05, "η = 0.02, λ = 0.01": -0.03, "η = 0.4, λ = 0": -0.04}
    assert differences == {f"below {corner}": pytest.approx(value, abs=0.004) for corner, value in expected.items()}
    part = verdicts(corners(tmp_path / "part", decayed=0.03))
    assert sorted(part["verdict of the part"]) == ["does not hold", "holds", "holds"]
    assert set(part["verdict"]) == {"holds in part: below η = 0.4, λ = 0; below η = 0.02, λ = 0"}
    # that a large η alone does as well is what the claim is about
    assert set(verdicts(corners(tmp_path / "key", large=0.05))["verdict"]) == {"does not hold"}


def test_a_corner_that_was_not_trained(tmp_path: Path) -> None:
    """Breaks if a small η that has not fitted its images counts as a rival that lost."""
    ends = {(0.4, 0.01): 0.05, (0.4, 0.0): 0.09, (0.02, 0.01): 0.08, (0.02, 0.0): 0.1}
    fitted = {0.4: 0.0, 0.02: 0.3}
    paths = sweep(
        tmp_path,
        "small_overtraining_mlp",
        MLP_CORNERS,
        lambda cell: {"val/error": ends[cell[:2]], "train_eval/error": fitted[cell[0]]},
    )
    table = verdicts(paths).set_index("part")
    assert table["verdict of the part"]["below η = 0.02, λ = 0"].startswith(
        "no claim: its training error lies 0.30 above"
    )
    assert set(table["verdict"]) == {"holds in part: below η = 0.4, λ = 0"}


def sphere(
    root: Path, error: Callable[[float], float], fitted: Callable[[float], float] = lambda rate: 0.0
) -> list[Path]:
    """Test error of the branches over η; the training loss that the trunks hold rises with η."""
    paths = sweep(root, "small_sphere", SPHERE, lambda cell: {"val/error": 0.5, "train_eval/loss": cell[0]})
    for trunk in list(paths):
        rate, seed = float(trunk.name.split("-")[0]), int(trunk.name.split("-")[-1])
        ends = {"val/error": error(rate), "train_eval/error": fitted(rate)}
        branch = {"origin": f"{trunk}@100"}
        paths.append(write(trunk.parent, f"b{rate:g}", seed, ends, (rate, 0.0, 1000), steps=20, branch=branch))
    return paths


def u_of(rate: float) -> float:
    return 0.1 + 0.02 * math.log(rate / 0.005) ** 2


def test_sphere(tmp_path: Path) -> None:
    """Breaks if the U is read off the trunks, or a lowest value at the largest η is a U."""
    assert set(verdicts(sphere(tmp_path / "u", u_of))["verdict"]) == {"holds"}
    table = verdicts(sphere(tmp_path / "falls", lambda rate: 0.3 - 0.1 * math.log(rate))).set_index("comparison")
    assert table["verdict of the part"].to_dict() == {"ends minus lowest": "does not hold", "Spearman's ρ": "holds"}
    assert set(table["verdict"]) == {"does not hold"}
    untrained = verdicts(sphere(tmp_path / "untrained", u_of, lambda rate: 0.4 * (rate < 0.001))).set_index(
        "comparison"
    )
    assert untrained["verdict of the part"]["ends minus lowest"].startswith("no claim: at the smallest η")


def flows(root: Path, tuned: float, unfinished: tuple[int, ...] = ()) -> list[Path]:
    """Iterate at 0.2, average at 0.12; the branches of the later half at `tuned`, the earlier ones far above."""
    held = {"val/error": 0.2, "val/error_ema_0.99": 0.12}
    paths = sweep(root, "small_flows", FLOWS, lambda cell: held, seeds=3, steps=LATE[-1])
    for trunk in list(paths):
        rate, decay, images, seed = (float(part) for part in trunk.name.split("-"))
        for step, error in ((310, 0.9), *((at, tuned) for at in LATE)):
            branch, name = {"origin": f"{trunk}@{step}"}, f"b{rate:g}-{decay:g}-{step}"
            cell = (0.005, decay, int(images))
            path = write(trunk.parent, name, int(seed), {"val/error": error}, cell, steps=20, branch=branch)
            if seed in unfinished and step == LATE[-1]:
                (path / "status.json").write_text((path / "status.json").read_text().replace("done", "running"))
            paths.append(path)
    return paths


def test_flows(tmp_path: Path) -> None:
    """Breaks if the early checkpoints count, the average is taken for the iterate, or a branch that has not ended counts."""
    table = verdicts(flows(tmp_path / "both", 0.1)).set_index("part")
    gaps = {part: first(text) for part, text in table["difference"].items()}
    assert gaps["the average lies below the iterate"] == pytest.approx(-0.08, abs=0.002)
    assert gaps["fine-tuning lies below the iterate"] == pytest.approx(-0.1, abs=0.002)
    assert set(table["verdict"]) == {"holds"}
    again = verdicts(flows(tmp_path / "unfinished", 0.1, unfinished=(0,))).set_index("part")
    assert again["n"].to_dict() == {"the average lies below the iterate": 3, "fine-tuning lies below the iterate": 2}
    assert again["verdict of the part"]["fine-tuning lies below the iterate"] == "no claim: 2 seeds"


def grid(root: Path, **changes: Callable[[Cell], float]) -> list[Path]:
    """What depends on ηλ as in P1; `changes` of the test error and of the training error, by cell."""

    def ends(cell: Cell) -> dict[str, float]:
        away = math.log(max(cell[0] * cell[1], 1e-5) / 0.003)
        return {
            "val/error": 0.3,
            "val/error_ema_0.999": 0.1 + 0.02 * away**2 + changes.get("error", lambda cell: 0.0)(cell),
            "train_eval/loss": 1 + 0.1 * away,
            "train_eval/error": changes.get("fitted", lambda cell: 0.2)(cell),
            "measure/noise_scale": 1 + 0.1 * away,
            "measure/jacobian_norm_ema_0.999": 9 - away,
        }

    return sweep(root, "small_eta_lambda", GRID, ends)


def octaves(cell: Cell) -> float:
    """Of η, above the smallest."""
    return math.log2(cell[0] / 0.05)


def test_grid(tmp_path: Path) -> None:
    """Breaks if a relation's sign is turned, or an error that depends on η beside ηλ is called one that depends on ηλ alone, up,
    down, or up at small ηλ and down at large."""
    table = verdicts(grid(tmp_path / "as_paper"))
    assert len(table) == 5
    assert set(table["verdict"]) == {"holds"}
    changes: dict[str, Callable[[Cell], float]] = {
        "up": lambda cell: 0.02 * octaves(cell),
        "down": lambda cell: -0.02 * octaves(cell),
        "turns": lambda cell: 0.01 * octaves(cell) * (1 if cell[0] * cell[1] < 0.0025 else -1),
    }
    for name, change in changes.items():
        part = verdicts(grid(tmp_path / name, error=change)).set_index("part")
        assert part["verdict of the part"]["ηλ alone decides the average's test error"] == "does not hold", name
        assert part["verdict"].iloc[0].startswith("holds in part: the training loss rises"), name


def test_a_relation_that_is_one_factors_alone(tmp_path: Path) -> None:
    """Breaks if what goes with λ alone is said to rise with ηλ."""
    row = "the training loss rises with η and with λ"

    def alone(cell: Cell) -> dict[str, float]:
        return {"val/error": 0.3, "val/error_ema_0.999": 0.1, "train_eval/loss": cell[1]}

    table = verdicts(sweep(tmp_path / "alone", "small_eta_lambda", GRID, alone)).set_index("part")
    assert table["verdict of the part"][row] != "holds"
    # a measurement that no run has is no part that may be dropped
    assert table["verdict of the part"]["the noise scale rises with η and with λ"] == "no claim: 0 seeds"


def test_cells_that_have_not_learned(tmp_path: Path) -> None:
    """Breaks if networks that say one class make the end of the U, or their number is not told."""

    def collapsed(cell: Cell) -> float:
        return 0.9 if cell[0] * cell[1] > 0.009 else 0.2

    def flat(cell: Cell) -> float:
        # without the collapsed cells the error is the same everywhere
        return 0.5 if collapsed(cell) > 0.5 else -0.02 * math.log(max(cell[0] * cell[1], 1e-5) / 0.003) ** 2

    result = analysed(grid(tmp_path, fitted=collapsed, error=flat))
    table = result.tables["Claims"].set_index("part")
    assert table["verdict of the part"]["the average's test error is lowest inside"] == "does not hold"
    (note,) = [note for note in result.notes if "training error of 0.5 or more" in note]
    assert "η = 0.4, λ = 0.08" in note


def passes(root: Path, gains: dict[int, tuple[float, float, float]]) -> list[Path]:
    """By images: what each λ gains."""
    place = {0.0: None, 0.01: 0, 0.03: 1, 0.1: 2}

    def ends(cell: Cell) -> dict[str, float]:
        at = place[cell[1]]
        return {"val/error": 0.2 - (0.0 if at is None else gains.get(cell[2], (0.0, 0.0, 0.0))[at])}

    return sweep(root, "small_onepass_images", PASSES, ends)


def test_passes(tmp_path: Path) -> None:
    """Breaks if every λ must help and not one, or the middle size decides."""
    table = verdicts(
        passes(tmp_path / "both", {250: (0.03, -0.05, 0.0), 1000: (-0.1, -0.1, -0.1), 4000: (0.0, 0.02, 0.0)})
    )
    assert len(table) == 6
    assert set(table["verdict"]) == {"holds"}
    table = verdicts(passes(tmp_path / "many", {250: (0.03, 0.02, 0.0), 4000: (-0.02, -0.02, -0.02)}))
    assert set(table["verdict"]) == {"holds in part: decay helps with 250 images"}


def test_all_sweeps_together_and_one_that_lacks_runs(tmp_path: Path) -> None:
    """Breaks if runs of another sweep enter a claim, or a verdict is given before all cells have run."""
    paths = [
        *corners(tmp_path),
        *passes(tmp_path, {250: (0.03, 0.03, 0.03), 4000: (0.02, 0.02, 0.02)}),
        *grid(tmp_path),
    ]
    result = analysed(paths)
    assert result.tables["Claims"].groupby("sweep")["verdict"].unique().map(list).to_dict() == {
        name: ["holds"] for name in ("small_overtraining_mlp", "small_onepass_images", "small_eta_lambda")
    }
    assert len(result.findings) == 3
    lacking = [
        path for path in paths if not (path.parent.name == "small_onepass_images" and path.name.startswith("0.05-0.1-"))
    ]
    table = verdicts(lacking).set_index("sweep")
    assert set(table["verdict"]["small_onepass_images"]) == {"not all have run; so far: holds"}
    assert set(table["runs"]["small_onepass_images"]) == {"45 of 60"}


def test_what_diverged_counts(tmp_path: Path) -> None:
    """Breaks if a run whose training loss has risen is left out of a claim that says that it rises, or that is not told."""
    paths = grid(tmp_path)
    for path in paths[-5:]:
        (path / "status.json").write_text((path / "status.json").read_text().replace('"done"', '"diverged"'))
    result = analysed(paths)
    assert set(result.tables["Claims"]["n"]) == {5}
    assert "small_eta_lambda: 5 runs end as diverged, and count where they came to their last update" in result.notes


def test_other_runs_are_refused(tmp_path: Path) -> None:
    """Breaks if runs of which no claim speaks yield one."""
    paths = sweep(tmp_path, "other", MLP_CORNERS, lambda cell: {"val/error": 0.1})
    with pytest.raises(InputError, match="none of these 20 runs lies in the folder of a sweep"):
        verdicts(paths)
    runs, _ = load_runs([str(ROOT / "docs" / "study" / "records" / "small_jacobian_gap")], None)
    with pytest.raises(InputError, match="none of these 48 runs"):
        declared_images.analyse(runs, Options())
