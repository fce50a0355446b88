"""Rotational variant of AdamW: the angle per update is prescribed, as decay would make it on the average (2305.17212).

Decoupled decay lets every tensor rotate by √(2ηλ(1−β₁)/(1+β₁)) an update once its norm is in equilibrium. Here it does so from the
first update on, and the norm stays the first one: ν ← βν + (1−β)‖u‖², w ← R·(w − φ_t·R·u/√ν̂)/‖…‖, φ_t that angle at η_t and λ_t, u
the optimiser's step without its part along w, ν̂ its mean square corrected for the start. A step larger than usual still turns
further. The paper's variant turns each neuron by itself and centres its weights first; this one turns whole tensors, uncentred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.equilibrium import rotation
from optim.rules.norm_projection import first_norms, to_first_norms

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w turns by √(2η_t λ_t(1−β₁)/(1+β₁)) an update on the average, at its first norm (2305.17212)"
INSIDE = ""
ALGORITHMS = ("adam",)
# How large the steps of a dropped optimiser were says nothing of a fresh one's.
KEEPS = {"first_norm": "weights", "mean_square": "moments", "updates": "moments"}
MEMORY = 0.9  # β of the mean square of the step's size


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> list[Tensor]:
    first_norms(pieces, "base_decay")
    return [weight.clone() for weight in pieces.weights]


def on_step(pieces: Pieces, kept: list[Tensor], t: int) -> None:
    optim, norms = pieces.config.optim, first_norms(pieces, "base_decay")
    steps = [weight - before for weight, before in zip(pieces.weights, kept, strict=True)]
    # What lies along w turns nothing, and the projection below takes it away again.
    along, squares = pieces.sums(s * w for s, w in zip(steps, kept, strict=True)), pieces.square_norms(kept)
    for step, before, name in zip(steps, kept, pieces.names, strict=True):
        if squares[name] > 0:
            step.sub_(before, alpha=along[name] / squares[name])
    # A step's size counts in comparison with what is usual for its tensor, so that the angle holds on the average.
    usual = _usual_sizes(pieces, pieces.square_norms(steps))
    for weight, before, step, group, name in zip(pieces.weights, kept, steps, pieces.groups, pieces.names, strict=True):
        # λ = 0 prescribes nothing, and what began at zero has no norm to hold: such a tensor has taken the plain step.
        if group["decay"] and usual[name] > 0 and norms[name] > 0:
            angle = rotation(group["lr"], group["decay"], optim.betas[0])
            weight.copy_(before).add_(step, alpha=angle * norms[name] / usual[name])


def after_step(pieces: Pieces, kept: list[Tensor], t: int) -> None:
    # The chord left the sphere: back onto it.
    to_first_norms(pieces, only_decaying=True)


def _usual_sizes(pieces: Pieces, squares: dict[str, float]) -> dict[str, float]:
    """η·√ν̂ of every tensor, ν̂ the moving mean of ‖u‖² with this update in it; `squares` are ‖η·u‖²."""
    means = pieces.numbers.setdefault("mean_square", dict.fromkeys(squares, 0.0))
    counted = pieces.numbers.setdefault("updates", {"all": 0.0})
    counted["all"] += 1
    usual = {}
    for name, square in squares.items():
        # η is taken out, so that a schedule's fall is no smaller step.
        lr = pieces.group_of[name]["lr"]
        means[name] = MEMORY * means[name] + (1 - MEMORY) * square / lr**2
        usual[name] = lr * (means[name] / (1 - MEMORY ** counted["all"])) ** 0.5
    return usual
