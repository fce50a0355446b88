"""Optimisers and decay rules: against their formulas, through the engine, and by the laws they obey."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.groups import decay_groups, main_group
from configs.plan import make_plan
from configs.schedule import decay_at, decay_factor, decay_sum
from configs.schema import RunConfig
from configs.tensors import TensorSpec, tensor_table
from data.manifest import Manifest
from engine.launch import start_world
from optim.algorithms import build_optimizer
from optim.parameter_groups import set_step
from record.metrics import read_metrics
from tests.live import make_training, train_steps
from tests.plain import Formulas, plain_run
from tests.processes import ConfigFile, finish, start
from tests.ranks import run_ranks

RULES = [(a, r) for a in ("adam", "sgd") for r in ("decoupled", "l2_coupled", "l2_loss")]


def settings(algorithm: str, rule: str, **more: Any) -> dict[str, Any]:
    """η and λ of a size that is felt in a few updates."""
    lr = {"adam": 2e-3, "sgd": 0.3, "lion": 3e-4}[algorithm]
    weight_decay = {"decoupled": 1.0, "l2_coupled": 0.05, "l2_loss": 0.05}[rule]
    return {
        "optim": {
            "algorithm": algorithm,
            "decay_rule": rule,
            "lr": lr,
            "weight_decay": weight_decay,
            "grad_clip": 0.1,
            **more,
        }
    }


@pytest.mark.parametrize(
    ("algorithm", "rule", "more"),
    [
        (algorithm, rule, more)
        for algorithm, rule in RULES
        if rule != "l2_loss"
        for more in ([{}] if algorithm == "adam" else [{"momentum": 0.9}, {"momentum": 0.0}])
    ]
    + [("adam", "decoupled", {"weight_decay": 0.0}), ("sgd", "decoupled", {"weight_decay": 0.0})]
    + [("lion", "decoupled", {}), ("lion", "l2_coupled", {})],
)
def test_formulas(algorithm: str, rule: str, more: dict[str, float], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if torch's update is not the formula, in float64, on a few numbers and steps."""
    schedule = {"kind": "linear", "start": 1.0, "end": 0.5}
    config = tiny_config(settings(algorithm, rule, decay_schedule=schedule, **more))
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    formulas = Formulas(config.optim, w, config.optim.weight_decay)
    optimizer = build_optimizer({"w": w}, {"w": TensorSpec((3, 4), "w", "matrix")}, config.optim)
    for t in range(6):
        w.grad = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        set_step(optimizer, config, t, 0.1 / (t + 1))
        optimizer.step()
        expected = formulas.update(w.grad, 0.1 / (t + 1), decay_factor(config, t))
        torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-14)


def engine_ends(configs: list[RunConfig], manifest: Manifest) -> list[Any]:
    world = start_world("decay", 120, None)
    found = []
    for config in configs:
        training = make_training(config, manifest, world)
        steps = train_steps(training, range(config.schedule.steps))
        found.append(
            ([s.loss for s in steps], [s.grad_norm for s in steps], training.engine.fragments.gather("weights", 0))
        )
    return found


@pytest.mark.engine
def test_rules_through_the_engine(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a rule, its schedule, an override or a mask means something else at some ZeRO stage on two ranks."""
    torch.set_num_threads(1)
    override = {
        "decay_overrides": [
            {"pattern": "*.attn.*", "weight_decay": 0.2},
            {"pattern": "wpe.weight", "weight_decay": 0.0},
        ]
    }
    schedule = {"decay_schedule": {"kind": "cosine", "start": 0.2, "end": 1.0, "first_step": 2, "last_step": 5}}
    cases = [(settings(a, r), (i + shift) % 4) for i, (a, r) in enumerate(RULES) for shift in (0, 2)]
    cases += [(settings("adam", "decoupled", weight_decay=0.0), 3), (settings("sgd", "decoupled", weight_decay=0.0), 1)]
    cases += [(settings("adam", "decoupled", **override), stage) for stage in (1, 3)]
    cases += [(settings("adam", "l2_loss", **schedule), 2), (settings("sgd", "decoupled", decay_mask="all"), 3)]
    cases += [(settings("sgd", "decoupled", momentum=0.0, **schedule), stage) for stage in (0, 2)]
    configs = [tiny_config(case, {"parallel": {"zero_stage": stage}}) for case, stage in cases]
    for config, (losses, norms, ends) in zip(configs, run_ranks(2, engine_ends, configs, tiny_data[1])[0], strict=True):
        expected_losses, expected_norms, weights = plain_run(config, tiny_data[1])
        case = f"{config.optim}, stage {config.parallel.zero_stage}"
        assert losses == pytest.approx(expected_losses, rel=1e-6), case
        assert norms == pytest.approx(expected_norms, rel=1e-5), case
        for name, tensor in ends.items():
            error = (tensor - weights[name]).norm() / weights[name].norm()
            assert error <= 2e-6, f"{case}: {name} is {error:.1e} off"


@pytest.mark.engine
def test_sgd_in_bfloat16(tiny_data: tuple[Path, Manifest], tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if an update of bfloat16 weights is left out, as torch's fused SGD does on CPUs, or is far from the formula."""
    torch.set_num_threads(1)
    cases = [(p, s, m) for p in ("bf16-true", "bf16-master") for s in (1, 2, 3) for m in (0.9, 0.0)]
    configs = [
        tiny_config(settings("sgd", "decoupled", momentum=m), {"precision": p, "parallel": {"zero_stage": s}})
        for p, s, m in cases
    ]
    for case, config, (_, _, ends) in zip(
        cases, configs, run_ranks(2, engine_ends, configs, tiny_data[1])[0], strict=True
    ):
        weights = plain_run(config.model_copy(update={"precision": "fp32"}), tiny_data[1])[2]
        bound = {"bf16-true": 2e-2, "bf16-master": 5e-3}[case[0]]
        for name, tensor in ends.items():
            error = (tensor.float() - weights[name]).norm() / weights[name].norm()
            assert error <= bound, f"{case}: {name} is {error:.1e} off"


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_schedule_of_lambda(algorithm: str, tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a value of a λ schedule moves by a step, or the plan's Σηλ is not its sum."""

    def factors(**fields: Any) -> list[float]:
        config = tiny_config({"optim": {"algorithm": algorithm, "decay_schedule": fields}})
        assert decay_sum(config, 6) == pytest.approx(sum(decay_at(config, t) for t in range(6)))
        return [decay_factor(config, t) for t in range(6)]

    assert factors(kind="constant", first_step=3, last_step=4) == [0, 0, 1, 1, 0, 0]
    assert factors(kind="linear") == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert factors(kind="linear", start=0.0, end=1.0, last_step=4) == pytest.approx([0, 0.25, 0.5, 0.75, 0, 0])
    assert factors(kind="cosine", first_step=3) == pytest.approx(
        [0, 0, *(0.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(4))]
    )


def test_bad_decay(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a rule that cannot work, a pattern that matches nothing or a knob that does nothing is accepted."""
    for optim, message in [
        ({"decay_rule": "none"}, 'optim.decay_rule: "none" is no decay rule: set optim.weight_decay 0'),
        ({"algorithm": "sgd", "betas": [0.5, 0.5]}, "betas does nothing under algorithm sgd"),
        ({"momentum": 0.5}, "momentum does nothing under algorithm adam"),
        ({"decay_schedule": {"first_step": 5, "last_step": 4}}, "lies before first_step"),
        ({"decay_schedule": {"end": 0.5}}, "a constant factor has no end"),
        (
            {"decay_overrides": [{"pattern": "atn.*", "weight_decay": 1}]},
            "'atn.*' takes none of the model's 15 tensors",
        ),
        ({"decay_overrides": [{"pattern": "decayed", "weight_decay": 1}]}, '"decayed" names no tensor'),
        ({"decay_overrides": [{"pattern": "blocks.[0/].*", "weight_decay": 1}]}, "names no tensor"),
        ({"weight_decay": 500.0}, "would not stay above zero"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            make_plan(tiny_config({"optim": optim}), 1, None)
    lost = {"optim": {"decay_rule": "l2_loss"}, "precision": "bf16-true", "parallel": {"zero_stage": 1}}
    with pytest.raises(ValueError, match=r"added to a bfloat16 gradient.*l2_coupled with twice the λ"):
        make_plan(tiny_config(lost), 1, None)


def test_warned_of_decay(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if a decay that takes nearly all of a weight, or less than bfloat16 can show, passes without a word and number."""
    true_bf16 = {"precision": "bf16-true", "parallel": {"zero_stage": 1}, "optim": {"lr": 0.01}}
    true_bf16["schedule"] = {"kind": "constant"}  # one that falls may fall below the rounding late
    for optim, base, words in [
        ({"weight_decay": 90.0}, {}, "reaches 0.9: a step takes 90% of each decayed weight, which forgets in 1 update"),
        ({"weight_decay": 2.0}, {}, "reaches 0.02: a step takes 2%"),
        ({"decay_overrides": [{"pattern": "wpe.weight", "weight_decay": 3}]}, {}, "reaches 0.03"),
        ({"decay_schedule": {"start": 4.0}}, {}, "reaches 0.02"),
        ({"algorithm": "sgd", "decay_rule": "l2_loss", "weight_decay": 0.1}, {}, "reaches 0.02"),
        ({"weight_decay": 0.3}, true_bf16, "at most 0.003, and less than half a unit.*some weights do not decay"),
        ({"weight_decay": 0.1}, true_bf16, "at most 0.001, and less than half a unit.*no weight decays"),
        (
            {"lr": 6e-4, "weight_decay": 8.0},
            true_bf16,
            "η = 0.0006 moves them down only above 0.002 and up.*they do not move",
        ),
        ({"weight_decay": 0.5}, true_bf16, ""),
        ({"weight_decay": 0.0}, true_bf16, ""),
        ({"weight_decay": 0.1}, {}, ""),
        ({"decay_rule": "l2_coupled", "weight_decay": 90.0}, {}, ""),
    ]:
        found = make_plan(tiny_config(base, {"optim": optim}), 1, None).cautions
        said = [text for text in found if "η·λ" in text or "gains" in text]
        assert len(said) == bool(words), (optim, said)
        assert re.search(words, " ".join(said)), (optim, said)


def test_overrides(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if the first match does not win, a tensor is in two groups, or the plan does not show a group's λ."""
    overrides = [{"pattern": "blocks.0.*", "weight_decay": 0.3}, {"pattern": "*.attn.*", "weight_decay": 0.0}]
    config = tiny_config({"optim": {"decay_overrides": overrides}})
    groups = decay_groups(tensor_table(config.model), config.optim)
    assert {name: (len(names), decay) for name, (names, decay) in groups.items()} == {
        "decayed": (4, 0.5), "undecayed": (3, 0.0), "blocks.0.*": (6, 0.3), "*.attn.*": (2, 0.0),
    }  # fmt: skip
    assert make_plan(config, 1, None).groups["blocks.0.*"].weight_decay == 0.3
    everything = [
        {"pattern": "blocks.0.*", "weight_decay": 0},
        {"pattern": "blocks.1.attn.*", "weight_decay": 0.1},
        {"pattern": "*", "weight_decay": 0},
    ]
    plan = make_plan(tiny_config({"optim": {"decay_overrides": everything}}), 1, None)
    assert plan.groups["blocks.0.*"].parameters > plan.groups["blocks.1.attn.*"].parameters
    assert main_group(plan.groups) == "blocks.1.attn.*", "of the groups that decay"


@pytest.mark.slow
def test_equilibrium_under_noise(tiny_config: Callable[..., RunConfig]) -> None:
    """Breaks if AdamW's weights do not settle where 2305.17212 says: RMS √(η/2λ), rotation √(2ηλ(1−β₁)/(1+β₁)) a step."""
    config = tiny_config({"optim": {"lr": 0.01, "weight_decay": 0.5, "betas": [0.9, 0.99]}})
    w = nn.Parameter(torch.randn(400, 400, generator=torch.Generator().manual_seed(0)) * 0.05)
    optimizer = build_optimizer({"w": w}, {"w": TensorSpec((400, 400), "w", "matrix")}, config.optim)
    generator = torch.Generator().manual_seed(1)
    sizes, angles = [], []
    for t in range(1600):  # eight time constants 1/(ηλ) of 200 steps
        before = w.detach().clone()
        w.grad = torch.randn(400, 400, generator=generator)
        set_step(optimizer, config, 0, 0.01)
        optimizer.step()
        if t >= 1000:
            after = w.detach()
            sizes.append(after.square().mean().sqrt().item())
            cosine = (before * after).sum().double() / (before.double().norm() * after.double().norm())
            angles.append(math.acos(min(1.0, cosine.item())))
    beta1 = config.optim.betas[0]
    assert sum(sizes) / len(sizes) == pytest.approx(math.sqrt(0.01 / (2 * 0.5)), rel=0.05)
    assert sum(angles) / len(angles) == pytest.approx(math.sqrt(2 * 0.01 * 0.5 * (1 - beta1) / (1 + beta1)), rel=0.05)


@pytest.mark.engine
def test_sums_of_the_plan_are_those_of_the_run(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if Ση or Σηλ of the plan is not what the run logs, with overrides, a λ schedule, another rule or a horizon."""
    everything = [{"pattern": "w?e.weight", "weight_decay": 0.0}, {"pattern": "*", "weight_decay": 0.3}]
    cases = {
        "overrides": {"optim": {"weight_decay": 0.1, "decay_overrides": everything, "decay_mask": "all"}},
        "schedule": {"optim": {"decay_schedule": {"kind": "cosine", "first_step": 2, "last_step": 4}}},
        "sgd": {"optim": {"algorithm": "sgd", "lr": 0.1}, "schedule": {"horizon": 9}},
        "l2": {"optim": {"decay_rule": "l2_loss", "weight_decay": 0.01}, "schedule": {"kind": "wsd"}},
    }
    for name, case in cases.items():
        finish(start(config_file(case), tmp_path / name))
        rows = read_metrics(tmp_path / name / "metrics.jsonl")[0]
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        assert rows[-1]["optim/decay_sum"] == pytest.approx(plan["decay_sum"], rel=1e-12), name
        assert sum(row["optim/lr"] for row in rows[1:]) == pytest.approx(plan["lr_sum"], rel=1e-12), name
        assert plan["decay_sum"] > 0, name
