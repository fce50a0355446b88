"""L2 regularisation as P1 compares it with AdamW (2310.04415): λ_t·‖w‖² is part of the loss.

Its gradient 2·λ_t·w is added in closed form, before the gradient is clipped, and is seen by the gradient norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ABOUT = "loss + λ_t·‖w‖²: g ← g + 2·λ_t·w before clipping (2310.04415)"
STAGES = (0, 1, 2, 3)


def in_optimizer(decay: float, algorithm: str) -> float:
    return 0.0


@torch.no_grad()
def on_gradients(gradients: list[Tensor], weights: list[Tensor], groups: list[dict[str, Any]]) -> None:
    # The gradient of λ_t·‖w‖², without a pass through autograd: exact, and no copy of the weights.
    for gradient, weight, group in zip(gradients, weights, groups, strict=True):
        gradient.add_(weight, alpha=2 * group["decay"])
