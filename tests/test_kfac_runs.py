"""K-FAC through the engine: against a plain loop, on one rank and two, over a stop, its cost, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.plan import make_plan
from configs.render import render_plan
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from data.image_manifest import ImageManifest
from data.loader import StepBatch
from data.manifest import Manifest
from engine.curvature import Curvature
from engine.launch import start_world
from engine.update import update
from optim.algorithms import build_optimizer
from record.checkpoint_manifest import BUFFERS, CURVATURE
from tests.kfac_plain import STEPS, plain
from tests.live import batch_of, make_training, train_steps, whole_and_resumed
from tests.ranks import run_ranks

Make = Callable[..., RunConfig]
OFTEN = {"statistics_every": 1, "inverses_every": 2, "factor_decay": 0.7, "damping": 0.03}
KFAC: dict[str, Any] = {
    "algorithm": "kfac",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.5,
    "grad_clip": 0.0,
    "decay_mask": "matrices",
    "kfac": OFTEN,
}
BARE = {"model": {"kind": "mlp", "width": 12, "batchnorm": "none"}}
IMAGES: list[dict[str, Any]] = [
    {**BARE, "optim": {"kfac": {"metric": "fisher", "kl_clip": 1e-3}}},
    {**BARE, "optim": {"decay_rule": "l2_coupled", "kfac": {"metric": "fisher_empirical", "inverse": "cholesky"}}},
    {
        "model": {"kind": "resnet18", "batchnorm": "affine"},
        "seeds": {"init": 17},
        "optim": {"kfac": {"metric": "gauss_newton"}},
    },
    {
        "model": {"kind": "vgg16", "batchnorm": "none"},
        "seeds": {"init": 5},
        "optim": {"kfac": {"metric": "gauss_newton"}},
    },
]
TEXTS: list[dict[str, Any]] = [
    {"optim": {"kfac": {"metric": "gauss_newton"}}},
    {"model": {"tied_head": False, "bias": True}, "optim": {"kfac": {"metric": "fisher"}}},
]


def references_of(configs: list[RunConfig], manifest: Any) -> list[Any]:
    world = start_world("plain", 120, None)
    return [plain(config, manifest, world) for config in configs]


def ends(configs: list[RunConfig], manifest: Any) -> list[Any]:
    """Per configuration: the weights at the start and the end, and the buffers."""
    world, found = start_world("kfac", 120, None), []
    for config in configs:
        training = make_training(config, manifest, world)
        fragments = training.engine.fragments
        start = fragments.gather("weights", 0)
        train_steps(training, range(STEPS))
        found.append((start, fragments.gather("weights", 0), fragments.gather(BUFFERS, 0)))
    return found


def assert_equal_to_plain(configs: list[RunConfig], manifest: Any, ranks: int) -> None:
    references = run_ranks(1, references_of, configs, manifest)[0]
    for config, expected, (start, weights, buffers) in zip(
        configs, references, run_ranks(ranks, ends, configs, manifest)[0], strict=True
    ):
        bound = 1e-3 if config.precision == "fp32" else 0.3
        for name, tensor in (weights | buffers).items():
            theirs = expected[name].double()
            moved = (theirs - start[name]).norm() if name in start else theirs.norm().clamp_min(1.0)
            off = ((tensor.double() - theirs).norm() / moved.clamp_min(1e-4)).item()
            assert off <= bound, f"{config.model}, {config.optim.kfac.metric}: {name} is {off:.1e} of its way off"


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_images_equal_a_plain_loop(tiny_images: tuple[Path, ImageManifest], make_images: Make, ranks: int) -> None:
    """Breaks if a factor is of other inputs, places, labels or updates than it should be, or divided by another number; ranks draw
    the same, or do not share; a layer takes another's inverse; or measuring moves gradients or running statistics."""
    torch.set_num_threads(1)
    assert_equal_to_plain([make_images({"optim": KFAC}, fields) for fields in IMAGES], tiny_images[1], ranks)


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_text_equals_a_plain_loop(tiny_data: tuple[Path, Manifest], tiny_config: Make, ranks: int) -> None:
    """Breaks if the factors of a language model are not means over all tokens, a head that is the embedding is divided by curvature
    and one of its own is not, or what has no factors takes another step than SGD's."""
    torch.set_num_threads(1)
    configs = [tiny_config({"optim": KFAC}, fields) for fields in TEXTS]
    mixed = tiny_config({"optim": KFAC, "precision": "bf16-mixed"}, TEXTS[0])
    assert_equal_to_plain([*configs, mixed], tiny_data[1], ranks)


def resumed(configs: list[RunConfig], manifest: ImageManifest, folder: str, saved: bool) -> list[Any]:
    """Per configuration: all kinds after six updates, and after three, a checkpoint and three more in a new engine. `saved`: the
    checkpoints are there, of other ranks."""
    world = start_world("resumed", 120, None)
    return [
        whole_and_resumed(config, config, manifest, world, Path(folder) / str(number), save=not saved)
        for number, config in enumerate(configs)
    ]


@pytest.mark.engine
def test_resumed(tiny_images: tuple[Path, ImageManifest], make_images: Make, tmp_path: Path) -> None:
    """Breaks if a checkpoint lacks a factor, an inverse or how many there were, so that a stop changes a bit; if on another number
    of ranks more than rounding changes; or the plan counts another size on the disk."""
    torch.set_num_threads(1)
    # Neither statistics nor inverses are due where it stops: those in the checkpoint go on.
    seldom = {"statistics_every": 2, "inverses_every": 4}
    configs = [make_images({"optim": KFAC | {"kfac": OFTEN | seldom}}, fields) for fields in (BARE, IMAGES[2])]
    for ranks, saved in ((2, False), (1, True)):
        for config, (whole, again) in zip(
            configs, run_ranks(ranks, resumed, configs, tiny_images[1], str(tmp_path), saved)[0], strict=True
        ):
            assert CURVATURE in whole
            for kind, tensors in whole.items():
                for name, tensor in tensors.items():
                    off = (tensor.double() - again[kind][name].double()).norm()
                    bound = 3e-3 * tensor.double().norm() + 1e-5 if saved else 0.0
                    assert off <= bound, f"{config.model.kind}, {ranks} ranks: {kind} {name} is {off:.1e} off"
    files = json.loads((tmp_path / "0" / "step_00000003" / "manifest.json").read_text())["files"]
    kinds = {"weights", "momentum_buffer", CURVATURE, "ema_0.9"}
    assert set(files) == {f"{kind}.safetensors" for kind in kinds}
    (planned,) = {make_plan(configs[0], ranks, None).checkpoint_bytes for ranks in (1, 2)}
    assert planned <= sum(file["bytes"] for file in files.values()) <= planned + 16 * 1024  # names and shapes


def left_out(config: RunConfig, manifest: ImageManifest) -> list[Any]:
    """The factors after an update, after one that is not finite, and after one more."""
    training = make_training(config, manifest, start_world("left out", 120, None))
    fragments = training.engine.fragments
    train_steps(training, range(1))
    found = [fragments.gather(CURVATURE, 0)]
    hook = training.engine.ds.module.head.weight.register_hook(lambda gradient: gradient * math.nan)
    outcome = update(training, iter([batch_of(training, 1)]), look=lambda _: None)
    hook.remove()
    found.append(fragments.gather(CURVATURE, 0))
    train_steps(training, range(2, 3))
    return [outcome.ended, *found, fragments.gather(CURVATURE, 0)]


def overflowing(config: RunConfig, manifest: ImageManifest) -> str:
    """What is said where a layer's inputs are not finite in the pass that measures curvature."""
    training = make_training(config, manifest, start_world("overflowing", 120, None))
    hook = training.engine.ds.module.head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * math.inf,))
    try:
        training.engine.curvature.measure(batch_of(training, 0))
    except InputError as error:
        return str(error)
    finally:
        hook.remove()
    return ""


@pytest.mark.engine
def test_curvature_that_is_not_finite(tiny_images: tuple[Path, ImageManifest], make_images: Make) -> None:
    """Breaks if factors that are not finite are inverted."""
    (said,) = run_ranks(1, overflowing, make_images({"optim": KFAC}, BARE), tiny_images[1])
    assert "optim.kfac: the curvature measured in update 1 is not finite" in said


@pytest.mark.engine
def test_an_update_left_out_measures_nothing(tiny_images: tuple[Path, ImageManifest], make_images: Make) -> None:
    """Breaks if the factors move with an update that never was, or do not move with the next."""
    config = make_images({"optim": KFAC, "numerics": {"nonfinite": "skip"}}, BARE)
    ended, before, after, later = run_ranks(1, left_out, config, tiny_images[1])[0]
    assert ended == "skipped"
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [int(state["statistics"]) for state in (before, after, later)] == [1, 1, 2]


def test_the_plan_says_it(make_images: Make, tiny_config: Make) -> None:
    """Breaks if the plan's memory forgets factors and inverses, or its text what has none."""
    config = make_images({"optim": KFAC}, BARE)
    other = make_images({"optim": {"algorithm": "sgd", "momentum": 0.9}}, BARE)
    plans = [make_plan(c, 1, None) for c in (config, other)]
    sizes = [(3 * 16 * 16 + 1, 12), (13, 12), (13, 4)]
    factors = 8 * sum(a * a + s * s for a, s in sizes) + 16
    assert plans[0].state_bytes - plans[1].state_bytes == factors
    assert plans[0].activation_bytes > plans[1].activation_bytes
    assert "3 layers with factors" in render_plan(config, plans[0])
    text = tiny_config({"optim": KFAC})
    assert "SGD's step for the other" in render_plan(text, make_plan(text, 1, None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parallel": {"zero_stage": 1}}, "multiplies whole layers.*use stage 0, with any number of ranks"),
        ({"precision": "bf16-true", "parallel": {"zero_stage": 1}}, "kfac"),
        ({"parallel": {"recompute": True}}, "inputs and outputs of all layers at once.*batch.micro_batch"),
        (
            {"optim": {"decay_rule": "norm_projection", "weight_decay": 0.0}},
            "no meaning.*use one of decoupled, l2_coupled",
        ),
        ({"optim": {"decay_rule": "corrected"}}, "no meaning"),
        ({"optim": {"decay_rule": "cautious"}}, "no meaning"),
        ({"optim": {"betas": [0.5, 0.5]}}, "betas does nothing under algorithm kfac"),
        (
            {"optim": {"kfac": {"statistics_every": 20, "inverses_every": 10}}},
            "no statistics would be due.*to 20 or more",
        ),
        (
            {"optim": {"kfac": {"damping": 0.0}}, "model": {"tied_head": False}},
            "damping 0 with metric fisher.*gauss_newton",
        ),
        ({"optim": {"algorithm": "sgd", "kfac": {"damping": 0.1}}}, "kfac does nothing under algorithm sgd"),
        ({"optim": {"algorithm": "torch.optim.NAdam", "momentum": 0.9, "kfac": {"damping": 0.1}}}, "kfac does nothing"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, tiny_config: Make) -> None:
    """Breaks if K-FAC is accepted where it cannot work, its fields where they do nothing, or the error says no remedy."""
    with pytest.raises(ValueError, match=message):
        tiny_config({"optim": KFAC, "parallel": {"zero_stage": 0}}, fields)


class Twice(nn.Module):
    """One linear map, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def logits(self, inputs: Tensor) -> Tensor:
        return self.linear(self.linear(inputs))  # type: ignore[no-any-return]


def curvature_of(network: Any, config: RunConfig) -> Curvature:
    named = dict(network.named_parameters())
    tensors = {n: TensorSpec(tuple(p.shape), "hidden", "matrix" if p.dim() > 1 else "bias") for n, p in named.items()}
    optimizer = build_optimizer(named, tensors, config.optim)
    return Curvature(network, optimizer, config, make_plan(config, 1, None), lambda t, m: None)


def measured_twice(config: RunConfig) -> str:
    start_world("twice", 120, None)
    inputs, targets = np.zeros((1, 16, 4), np.float32), np.zeros((1, 16), np.int64)
    try:
        curvature_of(Twice(), config).measure(StepBatch(0, inputs, targets, targets[0], ""))  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.engine
def test_unknown_layers_are_refused(make_images: Make) -> None:
    """Breaks if a layer in groups, or one that is used twice in a pass, gets factors that are not its own."""
    config = make_images({"optim": KFAC}, BARE)
    with pytest.raises(ValueError, match=r"knows linear maps and plain convolutions.*and conv is Conv2d"):
        curvature_of(nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, groups=2, bias=False)}), config)
    assert "layer linear is used twice in a forward pass" in run_ranks(1, measured_twice, config)[0]
