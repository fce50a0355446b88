"""Norm projection: no decay; each tensor is scaled back to its first norm (Normalize-and-Project, 2407.01800; FixNorm, 2103.15345).

Every optim.projection_every updates, w ← w·ρ/‖w‖ for each tensor of the mask, ρ its norm at the start of the run. An effective
learning rate that cannot drift, without a λ. model.head_scale gives the output layer a scale of its own, as FixNorm does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w ← w·ρ/‖w‖ after the step, ρ the tensor's first norm; no λ (2407.01800, 2103.15345)"
INSIDE = ""
USES_DECAY = False


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> None:
    first_norms(pieces)


def after_step(pieces: Pieces, kept: None, t: int) -> None:
    # By the run's own updates, so that a resumed run projects where the whole one does.
    if (t + 1) % pieces.config.optim.projection_every:
        return
    to_first_norms(pieces)


def first_norms(pieces: Pieces) -> dict[str, float]:
    """‖w‖ of each tensor when this was first asked: at the start of the run, or of a branch whose trunk kept none."""
    # All ranks ask in the same update, so that the sum over ranks is one for all.
    if "first_norm" not in pieces.numbers:
        squares = pieces.square_norms(pieces.weights)
        pieces.numbers["first_norm"] = {name: square**0.5 for name, square in squares.items()}
    return pieces.numbers["first_norm"]


def to_first_norms(pieces: Pieces, only_decaying: bool = False) -> None:
    """Scale each tensor of the mask to its first norm, or each that has a λ. Collective."""
    targets, squares = first_norms(pieces), pieces.square_norms(pieces.weights)
    for weight, group, name in zip(pieces.weights, pieces.groups, pieces.names, strict=True):
        # A tensor that began at zero has no direction to keep.
        if group["decay" if only_decaying else "masked"] and squares[name] > 0:
            weight.mul_(targets[name] / squares[name] ** 0.5)
