"""Where each rule takes weights that move under noise alone: root mean square and rotation against what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.equilibrium import rms_with_momentum, rotation
from configs.schema import RunConfig
from configs.tensors import TensorSpec
from optim.algorithms import build_optimizer, zero_state
from optim.parameter_groups import set_step
from optim.rules import Pieces, rule_of

LR, DECAY, SIDE, STEPS, SETTLED = 0.01, 0.5, 200, 1600, 1000  # eight time constants 1/(ηλ) of 200 updates


def under_noise(config: RunConfig, dtype: torch.dtype) -> tuple[float, float]:
    """Root mean square and rotation per update (radians) of one tensor, whole on one rank, over the updates after SETTLED."""
    start = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.1
    w, rule = nn.Parameter(start.to(dtype)), rule_of(config.optim)
    optimizer = build_optimizer({"w": w}, {"w": TensorSpec((SIDE, SIDE), "mlp.fc", "matrix")}, config.optim)
    optimizer.state[w] = zero_state(w.detach(), config.optim)
    pieces, taken = one_tensor(config, w, optimizer), []
    generator = torch.Generator().manual_seed(1)
    for t in range(STEPS):
        before = w.detach().double()
        gradient = torch.randn(SIDE, SIDE, generator=generator).to(dtype)
        w.grad = gradient
        set_step(optimizer, config, 0, LR)
        kept = rule.before_step(pieces, [gradient.view(-1)], t)
        optimizer.step()
        rule.after_step(pieces, kept, t)
        if t >= SETTLED:
            after = w.detach().double()
            cosine = (before * after).sum() / (before.norm() * after.norm())
            taken.append((after.square().mean().sqrt().item(), math.acos(min(1.0, cosine.item()))))
    sizes, angles = zip(*taken, strict=True)
    return sum(sizes) / len(sizes), sum(angles) / len(angles)


def one_tensor(config: RunConfig, w: nn.Parameter, optimizer: torch.optim.Optimizer) -> Pieces:
    """What a rule sees where a single tensor is the model."""

    def of_each(reduce: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor]], dict[str, float]]:
        return lambda tensors: {"w": reduce(tensors[0].double()).item()}

    return Pieces(
        config=config,
        names=["w"],
        starts=[0],
        weights=[w.detach().view(-1)],
        groups=optimizer.param_groups,
        group_of={"w": optimizer.param_groups[0]},
        sizes={"w": w.numel()},
        numbers={},
        moment=lambda kind: [optimizer.state[w][kind].view(-1)],
        sums=of_each(torch.sum),
        square_norms=of_each(lambda tensor: tensor.square().sum()),
        step=lambda: int(optimizer.state[w]["step"].item()),
    )


def predicted(decay: float) -> tuple[float, float]:
    """AdamW's equilibrium at that λ."""
    return rms_with_momentum(LR, decay, 0.9), rotation(LR, decay, 0.9)


# How often a step moves a weight towards zero: less than half of the time, since it goes on in the direction that made the weight.
# u and w are nearly normal, with correlation RHO in equilibrium; the share is that of two normal numbers of one sign. Of cautious
# decay itself no such number is known: its mask remembers as long as u does, and by its choice weights settle a tenth larger.
RMS = predicted(DECAY)[0]
RHO = -LR * math.sqrt(0.1 / 1.9) * 0.9 / ((1 - 0.9 * (1 - LR * DECAY)) * RMS)
TOWARDS_ZERO = 0.5 + math.asin(RHO) / math.pi
FIRST = 0.1  # the root mean square that the weights begin at
EQUILIBRIA: list[tuple[dict[str, Any], tuple[float, float]]] = [
    ({"decay_rule": "decoupled", "weight_decay": DECAY}, predicted(DECAY)),
    ({"decay_rule": "independent", "weight_decay": LR * DECAY}, predicted(DECAY)),
    ({"decay_rule": "corrected", "weight_decay": DECAY}, predicted(DECAY)),
    # The gradients have size 1, and so has √v̄.
    ({"decay_rule": "swd", "weight_decay": DECAY}, predicted(DECAY)),
    ({"decay_rule": "cautious_random", "weight_decay": DECAY / TOWARDS_ZERO}, predicted(DECAY)),
    ({"decay_rule": "rotational", "weight_decay": DECAY}, (FIRST, rotation(LR, DECAY, 0.9))),
    ({"decay_rule": "hyperball", "weight_decay": 0.0}, (FIRST, LR)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "expected"), EQUILIBRIA, ids=[fields["decay_rule"] for fields, _ in EQUILIBRIA])
def test_equilibrium(
    fields: dict[str, Any], expected: tuple[float, float], tiny_config: Callable[..., RunConfig]
) -> None:
    """Breaks if a rule's weights settle at another size, or turn by another angle, than its law says, in some precision."""
    constant = {"schedule": {"kind": "constant", "warmup_steps": 0}}
    config = tiny_config(constant, {"optim": {"lr": LR, "betas": [0.9, 0.99]} | fields})
    assert under_noise(config, torch.float32) == pytest.approx(expected, rel=0.05)
    if rule_of(config.optim).rounds_once:  # else it is refused with bfloat16 masters
        size, _ = under_noise(config, torch.bfloat16)
        assert size == pytest.approx(expected[0], rel=0.05)
