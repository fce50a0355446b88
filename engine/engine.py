"""The verbs of an update over a DeepSpeed engine, the same in every precision and at every ZeRO stage.

Gradients are clipped and checked here, over fragments (engine/fragments.py), between DeepSpeed's reduction and its step: one
formula, one policy, and the gradient norm is always a plain float. How they make an update is engine/update.py.

Shapes: M micro-steps per rank, b micro-batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.groups import main_group
from configs.plan import Plan
from configs.schema import RunConfig
from configs.tensors import tensor_table
from data.loader import EvalBatch, StepBatch
from engine import zero
from engine.agree import over_ranks
from engine.curvature import Curvature
from engine.ds_config import deepspeed_config
from engine.dtypes import check_dtypes, dtype_name
from engine.fragments import Fragments
from engine.launch import World
from engine.matrices import Matrices
from engine.running_statistics import RunningStatistics
from optim.algorithms import build_optimizer, check_rounding, moments
from optim.rules import Pieces, rule_of
from optim.stochastic import Piece, StochasticRounding, rounding_of, with_rounding

Wish = Callable[[], bool]  # whether this rank wishes to stop


@dataclass(frozen=True)
class Backward:
    """What the forward and backward passes of one update came to.

    `loss`: the mean over the global batch's targets. `stop`: some rank wished to stop; all ranks agree on it. `abandoned`: it
    did between two micro-steps, so that the gradients are not whole.
    """

    loss: float
    stop: bool
    abandoned: bool = False


class Engine:
    """A model under a DeepSpeed engine."""

    def __init__(self, model: nn.Module, config: RunConfig, plan: Plan, world: World) -> None:
        """Wraps a model with float32 weights; the masters keep these exactly, also where the forward pass reads bf16."""
        self.config, self.plan, self.world = config, plan, world
        # Copied before DeepSpeed makes masters of them, which may round.
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.rule = rule_of(config.optim)
        self.rule.on_start(initial)
        by_tensor = config.schedule.match is not None and config.schedule.match.scope == "tensor"
        tensors = tensor_table(config.model)
        optimizer = build_optimizer(dict(model.named_parameters()), tensors, config.optim, by_tensor)
        self.optimizer = with_rounding(optimizer, moments(config.optim), config)
        begun = sum(map(bool, self.optimizer.state.values()))  # torch's Adagrad makes its state at once
        self.ds = zero.initialize(model, self.optimizer, deepspeed_config(config, plan))
        # At stage 0 in half precision DeepSpeed steps once on zero gradients, which decays the weights before the first batch.
        if sum(map(bool, self.optimizer.state.values())) != begun:
            raise RuntimeError("DeepSpeed took an optimiser step before the first batch")
        self.statistics = RunningStatistics(self.ds)  # of batch normalisation
        self.curvature = Curvature(self.ds.module, self.optimizer, config, plan, self._seed_dropout)  # of K-FAC
        self.fragments = Fragments(self.ds, config.parallel.zero_stage, self.optimizer, config.optim)
        self.fragments.init_state()
        self.matrices = (
            Matrices(self.fragments) if config.optim.algorithm == "muon" and self.fragments.sharded else None
        )
        if isinstance(self.optimizer, StochasticRounding):
            local = self.fragments.local
            self.optimizer.know((f.flat, Piece(f.name, f.start, f.offset, f.weight.numel())) for f in local)
        # The initial weights are loaded once more, exactly, and it is checked that the forward pass reads them.
        self.fragments.load("weights", initial.__getitem__)
        self.fragments.refresh()
        self.fragments.check_forward(initial.__getitem__)
        self.fragments.averages.start(config.averages.ema, self.fragments.pieces())
        # The precision is what the live tensors say, not what the configuration asks for.
        self.dtypes = {**self.fragments.dtypes(), **self._forward_dtypes(), "rounding": rounding_of(self.optimizer)}
        check_dtypes(config.precision, self.dtypes)
        check_rounding(self.optimizer, config.optim, self.dtypes["masters"])
        self._gradient_hook: Any = next(self.ds.module.parameters()).register_hook(self._note_gradient)
        self._main_group = main_group(plan.groups)
        # ‖w‖ of what decays: fixed for the run, since which tensors decay does not depend on λ.
        zeros = {override.pattern for override in config.optim.decay_overrides if override.weight_decay == 0}
        decayed = {n: _of(group) not in {"undecayed", *zeros} for n, group in self.fragments.groups_by_name.items()}
        self._decayed = torch.tensor([decayed[name] for name in self.fragments.names], device=self.ds.device)

    def backward(self, batch: StepBatch, wish: Wish) -> Backward:
        """Accumulate the gradients of this rank's inputs and targets, (M, b, …), and reduce them over the ranks."""
        if not self.ds.module.training:  # to set it goes through every module
            self.ds.train()
        inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        micro_steps = len(inputs)
        # DeepSpeed divides by the micro-steps and averages over ranks; this turns both into a sum over global targets.
        scale = micro_steps * self.world.ranks / self.plan.targets_per_step
        total = torch.zeros(2, dtype=torch.float64, device=self.ds.device)
        if self.ds.device.type == "cuda":
            inputs, targets = (half.pin_memory().to(self.ds.device, non_blocking=True) for half in (inputs, targets))
        for m, micro in enumerate(zip(inputs, targets, strict=True)):
            # On a CPU a step can take minutes, and to ask costs no synchronisation.
            if m and self.ds.device.type == "cpu" and self.any_rank(wish()):
                self.statistics.drop()
                return Backward(math.nan, stop=True, abandoned=True)
            self._seed_dropout(batch.step, m * self.world.ranks + self.world.rank)
            loss = self.ds(*micro)
            total[0] += loss.detach()
            self.ds.backward(loss * scale)
            if m + 1 < micro_steps:
                self.ds.step()  # advances DeepSpeed's micro-step count, no update
        # Loss and wishes travel together: one exchange an update.
        total[1] = wish()
        over_ranks(total)
        loss_sum, stops = total.tolist()
        return Backward(loss_sum / self.plan.targets_per_step, stops > 0)

    def gradients(self) -> list[Tensor]:
        """The reduced gradients, a fragment each (n,); of the first update their dtypes are checked against the precision."""
        gradients = self.fragments.gradients()
        if self._gradient_hook is not None:
            self._gradient_hook.remove()
            self._gradient_hook = None
            self.dtypes["accumulation"] = dtype_name(gradients[0].dtype)
            check_dtypes(self.config.precision, self.dtypes)
        return gradients

    def norm(self, gradients: list[Tensor]) -> float:
        """Of the global gradient."""
        return math.sqrt(self.fragments.square_norms(gradients).sum().item())

    def clip(self, gradients: list[Tensor], norm: float) -> None:
        """Scale the gradients, whose norm is `norm`, down to optim.grad_clip; 0 is none."""
        largest = self.config.optim.grad_clip
        if largest and norm > largest:
            torch._foreach_mul_(gradients, largest / (norm + 1e-6))

    def pieces(self, numbers: dict[str, dict[str, float]]) -> Pieces:
        """What the decay rule sees of the model; `numbers` are what it keeps (record/progress.py)."""
        fragments = self.fragments
        return Pieces(
            config=self.config,
            names=[fragment.name for fragment in fragments.local],
            starts=[fragment.start for fragment in fragments.local],
            weights=fragments.weights(),
            groups=fragments.groups_of_pieces,
            group_of=fragments.groups_by_name,
            sizes=fragments.sizes,
            numbers=numbers,
            moment=lambda kind: [fragments.view(fragment, kind) for fragment in fragments.local],
            sums=lambda tensors: fragments.by_name(fragments.sums([tensor] for tensor in tensors)),
            square_norms=lambda tensors: fragments.by_name(fragments.square_norms(tensors)),
            step=lambda: fragments.optimizer_step,
        )

    def apply(self) -> None:
        """The optimiser's step, and DeepSpeed's copies of what it changed."""
        if self.matrices is not None:
            self.matrices.gradients_to_steps()
        self.ds.step()

    def leave_out(self) -> None:
        """End DeepSpeed's step without an update: gradients zero and the optimiser idle, and no statistics move."""
        self.statistics.drop()
        self.fragments.zero_gradients()
        zero.step_without_update(self.ds, self.optimizer)

    def average(self) -> None:
        """Move the weights' averages (averages.ema) on."""
        if self.fragments.averages.kinds:
            self.fragments.averages.update(self.fragments.pieces())

    def any_rank(self, wish: bool) -> bool:
        """Whether any rank wishes; collective."""
        flag = torch.tensor(float(wish), device=self.ds.device)
        over_ranks(flag)
        return flag.item() > 0

    @property
    def lr(self) -> float:
        """The learning rate of the last step, read back from the optimiser; the mean over parameters where they differ."""
        # Where schedule.match gives each tensor a rate of its own, their mean over parameters stands for the run's.
        groups = self.optimizer.param_groups
        rates = {float(group["lr"]) for group in groups}
        if len(rates) == 1:
            return rates.pop()
        sizes = [sum(self.fragments.shapes[name].numel() for name in group["parameter_names"]) for group in groups]
        return sum(group["lr"] * size for group, size in zip(groups, sizes, strict=True)) / sum(sizes)

    @property
    def weight_decay(self) -> float:
        """λ_t of the group that stands for the run (configs/groups.main_group), read back from the optimiser."""
        # Where a rule has laws for parts of a group, the least stands for it: what most of the weights have.
        return float(min(group["decay"] for group in self.optimizer.param_groups if _of(group) == self._main_group))

    def weight_norms(self) -> dict[str, float]:
        """‖w‖₂ of all trainable tensors (""), of those that decay ("decayed"), and of each, tied weights once."""
        squares = self.fragments.square_norms(self.fragments.weights())
        sums = torch.stack([squares.sum(), (squares * self._decayed).sum()])
        names = ("", "decayed", *self.fragments.names)
        return dict(zip(names, torch.cat([sums, squares]).sqrt().tolist(), strict=True))

    @torch.no_grad()
    def evaluate(
        self, batches: list[EvalBatch], wish: Wish = lambda: False, sums: Tensor | None = None
    ) -> dict[str, float] | None:
        """Means over the targets that count, of fixed batches, equally many on every rank: `loss`, and `error` of a classifier.

        Touches no training state: no dropout, no random draw, no gradient. None where a rank wished to stop meanwhile.
        `sums`: zeros, float64 (windows,), filled with each window's summed loss, the same on every rank.
        """
        self.ds.eval()
        names = self.ds.module.measured
        # Sums and count of targets: a mean of means would weigh the last, shorter batch too much.
        total = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.ds.device)
        for batch in batches:
            # All ranks leave together, or one would wait for the others' parameters at stage 3.
            if self.any_rank(wish()):
                self.ds.train()
                return None
            inputs, targets = self.on_device(batch)
            if sums is None and len(names) == 1:
                total[0] += self.ds(inputs, targets)
            else:
                values = self.ds(inputs, targets, by_target=True).view(-1, len(names))
                total[:-1] += values.sum(0)
            if sums is not None:
                # Added in float64 window by window; their float32 sum stays what it is in any other evaluation.
                places, losses = batch.places, values[:, 0].view(len(inputs), -1)
                sums[places.start : places.stop] = losses.double().sum(1)[: len(places)]
            total[-1] += batch.counted
        over_ranks(total)
        if sums is not None:
            over_ranks(sums)  # a window is one rank's alone: the others have zero there
        self.ds.train()
        return dict(zip(names, (total[:-1] / total[-1]).tolist(), strict=True))

    def on_device(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """Inputs and targets where the model is."""
        return torch.from_numpy(batch.inputs).to(self.ds.device), torch.from_numpy(batch.targets).to(self.ds.device)

    @torch.no_grad()
    def _forward_dtypes(self) -> dict[str, str]:
        """The dtypes of a matrix product and of the loss, seen in a forward pass over the model's own example."""
        seen: dict[str, str] = {}
        linear = next(module for module in self.ds.module.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        hook = linear.register_forward_hook(lambda _m, _i, output: seen.update(matmul=dtype_name(output.dtype)))
        self.ds.eval()
        with torch.compiler.set_stance("force_eager"):  # hooks see nothing inside compiled code
            seen["loss"] = dtype_name(self.ds(*self.ds.module.example(self.ds.device)).dtype)
        hook.remove()
        return seen

    def _note_gradient(self, gradient: Tensor) -> None:
        self.dtypes["gradients"] = dtype_name(gradient.dtype)

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        """Masks are a pure function of (seed, step, global micro-step), so nothing about them needs saving."""
        if getattr(self.config.model, "dropout", 0.0):
            key = hashlib.sha256(f"dropout/{self.config.seeds.dropout}/{step}/{micro_step}".encode()).digest()
            torch.manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _of(group: dict[str, Any]) -> str:
    """The decay group that an optimiser's group is, or is a tensor of."""
    name: str = group["name"]
    return name.partition("/")[0]
