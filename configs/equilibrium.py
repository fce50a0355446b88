"""Where weight decay takes the size of weights, and what a learning rate is worth at a size: each formula once.

Predictions (analysis), measurements (engine/probes.py) and advice use the same functions. η is the learning rate, λ the
weight decay of that update.
"""

from __future__ import annotations

import math

from configs.noise_steps import Steps, adam, steps_of

# Rules that multiply each decayed weight by 1 − η_tλ_t; and why the others do not (optim/rules/ has the laws).
MULTIPLIED = ("decoupled", "independent", "corrected")
SHRINKING = (*MULTIPLIED, "cautious", "cautious_random")  # those that multiply a weight so in some updates
# Those that keep the norm of a tensor; under sphere only that of all of them is kept.
HOLDING = ("norm_projection", "hyperball", "rotational")
OTHER_LAWS = {
    "cautious": "only weights decay that the step moves towards zero",
    "cautious_random": "only weights decay that chance takes",
    "swd": "λ is divided by the gradients' root mean square",
    "selective_projection": "λ undoes a share of a tensor's growth, whatever η is",
    "norm_projection": "norms are held, and nothing decays",
    "hyperball": "norms are held, and nothing decays",
    "rotational": "norms are held, and λ sets the angle of an update",
    "sphere": "the norm of all weights is held, and nothing decays",
}
SMALL, HALVINGS = 1e-12, 60  # where an iteration, and a search by halving, end
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
    """The same with the memory of the first moment counted, for any ηλ < 1: √(η²/(1−a²)·(1−β₁)(1+aβ₁)/((1+β₁)(1−aβ₁)))."""
    return settled(adam(beta1, 1.0), lr, weight_decay)[0]


def rotation(lr: float, weight_decay: float, beta1: float) -> float:
    """Angle (radians) by which AdamW turns weights in an update: √(2ηλ(1−β₁)/(1+β₁)) (2305.17212)."""
    return math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))


def settled(steps: Steps, lr: float, decay: float) -> tuple[float, float]:
    """(RMS, rotation) of decoupled decay under noise, for any ηλ < 1.

    w is the sum of all steps, faded by a = 1 − ηλ an update. With the correlations c_k of the steps and S = Σ a^k c_k:
    w² = η²/(1−a²)·(c_0 + 2S), and the cosine of one update is a + (1−a²)·S/(a(c_0 + 2S)). For AdamW and SGD the cosine is
    (a+β)/(1+aβ), β the momentum. Where ηλ is small: w² = η/(2λ)·C, rotation √(2ηλ·c_0/C), C = c_0 + 2Σ c_k.
    """
    x = lr * decay
    return math.sqrt(lr**2 / (x * (2 - x)) * _whole(steps, 1 - x)), _turned(steps, x)


def _whole(steps: Steps, a: float) -> float:
    """c_0 + 2S."""
    return steps.power + 2 * steps.correlated(a)


def _turned(steps: Steps, x: float) -> float:
    """The angle of `settled`, x = ηλ: one minus its cosine is x(c_0 − xS/a)/(c_0 + 2S), which is exact for small x too."""
    a = 1 - x
    return _angle(x * (steps.power - x * steps.correlated(a) / a) / _whole(steps, a))


def _angle(versine: float) -> float:
    """The arc cosine of 1 − `versine`, which would lose all digits near 1."""
    return 2 * math.asin(math.sqrt(versine / 2))


def settled_coupled(steps: Steps, lr: float, decay: float) -> tuple[float, float]:
    """The same where λw is part of the gradient: it pulls w back by η·gain·λ·w, once the moments have taken it up.

    w² = η/(2λ·gain)·C, and since w keeps its size the cosine is 1 − η²c_0/(2w²). The moments delay the pull as they delay the
    noise, so this holds while η·gain·λ ≪ 1; for SGD w² is η σ²/(2λ(1−μ)), its rotation √(2ηλ/(1+μ)) (2305.17212). Of the sign or of
    an orthogonal matrix the pull is linear while λw is small beside c: at η·gain·λ = 0.005 the error is 2 %.
    """
    square = lr / (2 * decay * steps.gain) * _whole(steps, 1.0)
    return math.sqrt(square), _angle(lr**2 * steps.power / (2 * square))


def rotation_held(steps: Steps, length: float) -> float:
    """Rotation where the norm is held, and steps have `length` times that norm: as if a decay of that strength held it.

    Its x = ηλ, at which w² of `settled` is (η/length)²·c_0, is found by halving.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        x = (low + high) / 2
        low, high = (low, x) if _whole(steps, 1 - x) * length**2 < steps.power * x * (2 - x) else (x, high)
    return _turned(steps, x)


def settled_cautious(steps: Steps, lr: float, decay: float, chosen: bool) -> tuple[float, float]:
    """Under cautious decay (`chosen`), and under cautious_random, whose mask takes as many by chance. Steps of Adam or SGD.

    For normal u and w of correlation ρ a share ½ + asin(ρ)/π of the weights decays. ρ is below 0: a step goes on in the direction
    that made the weight. Choice takes E[w²·1] = w²(½ + (asin ρ + ρ√(1−ρ²))/π) and E[uw·1] = |u||w|(½ρ + (ρ·asin ρ + √(1−ρ²))/π).
    Moments p = E[uw] and q = E[w²] follow p ← β(p − ηc_0 − ηλE[uw·1]), q ← E[(w − ηu − ηλw·1)²], iterated until they rest. That u
    and w stay normal under the mask is an approximation.
    """
    keep = steps.memory[0][1]
    p, q, before = 0.0, lr / decay, 0.0
    while abs(q - before) > SMALL * q:
        before = q
        rho = p / math.sqrt(steps.power * q)
        turn, share = math.sqrt(1 - rho**2), 0.5 + math.asin(rho) / math.pi
        squares = q * (share + rho * turn / math.pi) if chosen else q * share
        products = math.sqrt(steps.power * q) * (rho * share + turn / math.pi) if chosen else p * share
        moved = lr**2 * (steps.power + 2 * decay * products + decay**2 * squares)
        q += moved - 2 * lr * (p + decay * squares)
        p = keep * (p - lr * steps.power - lr * decay * products)
    return math.sqrt(q), _angle(moved / (2 * q))


def under_noise(
    rule: str, steps: Steps, lr: float, decay: float, noise: float, first: float
) -> tuple[float, float] | None:
    """(RMS, rotation) a rule comes to; None under selective_projection, which comes to none.

    `decay`: λ as it multiplies η, so λ/η for independent. `first`: RMS at the start, for rules that hold it. Under `sphere`
    all n weights are one tensor, whose RMS is 1/√n, and both are of the whole. `rotational` and `swd` are Adam's.
    """
    match rule:
        case "l2_coupled" | "l2_loss":
            return settled_coupled(steps, lr, decay * (2 if rule == "l2_loss" else 1))
        case "swd":
            return settled(steps, lr, decay / noise)
        case "cautious" | "cautious_random":
            return settled_cautious(steps, lr, decay, rule == "cautious")
        case "norm_projection" | "sphere":
            return first, rotation_held(steps, lr * math.sqrt(steps.power) / first)
        case "hyperball":
            return first, rotation_held(steps, lr)
        case "rotational":
            return first, math.atan(rotation(lr, decay, steps.memory[0][1]))  # its steps have no part along w
        case "selective_projection":
            return None
    return settled(steps, lr, decay)


def growth(steps: Steps, lr: float, decay: float) -> float:
    """By how much w² grows in an update under selective_projection and noise: η²·C·(1 − λ/2).

    It only takes back, from half of the updates (those with ⟨g, w⟩ > 0), a share λ of what they added: w grows as √t for
    every λ. For steps that nearly always make the tensor longer.
    """
    return lr**2 * _whole(steps, 1.0) * (1 - decay / 2)


def predictions(
    algorithm: str,
    rule: str,
    betas: tuple[float, float],
    momentum: float,
    lr: float,
    decay: float,
    shape: tuple[int, ...] | None,
) -> dict[str, float]:
    """What is known beforehand of a tensor that decays by λ = `decay`: its `rms` and `rotation`, or less.

    `shape`: of a hidden matrix under muon, which has its own law for these. Nothing without decay, and under rules whose
    equilibrium needs the size of the gradients, or is another law. SGD's size needs them too, its rotation does not. Nothing of a
    torch.optim.NAME, whose steps are not known.
    """
    if (
        algorithm not in LR_POWERS
        or not lr * decay
        or not (rule in MULTIPLIED or (algorithm, rule) == ("sgd", "l2_coupled"))
    ):
        return {}
    if algorithm == "adam" or (algorithm == "muon" and shape is None):
        return {"rms": rms(lr, decay), "rotation": rotation(lr, decay, betas[0])}
    law = settled_coupled if rule == "l2_coupled" else settled
    size, angle = law(steps_of(algorithm, betas, momentum, shape), lr, decay)
    return {"rotation": angle} if algorithm == "sgd" else {"rms": size, "rotation": angle}
