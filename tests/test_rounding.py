"""Decay against the rounding of the weights: no rule is lost in bfloat16, in any precision, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import engine.engine
from configs.groups import decay_groups
from configs.plan import make_plan
from configs.precision import TABLE
from configs.schema import Optim, RunConfig
from configs.tensors import TensorSpec, tensor_table
from data.manifest import Manifest
from engine.engine import Engine
from engine.launch import start_world
from engine.network import build_model
from engine.update import update
from model.gpt import GPT
from optim.algorithms import ALGORITHMS, build_optimizer, check_rounding
from optim.parameter_groups import parameter_groups, set_step
from optim.rules import RULES as LAWS
from optim.rules import Rule
from tests.live import batch_of, make_training, train_steps
from tests.plain import Formulas
from tests.ranks import run_ranks
from tests.test_decay import RULES, settings

DECAY_MASKS = ("matrices", "matmul", "all")


class Constant(GPT):
    """A network whose loss no weight changes: autograd gives gradients of exactly zero."""

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        return 0.0 * super().forward(*args, **options)


def ends_without_gradient(configs: list[RunConfig], manifest: Manifest) -> list[Any]:
    """Weights before and after the updates of each configuration, of a `Constant` network."""
    world = start_world("zero", 120, None)
    found = []
    for config in configs:
        model = build_model(config, manifest.eot, world.device)
        model.__class__ = Constant
        model.init_weights(config.seeds.init)
        training = make_training(config, manifest, world)
        training.engine = Engine(model, config, training.plan, world)
        start = training.engine.fragments.gather("weights", 0)
        for t in range(config.schedule.steps):
            outcome = update(training, iter([batch_of(training, t)]), look=lambda _: None)
            assert outcome.ended == "applied"
            assert (outcome.grad_norm == 0) == (config.optim.decay_rule != "l2_loss")
        found.append((start, training.engine.fragments.gather("weights", 0)))
    return found


def law_cases(precisions: dict[str, tuple[int, ...]], masks: tuple[str, ...] = DECAY_MASKS) -> list[dict[str, Any]]:
    """Every rule, algorithm, precision and mask that is allowed, the ZeRO stages in turn."""
    cases: list[dict[str, Any]] = []
    # Of Muon the law is known where the gradient is zero in truth: l2_loss gives it one.
    more = [("lion", "decoupled"), ("lion", "l2_coupled"), ("lion", "l2_loss"), ("muon", "decoupled")]
    rules = [(*both, 1.0) for both in (*RULES, *more)] + [(a, "decoupled", 0.0) for a in ("adam", "sgd")]
    law_known = [name for name in ALGORITHMS if name != "kfac"]  # tests/test_kfac.py has its law
    for name, module in LAWS.items():
        if not any(name == rule for _, rule, _ in rules):
            decay = {"independent": 0.05}.get(name, 1.0) if getattr(module, "USES_DECAY", True) else 0.0
            rules += [(algorithm, name, decay) for algorithm in getattr(module, "ALGORITHMS", tuple(law_known))]
    for (algorithm, rule, decay), (precision, stages), mask in product(rules, precisions.items(), masks):
        lr = 0.01 if algorithm != "sgd" and rule.startswith("l2") else 0.05
        optim = {"algorithm": algorithm, "decay_rule": rule, "lr": lr, "weight_decay": decay}
        optim |= {"decay_mask": mask, "grad_clip": 0.0}
        if TABLE[precision].masters == "bfloat16" and (rule == "l2_loss" or not Rule(LAWS[rule]).rounds_once):
            continue  # refused at the start
        if rule == "sphere" and mask != "matrices":  # it has no mask
            continue
        if algorithm == "muon" and TABLE[precision].masters == "bfloat16":  # refused: its decay would round to nothing
            continue
        stage = stages[len(cases) % len(stages)]
        small = {
            "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "seq_len": 8},
            "schedule": {"kind": "constant", "warmup_steps": 0, "steps": 4},
        }
        small |= {"batch": {"tokens_per_step": 8, "micro_batch": 1}}
        cases.append({**small, "optim": optim, "precision": precision, "parallel": {"zero_stage": stage}})
    return cases


def assert_law(config: RunConfig, start: dict[str, torch.Tensor], end: dict[str, torch.Tensor]) -> None:
    """The rule's own shrinking of every tensor that it takes, within one rounding a step; no bit of the others."""
    optim, steps, dtypes = config.optim, config.schedule.steps, TABLE[config.precision]
    case = f"{config.precision}, stage {config.parallel.zero_stage}, {optim.algorithm}, {optim.decay_rule}, {optim.decay_mask}"
    groups = decay_groups(tensor_table(config.model), optim)
    decays = {name: decay for names, decay in groups.values() for name in names}
    for name, tensor in end.items():
        before, after, decay = start[name].double(), tensor.double(), decays[name]
        if not decay:
            assert torch.equal(tensor, start[name]), f"{case}: {name} does not decay"
            continue
        formulas = Formulas(optim, before, decay, name, seed=config.seeds.data)
        for _ in range(steps):
            penalty = 2 * decay * formulas.w if optim.decay_rule == "l2_loss" else torch.zeros_like(before)
            expected = formulas.update(penalty, optim.lr)
        if optim.decay_rule == "decoupled":
            torch.testing.assert_close(expected, before * (1 - optim.lr * decay) ** steps)
        shrunk = ((expected * after).sum() / expected.square().sum()).item()
        error = (after - expected).norm() / expected.norm()
        # One rounding a step, 2⁻⁸ of a bfloat16 number at most; of both signs, so the mean over a tensor is nearer. But gains
        # are all alike, and so are Adam's first steps and Lion's: they round alike.
        worst = steps * 2.0**-8 if dtypes.masters == "bfloat16" else 1e-6
        alike = tensor.dim() == 1 or (optim.algorithm != "sgd" and optim.decay_rule.startswith("l2"))
        near = 2e-3 if dtypes.masters == "bfloat16" and not alike else worst
        if dtypes.rounding == "stochastic":
            # Twice as far at most, but by chance: half of that is the largest standard deviation of a step's error, and the
            # mean over a tensor has that of n independent errors, however alike the numbers are.
            worst *= 2
            near = 5 * steps**0.5 * 2.0**-8 * (expected.pow(4).sum().sqrt() / expected.square().sum()).item()
        assert error <= worst, f"{case}: {name} is {error:.1e} off"
        assert abs(shrunk - 1) <= near, f"{case}: {name} is {shrunk} of it"


@pytest.mark.engine
@pytest.mark.parametrize("mask", DECAY_MASKS)
def test_zero_gradient_law(mask: str, tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if, without a gradient, weights shrink by another factor than the rule's, or an undecayed tensor moves at all."""
    stages = {"fp32": (0, 1, 2, 3), "bf16-mixed": (3, 2, 1, 0), "bf16-master": (1, 2, 3), "bf16-true": (3, 1, 2)}
    stages["bf16-stochastic"] = (2, 3, 1)
    configs = [tiny_config(case) for case in law_cases(stages, (mask,))]
    answers = run_ranks(1, ends_without_gradient, configs, tiny_data[1], timeout_s=900)[0]
    for config, ends in zip(configs, answers, strict=True):
        assert_law(config, *ends)


@pytest.mark.parametrize(
    ("algorithm", "rule", "lr", "weight_decay"),
    [
        ("sgd", "decoupled", 1e-2, 0.1),
        ("sgd", "l2_coupled", 1e-3, 0.1),
        ("adam", "decoupled", 1e-3, 1.0),
        ("adam", "l2_coupled", 1e-3, 0.02),
    ],
)
def test_small_decay_reaches_bfloat16_weights(
    algorithm: str, rule: str, lr: float, weight_decay: float, tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if a decay of less than bfloat16's rounding, 2⁻⁹, is lost where it is added to a step; or λ = 0 decays."""

    def kept(decay: float, dtype: torch.dtype) -> float:
        """How much of the first weights is left after 200 updates of pure noise."""
        config = tiny_config({"optim": settings(algorithm, rule)["optim"] | {"lr": lr, "weight_decay": decay}})
        start = (torch.randn(300, 300, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)
        w, generator = nn.Parameter(start.clone()), torch.Generator().manual_seed(1)
        optimizer = build_optimizer({"w": w}, {"w": TensorSpec((300, 300), "w", "matrix")}, config.optim)
        check_rounding(optimizer, config.optim, str(dtype).removeprefix("torch."))
        for _ in range(200):
            w.grad = (torch.randn(300, 300, generator=generator) * 0.1).to(dtype)
            set_step(optimizer, config, 0, lr)
            optimizer.step()
        return ((w.detach().double() * start.double()).sum() / start.double().square().sum()).item()

    assert lr * weight_decay < 2**-9
    expected, found = (kept(weight_decay, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert expected < 0.97
    assert found == pytest.approx(expected, abs=0.1 * (1 - expected))
    assert kept(0.0, torch.bfloat16) == pytest.approx(1.0, abs=0.005)


def test_decay_of_its_own_vanishes() -> None:
    """Breaks if torch's AdamW that is not fused passes under bfloat16 masters, where its decay does nothing."""
    w = nn.Parameter(torch.full((1000,), 0.03, dtype=torch.bfloat16))
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.AdamW([w], lr=1e-3, weight_decay=1.0, fused=False)
    before = w.detach().clone()
    for _ in range(100):
        optimizer.step()
    assert torch.equal(w, before), "the reason of the check is gone: it can go too"
    adam = Optim(lr=1e-3, weight_decay=0.1)
    check_rounding(optimizer, adam, "float32")
    with pytest.raises(RuntimeError, match="AdamW is not fused"):
        check_rounding(optimizer, adam, "bfloat16")


def moved_gains(configs: list[RunConfig], manifest: Manifest) -> list[dict[str, list[bool]]]:
    """Per configuration, the LayerNorm gains after the run: whether some lie below 1, above 1."""
    world = start_world("gains", 120, None)
    found = []
    for config in configs:
        training = make_training(config, manifest, world)
        train_steps(training, range(config.schedule.steps))
        weights = training.engine.fragments.gather("weights", 0) or {}
        gains = torch.cat([w.float() for name, w in weights.items() if w.dim() == 1])
        found.append({"below": bool((gains < 1).any()), "above": bool((gains > 1).any())})
    return found


@pytest.mark.engine
def test_gains_under_bfloat16_masters(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if what the plan says of gains at 1.0 is not what the engine does, below 2⁻⁹, up to 2⁻⁸ and above."""
    torch.set_num_threads(1)
    constant = {"schedule": {"kind": "constant", "warmup_steps": 0}, "optim": {"weight_decay": 0.0}}
    precisions = ("bf16-true", "bf16-master", "bf16-stochastic")
    cases = [(p, lr) for p in precisions for lr in (0.0015, 0.003, 0.008)]
    configs = [
        tiny_config(constant, {"precision": p, "parallel": {"zero_stage": 1}, "optim": {"lr": lr}}) for p, lr in cases
    ]
    for (precision, lr), moved in zip(cases, run_ranks(1, moved_gains, configs, tiny_data[1])[0], strict=True):
        free = precision != "bf16-true"
        assert moved == {"below": free or lr > 2**-9, "above": free or lr > 2**-8}, (precision, lr)
        config = configs[cases.index((precision, lr))]
        said = [text for text in make_plan(config, 1, None).cautions if "gains" in text]
        assert bool(said) == (moved != {"below": True, "above": True}), (precision, lr)


def refusal(config: RunConfig, manifest: Manifest) -> str:
    """What an engine says whose optimiser is torch's AdamW without fusing."""
    world = start_world("unfused", 120, None)

    def unfused(*tensors_of_the_model: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(*tensors_of_the_model), lr=0.0, fused=False)

    engine.engine.build_optimizer = unfused  # type: ignore[assignment]
    try:
        make_training(config, manifest, world)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.engine
def test_engine_wants_one_rounding(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if an engine starts whose decay would do nothing under bfloat16 masters."""
    torch.set_num_threads(1)
    config = tiny_config({"precision": "bf16-true", "parallel": {"zero_stage": 2}})
    assert "AdamW is not fused" in run_ranks(1, refusal, config, tiny_data[1])[0]
