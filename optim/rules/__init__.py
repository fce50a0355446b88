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

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from configs.schedule import decay_factor
from configs.schema import Optim, RunConfig
from optim.rules import decoupled, l2_coupled, l2_loss

RULES: dict[str, ModuleType] = {"decoupled": decoupled, "l2_coupled": l2_coupled, "l2_loss": l2_loss}

Groups = list[dict[str, Any]]


class Rule:
    """A rule's module, complete. `moves_weights`: whether it does so itself, after the optimiser's step."""

    def __init__(self, module: ModuleType) -> None:
        self.about: str = module.ABOUT
        self.stages: tuple[int, ...] = module.STAGES
        self.in_optimizer: Callable[[float, str], float] = module.in_optimizer
        # What a module leaves out does nothing, but for λ_t, which follows the schedule.
        self.factor: Callable[[RunConfig, int], float] = getattr(module, "factor", decay_factor)
        self.on_gradients: Callable[[list[Tensor], list[Tensor], Groups], None]
        self.before_step: Callable[[list[Tensor], Groups], Any]
        self.after_step: Callable[[list[Tensor], Groups, Any], None]
        self.on_gradients, self.before_step, self.after_step = (
            getattr(module, name, _nothing) for name in ("on_gradients", "before_step", "after_step")
        )
        self.moves_weights = hasattr(module, "after_step")


def _nothing(*_: Any) -> None:
    """The act that a rule leaves out."""


def rule_of(config: Optim) -> Rule:
    """The rule of optim.decay_rule."""
    return Rule(RULES[config.decay_rule])
