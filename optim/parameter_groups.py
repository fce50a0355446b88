"""The optimiser's groups: which tensors share η and λ, and what both are in each update.

What decays is decided in configs/groups.py, how it decays in optim/rules/, by which algorithm weights are updated in
optim/algorithms.py. λ_t is a number per group and step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from configs.groups import decay_groups
from configs.schema import Optim, RunConfig
from configs.tensors import TensorSpec
from optim.rules import Rule, rule_of

# What of a rule torch's own `weight_decay` does. torch's SGD has no decoupled decay: optim/sgd.py does it, from `decay`,
# and so does optim/lion.py. Of a torch.optim.NAME nothing is taken on trust: optim/torch_named.py does all of it.
BY_TORCH = {"adam": ("decoupled", "coupled"), "sgd": ("coupled",), "lion": ("coupled",), "muon": ("decoupled",)}


def parameter_groups(
    named: dict[str, nn.Parameter],
    tensors: Mapping[str, TensorSpec],
    config: Optim,
    family: Callable[[TensorSpec], str] | None = None,
    by_tensor: bool = False,
) -> list[dict[str, Any]]:
    """Optimiser groups with their λ: every tensor in exactly one, the same partition for every λ.

    `family`: in which of its ways the algorithm treats a tensor, where it has several. With `by_tensor` each is a group of its
    own, for learning rates of their own; the updates are the same. Tied weights appear once, as named_parameters gives them.
    Raises InputError if a mask or pattern matches nothing.
    """
    assert {name: tuple(p.shape) for name, p in named.items()} == {name: t.shape for name, t in tensors.items()}, (
        "the model has other tensors than its table (configs/tensors.py)"
    )
    # The same groups for every λ, 0 too: else the optimiser's structure, and checkpoints, would depend on it.
    groups = decay_groups(tensors, config)
    if by_tensor:
        groups = {f"{group}/{name}": ([name], decay) for group, (names, decay) in groups.items() for name in names}
    # Where the rule or the algorithm has a law of its own for some tensors, groups are split by it.
    rule, family = rule_of(config), family or (lambda tensor: "")
    ways = {name: "/".join(filter(None, (rule.part(tensor), family(tensor)))) for name, tensor in tensors.items()}
    if len(set(ways.values())) > 1:
        groups = {
            f"{group}/{way}": ([name for name in names if ways[name] == way], decay)
            for group, (names, decay) in groups.items()
            for way in sorted({ways[name] for name in names})
        }
    # Checked, not trusted: a tensor in two groups would decay twice.
    grouped = sorted(name for names, _ in groups.values() for name in names)
    assert grouped == sorted(named), "the groups must partition the parameters"
    return [
        {
            "name": group,
            "parameter_names": names,
            "params": [named[name] for name in names],
            "base_decay": weight_decay,
            "masked": group.partition("/")[0] == "decayed",
            "part": rule.part(tensors[names[0]]),
            "family": family(tensors[names[0]]),
            "weight_decay": _by_torch(rule, config, weight_decay),
        }
        for group, (names, weight_decay) in groups.items()
    ]


def set_step(
    optimizer: torch.optim.Optimizer, config: RunConfig, t: int, lr: float, factors: dict[str, float] | None = None
) -> None:
    """Give every group update t (0-based), η and λ: `t`, `lr`, `decay` (λ_t), torch's `weight_decay` where torch applies it.

    `factors` on η by tensor, or under the name "" for all (schedule.match, branch.lr_by_norm_of).
    """
    rule = rule_of(config.optim)
    for group in optimizer.param_groups:
        # η follows the schedule, times what a matched run takes from its leader; λ follows the rule.
        factor = 1.0 if factors is None else factors.get("") or factors[group["parameter_names"][0]]
        group["lr"] = lr * factor
        group["t"] = t  # what is drawn is drawn anew in each update (optim/stochastic.py)
        group["decay"] = group["base_decay"] * rule.factor(config, t, group["part"])
        group["weight_decay"] = _by_torch(rule, config.optim, group["decay"])


def _by_torch(rule: Rule, config: Optim, decay: float) -> float:
    """What torch's optimiser is given as its own `weight_decay`: λ_t where that is the rule, else 0."""
    return decay if rule.inside in BY_TORCH.get(config.algorithm, ()) else 0.0
