"""‖w‖ of a network, overall and by layer, and P1's objective: the cross-entropy with the decay's own term.

P1 (arXiv 2310.04415) reports CE + ½λ‖w‖², which SGD with coupled decay (g + λw) descends. Trainable parameters alone count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from weights.frozen import square_sum

# Group → (names of its tensors, λ), as configs/groups.decay_groups has them.
Groups = Mapping[str, tuple[Iterable[str], float]]


def norm(weights: Mapping[str, Tensor]) -> float:
    """‖w‖₂ of all these tensors as one vector; 0 of none."""
    return math.sqrt(square_sum(dict(weights)).item()) if weights else 0.0


def layer_norms(model: nn.Module) -> dict[str, float]:
    """‖w‖₂ of each module's own trainable parameters (weight and bias together), by its name. Their squares add up to ‖w‖².

    A tensor that two modules share counts where it stands first.
    """
    seen: set[int] = set()
    norms: dict[str, float] = {}
    for name, module in model.named_modules():
        own = {k: p for k, p in module.named_parameters(recurse=False) if p.requires_grad and id(p) not in seen}
        seen |= {id(p) for p in own.values()}
        norms |= {name: norm(own)} if own else {}
    return norms


def penalty(weights: Mapping[str, Tensor], groups: Groups) -> float:
    """Σ over groups of ½λ‖w‖²: every group by its own λ, overrides too.

    Of optim.decay_rule l2_loss, whose term in the loss has no ½, this is half. Decoupled decay under Adam descends no such sum.
    """
    return sum(decay / 2 * norm({name: weights[name] for name in names}) ** 2 for names, decay in groups.values())


def objective(loss: float, weights: Mapping[str, Tensor], groups: Groups) -> float:
    """CE + ½λ‖w‖², in nats. `loss`: the mean cross-entropy of these weights."""
    return loss + penalty(weights, groups)
