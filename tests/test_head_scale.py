"""A learned scale of the head's logits (model.head_scale): its formula, every stage, over a stop, and under held norms."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from configs import cost
from configs.groups import decay_groups
from configs.plan import make_plan
from configs.schema import Model, RunConfig
from configs.tensors import tensor_table
from data.manifest import Manifest
from model.gpt import GPT
from record.metrics import read_metrics
from tests.plain import plain_run
from tests.processes import ConfigFile, finish, start
from tests.ranks import run_ranks
from tests.test_decay import engine_ends
from tests.test_model import BASE
from tests.test_more_rules import resumed
from weights.evaluate import Asked, evaluate
from weights.export import export
from weights.read import read_tensors

NAME = "head_scale.weight"
HELD: dict[str, Any] = {"optim": {"decay_rule": "norm_projection", "weight_decay": 0.0, "lr": 5e-3}}
Config = Callable[..., RunConfig]


def pair(value: float, tied: bool) -> tuple[GPT, GPT]:
    """A network whose scale is `value`, and one of the same weights that has none."""
    ours, plain = (GPT(Model.model_validate(BASE | {"head_scale": has, "tied_head": tied})) for has in (True, False))
    ours.init_weights(0)
    plain.load_state_dict({name: tensor for name, tensor in ours.state_dict().items() if name != NAME})
    with torch.no_grad():
        ours.head_scale.weight.fill_(value)
    return ours, plain


@pytest.mark.parametrize("tied", [True, False])
def test_formula(tied: bool) -> None:
    """Breaks if a path (training with z-loss, evaluation, probes, logits) leaves the scale out, or a gradient is not that of
    s·(x·Wᵀ) in plain PyTorch and float64."""
    (ours, plain), z = pair(1.7, tied), 0.01
    tokens = torch.randint(0, 100, (2, 25), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    exact, s = copy.deepcopy(plain).double(), torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    logits = s * F.linear(exact.hidden(inputs), exact.head_weight)
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    (each.sum() + z * logits.logsumexp(-1).square().sum()).backward()
    ours.z_loss = z
    loss = ours(inputs, targets)
    loss.backward()
    assert loss.item() == pytest.approx(each.sum().item(), rel=1e-6)
    assert ours.head_scale.weight.grad.item() == pytest.approx(s.grad.item(), rel=1e-5)
    for name, parameter in exact.named_parameters():
        found = dict(ours.named_parameters())[name].grad
        assert (found - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name
    with torch.no_grad():
        by_target = ours.eval()(inputs, targets, by_target=True)
        statistics = ours(inputs, targets, statistics=True)
        torch.testing.assert_close(ours.logits(inputs).double(), logits, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(by_target.double(), each, rtol=1e-5, atol=1e-6)
    expected = [each.sum().item(), logits.logsumexp(-1).sum().item()]
    assert statistics[:2].tolist() == pytest.approx(expected, rel=1e-6)
    assert statistics[3].item() == pytest.approx(logits.max().item(), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_start_is_unchanged(tied: bool) -> None:
    """Breaks if a scale of 1 changes a bit of the loss or of a gradient."""
    tokens = torch.randint(0, 100, (2, 25), generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (both := pair(1.0, tied)):
        losses.append(model(tokens[:, :-1], tokens[:, 1:]))
        losses[-1].backward()
    assert torch.equal(*losses)
    ours = dict(both[0].named_parameters())
    for name, parameter in both[1].named_parameters():
        assert torch.equal(parameter.grad, ours[name].grad), name


def test_table_and_costs(tiny_config: Config) -> None:
    """Breaks if the plan counts it otherwise than as one parameter without a matmul, lists it in another place than the model
    does, or if a mask but `all` lets it decay."""
    plain, scaled = (tiny_config({"model": {"head_scale": has}}) for has in (False, True))
    live = {name: tuple(p.shape) for name, p in GPT(scaled.model).named_parameters()}
    table = tensor_table(scaled.model)
    assert list(live.items()) == [(name, tensor.shape) for name, tensor in table.items()]
    assert live[NAME] == (1,)
    assert cost.n_parameters(scaled.model) == cost.n_parameters(plain.model) + 1
    assert cost.flops_per_token(scaled.model) == cost.flops_per_token(plain.model)
    for mask in ("matrices", "matmul", "all"):
        groups = decay_groups(table, scaled.optim.model_copy(update={"decay_mask": mask}))
        assert (NAME in groups["decayed"][0]) == (mask == "all"), mask


def test_held_at_one_is_refused(tiny_config: Config) -> None:
    """Breaks if a run starts whose scale can never move, or one is refused whose scale can."""
    scaled = {"model": {"head_scale": True}}
    with pytest.raises(ValueError, match="where its norm is held it stays at 1; use decay_mask matrices or matmul"):
        make_plan(tiny_config(HELD, scaled, {"optim": {"decay_mask": "all"}}), 1, None)
    free = {"decay_mask": "all", "decay_overrides": [{"pattern": NAME, "weight_decay": 0.0}]}
    make_plan(tiny_config(HELD, scaled, {"optim": free}), 1, None)
    make_plan(tiny_config(HELD, scaled), 1, None)
    make_plan(tiny_config(scaled, {"optim": {"decay_mask": "all"}}), 1, None)


@pytest.mark.engine
def test_every_stage_and_held_norms(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if on two ranks, at some ZeRO stage, the scale or another tensor is not the plain loop's; if norm_projection
    moves ‖head‖, or the scale stays where it began."""
    torch.set_num_threads(1)
    cases = [(rule, tied, stage) for rule in (HELD, {}) for tied in (True, False) for stage in (0, 1, 2, 3)]
    # At stage 3 small tensors too are cut up, so that one rank of two holds no element of the scale.
    cut = {"deepspeed": {"stage3_param_persistence_threshold": 0}}
    configs = [
        tiny_config(
            rule,
            {"model": {"head_scale": True, "tied_head": tied}, "parallel": {"zero_stage": stage}},
            cut if stage == 3 else {},
        )
        for rule, tied, stage in cases
    ]
    expected: Any = None
    for (rule, tied, stage), config, (losses, _, ends) in zip(
        cases, configs, run_ranks(2, engine_ends, configs, tiny_data[1])[0], strict=True
    ):
        case = f"{config.optim.decay_rule}, {'tied' if tied else 'untied'}, stage {stage}"
        expected = plain_run(config, tiny_data[1]) if stage == 0 else expected
        assert losses == pytest.approx(expected[0], rel=1e-5), case
        for name, tensor in ends.items():
            error = (tensor - expected[2][name]).norm() / expected[2][name].norm()
            assert error <= 1e-5, f"{case}: {name} is {error:.1e} off"
        assert abs(ends[NAME].item() - 1) > 1e-3, case
        if rule:
            first, head = GPT(config.model), "wte.weight" if tied else "head.weight"
            first.init_weights(config.seeds.init)
            norm = first.head_weight.detach().double().norm().item()
            assert ends[head].double().norm().item() == pytest.approx(norm, rel=1e-6), case


@pytest.mark.engine
def test_resumed(tiny_data: tuple[Path, Manifest], tiny_config: Config, tmp_path: Path) -> None:
    """Breaks if a checkpoint loses the scale or its moments, at the same ZeRO stage or at another one, where one rank of two
    holds none of it."""
    torch.set_num_threads(1)
    stages = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (3, 1), (1, 2), (2, 0)]
    before, after = (
        [tiny_config(HELD, {"model": {"head_scale": True}, "parallel": {"zero_stage": s[half]}}) for s in stages]
        for half in (0, 1)
    )
    answers = run_ranks(2, resumed, before, tiny_data[1], str(tmp_path), after)[0]
    for (one, other), (whole, again) in zip(stages, answers, strict=True):
        for name, tensor in whole.items():
            assert (tensor - again[name]).norm() <= (0 if one == other else 1e-5 * tensor.norm()), (one, other, name)


@pytest.mark.engine
def test_evaluated_and_exported(config_file: ConfigFile, tmp_path: Path) -> None:
    """Breaks if weights read outside of the run lack the scale, or their loss is not the one that the run recorded."""
    run = tmp_path / "run"
    finish(start(config_file({"model": {"head_scale": True}, "optim": {"lr": 5e-3}}), run))
    rows = [row for row in read_metrics(run / "metrics.jsonl")[0] if "val/loss" in row]
    found = evaluate([str(run)], Asked())[0]
    assert found["val/loss"] == pytest.approx(rows[-1]["val/loss"], rel=1e-6)
    assert math.isfinite(rows[-1]["val/loss"])
    path = export(run, None, tmp_path / "out")
    model = GPT(Model.model_validate(json.loads((tmp_path / "out" / "config.json").read_text())))
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert model.head_scale.weight.item() == read_tensors(path)[NAME].item() != 1.0
