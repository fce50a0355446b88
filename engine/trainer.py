"""One optimiser step through DeepSpeed, the same in every precision and at every ZeRO stage.

Gradients are clipped and checked here, over fragments (engine/fragments.py), between DeepSpeed's reduction and its
step: one formula, one policy, and the gradient norm is always a plain float.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.groups import main_group
from configs.plan import Plan
from configs.schema import RunConfig
from configs.tensors import tensor_table
from data.loader import EvalBatch, StepBatch
from engine.ds_config import deepspeed_config
from engine.fragments import Fragments
from engine.launch import World
from engine.precision import check_dtypes, dtype_name
from optim.optimizers import build_optimizer, check_rounding, set_step


@dataclass(frozen=True)
class StepResult:
    """`loss` and `grad_norm` are of the global batch.

    `applied` is False where a non-finite value kept the update back (the weights are as before), and where the step was
    abandoned. `stop`: some rank wished to stop; all ranks agree on it. `abandoned`: it did between two micro-steps; the
    step must be taken again, in a new engine. `skipped`: it was kept back, and the run goes on.
    """

    loss: float
    grad_norm: float
    applied: bool
    stop: bool
    abandoned: bool = False
    skipped: bool = False


class Trainer:
    """A model under a DeepSpeed engine."""

    def __init__(self, model: nn.Module, config: RunConfig, plan: Plan, world: World) -> None:
        """Wraps a model with float32 weights; the masters keep these exactly, also where the forward pass reads bf16."""
        self.config, self.plan, self.world = config, plan, world
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        by_tensor = config.schedule.match is not None and config.schedule.match.scope == "tensor"
        tensors = tensor_table(config.model)
        self.optimizer = build_optimizer(dict(model.named_parameters()), tensors, config.optim, by_tensor)
        self.ds = _initialize(model, self.optimizer, deepspeed_config(config, plan))
        if any(self.optimizer.state.values()):
            raise RuntimeError("DeepSpeed took an optimiser step before the first batch")
        self.fragments = Fragments(self.ds, config.parallel.zero_stage, self.optimizer, config.optim)
        self.fragments.init_state()
        self.fragments.load("weights", initial.__getitem__)
        self.fragments.refresh()
        self.fragments.check_forward(initial.__getitem__)
        self.fragments.averages.start(config.averages.ema, self.fragments.pieces())
        self.dtypes = {**self.fragments.dtypes(), **self._forward_dtypes()}
        check_dtypes(config.precision, self.dtypes)
        check_rounding(self.optimizer, self.dtypes["masters"])
        self._gradient_hook: Any = next(self.ds.module.parameters()).register_hook(self._note_gradient)
        self._main_group = main_group(plan.groups)
        zeros = {override.pattern for override in config.optim.decay_overrides if override.weight_decay == 0}
        decayed = {n: _of(group) not in {"undecayed", *zeros} for n, group in self.fragments.groups().items()}
        self._decayed = torch.tensor([decayed[name] for name in self.fragments.names], device=self.ds.device)

    def step(
        self,
        batch: StepBatch,
        lr: float,
        wish: Callable[[], bool] = lambda: False,
        look: Callable[[list[Tensor]], None] | None = None,
        factors: dict[str, float] | None = None,
    ) -> StepResult:
        """Update `batch.step` (counted from 0), at learning rate `lr`.

        `factors` multiply it, by tensor or ("") for all. `wish()` says whether this rank wishes to stop; `look` is shown the
        gradient fragments before they are clipped.
        """
        loss, stops, abandoned = self._backward(batch, wish)
        if abandoned:
            return StepResult(math.nan, math.nan, applied=False, stop=True, abandoned=True)
        set_step(self.optimizer, self.config, batch.step, lr, factors)
        gradients = self.fragments.gradients()
        if self.config.optim.decay_rule == "l2_loss":
            self._add_penalty(gradients)
        if self._gradient_hook is not None:
            self._check_first_gradients(gradients)
        if look is not None:
            look(gradients)
        grad_norm = math.sqrt(self.fragments.square_norms(gradients).sum().item())
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._leave_out()
            return StepResult(loss, grad_norm, applied=False, stop=stops)
        clip = self.config.optim.grad_clip
        if clip and grad_norm > clip:
            torch._foreach_mul_(gradients, clip / (grad_norm + 1e-6))
        self.ds.step()
        if self.fragments.averages.kinds:
            self.fragments.averages.update(self.fragments.pieces())
        return StepResult(loss, grad_norm, applied=True, stop=stops)

    @torch.no_grad()
    def _add_penalty(self, gradients: list[Tensor]) -> None:
        """The gradient of λ_t‖w‖², for decay_rule l2_loss."""
        groups = self.fragments.groups()
        for gradient, fragment in zip(gradients, self.fragments.local, strict=True):
            gradient.add_(fragment.weight, alpha=2 * groups[fragment.name]["decay"])

    def _leave_out(self) -> None:
        """End DeepSpeed's step without an update: gradients zero and the optimiser idle, so that all it keeps is reset."""
        self.fragments.zero_gradients()
        self.optimizer.step = lambda *_, **__: None  # type: ignore[method-assign]
        try:
            self.ds.step()
        finally:
            del self.optimizer.step

    def any_rank(self, wish: bool) -> bool:
        """Whether any rank wishes; collective."""
        flag = torch.tensor(float(wish), device=self.ds.device)
        dist.all_reduce(flag)
        return flag.item() > 0

    def _backward(self, batch: StepBatch, wish: Callable[[], bool]) -> tuple[float, bool, bool]:
        """Accumulate the update's gradients.

        Returns the mean loss over the global batch's tokens, whether any rank stops, and whether it did in mid-step:
        asked between micro-steps on a CPU, where a step can take minutes and asking costs no synchronisation.
        """
        self.ds.train()
        inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        micro_steps = len(inputs)
        # DeepSpeed divides by the micro-steps and averages over ranks; this turns both into a sum over global tokens.
        scale = micro_steps * self.world.ranks / self.config.batch.tokens_per_step
        total = torch.zeros(2, dtype=torch.float64, device=self.ds.device)
        if self.ds.device.type == "cuda":
            inputs, targets = (half.pin_memory().to(self.ds.device, non_blocking=True) for half in (inputs, targets))
        for m, micro in enumerate(zip(inputs, targets, strict=True)):
            if m and self.ds.device.type == "cpu" and self.any_rank(wish()):
                return math.nan, True, True
            self._seed_dropout(batch.step, m * self.world.ranks + self.world.rank)
            loss = self.ds(*micro)
            total[0] += loss.detach()
            self.ds.backward(loss * scale)
            if m + 1 < micro_steps:
                self.ds.step()  # advances DeepSpeed's micro-step count, no update
        total[1] = wish()
        dist.all_reduce(total)
        loss_sum, stops = total.tolist()
        return loss_sum / self.config.batch.tokens_per_step, stops > 0, False

    @property
    def lr(self) -> float:
        """The learning rate of the last step, read back from the optimiser; the mean over parameters where they differ."""
        groups = self.optimizer.param_groups
        rates = {float(group["lr"]) for group in groups}
        if len(rates) == 1:
            return rates.pop()
        sizes = [sum(self.fragments.shapes[name].numel() for name in group["parameter_names"]) for group in groups]
        return sum(group["lr"] * size for group, size in zip(groups, sizes, strict=True)) / sum(sizes)

    @property
    def weight_decay(self) -> float:
        """λ_t of the group that stands for the run (configs/groups.main_group), read back from the optimiser."""
        return float(next(group["decay"] for group in self.optimizer.param_groups if _of(group) == self._main_group))

    def weight_norms(self) -> dict[str, float]:
        """‖w‖₂ of all trainable tensors (""), of those that decay ("decayed"), and of each, tied weights once."""
        squares = self.fragments.square_norms(self.fragments.weights())
        sums = torch.stack([squares.sum(), (squares * self._decayed).sum()])
        return dict(
            zip(("", "decayed", *self.fragments.names), torch.cat([sums, squares]).sqrt().tolist(), strict=True)
        )

    @torch.no_grad()
    def evaluate(self, batches: list[EvalBatch], wish: Callable[[], bool] = lambda: False) -> float | None:
        """Mean loss over the targets that count, of fixed batches, equally many on every rank.

        Touches no training state: no dropout, no random draw, no gradient. None where a rank wished to stop meanwhile.
        """
        self.ds.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.ds.device)
        for batch in batches:
            if self.any_rank(wish()):
                self.ds.train()
                return None
            total[0] += self.ds(*self.on_device(batch))
            total[1] += batch.counted
        dist.all_reduce(total)
        self.ds.train()
        return (total[0] / total[1]).item()

    def on_device(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """Inputs and targets where the model is."""
        return torch.from_numpy(batch.inputs).to(self.ds.device), torch.from_numpy(batch.targets).to(self.ds.device)

    @torch.no_grad()
    def _forward_dtypes(self) -> dict[str, str]:
        """The dtypes of a matrix product and of the loss, seen in a forward pass over one sequence."""
        seen: dict[str, str] = {}
        linear = next(module for module in self.ds.module.modules() if isinstance(module, nn.Linear))
        hook = linear.register_forward_hook(lambda _m, _i, output: seen.update(matmul=dtype_name(output.dtype)))
        tokens = torch.zeros(1, self.config.model.seq_len, dtype=torch.long, device=self.ds.device)
        self.ds.eval()
        with torch.compiler.set_stance("force_eager"):  # hooks see nothing inside compiled code
            seen["loss"] = dtype_name(self.ds(tokens, tokens).dtype)
        hook.remove()
        return seen

    def _note_gradient(self, gradient: Tensor) -> None:
        self.dtypes["gradients"] = dtype_name(gradient.dtype)

    def _check_first_gradients(self, gradients: list[Tensor]) -> None:
        """The dtypes of what backward produced and of what it was summed in, before the first update."""
        self._gradient_hook.remove()
        self._gradient_hook = None
        self.dtypes["accumulation"] = dtype_name(gradients[0].dtype)
        check_dtypes(self.config.precision, self.dtypes)

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        """Masks are a pure function of (seed, step, global micro-step), so nothing about them needs saving."""
        if self.config.model.dropout:
            key = hashlib.sha256(f"dropout/{self.config.seeds.dropout}/{step}/{micro_step}".encode()).digest()
            torch.manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _of(group: dict[str, Any]) -> str:
    """The decay group that an optimiser's group is, or is a tensor of."""
    name: str = group["name"]
    return name.partition("/")[0]


def _initialize(model: nn.Module, optimizer: torch.optim.Optimizer, ds_config: dict[str, Any]) -> Any:
    """deepspeed.initialize, quiet, and without compiling the CPU communication op."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    if ds_config["zero_optimization"]["stage"] == 3 and (whole := getattr(model, "compiled_modules", ())):
        deepspeed.utils.set_z3_leaf_modules(model, list(whole))  # gathered as one: no hooks inside compiled code
    # An engine that was left behind imports a module while it is collected, and Python 3.11 breaks where that happens inside
    # another import (python#106176). So it is collected now, before DeepSpeed looks for optional packages.
    gc.collect()
    with contextlib.redirect_stdout(io.StringIO()):  # BF16_Optimizer prints its memory use
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
    if dist.get_world_size() == 1 and ds_config["zero_optimization"]["stage"] == 0:
        engine.enable_backward_allreduce = False  # nobody to reduce with: spares two passes over the gradients
    return engine
