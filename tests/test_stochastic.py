"""Stochastic rounding: its mean, what it leaves alone, that its chance follows no rank and no cut, and what it is there for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.equilibrium import rms_with_momentum
from configs.plan import make_plan
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from data.manifest import Manifest
from optim.algorithms import build_optimizer, moments, zero_state
from optim.parameter_groups import set_step
from optim.stochastic import Piece, StochasticRounding, rounded, with_rounding
from tests.ranks import run_ranks
from tests.test_rounding import ends_without_gradient

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

Config = Callable[..., RunConfig]
ONE_STAGE = {"precision": "bf16-stochastic", "parallel": {"zero_stage": 1}}
ALL = torch.arange(1 << 16)  # every number that can be drawn


def pattern(*bits: int) -> Tensor:
    """float32 (n,) of their bits."""
    return torch.tensor([b - (1 << 32) if b >> 31 else b for b in bits], dtype=torch.int32).view(torch.float32)


def test_the_mean_is_the_value() -> None:
    """Breaks if rounding is biased, by sign or size, or goes further than to the nearest number on either side."""
    values = torch.cat(
        [torch.randn(20, generator=torch.Generator().manual_seed(0)) * 10.0**k for k in (-39, -3, 0, 30)]
    )
    for value in values:
        found = rounded(value.expand(1 << 16).contiguous(), ALL)
        # Every number drawn once: the mean is exact, in float64 over 65,536 values.
        assert found.double().mean().item() == pytest.approx(value.item(), rel=1e-12)
        low, high = found.float().unique().tolist()
        assert low < value < high
        assert high - low <= max(2.0**-7 * abs(value), 2.0**-133), "neighbours"


def test_exact_values_stay() -> None:
    """Breaks if a number that bfloat16 holds moves, a NaN becomes a number, or infinite becomes finite."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)  # all bfloat16 numbers
    number = every[~every.isnan()]
    for drawn in (0, 1, 0x7FFF, 0xFFFF):
        found = rounded(number.float(), torch.full(number.shape, drawn))
        assert torch.equal(found.view(torch.int16), number.view(torch.int16))
    # The NaNs whose bits would carry into infinity, or over the sign into zero.
    assert rounded(pattern(0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF), torch.full((3,), 0xFFFF)).isnan().all()
    # Beyond the largest bfloat16 number lies infinity, as for rounding to the nearest.
    assert rounded(pattern(0x7F7FFFFF), torch.tensor([0xFFFF])).isinf().all()
    assert rounded(pattern(0x7F7FFFFF), torch.tensor([0])).isfinite().all()


def one_tensor(
    config: RunConfig, start: Tensor, cuts: tuple[int, ...] = (), padding: int = 0
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """An optimiser of a tensor w that is cut into flat bfloat16 pieces, the last with padding; and the pieces."""
    ends = [*cuts, start.numel()]
    flats = [
        nn.Parameter(torch.cat([part, part.new_zeros(padding)]) if end == ends[-1] else part.clone())
        for part, end in zip(start.bfloat16().view(-1).tensor_split(cuts), ends, strict=True)
    ]
    spec = TensorSpec((start.numel(),), "w", "matrix")
    whole = nn.Parameter(start.bfloat16().view(-1))
    optimizer = with_rounding(build_optimizer({"w": whole}, {"w": spec}, config.optim), moments(config.optim), config)
    optimizer.param_groups[0]["params"] = flats
    for flat in flats:
        optimizer.state[flat] = zero_state(flat.detach(), config.optim)
    if isinstance(optimizer, StochasticRounding):
        starts = [0, *cuts]
        optimizer.know((f, Piece("w", s, 0, e - s)) for f, s, e in zip(flats, starts, ends, strict=True))
    return optimizer, flats


def updates(config: RunConfig, start: Tensor, gradients: Iterator[Tensor], **cut: Any) -> list[Tensor]:
    """The weights after each update of w, whole."""
    optimizer, flats = one_tensor(config, start, **cut)
    cuts, found = cut.get("cuts", ()), []
    for t, gradient in enumerate(gradients):
        for flat, part in zip(flats, gradient.bfloat16().tensor_split(cuts), strict=True):
            flat.grad = torch.cat([part, part.new_zeros(flat.numel() - part.numel())])
        set_step(optimizer, config, 0, config.optim.lr)
        optimizer.param_groups[0]["t"] = t  # η and λ are those of one update
        optimizer.step()
        found.append(torch.cat([flat.detach() for flat in flats])[: start.numel()].clone())
    return found


def noise(steps: int, n: int, size: float = 1.0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(n, generator=generator) * size for _ in range(steps))


@pytest.mark.parametrize("algorithm", ["adam", "sgd", "lion"])
@pytest.mark.parametrize("rule", ["decoupled", "l2_coupled"])
def test_any_cut_has_the_same_bits(
    algorithm: str, rule: str, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if what is drawn follows the ranks' pieces, DeepSpeed's padding or the slices; or repeats over updates or seeds."""
    fields = {"algorithm": algorithm, "decay_rule": rule, "lr": 1e-3, "weight_decay": 1.0, "grad_clip": 0.0}
    config = tiny_config(ONE_STAGE, {"optim": fields})
    start = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.05
    whole = updates(config, start, noise(5, 1000))
    cut = updates(config, start, noise(5, 1000), cuts=(17, 600), padding=24)
    monkeypatch.setattr("optim.stochastic.ROUNDED_AT_ONCE", 100)
    sliced = updates(config, start, noise(5, 1000))
    for step, (a, b, c) in enumerate(zip(whole, cut, sliced, strict=True)):
        assert torch.equal(a, b), f"update {step}, in pieces"
        assert torch.equal(a, c), f"update {step}, in slices"
    other = tiny_config(ONE_STAGE, {"optim": fields, "seeds": {"data": 1}})
    assert not torch.equal(updates(other, start, noise(1, 1000))[0], whole[0])


@pytest.mark.parametrize("algorithm", ["adam", "sgd", "lion"])
def test_nothing_moves_what_nothing_pulls(algorithm: str, tiny_config: Config) -> None:
    """Breaks if λ = 0 and a zero gradient move a weight: chance must only decide about what is between two numbers."""
    fields = {"algorithm": algorithm, "lr": 0.1, "weight_decay": 0.0, "grad_clip": 0.0}
    start = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    for weights in updates(tiny_config(ONE_STAGE, {"optim": fields}), start, iter([torch.zeros(1000)] * 5)):
        assert torch.equal(weights, start)


@pytest.mark.parametrize(
    "algorithm", ["adam", "sgd"]
)  # Lion's sign has no mean to keep where a moment is next to nothing
def test_updates_are_float32_on_the_average(algorithm: str, tiny_config: Config) -> None:
    """Breaks if a moment or a weight is rounded with a bias, or twice: the mean over seeds is then not float32's."""
    fields = {"algorithm": algorithm, "lr": 1e-3, "weight_decay": 0.5, "grad_clip": 0.0}
    start = (torch.randn(500, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    gradients, seeds = [g.bfloat16() for g in noise(3, 500)], 200
    exact, rounds = tiny_config({"optim": fields}), {"optim": fields}
    w = nn.Parameter(start.float())
    optimizer = build_optimizer({"w": w}, {"w": TensorSpec((500,), "w", "matrix")}, exact.optim)
    for gradient in gradients:
        w.grad = gradient.float()
        set_step(optimizer, exact, 0, 1e-3)
        optimizer.step()
    ends = torch.stack(
        [
            updates(tiny_config(ONE_STAGE, rounds, {"seeds": {"data": seed}}), start, iter(gradients))[-1].double()
            for seed in range(seeds)
        ]
    )
    # In standard errors of the mean over seeds: 500 elements, so the largest of 500 normal numbers.
    errors = (ends.mean(0) - w.detach().double()) / (ends.std(0) / math.sqrt(seeds)).clamp(min=1e-9)
    assert errors.abs().max() < 5
    assert abs(errors.mean()) < 5 / math.sqrt(500)
    assert abs((errors * start.sign().double()).mean()) < 5 / math.sqrt(500), "away from zero, or towards it"


def test_the_second_moment_can_fall(tiny_config: Config) -> None:
    """Breaks if Adam's second moment is rounded to the nearest number, where 1 − β₂ = 0.001 takes too little for it to fall."""
    optim = {"lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999], "grad_clip": 0.0}
    found = {}
    for precision in ("bf16-true", "bf16-stochastic"):
        config = tiny_config({"precision": precision, "parallel": {"zero_stage": 1}}, {"optim": optim})
        optimizer, (w,) = one_tensor(config, torch.zeros(1000))
        for t, size in enumerate([1.0] * 50 + [0.0] * 1000):
            w.grad = torch.full((1000,), size, dtype=torch.bfloat16)
            set_step(optimizer, config, 0, 1e-3)
            optimizer.param_groups[0]["t"] = t
            optimizer.step()
        found[precision] = optimizer.state[w]["exp_avg_sq"].double().mean().item()
    first = 1 - 0.999**50
    assert found["bf16-true"] > 0.8 * first, "the reason is gone: it may be rounded to the nearest"
    assert found["bf16-stochastic"] == pytest.approx(first * 0.999**1000, rel=0.02)


@pytest.mark.parametrize("algorithm", ["adam", "sgd", "lion"])
def test_a_decay_below_the_rounding(algorithm: str, tiny_config: Config) -> None:
    """Breaks if a decay of half of bfloat16's rounding is lost, or takes more or less than its part, where nothing else moves."""
    lr, decay, n, steps = 1e-3, 1.0, 4000, 400
    fields = {"algorithm": algorithm, "lr": lr, "weight_decay": decay, "grad_clip": 0.0}
    start = (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    ends = {}
    for precision in ("bf16-true", "bf16-stochastic"):
        config = tiny_config({"precision": precision, "parallel": {"zero_stage": 1}}, {"optim": fields})
        ends[precision] = updates(config, start, iter([torch.zeros(n)] * steps))[-1]
    assert torch.equal(ends["bf16-true"], start), "the reason of this precision"
    # Of each weight (1 − ηλ)^steps is left on the average. An update's error has a standard deviation of 2⁻⁸ of the weight at most.
    w = start.double()
    kept = ((ends["bf16-stochastic"].double() * w).sum() / w.square().sum()).item()
    error = math.sqrt(steps) * 2.0**-8 * (w.pow(4).sum().sqrt() / w.square().sum()).item()
    assert kept == pytest.approx((1 - lr * decay) ** steps, abs=4 * error)
    assert error < 0.004


@pytest.mark.slow
def test_equilibrium_below_the_rounding(tiny_config: Config) -> None:
    """Breaks if, at half of bfloat16's rounding, AdamW's weights settle elsewhere than float32's under noise."""
    lr, decay, n, steps = 1e-3, 1.0, 4000, 6000
    fields = {"lr": lr, "weight_decay": decay, "betas": [0.9, 0.99], "grad_clip": 0.0}
    start = torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02
    ends = updates(tiny_config(ONE_STAGE, {"optim": fields}), start, noise(steps, n))[-1000:]
    size = torch.stack([w.double().square().mean() for w in ends]).mean().sqrt().item()
    assert size == pytest.approx(rms_with_momentum(lr, decay, 0.9), rel=0.05)


@pytest.mark.engine
def test_the_same_chance_at_every_stage(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if ranks or the ZeRO stage change what is drawn: without a gradient all bits must be the same."""
    torch.set_num_threads(1)
    small = {"schedule": {"kind": "constant", "warmup_steps": 0, "steps": 4}, "optim": {"grad_clip": 0.0}}
    cases = [
        {"optim": {"algorithm": algorithm, "lr": 0.01, "weight_decay": 0.1}, "parallel": {"zero_stage": stage}}
        for algorithm in ("adam", "sgd", "lion")
        for stage in (1, 2, 3)
    ]
    configs = [tiny_config(small, {"precision": "bf16-stochastic"}, case) for case in cases]
    found = {ranks: run_ranks(ranks, ends_without_gradient, configs, tiny_data[1])[0] for ranks in (1, 2)}
    for number, case in enumerate(cases):
        first = found[1][number - number % 3][1]  # stage 1 on one rank
        for ranks in (1, 2):
            start, end = found[ranks][number]
            assert any(not torch.equal(end[name], start[name]) for name in end), "nothing was drawn"
            for name, tensor in end.items():
                assert torch.equal(tensor, first[name]), (case, ranks, name)


@pytest.mark.engine
def test_a_rank_of_padding_alone(tiny_data: tuple[Path, Manifest], tiny_config: Config) -> None:
    """Breaks if a rank whose part of a group is nothing but padding draws for it, as of a group of one element on two ranks."""
    torch.set_num_threads(1)
    small = {"schedule": {"kind": "constant", "warmup_steps": 0, "steps": 2}, "precision": "bf16-stochastic"}
    model = {"model": {"head_scale": True, "layernorm_gain": False}}
    configs = [tiny_config(small, model, {"parallel": {"zero_stage": stage}}) for stage in (1, 2, 3)]
    for start, end in run_ranks(2, ends_without_gradient, configs, tiny_data[1])[0]:
        assert start["head_scale.weight"].numel() == 1
        assert any(not torch.equal(end[name], start[name]) for name in end)


def test_said_by_the_plan(tiny_config: Config) -> None:
    """Breaks if the plan warns of a decay, or of gains, that chance keeps; or says nothing where they are lost."""
    optim = {"optim": {"lr": 1e-3, "weight_decay": 0.1}}
    for precision, count in (("bf16-true", 2), ("bf16-stochastic", 0)):
        config = tiny_config({"precision": precision, "parallel": {"zero_stage": 1}}, optim)
        said = [text for text in make_plan(config, 1, None).cautions if "bf16-stochastic" in text]
        assert len(said) == count, (precision, said)
