"""The formulas of the equilibrium under noise: their limits, and measurements of AdamW, Lion, SGD and Muon's steps."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.markdown import read_result
from benchmarks.noise_equilibrium import LR, PRECISIONS, RESULT, cells, chance, measure, measured, predicted, setting
from configs.equilibrium import rotation, settled, settled_coupled
from configs.noise_steps import NEWTON_SCHULZ, ROUNDS, lion, muon, sgd, two_rates

pytestmark = pytest.mark.slow  # by its length alone: `make check` takes a minute

NEAR = 0.05
QUICK = [("decoupled", "adam"), ("decoupled", "lion"), ("l2_coupled", "sgd")]
OTHERS = [  # in every precision that the rule is allowed in
    (*cell, precision)
    for cell in sorted(c for c in set(cells()) - set(QUICK) if c[1] == "adam")
    for precision in PRECISIONS
    if setting(*cell, precision) is not None
]


def assert_settles(rule: str, algorithm: str, precision: str) -> None:
    row = measure(rule, algorithm, precision)
    assert row is not None, "refused, so nothing was measured"
    assert row["ratios"] == pytest.approx([1.0] * len(row["ratios"]), abs=near(rule, algorithm)), row


def near(rule: str, algorithm: str) -> float:
    """How far a measurement may lie from its law: a growth by three times what chance does to it, at most 16 %."""
    return 3 * chance(algorithm) if rule == "selective_projection" else NEAR


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rule", "algorithm"), QUICK)
def test_equilibrium(rule: str, algorithm: str, precision: str) -> None:
    """Breaks if AdamW, Lion or SGD takes weights to another size, or turns them by another angle, than its formula says: in
    float32, in bfloat16, or in bfloat16 that is rounded by chance."""
    assert_settles(rule, algorithm, precision)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "algorithm", "precision"), OTHERS)
def test_equilibrium_of_each_rule(rule: str, algorithm: str, precision: str) -> None:
    """Breaks if some rule settles elsewhere than its law says, with Adam, in some precision that it is allowed in.

    With the other algorithms python -m benchmarks.noise_equilibrium measures it, in minutes; the test below reads what it found.
    """
    assert_settles(rule, algorithm, precision)


@pytest.mark.parametrize("along", [0.3, -1.0])
def test_rotational_turns_by_its_angle_alone(along: float) -> None:
    """Breaks if a part of the gradient along the weights, which turns nothing, is counted in the size of the step."""
    config = setting("rotational", "adam", "fp32")
    assert config is not None
    _, turned, _ = measured(config, (100, 100), 0.13, along)
    assert turned == pytest.approx(
        rotation(config.optim.lr, config.optim.weight_decay, config.optim.betas[0]), rel=0.02
    )


@pytest.mark.parametrize("rule", ["norm_projection", "hyperball", "rotational"])
def test_what_began_at_zero_moves(rule: str) -> None:
    """Breaks if a tensor without a first norm, as a bias, is held at zero, or moves otherwise than by the plain step."""
    plain, held = (setting(name, "adam", "fp32") for name in ("decoupled", rule))
    assert plain is not None
    assert held is not None
    plain = plain.model_copy(update={"optim": plain.optim.model_copy(update={"weight_decay": 0.0})})
    assert measured(held, (10, 10), 0.0) == pytest.approx(measured(plain, (10, 10), 0.0), rel=1e-6)


def test_table_is_of_todays_formulas() -> None:
    """Breaks if the committed measurements lack a cell, or lie farther from what the formulas say today than `near`."""
    rows = read_result(RESULT)["rows"]
    assert [(row["rule"], row["algorithm"], row["precision"]) for row in rows] == [
        (*cell, precision) for cell in cells() for precision in PRECISIONS if setting(*cell, precision)
    ]
    for row in rows:
        law = predicted(row["rule"], row["algorithm"])
        within = near(row["rule"], row["algorithm"])
        assert row["ratios"] == pytest.approx([1.0] * (2 if law else 1), abs=within), row
        if law is not None:
            assert [row["rms"] / law[0], row["rotation"] / law[1]] == pytest.approx(row["ratios"], rel=1e-6)


def test_limits() -> None:
    """Breaks if the general law is not AdamW's or SGD's in their limit, or Lion's is not the published one where ηλ is far below
    1 − β₂: √(πηλ·E c²/σ²), which leaves out the cubes of the correlations, worth half a percent."""
    steps = lion(0.9, 0.99, 0.3)
    published = math.sqrt(math.pi * 1e-7 * two_rates(0.9, 0.99)[0])
    assert settled(steps, 1e-3, 1e-4)[1] == pytest.approx(published, rel=0.02)
    assert settled(steps, LR, 0.5)[1] > 1.13 * math.sqrt(math.pi * LR * 0.5 * two_rates(0.9, 0.99)[0])
    for decay in (1e-3, 0.1):
        size, angle = settled(sgd(0.9, 0.3), LR, decay)
        assert angle == pytest.approx(rotation(LR, decay, 0.9), rel=0.01)
        assert size == pytest.approx(math.sqrt(LR * 0.09 / (2 * decay)) / 0.1, rel=0.01)
        size, angle = settled_coupled(sgd(0.9, 0.3), LR, decay)
        assert angle == pytest.approx(math.sqrt(2 * LR * decay / 1.9), rel=0.01)
        assert size == pytest.approx(math.sqrt(LR * 0.09 / (2 * decay * 0.1)), rel=1e-9)


def test_sgds_coupled_decay_is_a_recursion() -> None:
    """Breaks if the coupled law differs from the exact variance of w'' = (1+μ−ηλ)w' − μw − ηg beyond its stated order."""
    lr, decay, momentum, noise = 0.01, 0.05, 0.9, 0.5
    one, two = 1 + momentum - lr * decay, -momentum
    exact = lr**2 * noise**2 * (1 - two) / ((1 + two) * ((1 - two) ** 2 - one**2))
    size, angle = settled_coupled(sgd(momentum, noise), lr, decay)
    assert size == pytest.approx(math.sqrt(exact), rel=1e-3)
    assert angle == pytest.approx(math.acos(one / (1 - two)), rel=1e-3)


@pytest.mark.parametrize("shape", [(96, 96), (48, 144)])
def test_likeness_of_orthogonal_steps(shape: tuple[int, int]) -> None:
    """Breaks if Muon's correlations are not those of Newton–Schulz on two correlated noise matrices, or torch's polynomial is
    another than the formula's."""
    generator, rate = torch.Generator().manual_seed(0), 0.95
    steps = muon(shape, rate, 1.0)
    first = two_rates(rate**2, rate)[1]
    one, other = (torch.randn(shape, generator=generator) for _ in range(2))
    for k in (1, 8, 40):
        rho = first * rate ** (k - 1)
        pair = [polynomial(x) for x in (one, rho * one + math.sqrt(1 - rho**2) * other)]
        known = sum(start * decay ** (k - 1) for start, decay in steps.memory)
        scale = 0.04 * max(shape) / one.numel()
        assert scale * (pair[0] * pair[1]).sum().item() == pytest.approx(known, rel=0.03, abs=0.02 * steps.power)
        assert scale * pair[0].square().sum().item() == pytest.approx(steps.power, rel=0.03)
    torchs = torch.optim.Muon([torch.nn.Parameter(one)], lr=0.0).param_groups[0]
    assert (torchs["ns_coefficients"], torchs["ns_steps"], torchs["nesterov"]) == (NEWTON_SCHULZ, ROUNDS, True)


def polynomial(x: torch.Tensor) -> torch.Tensor:
    """torch's Newton–Schulz polynomial, through the singular value decomposition."""
    u, s, v = torch.linalg.svd(x / x.norm(), full_matrices=False)
    for _ in range(ROUNDS):
        s = s * (NEWTON_SCHULZ[0] + NEWTON_SCHULZ[1] * s**2 + NEWTON_SCHULZ[2] * s**4)
    return (u * s) @ v
