"""The engine is AdamW: it equals a plain PyTorch loop at every ZeRO stage, and the bf16 labels stay within bounds.

Several cases run in one process group, since starting one takes seconds. Accumulation 2 or 4, clipping on (the
gradients of the first updates exceed the bound), tied weights, two groups.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import RunConfig
from data.manifest import Manifest
from engine.launch import start_world
from model.gpt import GPT
from tests.live import make_trainer, train_steps
from tests.plain import plain_run
from tests.ranks import run_ranks

CASES = [(p, stage) for p in ("fp32", "bf16-mixed") for stage in (0, 1, 2, 3)]
CASES += [(p, stage) for p in ("bf16-master", "bf16-true") for stage in (1, 2, 3)]

CASE = {
    "optim": {"lr": 2e-3, "grad_clip": 0.1}
}  # η small, since Adam amplifies rounding in near-zero gradients by η/‖w‖

# Largest difference to the float32 reference over six updates: losses (nats), weights relative to the tensor's norm.
BOUNDS = {"fp32": (1e-6, 1e-6), "bf16-mixed": (1e-3, 2e-2), "bf16-master": (1e-3, 2e-2), "bf16-true": (1e-3, 2e-2)}


def engine_runs(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, Any]]:
    """On one rank: train each configuration, and record losses, norms, weights, and the state before step 1."""
    world = start_world("parity", 120, None)
    found = []
    for config in configs:
        trainer = make_trainer(config, manifest, world)
        start = trainer.fragments.gather("weights", 0)
        start_step = trainer.fragments.optimizer_step
        steps = train_steps(trainer, manifest, range(config.schedule.steps))
        end = trainer.fragments.gather("weights", 0)
        found.append(
            {
                "start": start,
                "start_step": start_step,
                "steps": steps,
                "end": end,
                "end_step": trainer.fragments.optimizer_step,
                "dtypes": trainer.dtypes,
                "decay": [g["weight_decay"] for g in trainer.optimizer.param_groups],
            }
        )
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_precision_and_stage(
    ranks: int, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if any stage loses a gradient, decays the wrong group, steps before step 1, or mislabels a dtype."""
    _, manifest = tiny_data
    torch.set_num_threads(1)
    losses, weights = plain_run(tiny_config(CASE), manifest)
    configs = [
        tiny_config(CASE, {"precision": precision, "parallel": {"zero_stage": stage}}) for precision, stage in CASES
    ]
    runs = run_ranks(ranks, engine_runs, configs, manifest)[0]
    initial = _initial_weights(configs[0])
    assert len({step.digest for run in runs for step in run["steps"][-1:]}) == 1, (
        "the windows read differ between cases"
    )
    for (precision, stage), found in zip(CASES, runs, strict=True):
        case = f"{precision}, stage {stage}, {ranks} ranks"
        masters = torch.bfloat16 if precision == "bf16-true" else torch.float32
        for name, tensor in found["start"].items():
            assert torch.equal(tensor, initial[name].to(masters)), f"{case}: {name} changed before step 1"
        assert (found["start_step"], found["end_step"]) == (0, 6), case
        assert found["decay"] == [0.5, 0.0], case
        loss_bound, weight_bound = BOUNDS[precision]
        for step, (ours, theirs) in enumerate(zip((s.loss for s in found["steps"]), losses, strict=True)):
            assert abs(ours - theirs) <= loss_bound * (theirs if precision == "fp32" else 1), (
                f"{case}: loss of step {step}"
            )
        for name, tensor in found["end"].items():
            error = (tensor.float() - weights[name]).norm() / weights[name].norm()
            assert error <= weight_bound, f"{case}: {name} is {error:.2e} from the reference"
        norm = torch.sqrt(sum(t.double().square().sum() for t in found["end"].values())).item()
        assert found["steps"][-1].norm == pytest.approx(norm, rel=1e-6), case


def test_clipping_is_active(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """The parity case must clip, or it would not notice a missing clip."""
    _, manifest = tiny_data
    clipped, _ = plain_run(tiny_config(CASE), manifest)
    free, _ = plain_run(tiny_config(CASE, {"optim": {"grad_clip": 1e9}}), manifest)
    assert clipped[-1] != free[-1]


def _initial_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    model = GPT(config.model)
    model.init_weights(config.seeds.init)
    return {name: p.detach() for name, p in model.named_parameters()}
