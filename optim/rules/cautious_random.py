"""The control of cautious weight decay (2510.12402): as many elements of a tensor decay, but chance says which.

What cautious decay gains beyond this is gained by its choice, and not by decaying less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim.rules.cautious import shrinking

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "as cautious, with a random mask of the same rate in each tensor: its control (2510.12402)"
INSIDE = ""
ALGORITHMS = ("adam", "sgd")
MOVES_FIRST = True


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> None:
    from optim.draws import uniform

    # How many elements the cautious mask would take, of each whole tensor.
    counts = pieces.sums(shrinking(pieces, gradients))
    seed = pieces.config.seeds.data
    for weight, group, name, start in zip(pieces.weights, pieces.groups, pieces.names, pieces.starts, strict=True):
        if group["decay"]:
            rate = counts[name] / pieces.sizes[name]
            chosen = uniform("cautious_random", seed, t, name, start, weight) < rate
            weight.sub_(weight * chosen, alpha=group["lr"] * group["decay"])
