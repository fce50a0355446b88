"""The algorithms by which weights are updated (optim.algorithm): one file each, named by one dict.

A module says `ABOUT`; `moments(config)`, its state per element in torch.optim's names; and `build(groups, config)`, the optimiser.
It may say `counts(flat)`, its state beside the moments before the first step; by default none. And `rounds_once(optimizer)`,
whether decay and step are rounded together; by default not. One that treats tensors in two ways says `family(tensor)`: groups are
split by it, and `moments` and `counts` take it. One of torch.optim by its dotted name is optim/torch_named.py for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Optim
from configs.tensors import TensorSpec
from optim import adam, kfac, lion, muon, sgd, torch_named
from optim.parameter_groups import parameter_groups

ALGORITHMS: dict[str, ModuleType] = {"adam": adam, "sgd": sgd, "lion": lion, "muon": muon, "kfac": kfac}


def algorithm_of(config: Optim) -> ModuleType:
    """The module of optim.algorithm."""
    return torch_named if config.is_dotted else ALGORITHMS[config.algorithm]


def state_by_name(config: Optim, device: torch.device) -> dict[str, Any]:
    """Of a torch.optim.NAME an example of each value of its state, by name; else nothing. InputError if it cannot be driven."""
    return torch_named.try_out(config, device) if config.is_dotted else {}


def build_optimizer(
    named: dict[str, nn.Parameter], tensors: Mapping[str, TensorSpec], config: Optim, by_tensor: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a configuration over a model's parameters; groups as in optim/parameter_groups.py."""
    module = algorithm_of(config)
    groups = parameter_groups(named, tensors, config, getattr(module, "family", None), by_tensor)
    optimizer: torch.optim.Optimizer = module.build(groups, config)
    return optimizer


def moments(config: Optim, family: str = "") -> tuple[str, ...]:
    """Per-element state, in torch.optim's names; of a `family`, where the algorithm has families."""
    names: tuple[str, ...] = algorithm_of(config).moments(config, *((family,) if family else ()))
    return names


def zero_state(flat: Tensor, config: Optim, family: str = "") -> dict[str, Tensor]:
    """The state before the first step, as the optimiser itself would create it: zero moments, and what it counts.

    `family`: of the tensor's group, where the algorithm has families.
    """
    # Now rather than at the first step, so that memory is known and a checkpoint of step 0 is whole.
    zeros = {key: torch.zeros_like(flat, memory_format=torch.preserve_format) for key in moments(config, family)}
    counts = getattr(algorithm_of(config), "counts", None)
    counted: dict[str, Tensor] = counts(flat, *((family,) if family else ())) if counts else {}
    return counted | zeros


def check_rounding(optimizer: torch.optim.Optimizer, config: Optim, masters: str) -> None:
    """RuntimeError if bfloat16 masters would lose their decay: it must be rounded together with the step."""
    # Half a unit in the last place of bfloat16 is 2⁻⁹ of a number: a decay of ηλ below that, applied alone, rounds back.
    rounds_once = getattr(algorithm_of(config), "rounds_once", None)
    if masters == "bfloat16" and not (rounds_once and rounds_once(optimizer)):
        raise RuntimeError(
            f"{type(optimizer).__name__} is not fused: under bfloat16 masters its decay is a multiplication of its own, which "
            "rounds to nothing below η·λ of about 0.002"
        )
