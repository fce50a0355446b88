"""K-FAC's measurements in a run (optim/kfac.py): when they are due, over which inputs, and how ranks share them. Collective.

A measurement is a forward pass of its own over the update's whole batch, at the weights before the step, and a backward pass to the
layers' outputs, not to the weights: DeepSpeed's gradients are not touched. The loss's own backward pass would not do: its gradients
are of the data's labels, and of the Fisher and Gauss–Newton metrics others are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import InputError
from configs.plan import Plan
from configs.schema import RunConfig
from data.loader import StepBatch
from engine.agree import on_every_rank, over_ranks
from optim.kfac import KFAC
from optim.kfac_statistics import float32_products, input_products, is_known, output_gradients, output_products


class Curvature:
    """Of another algorithm than K-FAC, nothing: every verb then does nothing."""

    def __init__(
        self,
        network: Any,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        plan: Plan,
        seed_dropout: Callable[[int, int], None],
    ) -> None:
        """InputError for a layer that K-FAC does not know. `seed_dropout(step, global micro-step)`: before each forward pass."""
        self.network, self.config, self.plan, self.seed_dropout = network, config, plan, seed_dropout
        self.kfac = optimizer if isinstance(optimizer, KFAC) else None
        self.modules: dict[str, nn.Module] = {}
        if self.kfac is not None:
            self.modules = {name: network.get_submodule(name) for name in self.kfac.layers}
        for name, module in self.modules.items():
            if not is_known(module):
                raise InputError(
                    f"optim.algorithm kfac knows linear maps and plain convolutions (one group, no dilation, padded with zeros), "
                    f"and {name} is {module}; use adam or sgd"
                )

    def measure(self, batch: StepBatch) -> None:
        """Move the factors on by an update's batch, and make the inverses anew, where that is due."""
        if self.kfac is None:
            return
        section, counts = self.config.optim.kfac, self.kfac.counts
        # Also where there are none: a branch without its trunk's state begins anywhere, and an update may have been left out.
        if not counts["statistics"] or batch.step % section.statistics_every == 0:
            with float32_products():
                self.kfac.fold(self._factors(batch))
        if not counts["inverses"] or batch.step % section.inverses_every == 0:
            self._invert()

    def _factors(self, batch: StepBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """A and S of each layer over the global batch. InputError where one is not finite."""
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        rows: dict[str, int] = {}
        statistics = getattr(self.network, "statistics", None)
        # Running statistics of batch normalisation are of the update's own passes. Hooks see nothing inside compiled code.
        aside = statistics.set_aside() if statistics is not None else nullcontext()
        with aside, torch.compiler.set_stance("force_eager"):
            for m in range(len(batch.inputs)):
                for name, (a, count, s) in self._products(batch, m).items():
                    before = sums.get(name)
                    sums[name] = (a, s) if before is None else (before[0].add_(a), before[1].add_(s))
                    rows[name] = rows.get(name, 0) + count
        # As the loss, S is over targets: a sum divided once is the same for any micro-batch and ranks, but for rounding.
        ranks = dist.get_world_size()
        for name, pair in sums.items():
            for total, count in zip(pair, (rows[name] * ranks, self.plan.targets_per_step), strict=True):
                over_ranks(total)
                total /= count
        if not all(bool(total.isfinite().all()) for pair in sums.values() for total in pair):
            raise InputError(
                f"optim.kfac: the curvature measured in update {batch.step + 1} is not finite, though loss and gradient are; use a "
                "smaller optim.lr, or precision fp32"
            )
        return sums

    def _products(self, batch: StepBatch, m: int) -> dict[str, tuple[Tensor, int, Tensor]]:
        """Of micro-step m, by layer: Σ a aᵀ, how many rows it has, and Σ g gᵀ."""
        device = next(self.network.parameters()).device
        inputs, targets = (torch.from_numpy(half[m]).to(device) for half in (batch.inputs, batch.targets))
        slot = m * dist.get_world_size() + dist.get_rank()  # of the global batch, as data.loader.rank_rows has it
        self.seed_dropout(batch.step, slot)
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
                if name in seen:
                    raise InputError(
                        f"optim.algorithm kfac: layer {name} is used twice in a forward pass, and its factors would be of "
                        "neither use; use adam or sgd"
                    )
                seen[name] = (given[0].detach(), output)

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in self.modules.items()]
        try:
            logits = self.network.logits(inputs).float().flatten(0, -2)  # (N, K)
        finally:
            for hook in hooks:
                hook.remove()
        metric, seed = self.config.optim.kfac.metric, self.config.seeds.data
        v = output_gradients(metric, logits, targets.flatten(), seed, batch.step, slot * targets.numel())
        # To the outputs, and no further.
        gradients = torch.autograd.grad(logits, [seen[name][1] for name in self.modules], v)
        found = {}
        with torch.no_grad():
            for (name, module), g in zip(self.modules.items(), gradients, strict=True):
                found[name] = (*input_products(module, seen[name][0]), output_products(module, g))
        return found

    def _invert(self) -> None:
        """Each rank inverts its share, and sends it to all: less work, and the same bits everywhere."""
        kfac = self.kfac
        assert kfac is not None
        names, ranks = list(kfac.layers), dist.get_world_size()
        on_every_rank(lambda: kfac.invert(names[dist.get_rank() :: ranks]))
        if ranks > 1:
            for i, name in enumerate(names):
                for whole in (kfac.layers[name].a_inverse, kfac.layers[name].s_inverse):
                    dist.broadcast(whole, i % ranks)
        kfac.counts["inverses"] += 1
