"""Adam and AdamW (Kingma and Ba, 1412.6980; Loshchilov and Hutter, 1711.05101): torch's own, fused.

AdamW: w ← w·(1 − ηλ), then w ← w − η·m̂/(√v̂ + ε). Where the decay rule is coupled, λw is added to the gradient first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from configs.schema import Optim
from optim.rules import rule_of

ABOUT = "moments of the gradient and of its square (1412.6980), decay as the rule says"


def moments(config: Optim) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


def build(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """η is set before each step. torch's Adam adds λw to the gradient, its AdamW multiplies the weights."""
    # Both fused: one pass over the weights, computed in float32 and rounded once, also for bfloat16 weights.
    kind = torch.optim.Adam if rule_of(config).inside == "coupled" else torch.optim.AdamW
    return kind(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def counts(flat: Tensor) -> dict[str, Tensor]:
    """Adam's step, for the correction of its bias: a number per tensor, float32 as the fused kernel wants it."""
    return {"step": torch.zeros((), dtype=torch.float32, device=flat.device)}


def rounds_once(optimizer: torch.optim.Optimizer) -> bool:
    """Whether decay and step are rounded together: the fused kernel computes both in float32."""
    return all(group.get("fused") for group in optimizer.param_groups)
