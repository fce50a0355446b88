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
KEEPS = {"first_norm": "weights"}


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> None:
    first_norms(pieces)


def after_step(pieces: Pieces, kept: None, t: int) -> None:
    # By the run's own updates, so that a resumed run projects where the whole one does.
    if (t + 1) % pieces.config.optim.projection_every:
        return
    to_first_norms(pieces)


def first_norms(pieces: Pieces, held: str = "masked") -> dict[str, float]:
    """‖w‖ of each tensor that is held, by the word of its group: at the start of the run, or of a branch whose trunk held none."""
    norms = pieces.numbers.get("first_norm", {})
    names = [name for name, group in pieces.group_of.items() if group[held]]
    # A branch may hold other tensors than its trunk: it has no norm of a tensor that has moved freely in between. All ranks
    # know all names, and so they ask in the same update, and the sum over ranks is one for all.
    if norms.keys() != set(names):
        squares = pieces.square_norms(pieces.weights)
        norms = pieces.numbers["first_norm"] = {name: norms.get(name, squares[name] ** 0.5) for name in names}
    return norms


def to_first_norms(pieces: Pieces, only_decaying: bool = False) -> None:
    """Scale each tensor of the mask to its first norm, or each that has a λ. Collective."""
    targets = first_norms(pieces, "base_decay" if only_decaying else "masked")
    squares = pieces.square_norms(pieces.weights)
    for weight, group, name in zip(pieces.weights, pieces.groups, pieces.names, strict=True):
        # A tensor that began at zero, as biases do, has no norm to keep: it moves freely.
        if group["decay" if only_decaying else "masked"] and targets[name] > 0 and squares[name] > 0:
            weight.mul_(targets[name] / squares[name] ** 0.5)
