"""The decay rules and algorithms by name, for readers without torch: the law, and what λ is beside decoupled decay's.

A rule's own file in optim/rules/ computes it. What stands here of a rule is what that file says of itself (tests/test_rules.py
compares them), so that a run is refused before torch is imported, and on a login node, which has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.equilibrium import MULTIPLIED
from configs.errors import InputError
from configs.precision import TABLE
from configs.schema import RunConfig

# The name of a run at λ = 0, whatever rule that has a λ it names: all of them are the plain optimiser.
NO_DECAY = "no decay"


@dataclass(frozen=True)
class Law:
    """`law`: in one line, with its paper. `decay`: what λ is beside decoupled decay's. `product`: η·λ is what acts, under Adam.

    `algorithms`: those that it has a meaning for; None: all. `rounds_once`: decay and step are rounded together.
    """

    law: str
    decay: str
    product: bool = False
    has_decay: bool = True
    algorithms: tuple[str, ...] | None = None
    rounds_once: bool = False


LAWS = {
    "decoupled": Law(
        "w ← (1 − η_t λ_t)·w, beside the gradient's step (1711.05101)",
        "what decoupled decay has",
        product=True,
        rounds_once=True,
    ),
    "l2_coupled": Law(
        "g ← g + λ_t·w after clipping: torch's own weight_decay of Adam and SGD",
        "a part of the gradient, and scaled as that is: under Adam some thousand times smaller than decoupled decay's",
        rounds_once=True,
    ),
    "l2_loss": Law(
        "loss + λ_t·‖w‖²: g ← g + 2·λ_t·w before clipping (2310.04415)",
        "half of l2_coupled's, and clipped with the gradient",
        rounds_once=True,
    ),
    "independent": Law(
        "w ← w − s_t·(η·u + λ_t·w), s_t = η_t/η: decoupled decay whose strength does not change with η (2309.14322)",
        "η·λ of decoupled decay at the same η",
        rounds_once=True,
    ),
    "corrected": Law(
        "w ← (1 − λ_t η_t²/η)·w for normalised layers, (1 − η_t λ_t)·w for others (AdamC, 2506.02285)",
        "decoupled decay's at the peak of η; less before and after it, for normalised layers",
        product=True,
        rounds_once=True,
    ),
    "cautious": Law(
        "w ← w − η_t λ_t·1[u ⊙ w ≥ 0] ⊙ w, u the optimiser's step (2510.12402)",
        "decoupled decay's where the step moves a weight towards zero, and nothing elsewhere",
        product=True,
        algorithms=("adam", "sgd"),
    ),
    "cautious_random": Law(
        "as cautious, with a random mask of the same rate in each tensor: its control (2510.12402)",
        "decoupled decay's for as many weights as under cautious, and nothing for the others",
        product=True,
        algorithms=("adam", "sgd"),
    ),
    "swd": Law(
        "w ← (1 − η_t λ_t/√v̄)·w, v̄ the mean of all v̂ (AdamS, 2011.11152)",
        "decoupled decay's times √v̄, the gradients' root mean square: some thousand times smaller, and known from a run alone",
        product=True,
        algorithms=("adam",),
        rounds_once=True,
    ),
    "selective_projection": Law(
        "w ← (1 − λ_t·r)·w after the step where ⟨g, w⟩ > 0, r the share by which the tensor grew (2411.01713)",
        "a share of a tensor's growth, 0 to 1, and η is no part of it",
    ),
    "norm_projection": Law(
        "w ← w·ρ/‖w‖ after the step, ρ the tensor's first norm; no λ (2407.01800, 2103.15345)", "none", has_decay=False
    ),
    "hyperball": Law(
        "w ← R·(w − η_t·R·û)/‖…‖, û the direction of the step, R the tensor's first norm; no λ (2606.16899)",
        "none; η is the angle of an update",
        has_decay=False,
    ),
    "rotational": Law(
        "w turns by √(2η_t λ_t(1−β₁)/(1+β₁)) an update on the average, at its first norm (2305.17212)",
        "that of decoupled decay whose equilibrium turns weights as fast",
        product=True,
        algorithms=("adam",),
    ),
    "sphere": Law(
        "w ← w/‖w‖ after the step and at the start, w all trainable tensors as one vector; no λ (2310.04415)",
        "none",
        has_decay=False,
    ),
}
# How η and λ of an algorithm stand to AdamW's, as far as its authors say.
SCALES = {
    "adam": "",
    "sgd": "its η is of another scale; for the same Σηλ its λ is smaller by as much as its η is larger",
    "lion": "its η is a third to a tenth of AdamW's, its λ larger by as much (2302.06675)",
    "muon": "its step is scaled to AdamW's size, so its η and λ are AdamW's (2502.16982)",
    "kfac": "its step is divided by curvature, so its η and λ are of a scale of their own, and of each metric another (1810.12281)",
}
OWN_SCALE = "its η and λ are of a scale of their own"  # of an algorithm that is none of these


def decoupled_per_decay(rule: str, algorithm: str, momentum: float, lr: float) -> float | None:
    """The λ of decoupled decay that is worth one λ of a rule at the peak `lr`; None where no law says it.

    Under `corrected` that is so at the peak alone. SGD's momentum carries on what is added to its gradient.
    """
    if rule in MULTIPLIED:
        return 1 / lr if rule == "independent" else 1.0
    return 1 / (1 - momentum) if rule == "l2_coupled" and algorithm == "sgd" else None


def product_acts(rule: str, algorithm: str) -> bool:
    """Whether runs of one η·λ decay alike, as far as λ alone decides it: what lines of equal ηλ in a figure are for."""
    law = LAWS.get(rule)
    return law is not None and (law.product or (algorithm == "sgd" and rule in ("l2_coupled", "l2_loss")))


def check_rule(config: RunConfig) -> None:
    """InputError where the decay rule cannot work with the run's algorithm, precision or λ, with the reason."""
    optim, law = config.optim, LAWS[config.optim.decay_rule]
    name = f"optim.decay_rule {optim.decay_rule}"
    if law.algorithms is not None and optim.algorithm not in law.algorithms:
        raise InputError(
            f"{name} is a law for optim.algorithm {', '.join(law.algorithms)}, this run has {optim.algorithm}"
        )
    # A decay that is a multiplication of its own would be lost in bfloat16 masters (optim/sgd.py has the numbers).
    dtypes = TABLE[config.precision]
    if dtypes.masters == "bfloat16" and not law.rounds_once:
        beside = "step" if dtypes.rounding == "nearest" else "step, which alone is rounded by chance"
        raise InputError(
            f"{name} under precision {config.precision}: it moves weights beside the optimiser's {beside}, and a bfloat16 number "
            "rounds back where it is moved by less than 1/512 of itself; use bf16-master, whose masters are float32, or bf16-mixed"
        )
    if not law.has_decay and (optim.weight_decay or any(override.weight_decay for override in optim.decay_overrides)):
        raise InputError(f"{name} holds norms fixed and has no λ: set optim.weight_decay 0, in decay_overrides too")
