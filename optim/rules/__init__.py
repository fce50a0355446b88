"""The decay rules: one file, one law. A new one is a file here, a line of RULES, a word of the schema and a test.

A rule is a module. It says

    ABOUT      one line: the law, and the paper it is from
    INSIDE     what of it torch's optimiser does in its own step: "decoupled", "coupled" (λw added to the gradient), or ""

and of the following what it needs; what it does not define does nothing.

    ALGORITHMS    the algorithms that it has a meaning for; by default all
    ROUNDS_ONCE   whether decay and step are rounded together; by default where INSIDE says that the optimiser does both
    KEEPS         what it keeps in `pieces.numbers`, by name, and what that belongs to: "weights", or the optimiser's "moments"
    MOVES_FIRST   True: it moves weights before the optimiser's step; a probe keeps them twice then (configs/cost.py counts it)
    USES_DECAY    False: the rule has no λ, and optim.weight_decay must be 0
    part(tensor)  which of its laws holds for a tensor, as a word: the groups are split by it
    factor(config, t, part)      λ_t over λ in update t (0-based); by default as the schedule says
    on_start(initial)            the whole initial weights by name, float32, before a run's first gradient: changed in place
    on_branch(norms)             what a branch begins with: ‖w‖ by name, "" of all; InputError where it cannot go on from there
    on_gradients(pieces, gradients)       before the gradients are seen by a probe, and clipped
    before_step(pieces, gradients, t)     before the optimiser's step; on_step and after_step are given what it returns
    on_step(pieces, kept, t)              right after it: makes another step of it, of which a probe then speaks
    after_step(pieces, kept, t)           after both; the copies that the forward pass reads are then made anew

`gradients` has a flat tensor (n,) a piece, as `pieces.weights` has; none of them records for autograd. No module here imports torch
while it is itself imported: what a rule says of itself is checked before the seconds that torch takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from configs.schedule import decay_factor
from configs.schema import Optim, RunConfig
from configs.tensors import TensorSpec
from optim.rules import (
    cautious,
    cautious_random,
    corrected,
    decoupled,
    hyperball,
    independent,
    l2_coupled,
    l2_loss,
    norm_projection,
    rotational,
    selective_projection,
    swd,
    unit_sphere,
)

if TYPE_CHECKING:
    from torch import Tensor

RULES: dict[str, ModuleType] = {
    "decoupled": decoupled,
    "l2_coupled": l2_coupled,
    "l2_loss": l2_loss,
    "independent": independent,
    "corrected": corrected,
    "cautious": cautious,
    "cautious_random": cautious_random,
    "swd": swd,
    "selective_projection": selective_projection,
    "norm_projection": norm_projection,
    "hyperball": hyperball,
    "rotational": rotational,
    "sphere": unit_sphere,
}


@dataclass(frozen=True)
class Pieces:
    """What a rule sees of the model: the pieces of tensors that this rank holds (engine/fragments.py).

    `names` and `starts` say of which tensor each is a part, and at which element it begins. `weights` are flat, (n,).
    `groups` are the optimiser's, one a piece, with η_t as `lr`, λ_t as `decay`, and `masked`: whether the mask lets it decay.
    `group_of` has them by name, of every tensor of the model, and `sizes` their elements. `numbers` are what the rule keeps by
    tensor; checkpoints hold them. The others are functions:

        moment(kind)           a moment of the optimiser, a view (n,) a piece
        sums(tensors)          of one tensor (n,) a piece, as they come: the sum of each whole tensor of the model. Collective
        square_norms(tensors)  of one tensor (n,) a piece: ‖·‖² of each whole tensor of the model. Collective
        step()                 updates that the optimiser counts so far
    """

    config: RunConfig
    names: list[str]
    starts: list[int]
    weights: list[Tensor]
    groups: list[dict[str, Any]]
    group_of: dict[str, dict[str, Any]]
    sizes: dict[str, int]
    numbers: dict[str, dict[str, float]]
    moment: Callable[[str], list[Tensor]]
    sums: Callable[[Iterable[Tensor]], dict[str, float]]
    square_norms: Callable[[list[Tensor]], dict[str, float]]
    step: Callable[[], int]


class Rule:
    """A rule's module, complete. `moves_weights`: whether it does so itself, after the optimiser's step."""

    def __init__(self, module: ModuleType) -> None:
        self.about: str = module.ABOUT
        self.inside: str = module.INSIDE
        # What a module leaves out: with every algorithm, and λ_t follows the schedule.
        self.algorithms: tuple[str, ...] | None = getattr(module, "ALGORITHMS", None)
        self.rounds_once: bool = getattr(module, "ROUNDS_ONCE", bool(module.INSIDE))
        self.moves_first: bool = getattr(module, "MOVES_FIRST", False)
        self.uses_decay: bool = getattr(module, "USES_DECAY", True)
        self.keeps: dict[str, str] = getattr(module, "KEEPS", {})
        self.part: Callable[[TensorSpec], str] = getattr(module, "part", lambda tensor: "")
        self.factor: Callable[[RunConfig, int, str], float] = getattr(module, "factor", _scheduled)
        self.on_start: Callable[[dict[str, Tensor]], None]
        self.on_branch: Callable[[dict[str, float]], None]
        self.on_gradients: Callable[[Pieces, list[Tensor]], None]
        self.before_step: Callable[[Pieces, list[Tensor], int], Any]
        self.on_step: Callable[[Pieces, Any, int], None]
        self.after_step: Callable[[Pieces, Any, int], None]
        self.on_start, self.on_branch, self.on_gradients, self.before_step, self.on_step, self.after_step = (
            getattr(module, name, _nothing)
            for name in ("on_start", "on_branch", "on_gradients", "before_step", "on_step", "after_step")
        )
        self.moves_weights = hasattr(module, "on_step") or hasattr(module, "after_step")

    def taken_over(self, numbers: dict[str, dict[str, float]], with_moments: bool) -> dict[str, dict[str, float]]:
        """What of a trunk's numbers a branch goes on with: those that its own rule keeps too, and what they belong to.

        `with_moments`: whether the branch has the optimiser's moments of its trunk.
        """
        # What is left behind is gone for good: a branch of this branch must not find what its own trunk did not keep up.
        belongs = {"weights"} | ({"moments"} if with_moments else set())
        return {name: values for name, values in numbers.items() if self.keeps.get(name) in belongs}


def _nothing(*_: Any) -> None:
    """The act that a rule leaves out."""


def _scheduled(config: RunConfig, t: int, part: str) -> float:
    return decay_factor(config, t)


def rule_of(config: Optim) -> Rule:
    """The rule of optim.decay_rule."""
    return Rule(RULES[config.decay_rule])
