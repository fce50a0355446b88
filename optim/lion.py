"""Lion (Chen et al., 2302.06675): the sign of an interpolated moment, so that every weight moves by η.

c = β₁m + (1−β₁)g, w ← (1 − ηλ)·w − η·sign(c), m ← β₂m + (1−β₂)g. The paper's β are 0.9 and 0.99, its η a third to a tenth of
Adam's, its λ larger by as much.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from configs.schema import Optim
from optim.rules import rule_of
from optim.sgd import CHUNK

ABOUT = "the sign of an interpolated moment times η (2302.06675), decay as the rule says"


def moments(config: Optim) -> tuple[str, ...]:
    return ("exp_avg",)


def build(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """η is set before each step. torch has no Lion."""
    return Lion(groups, config.betas, rule_of(config).inside == "decoupled")


def rounds_once(optimizer: torch.optim.Optimizer) -> bool:
    """Always: decay and step are computed in float32 and rounded together."""
    return True


class Lion(torch.optim.Optimizer):
    """λ is the group's `decay` where the rule is decoupled; where it is coupled, `weight_decay` times w is added to g."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], decoupled: bool) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.betas, self.decoupled = betas, decoupled

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group; DeepSpeed calls it once per group, with flat pieces (engine/fragments.py)."""
        assert closure is None, "DeepSpeed gives none"
        for group in self.param_groups:
            # Of the weights this much is kept, in the same rounding as the step.
            keep = 1 - group["lr"] * group["decay"] if self.decoupled else 1.0
            for p in group["params"]:
                assert p.grad is not None
                state = self.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(p)
                weights, gradients, moments = p.view(-1), p.grad.view(-1), state["exp_avg"].view(-1)
                # A slice at a time, or the float32 copies of bfloat16 weights would be as large as the model.
                for start in range(0, p.numel(), CHUNK):
                    here = slice(start, start + CHUNK)
                    self._slice(weights[here], gradients[here], moments[here], group, keep)

    def _slice(self, weight: Tensor, gradient: Tensor, moment: Tensor, group: dict[str, Any], keep: float) -> None:
        # For float64 and float32 weights these are the tensors themselves or their kind; bfloat16 is computed in float32.
        kind = torch.promote_types(weight.dtype, torch.float32)
        w, m = weight.to(kind), moment.to(kind)
        g = gradient.to(kind).add(w, alpha=group["weight_decay"])
        beta1, beta2 = self.betas
        step = (beta1 * m).add_(g, alpha=1 - beta1).sign_()
        moment.copy_((beta2 * m).add_(g, alpha=1 - beta2))
        weight.copy_((keep * w).sub_(step, alpha=group["lr"]))
