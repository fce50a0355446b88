"""‖w‖ of a network, and P1's objective: the cross-entropy with the decay's own term.

P1 (arXiv 2310.04415) reports CE + ½λ‖w‖², which SGD with coupled decay (g + λw) descends. Trainable parameters alone count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from weights.frozen import square_sum

# Group → (names of its tensors, λ), as configs/groups.decay_groups has them.
Groups = Mapping[str, tuple[Iterable[str], float]]


def norm(weights: Mapping[str, Tensor]) -> float:
    """‖w‖₂ of all these tensors as one vector; 0 of none."""
    return math.sqrt(square_sum(dict(weights)).item()) if weights else 0.0


def penalty(weights: Mapping[str, Tensor], groups: Groups) -> float:
    """Σ over groups of ½λ‖w‖²: every group by its own λ, overrides too.

    Of optim.decay_rule l2_loss, whose term in the loss has no ½, this is half. Decoupled decay under Adam descends no such sum.
    """
    return sum(decay / 2 * norm({name: weights[name] for name in names}) ** 2 for names, decay in groups.values())


def objective(loss: float, weights: Mapping[str, Tensor], groups: Groups) -> float:
    """CE + ½λ‖w‖², in nats. `loss`: the mean cross-entropy of these weights."""
    return loss + penalty(weights, groups)
