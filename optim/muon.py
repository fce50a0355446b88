"""Muon (Jordan, 2024) with decay (Liu et al., 2502.16982): each matrix moves along its momentum with all singular values near one.

M ← μM + (1−μ)g, W ← (1 − ηλ)·W − η·0.2·√max(d_in, d_out)·O, O ≈ UVᵀ of μM + (1−μ)g = USVᵀ, by five Newton–Schulz steps in
bfloat16. The factor gives the step the root mean square of AdamW's, so that one η serves both: embeddings, head, gains and
biases take AdamW. torch's own Muon and AdamW do the arithmetic. It needs whole matrices, so ZeRO stage 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def rounds_once(optimizer: torch.optim.Optimizer) -> bool:
    """Never asked in earnest: at ZeRO stage 0 masters are float32."""
    return False


class Muon(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimiser: the same groups, by their `family`, and one state."""

    def __init__(self, groups: list[dict[str, Any]], config: Optim) -> None:
        super().__init__(groups, {})
        kinds = {
            "muon": lambda own: torch.optim.Muon(own, lr=0.0, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"),
            "adamw": lambda own: torch.optim.AdamW(own, lr=0.0, betas=config.betas, eps=config.eps, fused=True),
        }
        self.both: list[torch.optim.Optimizer] = []
        for family, build in kinds.items():
            own = [group for group in self.param_groups if group["family"] == family]
            if own:
                one = build(own)
                # torch copies groups and keeps a state of its own. η and λ are set in ours, and checkpoints read our state: so the
                # inner optimisers are given these, completed with what they expect to find in a group.
                for ours, theirs in zip(own, one.param_groups, strict=True):
                    ours |= {name: value for name, value in theirs.items() if name not in ours}
                one.param_groups, one.state = own, self.state
                self.both.append(one)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group."""
        assert closure is None, "DeepSpeed gives none"
        for one in self.both:
            one.step()
