"""The over-training regime's analysis, on runs whose dependence on η, λ and epochs is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import overtraining
from analysis.command import Options
from analysis.endpoint import Endpoint
from analysis.pairing import group_runs
from analysis.products import optimum, ranks, relation
from analysis.runs import Run
from configs.errors import InputError
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

RATES, DECAYS = (0.05, 0.1, 0.2), (0.0, 0.005, 0.01, 0.02)
BEST = math.log(0.001)  # of ηλ


def cell(root: Path, lr: float, decay: float, seed: int, **more: Any) -> Path:
    """Test error with its optimum at ηλ = 0.001, training loss that rises with ηλ, a Jacobian that falls, with luck of the seed."""
    away = math.log(max(lr * decay, 1e-5)) - BEST
    luck = 0.002 * np.random.default_rng([seed, round(1e4 * lr), round(1e4 * decay)]).standard_normal()
    ends = {
        "val/error": 0.3 + 0 * lr,
        "val/error_ema_0.999": 0.1 + 0.02 * away**2 + luck,
        "train_eval/loss": 0.5 + 0.1 * away + luck,
        "measure/jacobian_norm": 50 - 5 * away + luck,
        "weights/norm": 10 - away,
    }
    return write_run(
        root / f"{lr}-{decay}-{seed}{more.pop('suffix', '')}",
        decay=decay,
        seed=seed,
        steps=100,
        noise=0,
        columns={name: lambda s, k=end: k + 1 / (1 + s) - 1 / 101 for name, end in ends.items()},  # type: ignore[misc]
        optim={"lr": lr, "algorithm": "sgd", "decay_rule": "l2_coupled"},
        **more,
    )


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("grid")
    return load(*(cell(root, lr, decay, seed) for lr in RATES for decay in DECAYS for seed in range(3)))


def test_relations_and_optimum(grid: list[Run]) -> None:
    """Breaks if what rises with ηλ is said to fall, the interior optimum is not found, or cells of λ = 0 count as a product."""
    result = overtraining.analyse(grid, Options())
    table = result.tables["Rank correlation with ηλ"].set_index("measurement")
    assert (table["cells"] == 9).all()
    assert set(table["with"]) == {"ηλ"}
    verdicts = table["verdict"]
    assert verdicts["training cross-entropy of the iterate at the end"] == "rises, as in P1"
    assert verdicts["Jacobian norm of the iterate at the end"] == "falls, as in P1"
    assert verdicts["norm ‖w‖ of the iterate at the end"] == "falls"
    # the same value everywhere has no order
    assert verdicts["test error of the iterate at the end"].startswith("no claim")
    (best,) = (text for text in result.findings if text.startswith("The lowest test error of the average 0.999"))
    assert "at ηλ = 0.001: inside" in best


def test_relation_against_the_paper(grid: list[Run]) -> None:
    """Breaks if a fall where P1 has a rise is not called so, or two seeds make a claim."""
    groups, _ = group_runs(grid)
    falling = Endpoint("measure/jacobian_norm", "x", "")
    found = relation(groups, falling, 1)
    assert found is not None
    assert found.verdict == "falls, against P1"
    assert found.rho.mean == pytest.approx(-1, abs=0.05)
    assert -1 <= found.rho.low <= found.rho.high <= 1
    two, _ = group_runs([run for run in grid if run.fields["seeds.init"] < 2])
    again = relation(two, falling, 1)
    assert again is not None
    assert again.verdict == "no claim: 2 seeds"


def test_optimum_at_an_end_and_undecided(grid: list[Run], tmp_path: Path) -> None:
    """Breaks if a lowest value at the smallest product is called an interior optimum, or one that no seed agrees on is."""
    groups, _ = group_runs(grid)
    at_end = optimum(groups, Endpoint("train_eval/loss", "x", ""))
    assert at_end is not None
    assert (at_end.at_end, at_end.verdict) == (True, "at an end of the grid")
    assert at_end.product == pytest.approx(0.05 * 0.005)
    # the same but for its ends: seeds differ by more than the middle is lower
    noisy = []
    for decay, low in ((0.005, 0.11), (0.01, 0.1), (0.02, 0.11)):
        for seed in range(3):
            value = low + 0.1 * (seed - 1) * (decay != 0.01)
            columns = {"val/error": lambda s, k=value: k + 0 * s}
            noisy.append(write_run(tmp_path / f"n{decay}-{seed}", decay=decay, seed=seed, columns=columns))  # type: ignore[arg-type]
    found = optimum(group_runs(load(*noisy))[0], Endpoint("val/error", "x", ""))
    assert found is not None
    assert found.verdict.startswith("undecided")


def test_equal_products_are_one_rank() -> None:
    """Breaks if 0.1·0.02 and 0.2·0.01 have different ranks because of rounding, or different products one."""
    products = np.array([0.1 * 0.02, 0.2 * 0.01, 0.05 * 0.0401, 0.1 * 0.01, 0.004])
    assert ranks(products).tolist() == [1, 1, 1, 0, 2]


def test_the_u_on_the_sphere(tmp_path: Path) -> None:
    """Breaks if runs without decay are not ordered by η, their U is not found and drawn, or what the large phase held is read at
    the end, where every η is small."""
    paths = []
    for place, lr in enumerate((0.1, 0.2, 0.4, 0.8)):
        for seed in range(3):
            held, luck = 0.3 * (1 + place), 0.001 * np.random.default_rng([seed, place]).standard_normal()
            columns = {
                "optim/lr": lambda s, k=lr: np.where(s > 50, k / 100, k),
                "val/error": lambda s, k=0.1 + 0.02 * (place - 2) ** 2 + luck: k + 0 * s,
                "train_eval/loss": lambda s, k=held + luck, e=0.05 - luck: np.where(s > 50, e, k),
            }
            paths.append(
                write_run(
                    tmp_path / f"{lr}-{seed}",
                    seed=seed,
                    steps=100,
                    columns=columns,  # type: ignore[arg-type]
                    optim={"lr": lr, "algorithm": "sgd", "decay_rule": "sphere"},
                    schedule={"kind": "multistep"},
                )
            )
    result = overtraining.analyse(load(*paths), Options())
    table = result.tables["Rank correlation with ηλ"].set_index("measurement")
    assert set(table["with"]) == {"η"}
    assert table["verdict"]["training cross-entropy of the iterate before the drop"] == "rises, as in P1"
    assert table["verdict"]["training cross-entropy of the iterate at the end"].startswith("undecided")
    (best,) = (text for text in result.findings if text.startswith("The lowest test error"))
    assert "at η = 0.4: inside" in best
    (figure,) = (figure for figure in result.figures if figure.name == "optimum")
    assert {panel.xlabel for panel in figure.panels} == {"η"}
    errors, *others = figure.panels
    assert errors.lines[0].x.tolist() == [0.1, 0.2, 0.4, 0.8]
    assert errors.lines[0].y == pytest.approx([0.18, 0.12, 0.1, 0.12], abs=0.002)
    (before,) = (panel for panel in others if "before the drop" in panel.ylabel)
    assert before.lines[0].y == pytest.approx([0.3, 0.6, 0.9, 1.2], abs=0.002)


def test_figures(grid: list[Run]) -> None:
    """Breaks if iterate and average are not both drawn, a heat map is of another measurement, or errors are called nats."""
    result = overtraining.analyse(grid, Options())
    figures = {figure.name: figure for figure in result.figures}
    drawn = {(panel.ylabel, panel.title) for panel in figures["overtraining"].panels}
    assert {("test error", "iterate"), ("test error", "average 0.999"), ("norm ‖w‖", "iterate")} <= drawn
    assert ("norm ‖w‖", "average 0.999") not in drawn
    panel = figures["heat_val_error_ema_0.999"].panels[0]
    assert panel.heat is not None
    assert panel.heat.colour_title == "test error of the average 0.999 at the end"
    assert panel.heat.z.shape == (4, 3)
    assert len(panel.heat.equal_products()) > 0
    assert "nats" not in figures["heat_val_error_ema_0.999"].caption
    assert "(nats)" in figures["heat_train_eval_loss"].panels[0].heat.colour_title  # type: ignore[union-attr]


def test_epochs_and_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the axis is steps where the plan knows epochs, or a branch does not stand where it began, with its own end."""
    paths = [cell(tmp_path, 0.1, 0.01, seed) for seed in range(3)]
    for seed in range(3):
        paths += [
            write_run(
                tmp_path / f"tuned{seed}-{step}",
                seed=seed,
                steps=20,
                branch={"origin": f"{tmp_path / f'0.1-0.01-{seed}'}@{step}"},
                columns={"val/error": lambda s, k=step, j=seed: 0.1 + k / 1000 + 0.01 * (j - 1) + 0 * s},  # type: ignore[misc]
            )
            for step in (40, 80)
        ]
    runs = load(*paths)
    assert overtraining.analyse(runs, Options()).figures[0].panels[0].xlabel == "step (updates)"
    for run in runs:
        run.plan["steps_per_epoch"] = 20
    panels = overtraining.analyse(runs, Options()).figures[0].panels
    assert {panel.xlabel for panel in panels} == {"epoch"}
    assert panels[0].lines[0].x.max() == 5
    found = {panel.ylabel: panel for panel in panels if panel.title.startswith("fine-tuned")}
    assert found.keys() >= {"test error", "test cross-entropy (nats)"}, "what the branches have recorded"
    (line,) = found["test error"].lines
    assert line.x.tolist() == [2, 4]
    assert line.y == pytest.approx([0.14, 0.18])
    (row,) = overtraining.analyse(runs, Options()).tables["At the end"].to_dict("records")
    # of the last checkpoint's branch, not of the first or of the trunk
    assert row["test error, fine-tuned"] == pytest.approx(0.18)
    assert row["test error, iterate"] == pytest.approx(0.3)


def test_runs_without_errors_are_refused(tmp_path: Path) -> None:
    """Breaks if runs on text are taken for runs on images."""
    with pytest.raises(InputError, match="val/error"):
        overtraining.analyse(load(write_run(tmp_path / "text")), Options())
