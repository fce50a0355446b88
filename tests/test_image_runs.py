"""Runs on images: the engine against a plain loop at every ZeRO stage, statistics, resume, what a run folder says."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.plan import make_plan
from configs.schema import RunConfig
from data.image_manifest import ImageManifest
from engine.launch import World, start_world
from engine.network import build_network
from engine.supply import open_data
from engine.update import update
from record.checkpoint_manifest import BUFFERS
from tests.live import batch_of, make_training, train_steps, whole_and_resumed
from tests.processes import finish, rows_of, start
from tests.ranks import run_ranks
from weights.evaluate import Asked, evaluate

Make = Callable[..., RunConfig]
STEPS = 3  # of a comparison: batch normalisation over few values makes the error of rounding grow
INVARIANT = {"model": {"batchnorm": "plain", "scale_invariant": True}}
# At most seeds some input of a ReLU is zero but for rounding, which then decides whether a gradient passes: a processor's own
# rounding changed the third loss by 2 %. At these seeds it did not matter when every weight was off by up to 6e-7 of itself
# after each update, six times with other errors, in float64.
NETWORKS: list[dict[str, Any]] = [
    {"seeds": {"init": 17}},
    {**INVARIANT, "seeds": {"init": 12}},
    {"model": {"kind": "vgg16", "batchnorm": "none"}, "optim": {"lr": 0.01}, "seeds": {"init": 5}},
    {
        "model": {"kind": "resnet32", "batchnorm": "plain"},
        "optim": {"momentum": 0.9},
        "batch": {"images_per_step": 8},
        "seeds": {"init": 24},
    },
    {"model": {"kind": "mlp", "width": 16}, "precision": "bf16-mixed"},
    {"precision": "bf16-mixed", "seeds": {"init": 17}},
]


def plain(config: RunConfig, manifest: ImageManifest, world: World) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and ends of a loop of its own: coupled decay, momentum, statistics by micro-batch in order.

    In float64 where the run is in float32.
    """
    data = open_data(config, manifest, make_plan(config, 1, manifest.summary()), world)
    network: Any = build_network(config, manifest, torch.device("cpu"))
    network.init_weights(config.seeds.init)
    network.train()
    if config.precision == "fp32":
        network.double()
    velocity = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    losses = []
    for batch in islice(data.batches(0, data.start_digest), STEPS):
        total = 0.0
        for micro in zip(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), strict=True):
            loss = network(*micro)
            (loss / config.examples_per_step).backward()
            total += loss.item()
        network.statistics.fold(network.statistics.take())
        with torch.no_grad():
            for name, p in network.named_parameters():
                velocity[name].mul_(config.optim.momentum).add_(p.grad + config.optim.weight_decay * p)
                p.sub_(config.optim.lr * velocity[name])
                p.grad = None
        losses.append(total / config.examples_per_step)
    return losses, network.state_dict()


def ends(configs: list[RunConfig], manifest: ImageManifest) -> list[Any]:
    world, found = start_world("images", 120, None), []
    for config in configs:
        training = make_training(config, manifest, world)
        steps = train_steps(training, range(STEPS))
        fragments = training.engine.fragments
        found.append(([s.loss for s in steps], fragments.gather("weights", 0), fragments.gather(BUFFERS, world.rank)))
    return found


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_a_plain_loop(tiny_images: tuple[Path, ImageManifest], make_images: Make, ranks: int) -> None:
    """Breaks if at some ZeRO stage, on one rank or two, an update or a running statistic is another than in a loop that knows
    none of these, or the ranks' statistics differ."""
    torch.set_num_threads(1)
    cases = [
        (fields, stage)
        for number, fields in enumerate(NETWORKS)
        for stage in ((0, 3), (1, 2), (0, 2), (0, 1), (3, 0), (0, 1, 2, 3))[number]
    ]
    configs = [make_images(fields, {"parallel": {"zero_stage": stage}}) for fields, stage in cases]
    references = run_ranks(1, references_of, [make_images(fields) for fields in NETWORKS], tiny_images[1])[0]
    answers = run_ranks(ranks, ends, configs, tiny_images[1])
    for (fields, stage), number in zip(cases, range(len(cases)), strict=True):
        losses, weights, buffers = answers[0][number]
        expected, state = references[NETWORKS.index(fields)]
        bound = 2e-5  # under autocast the loop rounds as the engine does
        assert losses == pytest.approx(expected, rel=bound), (fields, stage)
        for name, tensor in {**weights, **buffers}.items():
            theirs = state[name].double()
            # Means of what was normalised before are zero but for rounding: 0.1 an element is what they could be.
            error = (tensor.double() - theirs).norm() / theirs.norm().clamp_min(0.1 * math.sqrt(theirs.numel()))
            assert error <= 25 * bound, f"{fields}, stage {stage}: {name} is {error:.1e} off"
        assert weights.keys() | buffers.keys() == state.keys()
        for other in answers[1:]:
            assert all(torch.equal(buffers[name], other[number][2][name]) for name in buffers)


def references_of(configs: list[RunConfig], manifest: ImageManifest) -> list[Any]:
    world = start_world("plain", 120, None)
    return [plain(config, manifest, world) for config in configs]


def resumed(before: list[RunConfig], after: list[RunConfig], manifest: ImageManifest, folder: str) -> list[Any]:
    """Per pair: every kind that a checkpoint holds after six updates, and after three, a checkpoint, a new engine, three more."""
    world = start_world("images", 120, None)
    return [
        whole_and_resumed(config, later, manifest, world, Path(folder) / str(number))
        for number, (config, later) in enumerate(zip(before, after, strict=True))
    ]


@pytest.mark.engine
def test_resume_and_resharding(tiny_images: tuple[Path, ImageManifest], make_images: Make, tmp_path: Path) -> None:
    """Breaks if a stop changes a bit of the weights, of their average or of the running statistics; or another ZeRO stage more
    than rounding."""
    torch.set_num_threads(1)
    stages = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (3, 1), (1, 2), (2, 0)]
    fields = [NETWORKS[number % 2] for number in range(len(stages))]
    before, after = (
        [make_images(f, {"parallel": {"zero_stage": s[half]}}) for f, s in zip(fields, stages, strict=True)]
        for half in (0, 1)
    )
    for (one, other), (whole, again) in zip(
        stages, run_ranks(2, resumed, before, after, tiny_images[1], str(tmp_path))[0], strict=True
    ):
        assert set(whole) == {"weights", "ema_0.9", BUFFERS}
        for kind, tensors in whole.items():
            for name, tensor in tensors.items():
                off = (tensor - again[kind][name]).norm()
                assert off <= (0 if one == other else 1e-4 * tensor.norm() + 1e-5), (one, other, kind, name)


def left_out(config: RunConfig, manifest: ImageManifest) -> list[Any]:
    """The running statistics after one update, and after a second that is not finite; and what became of that."""
    training = make_training(config, manifest, start_world("images", 120, None))
    train_steps(training, range(1))
    before = training.engine.fragments.gather(BUFFERS, 0)
    hook = training.engine.ds.module.head.weight.register_hook(lambda gradient: gradient * math.nan)
    outcome = update(training, iter([batch_of(training, 1)]), look=lambda _: None)
    hook.remove()
    after = training.engine.fragments.gather(BUFFERS, 0)
    train_steps(training, range(2, 3))
    return [outcome.ended, before, after, training.engine.fragments.gather(BUFFERS, 0)]


def test_pixels_are_normalised(tiny_images: tuple[Path, ImageManifest], make_images: Make) -> None:
    """Breaks if a network of a run sees pixels of another mean and deviation than 0 and 1, over the training images."""
    network = build_network(make_images(), tiny_images[1], torch.device("cpu"))
    raw = np.fromfile(tiny_images[0] / tiny_images[1].train.images_file, np.uint8).reshape(-1, *tiny_images[1].shape)
    seen = network.normalised(torch.from_numpy(raw)).double()  # type: ignore[operator]
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.engine
def test_an_update_left_out_moves_no_statistics(tiny_images: tuple[Path, ImageManifest], make_images: Make) -> None:
    """Breaks if batches of an update that never was are in the running statistics, then or after the next update."""
    config = make_images({"numerics": {"nonfinite": "skip"}})
    ended, before, after, later = run_ranks(1, left_out, config, tiny_images[1])[0]
    assert ended == "skipped"
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], later[name]) for name in after)


@pytest.mark.engine
def test_a_run(make_images: Make, tmp_path: Path) -> None:
    """Breaks if a run's folder speaks of tokens, lacks errors, an average is evaluated with others' statistics, or a stop between
    changes a row."""
    torch.set_num_threads(1)
    config = make_images({"log": {"every": 1, "probe_every": 6}, "checkpoint": {"every": 6}})
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    finish(start(path, tmp_path / "whole"))
    rows = rows_of(tmp_path / "whole")
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    assert plan["images"] == 12 * 16
    assert plan["images_per_step"] == 16
    assert not [key for key in [*plan, *rows[12]] if "token" in key]
    assert rows[12]["images"] == 192
    for what in ("val/loss", "val/error", "train_eval/loss", "train_eval/error"):
        for kind in ("", "_ema_0.9"):
            assert math.isfinite(rows[12][what + kind])
    # Seen from outside: the weights with their statistics, and the average with statistics of its own.
    for kind in ("weights", "ema_0.9"):
        found, suffix = (
            evaluate([str(tmp_path / "whole")], Asked(kind=kind))[0],
            "" if kind == "weights" else f"_{kind}",
        )
        assert found["val/loss"] == pytest.approx(rows[12][f"val/loss{suffix}"], rel=1e-5)
        assert found["val/error"] == rows[12][f"val/error{suffix}"]
    # and where its data has another place, but not over other data
    moved = Path(shutil.copytree(config.data.path, tmp_path / "moved"))
    assert evaluate([str(tmp_path / "whole")], Asked(data=moved))[0]["val/loss"] == pytest.approx(rows[12]["val/loss"])
    with pytest.raises(InputError, match="no prepared data in"):
        evaluate([str(tmp_path / "whole")], Asked(data=tmp_path / "nowhere"))
    # The same run, begun again from its checkpoint in the midst.
    (tmp_path / "again").mkdir()
    finish(start(path, tmp_path / "again"))
    finish(start(path, tmp_path / "again", "--resume", "must", "--step", "6"))
    again = rows_of(tmp_path / "again")
    for step, row in rows.items():
        same = {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))}
        assert {k: again[step].get(k) for k in same} == same
