"""Llama's shapes under DeepSpeed: the plain loop's numbers, exact resume, and a table of positions that stays float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.precision import TABLE
from configs.schema import RunConfig
from data.manifest import Manifest
from engine.launch import start_world
from tests.live import make_training, train_steps, whole_and_resumed
from tests.plain import plain_run
from tests.ranks import run_ranks
from tests.test_parity import BOUNDS, CASE, CASES, engine_runs

pytestmark = pytest.mark.engine

SHAPE: dict[str, Any] = {
    "norm": "rmsnorm",
    "position": "rotary",
    "activation": "swiglu",
    "mlp_width": 24,
    "n_kv_head": 1,
    "qk_norm": True,
    "tied_head": False,
}


@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_the_plain_loop(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if a stage or a precision trains a Llama otherwise than a loop without DeepSpeed."""
    torch.set_num_threads(1)
    case = {**CASE, "model": {**CASE["model"], **SHAPE}}
    losses, norms, weights = plain_run(tiny_config(case), tiny_data[1])
    configs = [tiny_config(case, {"precision": p, "parallel": {"zero_stage": stage}}) for p, stage in CASES]
    for (precision, stage), run in zip(CASES, run_ranks(ranks, engine_runs, configs, tiny_data[1])[0], strict=True):
        loss_bound, weight_bound = BOUNDS[precision]
        where, exact = f"{precision}, stage {stage}", precision == "fp32"
        assert run["dtypes"] == TABLE[precision].as_dict(), where
        for ours, loss, norm in zip(run["steps"], losses, norms, strict=True):
            assert ours.loss == pytest.approx(loss, rel=loss_bound), where
            assert ours.grad_norm == pytest.approx(norm, rel=2e-6 if exact else 3e-2), where
        for name, tensor in run["end"].items():
            assert (tensor.float() - weights[name]).norm() <= weight_bound * weights[name].norm(), f"{where}: {name}"


def resumed_and_tables(configs: list[RunConfig], manifest: Manifest, folder: Path) -> list[dict[str, Any]]:
    """Of each configuration: whether all a checkpoint holds is the same with a stop, and the live table of positions after it."""
    world = start_world("llama", 120, None)
    found = []
    for index, config in enumerate(configs):
        whole, resumed = whole_and_resumed(config, config, manifest, world, folder / str(index))
        same = whole.keys() == resumed.keys() and all(
            torch.equal(tensor, (resumed[kind] or {})[name])
            for kind, tensors in whole.items()
            for name, tensor in (tensors or {}).items()
        )
        training = make_training(config, manifest, world)
        train_steps(training, range(1))
        rotary = training.engine.ds.module.rotary
        assert rotary is not None
        found.append({"same": same, "table": rotary.table, "kinds": [k for k, v in whole.items() if v]})
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_and_the_table(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Breaks if a Llama does not resume to the bit, or an engine in bfloat16 rounds the table of its positions."""
    configs = [
        tiny_config({"model": SHAPE, "precision": precision, "parallel": {"zero_stage": stage}})
        for precision, stage in CASES
    ]
    angles = torch.arange(16)[:, None] * 10000.0 ** (-torch.arange(8) / 8)  # T = 16, D = 16
    for config, run in zip(
        configs, run_ranks(ranks, resumed_and_tables, configs, tiny_data[1], tmp_path)[0], strict=True
    ):
        where = f"{config.precision}, stage {config.parallel.zero_stage}"
        assert run["same"], where
        assert run["kinds"], where
        assert run["table"].dtype == torch.float32, where
        torch.testing.assert_close(run["table"], torch.stack((angles.cos(), angles.sin())), rtol=0, atol=2e-6)


def arithmetics(configs: list[RunConfig], manifest: Manifest) -> list[list[float]]:
    """The losses of each configuration's updates."""
    world = start_world("arithmetics", 120, None)
    return [[s.loss for s in train_steps(make_training(c, manifest, world), range(6))] for c in configs]


def test_arithmetic_and_compilation(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if an arithmetic of attention, compiled or not, with documents apart or recomputed, trains another function."""
    base: dict[str, Any] = {"model": SHAPE}
    variants: list[dict[str, Any]] = [{}]
    for attention in ("math", "stable"):
        variants += [
            {"model": {"attention": attention}},
            {"model": {"attention": attention}, "parallel": {"recompute": True, "zero_stage": 3}},
        ]
    variants += [{"parallel": {"recompute": True}}, {"parallel": {"compile": True}}]
    apart = {"data": {"cross_document_attention": False}}
    whole = [tiny_config(base, v) for v in variants]
    separate = [tiny_config(base, apart, v) for v in variants]
    first, *others = run_ranks(1, arithmetics, whole, tiny_data[1])[0]
    for variant, losses in zip(variants[1:], others, strict=True):
        assert losses == pytest.approx(first, rel=2e-6), variant
    first_apart, *others = run_ranks(1, arithmetics, separate, tiny_data[1])[0]
    for variant, losses in zip(variants[1:], others, strict=True):
        assert losses == pytest.approx(first_apart, rel=2e-6), variant
