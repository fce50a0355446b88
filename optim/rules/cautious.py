"""Cautious weight decay (2510.12402): a weight decays only where the optimiser's step moves it towards zero, or not at all.

w ← w − η_t·(u + λ_t·1[u ⊙ w ≥ 0] ⊙ w), u the optimiser's step, which has the sign of its first moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w ← w − η_t λ_t·1[u ⊙ w ≥ 0] ⊙ w, u the optimiser's step (2510.12402)"
INSIDE = ""
ALGORITHMS = ("adam", "sgd")
MOVES_FIRST = True


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> None:
    # Before the step: u does not depend on w, so the order does not matter, and no copy of w is needed.
    for weight, group, shrinks in zip(pieces.weights, pieces.groups, shrinking(pieces, gradients), strict=True):
        if group["decay"]:
            weight.sub_(weight * shrinks, alpha=group["lr"] * group["decay"])


def shrinking(pieces: Pieces, gradients: list[Tensor]) -> Iterator[Tensor]:
    """Where the coming step moves each weight towards zero or not at all, bool (n,), a piece at a time."""
    optim = pieces.config.optim
    if optim.algorithm == "adam":
        keep, kind, share = optim.betas[0], "exp_avg", 1 - optim.betas[0]
    else:
        keep, kind, share = optim.momentum, "momentum_buffer", 1.0
    # SGD without momentum keeps no moment: its step is the gradient's.
    moments = pieces.moment(kind) if keep or optim.algorithm == "adam" else gradients
    for weight, gradient, moment in zip(pieces.weights, gradients, moments, strict=True):
        # The moment of the update to come; m̂ and √v̂ + ε change no sign.
        step = gradient if moment is gradient else keep * moment + share * gradient
        yield step * weight >= 0
