"""The sweeps that are shipped: they can be planned without data, have seeds and baselines, and the paper's decay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schedule import decay_sum, lr_at
from configs.schema import RunConfig
from tests.processes import ROOT
from tests.test_sweep import cells

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

# P1's experiments whose λ·Ση is a number of e-folds, and the small sweeps that stand for them. Not among them: l2_loss, whose
# coefficient scales with √v, and bfloat16, whose small sweep is a ladder of learning rates at one λ·Ση.
SMALL = {
    name: {"774m": "larger"}.get(name, name)
    for name in ("wd_precision", "tiny_lr", "constant_lr", "matched_lr", "774m", "sgd", "decay_all", "slow_decay")
}


@pytest.mark.parametrize("name", SMALL)
def test_small_sweeps_have_the_papers_decay(name: str) -> None:
    """Breaks if a λ·Ση of the paper's experiment, whole run or branch, is not among those of the small sweep for it."""
    folder = ROOT / "configs" / "sweeps"
    paper, small = (
        {decay_sum(c.config, c.config.schedule.steps) for c in cells(folder / file) if c.config.schedule.match is None}
        for file in (f"p1_{name}.json", f"small_{SMALL[name]}.json")
    )
    for value in paper:
        assert any(value == pytest.approx(other, rel=0.02) for other in small), (value, sorted(small))


# P1's networks for images: large and small η, and λ.
CORNERS = {
    "vgg16_cifar10": (0.1, 0.01, 0.008),
    "resnet18_cifar10": (0.08, 0.001, 0.0125),
    "resnet34_cifar100": (0.15, 0.001, 0.01),
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners_are_the_papers(name: str) -> None:
    """Breaks if a corner of P1's over-training runs has another η or λ, or its η falls at another epoch or not to 1e-4."""
    large, small, weight_decay = CORNERS[name]
    found = set()
    for cell in cells(ROOT / "configs" / "sweeps" / f"p1_overtraining_{name}.json"):
        config, half = cell.config, 500 * (50_000 // 128)
        assert (config.schedule.steps, config.optim.momentum, config.units_per_step) == (2 * half, 0, 128)
        assert (config.optim.decay_rule, config.optim.decay_mask) == ("l2_coupled", "all")
        assert lr_at(config, half - 1) == config.optim.lr
        assert lr_at(config, half) == lr_at(config, 2 * half - 1) == pytest.approx(1e-4, rel=1e-3)
        found.add((config.optim.lr, config.optim.weight_decay))
    assert found == {(lr, decay) for lr in (large, small) for decay in (0, weight_decay)}


# P2's networks: kind, batch normalisation, classes, crop and flip.
NETWORKS = {
    "vgg16_cifar10": ("vgg16", "plain", 10, 0, False),
    "vgg16_without_bn_cifar10": ("vgg16", "none", 10, 0, False),
    "resnet32_cifar10": ("resnet32", "plain", 10, 4, True),
    "vgg16_cifar100": ("vgg16", "plain", 100, 0, False),
    "resnet32_cifar100": ("resnet32", "plain", 100, 4, True),
}
# Of VGG16 with batch normalisation: η, and η·λ of an update, that of L2 with SGD carried on by the momentum.
OPTIMISERS = {"sgd": (0.1, 1e-3), "adam": (1e-3, 3e-4), "fisher": (3e-3, 3e-3), "gauss_newton": (0.03, 9e-4)}


@pytest.mark.parametrize("name", NETWORKS)
def test_mechanisms_have_the_papers_settings(name: str) -> None:
    """Breaks if one of P2's twelve rows is missing, or has another network, η, decay of an update, schedule or damping."""
    found = set()
    for config in (cell.config for cell in cells(ROOT / "configs" / "sweeps" / f"p2_{name}.json")):
        model, optim, kfac, epoch = config.model, config.optim, config.optim.kfac, 50_000 // 128
        network = (model.kind, model.batchnorm, model.classes, config.data.crop, config.data.flip)  # type: ignore[union-attr]
        assert network == NETWORKS[name]
        optimiser, epochs, falls = optim.algorithm, 200, (60, 120, 180)
        if optimiser == "kfac":
            optimiser, epochs, falls = kfac.metric, 100, (40, 80)
            assert kfac.damping == (1e-2 if model.batchnorm == "none" else 1e-3)  # type: ignore[union-attr]
            assert (kfac.kl_clip is None) == (model.batchnorm != "none")  # type: ignore[union-attr]
            assert (kfac.factor_decay, kfac.statistics_every, kfac.inverses_every) == (0.95, 10, 100)
        eta, decay = OPTIMISERS[optimiser]
        assert (config.units_per_step, config.schedule.steps, optim.grad_clip) == (128, epochs * epoch, 0)
        assert optim.momentum == 0.9
        assert optimiser != "adam" or optim.betas == (0.9, 0.999)
        for step in range(0, config.schedule.steps, epoch):
            fallen = sum(step >= epoch * fall for fall in falls)
            assert lr_at(config, step) == pytest.approx(eta * 0.1**fallen)
        form = "none" if optim.weight_decay == 0 else optim.decay_rule
        if form == "decoupled":
            assert eta * optim.weight_decay == pytest.approx(decay)
        elif form == "l2_coupled" and optimiser == "sgd":
            assert eta * optim.weight_decay / (1 - optim.momentum) == pytest.approx(decay)
        found.add((optimiser, form, config.seeds.init))
    assert found == {(o, f, s) for o in OPTIMISERS for f in ("none", "l2_coupled", "decoupled") for s in range(3)}


@pytest.mark.parametrize("name", ["small_mechanisms", "small_large_batch", "small_without_bn"])
def test_small_mechanisms_are_the_tuned_rows(name: str) -> None:
    """Breaks if one of the twelve rows is missing for a seed, or has an η and λ that the tuning did not try, or other phases."""
    tuned = {_row(cell.config) for cell in cells(ROOT / "configs" / "sweeps" / f"{name}_tuning.json")}
    found = {}
    for config in (cell.config for cell in cells(ROOT / "configs" / "sweeps" / f"{name}.json")):
        row, steps = _row(config), config.schedule.steps
        assert row in tuned
        points = [(place - 1) / steps for place, _ in config.schedule.points or ()]
        assert points == pytest.approx([0.4, 0.8] if config.optim.algorithm == "kfac" else [0.3, 0.6, 0.9])
        found[row[:2], config.seeds.init] = row[2:]
    assert set(found) == {
        ((o, f), s) for o in OPTIMISERS for f in ("none", "l2_coupled", "decoupled") for s in range(3)
    }
    for optimiser in OPTIMISERS:
        assert len({settings[0] for ((o, _), _), settings in found.items() if o == optimiser}) == 1, "one η"


def _row(config: RunConfig) -> tuple[str, str, float, float]:
    optim = config.optim
    optimiser = optim.kfac.metric if optim.algorithm == "kfac" else optim.algorithm
    return optimiser, optim.decay_rule if optim.weight_decay else "none", optim.lr, optim.weight_decay


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_sweeps_have_seeds_and_baselines(path: Path) -> None:
    """Breaks if a shipped sweep that means a claim has fewer than three seeds, or none of its runs is at λ = 0."""
    trunks = [cell.config for cell in cells(path) if cell.stage == "main"]
    assert any(config.optim.weight_decay == 0 for config in trunks)
    if "tuning" in path.stem:
        assert min(config.seeds.init for config in trunks) >= 100, "a pilot's seeds enter no claim"
    else:
        assert len({config.seeds.init for config in trunks}) >= 3, "one or two seeds yield no claim"
        assert max(config.seeds.init for config in trunks) < 100, "seeds from 100 up belong to pilots"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_sweeps_need_no_data(path: Path, tmp_path: Path) -> None:
    """Breaks if a shipped sweep does not expand, or its dry run needs data, a cluster or torch, or writes anything."""
    code = f"import sys; from slurm import submit; code = submit.main([{str(path)!r}, '--dry-run']); "
    code += (
        f"from slurm import status; code += status.main([{str(path)!r}]); sys.exit(code + 5 * ('torch' in sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sbatch --parsable" in done.stdout
    assert "(id follows from the data)" in done.stdout
    assert not list(tmp_path.iterdir())
