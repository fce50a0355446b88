"""The three mechanisms' analysis, on runs whose norms, measures and errors are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import mechanisms
from analysis.command import Options, load_runs
from analysis.layer_rates import layer_rate, normalised, spread
from analysis.mechanisms import layer_damping
from analysis.optimisers import P2, form_of, optimiser_of, published
from analysis.published import paper
from analysis.runs import Run
from tests.processes import ROOT
from tests.recorded import load, write_run

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

MODEL = {"kind": "mlp", "image_size": 2, "channels": 1, "classes": 10, "width": 4, "batchnorm": "plain"}
FIRST, SECOND = "body.layers.0.linear.weight", "body.layers.1.linear.weight"
PLAIN_AND_DECAYED = (("without decay", ""), ("with decay on matmul", ", λ = 0.05"))
KFAC = {"metric": "gauss_newton", "damping": 0.01}


def cell(root: Path, seed: int, decay: float, images: int = 128, gain: float = 0.05, **optim: Any) -> Path:
    """With decay: norms that stay, small Jacobians, an error lower by `gain` give or take the seed's own luck."""
    size = (lambda s: 2 + 0 * s) if decay else (lambda s: 2 + s / 50)
    luck = 0.002 * np.random.default_rng([seed, round(1e4 * decay)]).standard_normal()
    error = (0.2 - gain if decay else 0.2) + luck
    columns = {
        "optim/lr": lambda s: 0.1 + 0 * s,
        f"norm/{FIRST}": size,
        f"norm/{SECOND}": lambda s: 2 * size(s),
        "norm/head.weight": size,
        "val/error": lambda s: error + 0 * s,
        "train_eval/error": lambda s: 0.1 + 0 * s,
        "measure/input_jacobian_norm": lambda s: (50 if decay else 500) + 0 * s,
        "measure/gauss_newton_norm": lambda s: 3 + 0 * s,
        f"measure/fisher_norm@{FIRST}": lambda s: 7 + 0 * s,
    }
    name = f"{optim.get('algorithm')}-{optim.get('decay_rule')}-{decay}-{seed}"
    data = {"kind": "images"}
    batch = {"images_per_step": images}
    return write_run(
        root / name, decay=decay, seed=seed, steps=100, columns=columns, optim=optim, model=MODEL, data=data, batch=batch
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root, paths = tmp_path_factory.mktemp("mechanisms"), []
    for seed in range(3):
        for algorithm, more in (("sgd", {}), ("kfac", {"kfac": KFAC})):
            paths.append(cell(root, seed, 0.0, algorithm=algorithm, **more))
            paths.append(cell(root, seed, 0.01, algorithm=algorithm, decay_rule="decoupled", **more))
        paths.append(cell(root, seed, 0.01, algorithm="kfac", decay_rule="l2_coupled", kfac=KFAC))
    return load(*paths)


def test_layers_and_their_rates(runs: list[Run]) -> None:
    """Breaks if the head counts as normalised, η/‖w_l‖² takes the norm after the update, or K-FAC is given a law of SGD's."""
    plain = next(run for run in runs if run.algorithm == "sgd" and run.decay == 0)
    assert normalised(plain) == [FIRST, SECOND]
    assert layer_rate(plain, FIRST).loc[51] == pytest.approx(0.1 / 3**2)
    kfac = next(run for run in runs if run.algorithm == "kfac" and run.decay == 0)
    assert layer_rate(kfac, FIRST).empty
    assert layer_damping(kfac, FIRST).loc[100] == pytest.approx(0.01 * 4**2)
    assert layer_damping(plain, FIRST).empty
    assert spread(["a", "b", "c", "d", "e"], 3) == ["a", "c", "e"]
    assert spread([], 3) == []


def test_figures(runs: list[Run]) -> None:
    """Breaks if a mechanism is not drawn, its layers are mixed up, or the mean over layers is of one of them."""
    figures = {figure.name: figure for figure in mechanisms.analyse(runs, Options()).figures}
    assert set(figures) == {"mechanism_1", "mechanism_2", "mechanism_3"}
    titles = [panel.title for panel in figures["mechanism_1"].panels]
    assert titles == ["geometric mean over layers", FIRST, SECOND]
    mean, first, second = (
        next(one for one in panel.lines if one.name == "SGD without decay (η = 0.1)").y
        for panel in figures["mechanism_1"].panels
    )
    assert first[-1] < first[0] / 3
    assert second == pytest.approx(first / 4)
    assert mean == pytest.approx(np.sqrt(first * second))
    labels = [panel.ylabel for panel in figures["mechanism_2"].panels]
    assert labels == ["norm of the input-output Jacobian", "Gauss-Newton norm", mechanisms.GAP]
    assert any(panel.title == FIRST and panel.ylabel == "Fisher norm" for panel in figures["mechanism_3"].panels)


def test_the_table(runs: list[Run]) -> None:
    """Breaks if L2 is called decay, an accuracy is an error, or a difference is to another optimiser's cell."""
    result = mechanisms.analyse(runs, Options())
    table = result.tables["Optimisers × {none, L2, decay}"].set_index(["optimiser", "form"])
    assert set(table.index) == {
        ("SGD", "none"), ("SGD", "decay"), ("K-FAC-G", "none"), ("K-FAC-G", "decay"), ("K-FAC-G", "L2")
    }  # fmt: skip
    assert (table["seeds"] == 3).all()
    assert float(table["test accuracy"]["SGD", "decay"].split()[0]) == pytest.approx(0.85, abs=0.01)
    assert table["verdict"]["K-FAC-G", "L2"] == "better than without"
    assert len(result.claims) == 3
    pilot = mechanisms.analyse(runs, Options(pilot_from=2))
    assert (pilot.tables["Optimisers × {none, L2, decay}"]["seeds"] == 2).all(), "a pilot's seeds are counted"


def test_gains_of_two_batches(tmp_path: Path) -> None:
    """Breaks if a gain in large batches is not set against that in small ones by the same seeds, or L2's against decay's."""
    paths = []
    for seed in range(4):
        for images, gain, decay in ((32, 0.05, 0.01), (320, 0.02, 0.001)):  # each at its own λ, the larger first by λ
            paths += [cell(tmp_path / str(images), seed, d, images, gain, algorithm="sgd") for d in (0.0, decay)]
        paths.append(cell(tmp_path / "32", seed, 0.01, 32, algorithm="sgd", decay_rule="l2_coupled"))
    result = mechanisms.analyse(load(*paths), Options())
    (claim,) = (claim for claim in result.claims if "minus none" in claim.name)
    assert claim.name == "SGD, decay minus none: with images_per_step = 320 minus with images_per_step = 32"
    assert (claim.verdict, claim.interval.n) == ("gains less", 4)
    assert claim.estimate == pytest.approx(0.03, abs=0.004)
    assert list(result.tables["The same between settings"]["verdict"]) == ["gains less"]
    some = load(*[path for path in paths if not (path.parent.name == "320" and path.name.endswith("-3"))])
    (claim,) = (claim for claim in mechanisms.analyse(some, Options()).claims if "minus none" in claim.name)
    assert claim.interval.n == 3, "a seed of one batch alone is no pair"


def test_masks_and_norms_are_forms() -> None:
    """Breaks if what decays, or whose layer norms are taken, is not told, or such a run is compared with another than the plain
    one: on the study's own records."""
    runs, _ = load_runs([str(ROOT / "docs/study/records/small_layer_norms")], None)
    result = mechanisms.analyse(runs, Options())
    table = result.tables["Optimisers × {none, L2, decay}"].set_index("form")
    forms = {
        "none",
        "decay on matmul",
        "decay on conv",
        "decay on last",
        "none, layer norms of the run of λ 0.05 each epoch",
    }
    assert set(table.index) == forms | {"decay on last, layer norms of the run of decay_mask matmul each epoch"}
    assert table["verdict"].isna().sum() == 1, "only the plain run has nothing to be compared with"
    ends = {form: float(table["test accuracy"][form].split()[0]) for form in forms}
    claims = {claim.name: claim.estimate for claim in result.claims}
    taken = claims["SGD without decay, layer norms of the run of λ 0.05 each epoch (η = 0.1)"]
    assert taken == pytest.approx(ends["none"] - ends["none, layer norms of the run of λ 0.05 each epoch"], abs=1e-4)
    measures = result.tables["Measures"].set_index("")
    rate = measures.columns[0]
    plain, decayed = (float(measures[rate][f"SGD {w} (η = 0.1{v})"].split()[0]) for w, v in PLAIN_AND_DECAYED)
    assert decayed > plain, "decay holds the effective learning rate up"


def test_published_numbers_stand_beside_their_own_setting(tmp_path: Path) -> None:
    """Breaks if P2's number stands beside another network, optimiser or form, or is not marked as second-hand."""
    model = {"kind": "vgg16", "image_size": 32, "channels": 3, "classes": 10, "width": 64, "batchnorm": "plain"}
    shape = {"model": model, "data": {"kind": "images"}, "batch": {"images_per_step": 128}}
    (run,) = load(write_run(tmp_path / "a", decay=0.3, steps=3, optim={"algorithm": "adam"}, **shape))
    assert (optimiser_of(run), form_of(run), published(run)) == ("Adam", "decay", 0.8872)
    bare = {**shape, "model": {**model, "batchnorm": "none"}}
    (run,) = load(write_run(tmp_path / "b", steps=3, optim={"algorithm": "sgd"}, **bare))
    assert published(run) == 0.8320
    (run,) = load(
        write_run(tmp_path / "c", decay=0.1, steps=3, optim={"algorithm": "adam", "decay_rule": "l2_coupled"}, **shape)
    )
    assert published(run) is None
    (run,) = load(
        write_run(tmp_path / "d", steps=3, optim={"algorithm": "adam"}, **{**shape, "model": {**model, "width": 16}})
    )
    assert published(run) is None
    masked = {"algorithm": "adam", "decay_mask": "conv"}
    (run,) = load(write_run(tmp_path / "e", decay=0.3, steps=3, optim=masked, **shape))
    assert published(run) is None, "decay on convolutions alone is in none of its tables"
    assert paper(P2)["accuracy"]["second_hand"] is True
