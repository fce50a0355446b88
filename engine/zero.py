"""All of DeepSpeed's insides that this project touches, in one file. Seen in DeepSpeed 0.19.8.

DeepSpeed keeps weights, gradients and optimiser state in other places at every ZeRO stage, and its public accessors do not
reach them with a torch optimiser (no Adam moments at stages 0 and 1, never Adam's step; weights that were set are not seen by
the next forward pass). So private fields are read. A new release of DeepSpeed breaks this file first: tests/test_parity.py
and tests/test_checkpoint.py say where.

| field | stage | why |
|---|---|---|
| optimizer.optimizer.param_groups | 1, 2 | the flat masters that this rank steps, one tensor a group |
| parameter._hp_mapping, _index_in_param_group | 1, 2 | where in a flat master a parameter's piece lies, and its reduced gradient |
| optimizer.update_lp_params() | 1, 2 | copies masters to what the forward pass reads |
| optimizer.fp32_groups_gradients_flat | 1, bf16 | BF16_Optimizer looks at other ranks' gradient pieces too when it checks |
| optimizer.fp16_groups, fp32_partitioned_groups_flat | 3 | parameters of a sub-group, and its flat master |
| optimizer.grad_position, get_param_id(), averaged_gradients | 3 | the piece's place in it, and its gradient |
| optimizer._partition_all_parameters() and two more | 3 | the same as update_lp_params, see `refresh` |
| ds.enable_backward_allreduce | 0 | off for one rank, where there is nobody to reduce with |
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + len(weight)) of a flattened parameter.

    `weight` (n,) views the masters. `flat` is the tensor the optimiser's state is keyed by, `offset` where the
    fragment lies in it. `gradient()` gives the reduced gradient (n,) between the last backward and the step.
    """

    name: str
    shape: torch.Size
    start: int
    weight: Tensor
    flat: Tensor
    offset: int
    gradient: Callable[[], Tensor]


def initialize(model: nn.Module, optimizer: torch.optim.Optimizer, ds_config: dict[str, Any]) -> Any:
    """deepspeed.initialize, quiet, and without compiling anything."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    # The CPU communication op would be compiled at the first start: 55 s, and a lock file that can be left behind.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    if ds_config["zero_optimization"]["stage"] == 3 and (whole := getattr(model, "compiled_modules", ())):
        deepspeed.utils.set_z3_leaf_modules(model, list(whole))  # gathered as one: no hooks inside compiled code
    # An engine that was left behind imports a module while it is collected, and Python 3.11 breaks where that happens inside
    # another import (python#106176). So it is collected now, before DeepSpeed looks for optional packages.
    gc.collect()
    with contextlib.redirect_stdout(io.StringIO()):  # BF16_Optimizer prints its memory use
        ds, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
    if dist.get_world_size() == 1 and ds_config["zero_optimization"]["stage"] == 0:
        ds.enable_backward_allreduce = False  # nobody to reduce with: spares two passes over the gradients
    return ds


def fragments_of(ds: Any, stage: int) -> list[Fragment]:
    """This rank's piece of every parameter that it holds a piece of, in the order of the model's parameters."""
    if stage == 0:
        return _stage_0(ds)
    return _stage_3(ds) if stage == 3 else _stages_1_2(ds)


def flat_masters(ds: Any, stage: int, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that the optimiser steps and keys its state by."""
    if stage == 3:  # DeepSpeed keeps the optimiser's groups empty between steps
        return list(ds.optimizer.fp32_partitioned_groups_flat)
    return [p for group in optimizer.param_groups for p in group["params"]]


def refresh(ds: Any, stage: int) -> None:
    """Make the forward pass see the masters: DeepSpeed keeps copies of its own at stages 1–3."""
    zero = ds.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        # Whole parameters that a forward pass left gathered are cut up again; then every piece is set from its master;
        # then small parameters, which stay gathered for good, are gathered anew.
        zero._partition_all_parameters()
        for sub_group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def whole(parameter: nn.Parameter, stage: int) -> Any:
    """A context in which the parameter has all its values."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3)


def zero_other_gradients(ds: Any) -> None:
    """Zero what BF16_Optimizer holds of other ranks' gradient pieces: it looks at them when it decides whether to step."""
    for flat in getattr(ds.optimizer, "fp32_groups_gradients_flat", ()):
        flat.zero_()


def step_without_update(ds: Any, optimizer: torch.optim.Optimizer) -> None:
    """End DeepSpeed's step with the optimiser idle, so that all it keeps between micro-steps is reset and no weight moves."""
    optimizer.step = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        ds.step()
    finally:
        del optimizer.step


def _stage_0(ds: Any) -> list[Fragment]:
    """Whole parameters, on every rank."""

    def gradient(parameter: nn.Parameter) -> Callable[[], Tensor]:
        return lambda: parameter.grad.view(-1)  # type: ignore[union-attr]

    return [
        Fragment(name, p.shape, 0, p.detach().view(-1), p, 0, gradient(p)) for name, p in ds.module.named_parameters()
    ]


def _stages_1_2(ds: Any) -> list[Fragment]:
    """Pieces of flat partitions; also of BF16_Optimizer, which DeepSpeed uses for bf16 with float32 accumulation at stage 1."""
    flats = [group["params"][0] for group in ds.optimizer.optimizer.param_groups]

    def gradient(parameter: nn.Parameter, mapping: Any) -> Callable[[], Tensor]:
        start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel

        def read() -> Tensor:
            piece: Tensor = mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
            # Some optimisers give the whole parameter's gradient, of which this rank steps a part.
            is_whole = piece.numel() == parameter.numel() and length < parameter.numel()
            return piece[start : start + length] if is_whole else piece

        return read

    fragments = []
    for name, p in ds.module.named_parameters():
        mapping = p._hp_mapping
        if mapping is not None:  # else this rank holds nothing of it
            flat, address = flats[mapping.param_group_index], mapping.hp_fragment_address
            weight = flat.detach()[address.start : address.start + address.numel]
            start = mapping.lp_fragment_address.start
            fragments.append(Fragment(name, p.shape, start, weight, flat, address.start, gradient(p, mapping)))
    return fragments


def _stage_3(ds: Any) -> list[Fragment]:
    """Every parameter is cut into equal pieces, the last ranks' padded beyond the parameter's end."""
    zero = ds.optimizer
    rank, ranks = dist.get_rank(), dist.get_world_size()
    places = {id(p): (group, index) for group, params in enumerate(zero.fp16_groups) for index, p in enumerate(params)}

    def gradient(group: int, index: int, length: int) -> Callable[[], Tensor]:
        return lambda: zero.averaged_gradients[group][index].view(-1)[:length]

    fragments = []
    for name, p in ds.module.named_parameters():
        group, index = places[id(p)]
        _, offset, _ = zero.grad_position[zero.get_param_id(p)]
        share = -(-p.ds_numel // ranks)
        length = max(0, min(share, p.ds_numel - rank * share))  # without the padding
        flat = zero.fp32_partitioned_groups_flat[group]
        if length:
            weight = flat.detach()[offset : offset + length]
            place = gradient(group, index, length)
            fragments.append(Fragment(name, p.ds_shape, rank * share, weight, flat, offset, place))
    return fragments
