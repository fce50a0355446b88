"""AdamW over a checked partition of the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from configs.cost import decay_groups
from configs.schema import Optim

MOMENTS = ("exp_avg", "exp_avg_sq")  # per-element state, in the names of torch.optim.AdamW


def parameter_groups(named: dict[str, nn.Parameter], config: Optim) -> list[dict[str, Any]]:
    """Optimiser groups with their λ: every tensor in exactly one, the same partition for every λ.

    Tied weights appear once, as named_parameters gives them. Raises ValueError if the mask matches nothing.
    """
    groups = decay_groups({name: tuple(p.shape) for name, p in named.items()}, config.decay_mask)
    grouped = sorted(name for names in groups.values() for name in names)
    assert grouped == sorted(named), "the groups must partition the parameters"
    return [
        {
            "name": group,
            "parameter_names": names,
            "params": [named[name] for name in names],
            "weight_decay": config.weight_decay if group == "decayed" else 0.0,
        }
        for group, names in groups.items()
    ]


def build_optimizer(named: dict[str, nn.Parameter], config: Optim) -> torch.optim.AdamW:
    """torch's fused AdamW (Loshchilov and Hutter, 1711.05101); η is set before each step.

    p ← p(1 − ηλ), then p ← p − η·m̂/(√v̂ + ε).
    """
    return torch.optim.AdamW(parameter_groups(named, config), lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def zero_state(flat: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step, as the optimiser itself would create it: zero moments, step 0."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=flat.device),
        **{key: torch.zeros_like(flat, memory_format=torch.preserve_format) for key in MOMENTS},
    }
