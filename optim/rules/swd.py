"""Stable weight decay, AdamS: decay is divided by the size of the gradients, one number for all weights (Xie et al., 2011.11152).

w ← w − η_t·m̂/(√v̂ + ε) − (η_t λ_t/√v̄)·w, v̄ the mean over all parameters of the bias-corrected second moment v̂ of this update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from optim.rules import Pieces

ABOUT = "w ← (1 − η_t λ_t/√v̄)·w, v̄ the mean of all v̂ (AdamS, 2011.11152)"
INSIDE = "decoupled"
ALGORITHMS = ("adam",)


def before_step(pieces: Pieces, gradients: list[Tensor], t: int) -> None:
    # v̂ of this update, which the optimiser has not made yet: from the gradients, and the second moment as it is.
    beta2, counted = pieces.config.optim.betas[1], pieces.step() + 1
    old = sum(pieces.sums(pieces.moment("exp_avg_sq")).values())
    new = sum(pieces.square_norms(gradients).values())
    mean = (beta2 * old + (1 - beta2) * new) / sum(pieces.sizes.values()) / (1 - beta2**counted)
    # The optimiser then decays by it, and rounds once. Without a gradient ever there is nothing to divide by.
    scale = mean**-0.5 if mean > 0 else 0.0
    for group in {id(group): group for group in pieces.groups}.values():
        # No plan knows v̄: what would turn weights over, as a λ of decoupled decay does here, is told when it is there.
        if (taken := group["lr"] * group["decay"] * scale) >= 1:
            raise InputError(
                f"optim.decay_rule swd, update {t + 1}: λ = {group['decay']:g} over √v̄ = {1 / scale:.3g}, times "
                f"η = {group['lr']:g}, is {taken:.3g}, and 1 − that would not stay above zero; λ is that of "
                f"decoupled decay times √v̄, so below {1 / (group['lr'] * scale):.2g} here"
            )
        group["decay"] *= scale
        group["weight_decay"] = group["decay"]
