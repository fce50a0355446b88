"""Muon (Jordan, 2024) with decay (Liu et al., 2502.16982): each matrix moves along its momentum with all singular values near one.

M ← μM + (1−μ)g, W ← (1 − ηλ)·W − η·0.2·√max(d_in, d_out)·O, O ≈ UVᵀ of μM + (1−μ)g = USVᵀ, by five Newton–Schulz steps in
bfloat16. The factor gives the step the root mean square of AdamW's, so that one η serves both: embeddings, head, gains and
biases take AdamW. At ZeRO stage 0 torch's own Muon and AdamW do the arithmetic. At the others a rank steps pieces of matrices:
engine/matrices.py makes each whole at one rank and turns gradients into steps there, by the functions below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from configs.noise_steps import MUON_RMS, NEWTON_SCHULZ, ROUNDS
from configs.schema import Optim
from configs.tensors import TensorSpec, is_hidden_matrix

ABOUT = "an orthogonal matrix along the momentum times η, AdamW for what is no hidden matrix (2502.16982)"


def family(tensor: TensorSpec) -> str:
    """By which of the two a tensor is updated."""
    return "muon" if is_hidden_matrix(tensor) else "adamw"


def moments(config: Optim, family: str = "") -> tuple[str, ...]:
    """Of a family, or of both together."""
    kinds = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
    return kinds.get(family, ("momentum_buffer", "exp_avg", "exp_avg_sq"))


def build(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """η is set before each step."""
    return Muon(groups, config)


def counts(flat: Tensor, family: str = "") -> dict[str, Tensor]:
    """AdamW's step; Muon counts none."""
    return {} if family == "muon" else {"step": torch.zeros((), dtype=torch.float32, device=flat.device)}


def direction(momentum: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Move M, any shape, on by a gradient; μM + (1−μ)g of the new M, in bfloat16, as Newton–Schulz takes it."""
    momentum.lerp_(gradient, 1 - rate)
    return gradient.lerp(momentum, rate).bfloat16()


def orthogonal(matrix: Tensor) -> Tensor:
    """O of a bfloat16 matrix (m, n), to the bits of torch.optim.Muon."""
    a, b, c = NEWTON_SCHULZ
    # The Gram matrix is of the shorter side: fewer products.
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)  # torch's ε: a matrix of zeros stays one
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def factor(shape: tuple[int, ...]) -> float:
    """What O is multiplied by, beside η."""
    return MUON_RMS * float(max(shape)) ** 0.5


class Muon(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimiser: the same groups, by their `family`, and one state."""

    def __init__(self, groups: list[dict[str, Any]], config: Optim) -> None:
        super().__init__(groups, {})
        kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
            "muon": lambda own: torch.optim.Muon(own, lr=0.0, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"),
            "adamw": lambda own: torch.optim.AdamW(own, lr=0.0, betas=config.betas, eps=config.eps, fused=True),
        }
        self.both: dict[str, torch.optim.Optimizer] = {}
        for family, build in kinds.items():
            own = [group for group in self.param_groups if group["family"] == family]
            if own:
                self.both[family] = build(own)
                # torch copies groups. η and λ are set in ours: they are completed with what torch expects to find in a group.
                for ours, theirs in zip(own, self.both[family].param_groups, strict=True):
                    ours |= {name: value for name, value in theirs.items() if name not in ours}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group; DeepSpeed calls it once per group at ZeRO stages 1–3, with flat pieces."""
        assert closure is None, "DeepSpeed gives none"
        for group in self.param_groups:
            if group["family"] == "muon" and all(p.dim() == 1 for p in group["params"]):
                for p in group["params"]:
                    # The gradient is the step already (engine/matrices.py). In torch's order: decay, then step.
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(p.grad, alpha=-group["lr"])
                continue
            # The inner optimiser steps our group and keeps its state in ours, where checkpoints read it.
            one = self.both[group["family"]]
            one.param_groups, one.state = [group], self.state
            one.step()
