"""Where weight decay takes the size of weights, and what a learning rate is worth at a size: each formula once.

Predictions (analysis), measurements (engine/probes.py) and advice use the same functions. η is the learning rate, λ the
weight decay of that update.
"""

from __future__ import annotations

import math

# Rules that multiply each decayed weight by 1 − η_tλ_t; and why the others do not (optim/rules/ has the laws).
MULTIPLIED = ("decoupled", "independent", "corrected")
SHRINKING = (*MULTIPLIED, "cautious", "cautious_random")  # those that multiply a weight so in some updates
HOLDING = ("norm_projection", "hyperball", "rotational")  # those that keep the norm of a tensor
OTHER_LAWS = {
    "cautious": "only weights decay that the step moves towards zero",
    "cautious_random": "only weights decay that chance takes",
    "swd": "λ is divided by the gradients' root mean square",
    "selective_projection": "λ undoes a share of a tensor's growth, whatever η is",
    "norm_projection": "norms are held, and nothing decays",
    "hyperball": "norms are held, and nothing decays",
    "rotational": "norms are held, and λ sets the angle of an update",
}
# Powers of ‖w‖: what the effective learning rate of a scale-invariant weight is divided by. Not known of a torch.optim.NAME.
LR_POWERS = {"adam": 1, "sgd": 2, "lion": 1, "muon": 1}


def effective_lr(lr: float, norm: float, algorithm: str) -> float:
    """η/‖w‖ for Adam, Lion and Muon (P1, 2310.04415, by sign descent), η/‖w‖² for SGD; infinite where the weights are zero."""
    return lr / norm ** LR_POWERS[algorithm] if norm else math.inf


def e_folds(decay_sum: float, rule: str, algorithm: str, momentum: float) -> float | None:
    """How many e-folds of decay `decay_sum` (Σηλ, optim/decay_sum) is worth; None where it is no such number.

    Decoupled decay multiplies weights by 1 − ηλ: Σηλ itself. Added to SGD's gradient, λw is carried on by the momentum μ:
    Σηλ/(1 − μ). Adam divides an added λw by √v, and l2_loss adds it before clipping: what either takes of a weight follows
    from the gradients.
    """
    if rule in MULTIPLIED or decay_sum == 0:
        return decay_sum
    return decay_sum / (1 - momentum) if rule == "l2_coupled" and algorithm == "sgd" else None


def why_no_e_folds(rule: str, algorithm: str) -> str:
    """The reason for e_folds' None, in words."""
    if rule in OTHER_LAWS:
        return f"under {rule} {OTHER_LAWS[rule]}"
    does = {
        "adam": "which Adam divides by √v",
        "lion": "of which Lion takes the sign",
        "muon": "which Muon makes orthogonal",
    }
    added_later = f"after clipping, and what a step of {algorithm} makes of it is not known"
    otherwise = added_later if rule == "l2_coupled" and algorithm not in LR_POWERS else "and is clipped with it"
    return f"under {rule} λw is part of the gradient, {does.get(algorithm, otherwise)}"


def rms(lr: float, weight_decay: float) -> float:
    """Root mean square of weights that AdamW moves under noise alone: √(η/2λ), for ηλ ≪ 1 − β₁ (2305.17212)."""
    return math.sqrt(lr / (2 * weight_decay))


def rms_with_momentum(lr: float, weight_decay: float, beta1: float) -> float:
    """The same with the memory of the first moment counted, for any ηλ < 1.

    Updates have variance (1−β₁)/(1+β₁) and autocorrelation β₁ᵏ; summed with a = 1 − ηλ this gives
    w² = η²/(1−a²) · (1−β₁)(1+aβ₁)/((1+β₁)(1−aβ₁)).
    """
    a = 1 - lr * weight_decay
    memory = (1 - beta1) * (1 + a * beta1) / ((1 + beta1) * (1 - a * beta1))
    return math.sqrt(lr**2 / (1 - a**2) * memory)


def rotation(lr: float, weight_decay: float, beta1: float) -> float:
    """Angle (radians) by which AdamW turns weights in an update: √(2ηλ(1−β₁)/(1+β₁)) (2305.17212)."""
    return math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))
