"""The decay rules: one file, one law. A new one is a file here, a line of RULES, a word of the schema and a test.

A rule is a module. It says

    ABOUT                            one line: the law, and the paper it is from
    STAGES                           the ZeRO stages it works at
    in_optimizer(decay, algorithm)   the λ_t that torch's optimiser applies itself, as its `weight_decay`

and of the following what it needs; what it does not define does nothing. Weights and gradients are lists of one flat tensor
(n,) a piece (engine/fragments.py), `groups` the optimiser's group of each, with η_t as `lr` and λ_t as `decay`.

    factor(config, t)                λ_t over λ in update t (0-based); by default as schedule.decay says
    on_gradients(gradients, weights, groups)    before the gradients are seen by a probe, and clipped
    before_step(weights, groups)     before the optimiser's step; what it returns is given to after_step
    after_step(weights, groups, kept)           after it; the copies that the forward pass reads are then made anew
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from configs.schedule import decay_factor
from configs.schema import Optim, RunConfig
from optim.rules import decoupled, l2_coupled, l2_loss

RULES: dict[str, ModuleType] = {"decoupled": decoupled, "l2_coupled": l2_coupled, "l2_loss": l2_loss}

Groups = list[dict[str, Any]]


class Rule:
    """A rule's module, complete."""

    # What a module leaves out is looked for at each call: rules are few, and a call costs nothing beside an update.
    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.about: str = module.ABOUT
        self.stages: tuple[int, ...] = module.STAGES

    def in_optimizer(self, decay: float, algorithm: str) -> float:
        return float(self._module.in_optimizer(decay, algorithm))

    def factor(self, config: RunConfig, t: int) -> float:
        own = getattr(self._module, "factor", decay_factor)
        return float(own(config, t))

    def on_gradients(self, gradients: list[Tensor], weights: list[Tensor], groups: Groups) -> None:
        if own := getattr(self._module, "on_gradients", None):
            own(gradients, weights, groups)

    def before_step(self, weights: list[Tensor], groups: Groups) -> Any:
        own = getattr(self._module, "before_step", None)
        return own(weights, groups) if own else None

    def after_step(self, weights: list[Tensor], groups: Groups, kept: Any) -> bool:
        """True if weights were changed."""
        own = getattr(self._module, "after_step", None)
        if own:
            own(weights, groups, kept)
        return own is not None


def rule_of(config: Optim) -> Rule:
    """The rule of optim.decay_rule."""
    return Rule(RULES[config.decay_rule])
