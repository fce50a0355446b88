"""Checkpoints are exact: resume is bit-identical, and the files do not know the stage or the number of ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import Checkpoint as CheckpointConfig
from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint
from engine.launch import start_world
from record.checkpoints import complete
from tests.live import KINDS, make_training, train_steps
from tests.ranks import run_ranks
from tests.test_parity import CASES

pytestmark = pytest.mark.engine


def resumed_runs(configs: list[RunConfig], manifest: Manifest, folder: Path) -> list[dict[str, Any]]:
    """Each case twice: six updates in one go, and three, a checkpoint, a new engine, three more."""
    world = start_world("resume", 120, None, configs[0].parallel.deterministic)
    found = []
    for index, config in enumerate(configs):
        torch.compiler.reset()  # as in a new process; and what one process compiles is bounded
        whole = make_training(config, manifest, world)
        straight = train_steps(whole, range(6))
        end = checkpoint.save(folder / f"{index}a", 6, whole.engine.fragments, {}, {})
        first = make_training(config, manifest, world)
        before = train_steps(first, range(3))
        middle = checkpoint.save(folder / f"{index}b", 3, first.engine.fragments, {"note": 1}, {})
        torch.compiler.reset()
        second = make_training(config, manifest, world)
        counters = checkpoint.load(middle, second.engine.fragments)
        after = train_steps(second, range(3, 6))
        again = checkpoint.save(folder / f"{index}c", 6, second.engine.fragments, {}, {})
        found.append({"straight": straight, "resumed": before + after, "files": (end, again), "counters": counters})
    return found


def saved_again(configs: list[RunConfig], manifest: Manifest, source: Path, folder: Path) -> list[Path]:
    """Load one checkpoint under every configuration and save it again without a step."""
    world = start_world("reshard", 120, None)
    found = []
    for index, config in enumerate(configs):
        training = make_training(config, manifest, world)
        checkpoint.load(source, training.engine.fragments)
        found.append(checkpoint.save(folder / f"{world.ranks}_{index}", 3, training.engine.fragments, {}, {}))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_bit_identical(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if anything the next update depends on is missing from a checkpoint, in any precision or stage."""
    configs = [tiny_config({"precision": precision, "parallel": {"zero_stage": stage}}) for precision, stage in CASES]
    configs.append(tiny_config({"model": {"dropout": 0.2}, "parallel": {"zero_stage": 3}}))
    rule = {"decay_rule": "l2_loss", "weight_decay": 0.01, "decay_schedule": {"kind": "linear"}}
    configs.append(tiny_config({"optim": rule, "parallel": {"zero_stage": 2}, "averages": {"ema": [0.99]}}))
    for momentum, stage in ((0.9, 1), (0.9, 3), (0.0, 0)):
        sgd = {"algorithm": "sgd", "momentum": momentum, "lr": 0.1}
        configs.append(tiny_config({"optim": sgd, "parallel": {"zero_stage": stage}}))
    more = ["dropout", "l2_loss", "momentum", "momentum, stage 3", "sgd"]
    for case, run in zip(
        [*CASES, *more], run_ranks(ranks, resumed_runs, configs, tiny_data[1], tmp_path)[0], strict=True
    ):
        losses = [(s.loss, s.grad_norm, s.norm) for s in run["straight"]]
        assert losses == [(s.loss, s.grad_norm, s.norm) for s in run["resumed"]], case
        kinds = ("weights", "momentum_buffer") if "momentum" in case else ("weights",) if case == "sgd" else KINDS
        assert_same_files(*run["files"], kinds=(*kinds, "ema_0.99") if case == "l2_loss" else kinds)
        assert run["counters"] == {"note": 1, "optimizer_step": 0 if "momentum" in case or case == "sgd" else 3}, case


def test_files_do_not_know_stage_or_ranks(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if loading at another stage or world size loses, pads or reorders a single byte."""
    manifest = tiny_data[1]
    source = run_ranks(2, _trained_at_stage_1, tiny_config({"parallel": {"zero_stage": 1}}), manifest, tmp_path)[0]
    batch = {"tokens_per_step": 192, "micro_batch": None}  # 12 sequences: also three ranks share them
    configs = [tiny_config({"batch": batch, "parallel": {"zero_stage": stage}}) for stage in (0, 1, 2, 3)]
    for ranks in (1, 3):
        for path in run_ranks(ranks, saved_again, configs, manifest, source, tmp_path)[0]:
            assert_same_files(source, path)


def _trained_at_stage_1(config: RunConfig, manifest: Manifest, folder: Path) -> Path:
    world = start_world("source", 120, None)
    training = make_training(config, manifest, world)
    train_steps(training, range(3))
    return checkpoint.save(folder / "source", 3, training.engine.fragments, {}, {})


def assert_same_files(one: Path, other: Path, kinds: tuple[str, ...] = KINDS) -> None:
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()} == {"manifest.json", *(f"{k}.safetensors" for k in kinds)}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{one / name} and {other / name} differ"


def test_only_complete_checkpoints_are_found(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if a checkpoint without manifest, with a short file, or still under its temporary name is chosen."""
    source = run_ranks(1, _trained_at_stage_1, tiny_config({"parallel": {"zero_stage": 1}}), tiny_data[1], tmp_path)[0]
    folder = source.parent
    for step, harm in ((4, "manifest"), (5, "short"), (6, "temporary"), (7, "garbage")):
        copy = folder / (f".step_{step:08d}.tmp" if harm == "temporary" else f"step_{step:08d}")
        shutil.copytree(source, copy)
        if harm == "manifest":
            (copy / "manifest.json").unlink()
        elif harm == "short":
            with open(copy / "weights.safetensors", "r+b") as file:
                file.truncate(100)
        elif harm == "garbage":
            (copy / "manifest.json").write_text(json.dumps(["no", "manifest"]))
    assert complete(folder) == [source]
    shutil.copytree(source, folder / "step_00000009")
    checkpoint.delete_old(folder, CheckpointConfig(keep_last=1))
    assert [path.name for path in complete(folder)] == ["step_00000009"]
    assert not source.exists()


def test_a_flipped_bit_is_refused(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if a checkpoint of the right size but with other bytes is trained from."""
    config = tiny_config({"parallel": {"zero_stage": 1}})
    source = run_ranks(1, _trained_at_stage_1, config, tiny_data[1], tmp_path)[0]
    data = bytearray((source / "exp_avg.safetensors").read_bytes())
    data[-5] ^= 1
    (source / "exp_avg.safetensors").write_bytes(data)
    assert run_ranks(2, newest_of, source.parent) == [None, None], "nothing sound is left"
    assert (source / "manifest.damaged.json").exists()


def newest_of(folder: Path) -> Path | None:
    start_world("newest", 60, None)
    return checkpoint.newest(folder)


def test_weights_are_float32_by_name(
    tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if the layout loses names, shapes, or the tied head's single copy."""
    from safetensors.torch import load_file

    from configs.tensors import tensor_table

    config = tiny_config({"parallel": {"zero_stage": 1}})
    weights = load_file(run_ranks(2, _trained_at_stage_1, config, tiny_data[1], tmp_path)[0] / "weights.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensor_table(config.model).items()}
    assert {name: tuple(t.shape) for name, t in weights.items()} == shapes
    assert {t.dtype for t in weights.values()} == {torch.float32}
