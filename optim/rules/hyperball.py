"""Hyperball: no decay; the norm of each tensor and the norm of its update are both fixed (2606.16899).

w ← R·(w − η_t·R·û)/‖w − η_t·R·û‖, R the tensor's first norm and û the direction of the optimiser's step. So η_t is the angle,
where it is small, by which a tensor turns in an update, whatever the size of its gradient. Tensors outside the mask, and those that
began at zero, take the plain step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim.rules.norm_projection import first_norms, to_first_norms

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w ← R·(w − η_t·R·û)/‖…‖, û the direction of the step, R the tensor's first norm; no λ (2606.16899)"
INSIDE = ""
USES_DECAY = False
KEEPS = {"first_norm": "weights"}


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> list[Tensor]:
    first_norms(pieces)
    return [weight.clone() for weight in pieces.weights]


def on_step(pieces: Pieces, kept: list[Tensor], t: int) -> None:
    # The step is what the optimiser moved, −η·u. Its size is dropped, its direction stays.
    steps = [weight - before for weight, before in zip(pieces.weights, kept, strict=True)]
    sizes, norms = pieces.square_norms(steps), first_norms(pieces)
    for weight, before, step, group, name in zip(pieces.weights, kept, steps, pieces.groups, pieces.names, strict=True):
        if group["masked"] and sizes[name] > 0 and norms[name] > 0:
            weight.copy_(before).add_(step, alpha=group["lr"] * norms[name] / sizes[name] ** 0.5)


def after_step(pieces: Pieces, kept: list[Tensor], t: int) -> None:
    # The chord left the sphere: back onto it.
    to_first_norms(pieces)
