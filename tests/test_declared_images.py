"""P1's claims on images, on made-up runs of the declared sweeps that are as the paper has them, and on such as are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis import declared_images
from analysis.command import Options, load_runs
from analysis.declared_images import GRID, MLP_CORNERS, PASSES
from analysis.image_cells import Cell
from configs.errors import InputError
from tests.declared_sweeps import analysed, first, sweep, verdicts, write
from tests.processes import ROOT

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute


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
    """Breaks if networks that say one class make the end of the U, or are not told."""

    def collapsed(cell: Cell) -> float:
        return 0.9 if cell[0] * cell[1] > 0.009 else 0.2

    def falls(cell: Cell) -> float:
        # among those that have learned to the last; the collapsed ones alone lie above
        away = math.log(max(cell[0] * cell[1], 1e-5) / 0.003)
        return 0.5 if collapsed(cell) > 0.5 else -0.02 * away**2 - 0.01 * away

    part = "the average's test error is lowest inside"
    result = analysed(grid(tmp_path / "collapsed", fitted=collapsed, error=falls))
    assert result.tables["Claims"].set_index("part")["verdict of the part"][part] == "does not hold"
    (note,) = [note for note in result.notes if "have not learned" in note]
    assert "η = 0.4, λ = 0.08" in note
    # had they learned, they would be the end of a U
    as_learned = verdicts(grid(tmp_path / "learned", error=falls)).set_index("part")
    assert as_learned["verdict of the part"][part] == "holds"


def test_a_cell_that_has_not_run(tmp_path: Path) -> None:
    """Breaks if the end of a grid that has not run is taken for one that has not learned, and left out."""
    paths = [path for path in grid(tmp_path) if not path.name.startswith("0.4-0.08-")]
    result = analysed(paths)
    table = result.tables["Claims"].set_index("part")
    assert table["verdict of the part"]["the average's test error is lowest inside"] == "no claim: 0 seeds"
    assert set(table["verdict"]) == {
        "not all have run; so far: holds in part: ηλ alone decides the average's test error"
    }
    assert not any("have not learned" in note for note in result.notes)


def test_seeds_that_were_not_declared(tmp_path: Path) -> None:
    """Breaks if seeds that were run besides make up for missing ones, or are judged."""
    paths = corners(tmp_path)
    more = [
        write(tmp_path / "small_overtraining_mlp", "more", seed, {"val/error": 0.9}, MLP_CORNERS[0]) for seed in (5, 6)
    ]
    table = verdicts([*paths, *more])
    assert set(table["runs"]) == {"20 of 20"}
    assert set(table["n"]) == {5}
    assert set(table["verdict"]) == {"holds"}
    lacking = verdicts([*[path for path in paths if not path.name.endswith("-4")], *more])
    assert set(lacking["runs"]) == {"16 of 20"}


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
