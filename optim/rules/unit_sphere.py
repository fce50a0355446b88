"""The sphere: no decay; all trainable parameters, as one vector, are scaled back to norm 1 after each step (P1, 2310.04415).

Projected gradient descent, for networks whose outputs do not depend on the size of their weights (model.scale_invariant): only the
direction of the whole vector is learned then, and η alone says how far it turns. No λ, and no mask: a tensor may grow while others
shrink. P1's code projects once an epoch; here each step does, so that η is the same on all of an epoch. The start is scaled too,
before the first gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from configs.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w ← w/‖w‖ after the step and at the start, w all trainable tensors as one vector; no λ (2310.04415)"
INSIDE = ""
USES_DECAY = False
# A norm nearer to 1 than a rounding of float32 is 1: a factor so near to 1 could only round the weights once more.
ROUNDING = 2.0**-23
NEAR = 1e-3  # how far from 1 a trunk's norm may lie: averages over many roundings stay far below it


def on_start(initial: dict[str, Tensor]) -> None:
    norm = math.sqrt(sum(tensor.double().square().sum().item() for tensor in initial.values()))
    for tensor in initial.values():
        tensor.copy_(tensor.double() / norm)


def on_branch(norms: dict[str, float]) -> None:
    # A trunk that was elsewhere would be scaled by its whole norm at once, in its first update, and its moments be of another size.
    if abs(norms[""] - 1) > NEAR:
        raise InputError(
            "optim.decay_rule sphere in a branch whose trunk is not on the sphere: its weights, as one vector, have norm "
            f"{norms['']:.4g}, expected 1; branch from a run of decay_rule sphere, or leave branch out: other runs start on it"
        )


def after_step(pieces: Pieces, kept: None, t: int) -> None:
    # Each tensor's norm is asked for, and all tensors are one vector. The same number on all ranks.
    norm = math.sqrt(math.fsum(pieces.square_norms(pieces.weights).values()))
    if abs(norm - 1) > ROUNDING:
        for weight in pieces.weights:
            weight.mul_(1 / norm)
