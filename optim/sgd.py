"""SGD whose decay is not lost in bfloat16: torch's own for float32 weights, one rounding a step for bfloat16 ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from configs.schema import Optim
from optim.rules import rule_of

ABOUT = "the gradient, or its moving sum with optim.momentum, times η; decay as the rule says"
CHUNK = 1 << 22  # elements whose float32 copies are held at once


def moments(config: Optim) -> tuple[str, ...]:
    return ("momentum_buffer",) if config.momentum else ()


def build(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """η is set before each step. Not torch's fused SGD: on CPUs it leaves bfloat16 parameters as they are (pytorch#191763)."""
    return SGD(groups, config.momentum, rule_of(config).inside == "decoupled")


def rounds_once(optimizer: torch.optim.Optimizer) -> bool:
    """Always: see SGD."""
    return True


class SGD(torch.optim.SGD):
    """m ← μm + g + λ'w, w ← (1 − ηλ)w − ηm; λ is the group's `decay` where the rule is decoupled, λ' its `weight_decay`.

    Half a unit in the last place of a bfloat16 number is 2⁻⁹ … 2⁻⁸ of it. A decay that is a multiplication of its own
    rounds back to w where ηλ is smaller, and λ'w added to a bfloat16 gradient rounds back to g where it is smaller than
    that part of g. torch's SGD does the second, and on a CPU rounds η itself to bfloat16. So for bfloat16 weights the
    update is computed in float32, and m and w are rounded once each. For float32 weights the bits are torch's.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, decoupled: bool) -> None:
        super().__init__(groups, lr=0.0, momentum=momentum)
        self.decoupled = decoupled

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group; DeepSpeed calls it once per group, with flat pieces (engine/fragments.py)."""
        assert closure is None, "DeepSpeed gives none"
        # Decay and step rounded together where weights are bfloat16; else torch's own step, after the decay.
        weights = [p for group in self.param_groups for p in group["params"]]
        if any(p.dtype == torch.bfloat16 for p in weights):
            for group in self.param_groups:
                for p in group["params"]:
                    self._round_once(p, group)
            return
        if self.decoupled:
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["decay"])
        super().step()

    def _round_once(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        # Of the weights this much is kept; λ′w is added to the gradient where the rule is coupled.
        keep = 1 - group["lr"] * group["decay"] if self.decoupled else 1.0
        momentum, buffer = group["momentum"], None
        if momentum:
            state = self.state[p]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].view(-1)
        # A slice at a time, or the float32 copies would be as large as the model.
        weights, gradients = p.view(-1), p.grad.view(-1)
        for start in range(0, p.numel(), CHUNK):
            here = slice(start, start + CHUNK)
            w = weights[here].float()
            m = gradients[here].float().add_(w, alpha=group["weight_decay"])
            if buffer is not None:
                m.add_(buffer[here].float(), alpha=momentum)
                buffer[here] = m
            weights[here] = w.mul_(keep).sub_(m, alpha=group["lr"])
