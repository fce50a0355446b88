"""Projected gradient descent on the sphere: its meaning for a scale-invariant loss, its start, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.decay_laws import check_rule
from configs.plan import make_plan
from configs.schema import RunConfig
from data.manifest import Manifest
from engine import checkpoint
from engine.engine import Engine
from engine.launch import start_world
from engine.network import build_model
from engine.resume import load
from model.gpt import GPT
from tests.live import make_training, train_steps
from tests.ranks import run_ranks

SPHERE: dict[str, Any] = {"optim": {"decay_rule": "sphere", "weight_decay": 0.0}}
SGD: dict[str, Any] = {"optim": {"algorithm": "sgd", "momentum": 0.0, "lr": 0.2, "grad_clip": 0.0, "weight_decay": 0.0}}
UPDATES = 5
Config = Callable[..., RunConfig]


def invariant(w: Tensor) -> Tensor:
    """A loss that depends on the direction of the vector w alone: uᵀDu + (u·a)³, u = w/‖w‖."""
    u, n = w / w.norm(), w.numel()
    places = torch.arange(n, dtype=w.dtype)
    return (torch.cos(places) * u * u).sum() + (u * torch.sin(3 * places)).sum() ** 3 / n


class Toy(GPT):
    """A network whose loss is `invariant` of all its weights, the same for every token."""

    def forward(self, inputs: Tensor, *args: Any, **options: Any) -> Tensor:
        whole = torch.cat([p.view(-1) for p in self.parameters()])
        return 0.0 * super().forward(inputs, *args, **options) + inputs.numel() * invariant(whole)


def toy_ends(configs: list[RunConfig], manifest: Manifest) -> list[list[dict[str, Tensor]]]:
    """Of each configuration: the weights of a `Toy` before its first update, and after its last."""
    world, found = start_world("sphere", 120, None), []
    for config in configs:
        training = make_training(config, manifest, world)
        model = build_model(config, manifest.eot, world.device)
        model.__class__ = Toy
        model.init_weights(config.seeds.init)
        training.engine = Engine(model, config, training.plan, world)
        found.append([training.engine.fragments.gather("weights", 0) or {}])
        train_steps(training, range(UPDATES))
        found[-1].append(training.engine.fragments.gather("weights", 0) or {})
    return found


def whole(tensors: dict[str, Tensor], model: GPT) -> Tensor:
    """All weights as one vector, in the order of the network, float64 (n,)."""
    return torch.cat([tensors[name].double().view(-1) for name, _ in model.named_parameters()])


@pytest.mark.engine
def test_is_projected_descent(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if a run on the sphere is not projected SGD, by its start, its steps or what is projected, at some ZeRO stage on two
    ranks; or the toy would not tell it from SGD. (Stage 3 gathers no weights for a toy: test_more_rules has its formula.)"""
    torch.set_num_threads(1)
    constant = {"schedule": {"kind": "constant", "warmup_steps": 0, "steps": UPDATES}}
    stages = [SPHERE | {"parallel": {"zero_stage": stage}} for stage in (0, 1, 2)]
    free = {"optim": {"decay_rule": "decoupled"}}
    configs = [tiny_config(constant, SGD, more) for more in (*stages, free)]
    answers = run_ranks(2, toy_ends, configs, tiny_data[1])[0]

    model = GPT(configs[0].model)
    model.init_weights(configs[0].seeds.init)
    w = whole(dict(model.named_parameters()), model).detach()
    w = start = w / w.norm()
    for _ in range(UPDATES):
        w.requires_grad_()
        (gradient,) = torch.autograd.grad(invariant(w), w)
        assert abs((gradient @ w).item()) < 1e-9  # it has no part along w
        w = (w - 0.2 * gradient).detach()
        w = w / w.norm()
    assert (w - start).norm() > 0.1  # the toy moves far
    for case, (before, after) in zip(("stage 0", "stage 1", "stage 2"), answers, strict=False):
        assert (whole(before, model) - start).norm() < 1e-6, case
        assert (whole(after, model) - w).norm() < 1e-5, case
        assert whole(after, model).norm().item() == pytest.approx(1, abs=1e-6), case  # square sums are float32 inside
    # Without the sphere the same η turns the weights less: η/‖w‖² is what acts.
    plain = whole(answers[-1][1], model)
    assert plain.norm() > 5
    assert (plain / plain.norm() - w).norm() > 0.1


def branched(configs: list[RunConfig], manifest: Manifest, folder: str) -> list[str]:
    """Train the trunks, and start the branch of each: what each start says, or the norm after its first update."""
    world, said = start_world("branched", 120, None), []
    for number, (trunk, branch) in enumerate(zip(configs[::2], configs[1::2], strict=True)):
        training = make_training(trunk, manifest, world)
        train_steps(training, range(2))
        run = Path(folder) / str(number) / "checkpoints"
        checkpoint.save(run, 2, training.engine.fragments, training.progress.counters(), {})
        again = make_training(branch, manifest, world)
        try:
            load(again, None)
        except ValueError as error:
            said.append(str(error))
        else:
            train_steps(again, range(1))
            said.append(f"{again.engine.weight_norms()['']:.6f}")
    return said


@pytest.mark.engine
def test_branches(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a branch scales a trunk that was not on the sphere, or refuses one that was, on any rank."""
    torch.set_num_threads(1)
    configs = []
    for number, rule in enumerate(("decoupled", "sphere")):
        origin = {"branch": {"origin": f"{tmp_path}/{number}@2"}}
        trunk = {"optim": {"decay_rule": rule, "weight_decay": 0.0}, "parallel": {"zero_stage": 2 * number}}
        configs += [tiny_config(trunk), tiny_config(SPHERE, origin)]
    for off, on in run_ranks(2, branched, configs, tiny_data[1], str(tmp_path)):
        assert "a branch whose trunk is not on the sphere" in off
        assert "expected 1; branch from a run of decay_rule sphere" in off
        assert float(on) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay_mask": "all"}, "decay_mask does nothing under decay_rule sphere"),
        ({"decay_overrides": [{"pattern": "wte.*", "weight_decay": 0.0}]}, "decay_overrides does nothing under"),
        ({"decay_schedule": {"kind": "linear"}}, "decay_schedule does nothing under"),
        ({"weight_decay": 0.1}, "holds norms fixed and has no λ: set optim.weight_decay 0"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, tiny_config: Config) -> None:
    """Breaks if a mask, an override, a schedule of λ or a λ is accepted where all weights are scaled as one."""
    with pytest.raises(ValueError, match=message):
        check_rule(tiny_config(SPHERE, {"optim": fields}))


@pytest.mark.parametrize(("precision", "stage"), [("bf16-true", 1), ("bf16-stochastic", 1)])
def test_bfloat16_masters(precision: str, stage: int, tiny_config: Config) -> None:
    """Breaks if masters that cannot be scaled by a number near 1 are accepted; or float32 masters are not."""
    config = tiny_config(SPHERE, {"precision": precision, "parallel": {"zero_stage": stage}})
    with pytest.raises(ValueError, match="moves weights beside the optimiser's step"):
        check_rule(config)
    for fits in ("fp32", "bf16-mixed", "bf16-master"):
        check_rule(tiny_config(SPHERE, {"precision": fits, "parallel": {"zero_stage": 1}}))


def test_start_is_not_judged_by_init_std(tiny_config: Config) -> None:
    """Breaks if the plan warns of η over init_std where the sphere sets the size of the start, or nowhere."""

    def warned(more: dict[str, Any]) -> bool:
        plan = make_plan(tiny_config({"optim": {"lr": 1e-5}}, more), 1, None)
        return any("init_std" in line for line in plan.cautions)

    assert warned({})
    assert not warned(SPHERE)
