"""The optimisers, over a checked partition of the parameters, and the rules by which their weights decay.

A rule acts on the gradient before it is clipped (l2_loss), or inside the optimiser (decoupled, l2_coupled): there decay and
step are rounded together, without which bfloat16 weights would not decay (optim/sgd.py). λ_t is a number per group and step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from configs.groups import decay_groups
from configs.schedule import decay_factor
from configs.schema import Optim, RunConfig
from configs.tensors import TensorSpec
from optim.sgd import SGD


def moments(config: Optim) -> tuple[str, ...]:
    """Per-element state, in torch.optim's names."""
    if config.algorithm == "adam":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if config.momentum else ()


def parameter_groups(
    named: dict[str, nn.Parameter], tensors: Mapping[str, TensorSpec], config: Optim, by_tensor: bool = False
) -> list[dict[str, Any]]:
    """Optimiser groups with their λ: every tensor in exactly one, the same partition for every λ.

    With `by_tensor` each is a group of its own, for learning rates of their own; the updates are the same. Tied weights
    appear once, as named_parameters gives them. Raises InputError if a mask or pattern matches nothing.
    """
    assert {name: tuple(p.shape) for name, p in named.items()} == {name: t.shape for name, t in tensors.items()}, (
        "the model has other tensors than its table (configs/tensors.py)"
    )
    groups = decay_groups(tensors, config)
    if by_tensor:
        groups = {f"{group}/{name}": ([name], decay) for group, (names, decay) in groups.items() for name in names}
    grouped = sorted(name for names, _ in groups.values() for name in names)
    assert grouped == sorted(named), "the groups must partition the parameters"
    return [
        {
            "name": group,
            "parameter_names": names,
            "params": [named[name] for name in names],
            "base_decay": weight_decay,
            "weight_decay": weight_decay if _in_torch(config) else 0.0,
        }
        for group, (names, weight_decay) in groups.items()
    ]


def build_optimizer(
    named: dict[str, nn.Parameter], tensors: Mapping[str, TensorSpec], config: Optim, by_tensor: bool = False
) -> torch.optim.Optimizer:
    """torch's fused Adam or AdamW (Loshchilov and Hutter, 1711.05101), or SGD (optim/sgd.py); η is set before each step.

    torch's fused SGD on CPUs leaves bfloat16 parameters as they are (pytorch/pytorch#191763).

    AdamW: p ← p(1 − ηλ), then p ← p − η·m̂/(√v̂ + ε). Under l2_coupled λp is added to the gradient first.
    """
    groups = parameter_groups(named, tensors, config, by_tensor)
    if config.algorithm == "sgd":
        return SGD(groups, config.momentum, config.decay_rule == "decoupled")
    kind = torch.optim.Adam if config.decay_rule == "l2_coupled" else torch.optim.AdamW
    return kind(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def check_rounding(optimizer: torch.optim.Optimizer, masters: str) -> None:
    """RuntimeError if bfloat16 masters would lose their decay: Adam must be fused, so that decay and step are rounded once."""
    fused = isinstance(optimizer, SGD) or all(group.get("fused") for group in optimizer.param_groups)
    if masters == "bfloat16" and not fused:
        raise RuntimeError(
            f"{type(optimizer).__name__} is not fused: under bfloat16 masters its decay is a multiplication of its own, which "
            "rounds to nothing below η·λ of about 0.002"
        )


def zero_state(flat: Tensor, config: Optim) -> dict[str, Tensor]:
    """The state before the first step, as the optimiser itself would create it: zero moments, and Adam's step 0."""
    state = {key: torch.zeros_like(flat, memory_format=torch.preserve_format) for key in moments(config)}
    step = {"step": torch.zeros((), dtype=torch.float32, device=flat.device)} if config.algorithm == "adam" else {}
    return step | state


def set_step(
    optimizer: torch.optim.Optimizer, config: RunConfig, t: int, lr: float, factors: dict[str, float] | None = None
) -> None:
    """Give every group η and λ of update t (0-based): `lr`, `decay` (λ_t), and torch's `weight_decay` where torch applies it.

    `factors` on η by tensor, or under the name "" for all (schedule.match).
    """
    for group in optimizer.param_groups:
        factor = 1.0 if factors is None else factors.get("") or factors[group["parameter_names"][0]]
        group["lr"] = lr * factor
        group["decay"] = group["base_decay"] * decay_factor(config, t)
        group["weight_decay"] = group["decay"] if _in_torch(config.optim) else 0.0


def _in_torch(config: Optim) -> bool:
    return config.decay_rule == "l2_coupled" or (config.decay_rule == "decoupled" and config.algorithm == "adam")
