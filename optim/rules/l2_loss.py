"""L2 regularisation as P1 compares it with AdamW (2310.04415): λ_t·‖w‖² is part of the loss.

Its gradient 2·λ_t·w is added in closed form, before the gradient is clipped, and is seen by the gradient norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "loss + λ_t·‖w‖²: g ← g + 2·λ_t·w before clipping (2310.04415)"
INSIDE = ""
ROUNDS_ONCE = (
    True  # what is added to a gradient is rounded in the step; where gradients are bfloat16 the plan refuses it
)


def on_gradients(pieces: Pieces, gradients: list[Tensor]) -> None:
    # The gradient of λ_t·‖w‖², without a pass through autograd: exact, and no copy of the weights.
    for gradient, weight, group in zip(gradients, pieces.weights, pieces.groups, strict=True):
        gradient.add_(weight, alpha=2 * group["decay"])
