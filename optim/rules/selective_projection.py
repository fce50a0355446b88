"""Selective projection decay (2411.01713), its anchor at zero: a tensor is drawn back where it grows against its gradient.

w̃ the weights after the optimiser's step. If ⟨g, w⟩ > 0, so that to shrink w would lower the loss, w ← (1 − λ_t·r)·w̃ with
r = (‖w̃‖ − ‖w‖)/‖w̃‖ between 0 and 1: the share by which the step made it grow. λ_t = 1 undoes the growth. η_t is no part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w ← (1 − λ_t·r)·w after the step where ⟨g, w⟩ > 0, r the share by which the tensor grew (2411.01713)"
INSIDE = ""


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> tuple[dict[str, float], dict[str, float]]:
    # Of the gradient as it is clipped: its sign is what counts. One product at a time, so that no copy of all weights is held.
    products = (g * w for g, w in zip(gradients, pieces.weights, strict=True))
    return pieces.sums(products), pieces.square_norms(pieces.weights)


def after_step(pieces: Pieces, kept: tuple[dict[str, float], dict[str, float]], t: int) -> None:
    products, before = kept
    after = pieces.square_norms(pieces.weights)
    for weight, group, name in zip(pieces.weights, pieces.groups, pieces.names, strict=True):
        if group["decay"] and products[name] > 0 and after[name] > before[name]:
            # r: a share of the tensor after the step; λ_t = 1 takes all of the growth back.
            grown = 1 - (before[name] / after[name]) ** 0.5
            weight.mul_(1 - group["decay"] * grown)
